"""A run's checkpoints: written whole or not at all, the newest few kept, a damaged one passed over."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ocdit_core.files import replacing

logger = logging.getLogger(__name__)


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state of `step`, and remove all but the newest `keep` checkpoints."""
    path = folder / f"step_{step:08d}.pt"
    with replacing(path) as temporary:
        torch.save(state, temporary)
    for old in sorted(folder.glob("step_*.pt"))[:-keep]:
        old.unlink()
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that can be read, or None."""
    for path in sorted(folder.glob("step_*.pt"), reverse=True):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            logger.warning("%s: not readable (%s), trying the one before", path, error)
    return None
