"""Endless training samples by number, mixed from several datasets, in batches for each of several processes."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from ocdit_core.data.dataset import Dataset
from ocdit_core.data.sampling import MIN_BOX, MIN_VISIBLE, Mode, SampleSettings, make_sample
from ocdit_core.data.templates import TemplateCache
from ocdit_core.errors import ConfigError, DataError, LibraryError, OcditError

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]

MAX_SKIPPED, MIN_JUDGED = 0.05, 100
"""A worker that skips more than this fraction of its frames, of at least MIN_JUDGED, ends the run."""
MAX_UNUSABLE = 1000
"""Frames in a row that give no sample, before the run ends."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One dataset of a mixture.

    Attributes:
        frames: the dataset.
        templates: templates of its objects.
        weight: sampling weight, relative to those of the other datasets.
    """

    frames: Dataset
    templates: TemplateCache
    weight: float = 1.0


class TrainingSamples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Endless samples; sample k depends on the data, the settings, the seed and k alone.

    Hence the samples do not depend on the number of processes and loader workers, and a run continues at any sample.

    Args:
        sources: the datasets.
        settings: what samples hold.
        mode: coarse or refine.
        image_size: height and width in pixels of the images.
        seed: random seed.

    Attributes:
        used: number of samples made by this process.
        skipped: number of damaged frames skipped by this process, by the kind of the error.

    Raises:
        ConfigError: no source, a negative weight, or a library with too few objects.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        settings: SampleSettings,
        *,
        mode: Mode,
        image_size: tuple[int, int],
        seed: int = 0,
    ) -> None:
        weights = np.array([source.weight for source in sources], float)
        if not len(weights) or not (np.isfinite(weights) & (weights >= 0)).all() or weights.sum() <= 0:
            raise ConfigError(f"weights: {weights.tolist()} must not be negative, nor all 0")
        for source in sources:
            if len(source.templates) < settings.objects:
                raise ConfigError(
                    f"objects: samples ask for {settings.objects}, {source.templates.library.path} holds "
                    f"{len(source.templates)}"
                )
        self._sources, self._settings, self._mode, self._size = list(sources), settings, mode, image_size
        self._seed, self._probabilities = seed, weights / weights.sum()
        self.used = 0
        self.skipped: Counter[str] = Counter()

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Return sample `number`, see `make_sample`; a damaged or empty frame is replaced by the next one.

        Raises:
            DataError: too large a fraction of the frames is damaged, or MAX_UNUSABLE in a row show no object.
        """
        for attempt in range(MAX_UNUSABLE):
            rng = np.random.default_rng([self._seed, number, attempt])
            chosen = int(rng.choice(len(self._sources), p=self._probabilities))
            source = self._sources[chosen]
            try:
                frame = source.frames.draw((self._seed, chosen), number + attempt)
                sample = make_sample(frame, source.templates, self._settings, rng, mode=self._mode, size=self._size)
            except (DataError, LibraryError) as error:
                self._skip(error)
                continue
            if sample is not None:
                self.used += 1
                return sample
        raise DataError(
            f"{MAX_UNUSABLE} frames in a row show no object with templates of which {MIN_VISIBLE:.0%} and {MIN_BOX} "
            "pixels are visible"
        )

    def _skip(self, error: DataError | LibraryError) -> None:
        """Count a damaged frame, and log the first one of each kind."""
        kind = error.kind if isinstance(error, DataError) else "damaged templates"
        if not self.skipped[kind]:
            logger.warning("skipped (%s; more of this kind are only counted): %s", kind, error)
        self.skipped[kind] += 1
        skipped = self.skipped.total()
        seen = skipped + self.used
        if seen >= MIN_JUDGED and skipped > MAX_SKIPPED * seen:
            counts = ", ".join(f"{kind} {count}" for kind, count in self.skipped.most_common())
            raise DataError(
                f"{skipped} of {seen} samples cannot be used ({counts}), more than the {MAX_SKIPPED:.0%} that are "
                f"allowed; the last: {error}"
            ) from error


def load_batches(
    samples: TrainingSamples,
    size: int,
    *,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    workers: int = 0,
    **options: Any,
) -> Iterator[Batch]:
    """Yield a process's batches; its batch b is the (b world + rank)-th of the whole run.

    Args:
        samples: the samples.
        size: samples in a batch.
        rank: number of this process among those that train together.
        world: how many these are.
        start: number of the first batch.
        workers: processes that make samples; 0 makes them in this one.
        options: further options of `torch.utils.data.DataLoader`, such as prefetch_factor and pin_memory.

    Yields:
        The dict of `make_sample`, each tensor with a batch dimension before it.

    Raises:
        DataError: too many frames are damaged, or none can be used; one line, also from a worker.
    """
    order = (range(first, first + size) for first in itertools.count((start * world + rank) * size, world * size))
    if workers == 0:
        options.setdefault("collate_fn", _stacked)
    batches = iter(torch.utils.data.DataLoader(samples, batch_sampler=order, num_workers=workers, **options))  # type: ignore[arg-type]
    while True:
        try:
            batch = next(batches)
        except OcditError as error:
            # DataLoader puts the worker's whole traceback before the error's own line.
            line = str(error).strip().splitlines()[-1]
            raise DataError(line.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")) from error
        yield batch


def _stacked(samples: list[Batch]) -> Batch:
    """Stack samples without torch's threads: on a busy machine waiting for them takes longer than copying."""
    return {name: torch.from_numpy(np.stack([sample[name].numpy() for sample in samples])) for name in samples[0]}
