"""Counting what could not be used, so that a few damaged files stop no run and many do."""

from __future__ import annotations

import logging
from collections import Counter

from ocdit_core.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class SkipCounter:
    """Counts used and skipped samples; the first of each kind is logged, and too many end the run.

    Args:
        max_skip_share: more than this share of skipped samples raises; 1 never does.
        minimum: samples, used and skipped, before the share is judged.

    Attributes:
        used: how many samples were used.
        skipped: how many were skipped, by the kind of the error.

    Raises:
        ConfigError: a share outside 0 .. 1.
    """

    def __init__(self, *, max_skip_share: float = 0.05, minimum: int = 100) -> None:
        if not 0 <= max_skip_share <= 1:
            raise ConfigError(f"max_skip_share: {max_skip_share} is not within 0 to 1")
        self.max_skip_share = max_skip_share
        self.minimum = minimum
        self.used = 0
        self.skipped: Counter[str] = Counter()

    def use(self, count: int = 1) -> None:
        """Note samples that were used."""
        self.used += count

    def skip(self, error: DataError) -> None:
        """Note a sample that cannot be used.

        Raises:
            DataError: too large a share was skipped; the message holds all counts and this last error.
        """
        if not self.skipped[error.kind]:
            logger.warning("skipped (%s; more of this kind are only counted): %s", error.kind, error)
        self.skipped[error.kind] += 1
        bad = self.skipped.total()
        seen = bad + self.used
        if seen >= self.minimum and bad > self.max_skip_share * seen:
            raise DataError(
                f"{bad} of {seen} samples cannot be used ({self}), more than the {self.max_skip_share:.0%} that are "
                f"allowed; the last: {error}",
                kind="too many skipped",
            ) from error

    def __str__(self) -> str:
        return ", ".join(f"{kind} {count}" for kind, count in self.skipped.most_common()) or "none skipped"
