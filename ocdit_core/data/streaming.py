"""Training streams: samples mixed from several datasets, split over processes and workers, exactly resumable."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ocdit_core.data.augment import Backgrounds
from ocdit_core.data.dataset import Dataset
from ocdit_core.data.frame import NO_FRAMES, FrameStream
from ocdit_core.data.sampling import MIN_BOX, MIN_VISIBLE, SampleSettings, make_sample
from ocdit_core.data.templates import TemplateCache
from ocdit_core.errors import ConfigError, DataError, LibraryError, OcditError

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]

MAX_SKIPPED, MIN_JUDGED = 0.05, 100
"""A worker that skips more than this fraction of its frames, of at least MIN_JUDGED, ends the run."""
MAX_UNUSABLE = 1000
"""Sound frames in a row that show no object well enough, before the run ends."""

_STATE_VERSION = 1
_STATE_KEY = "stream_state"  # where a sample holds the position of its stream after it; `TrainingLoader` removes it


class SkipCounter:
    """Count used and skipped samples; the first of each kind is logged, and too many end the run.

    Attributes:
        used: number of samples used.
        skipped: number of samples skipped, by the kind of the error.
    """

    def __init__(self) -> None:
        self.used = 0
        self.skipped: Counter[str] = Counter()

    def skip(self, error: DataError) -> None:
        """Count a sample that cannot be used.

        Raises:
            DataError: too large a fraction was skipped; the message holds all counts and this last error.
        """
        if not self.skipped[error.kind]:
            logger.warning("skipped (%s; more of this kind are only counted): %s", error.kind, error)
        self.skipped[error.kind] += 1
        skipped = self.skipped.total()
        seen = skipped + self.used
        if seen >= MIN_JUDGED and skipped > MAX_SKIPPED * seen:
            counts = ", ".join(f"{kind} {count}" for kind, count in self.skipped.most_common())
            raise DataError(
                f"{skipped} of {seen} samples cannot be used ({counts}), more than the {MAX_SKIPPED:.0%} that are "
                f"allowed; the last: {error}",
                kind="too many skipped",
            ) from error


@dataclass(frozen=True, kw_only=True)
class Source:
    """One dataset of a mixture.

    Attributes:
        frames: the dataset.
        templates: templates of its objects.
        weight: its fraction of the samples, relative to the others' weights.
    """

    frames: Dataset
    templates: TemplateCache
    weight: float = 1.0


@dataclass
class _Position:
    """The position of one worker's stream: frames drawn so far, how many were damaged, and each frame stream's own.

    The number of frames drawn, used or not, seeds the next sample.
    """

    draws: int
    skipped: int
    frames: list[tuple[int, int, int, int]]

    def pack(self) -> list[int]:
        return [self.draws, self.skipped, *(number for position in self.frames for number in position)]

    def unpack(self, numbers: Sequence[int]) -> None:
        self.draws, self.skipped, *rest = numbers
        self.frames = [(a, b, c, d) for a, b, c, d in zip(*(rest[i::4] for i in range(4)), strict=True)]


class TrainingStream(IterableDataset[dict[str, Tensor]]):
    """Endless samples of `make_sample`, the same for the same settings, seed and numbers of processes and workers.

    Each loader worker of each process has a stream of its own over its part of the data; nothing depends on timing.
    Read it through a `TrainingLoader` to save and continue its position.

    Args:
        sources: the datasets.
        settings: what samples hold.
        seed: random seed of order and samples.
        rank: number of this process among those that train together.
        world: how many these are.

    Raises:
        ConfigError: no source, a negative weight, a library with too few objects, or templates of another size.
        DataError: a dataset without frames, or no background images.
    """

    def __init__(
        self, sources: Sequence[Source], settings: SampleSettings, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        weights = np.array([source.weight for source in sources], float)
        if not len(weights) or not (np.isfinite(weights) & (weights >= 0)).all() or weights.sum() <= 0:
            raise ConfigError(f"weights: {weights.tolist()} have to be 0 or more, and not all 0")
        for source in sources:
            library = source.templates.library.path
            if len(source.templates) < settings.objects:
                raise ConfigError(
                    f"objects: samples ask for {settings.objects}, {library} holds {len(source.templates)}"
                )
            if source.templates.size != settings.template_size:
                raise ConfigError(
                    f"template_size: {settings.template_size} wanted, the cache of {library} makes "
                    f"{source.templates.size}"
                )
        if not 0 <= rank < world:
            raise ConfigError(f"rank: {rank} is not in 0..{world - 1}")
        self.sources, self.settings = list(sources), settings
        self.seed, self.rank, self.world = seed, rank, world
        self.restart: tuple[int, ...] = ()  # distinguishes the order after a new division of the data
        self._probabilities = weights / weights.sum()
        self._backgrounds = Backgrounds(settings.augment.backgrounds)
        self._positions: list[list[int]] | None = None
        self._first_worker = 0

    def start_from(self, positions: list[list[int]] | None, first_worker: int) -> None:
        """Let the next iteration continue from `positions`, one for each worker; None: from the beginning.

        Loaders ask their workers in turn; `first_worker` is the next.
        """
        self._positions, self._first_worker = positions, first_worker

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        if worker is None:
            return self._samples(0, 1)
        cv2.setNumThreads(0)  # workers are parallel enough, and OpenCV's threads do not survive a fork
        return self._samples((worker.id + self._first_worker) % worker.num_workers, worker.num_workers)

    def _samples(self, worker: int, workers: int) -> Iterator[dict[str, Tensor]]:
        index, streams = self.rank * workers + worker, self.world * workers
        counter = SkipCounter()
        position = _Position(0, 0, [])

        def skip(error: DataError) -> None:
            position.skipped += 1
            counter.skip(error)

        frames = [
            source.frames.stream(seed=(self.seed, *self.restart, number), index=index, streams=streams, on_error=skip)
            for number, source in enumerate(self.sources)
        ]
        position.frames = [stream.position for stream in frames]
        if self._positions is not None and self._positions[worker]:
            position.unpack(self._positions[worker])
            for stream, at in zip(frames, position.frames, strict=True):
                stream.position = at
        unusable = 0
        while True:
            rng = np.random.default_rng([self.seed, *self.restart, index, position.draws])
            chosen = int(rng.choice(len(frames), p=self._probabilities))
            position.draws += 1
            try:
                sample = self._sample(frames[chosen], self.sources[chosen].templates, rng)
            except DataError as error:
                if error.kind == NO_FRAMES:
                    raise
                skip(error)
                continue
            finally:
                position.frames[chosen] = frames[chosen].position
            if sample is None:
                unusable += 1
                if unusable >= MAX_UNUSABLE:
                    raise DataError(
                        f"{unusable} frames in a row show no object with templates of which {MIN_VISIBLE:.0%} and "
                        f"{MIN_BOX} pixels are visible",
                        kind="nothing visible",
                    )
                continue
            unusable = 0
            counter.used += 1
            sample[_STATE_KEY] = torch.tensor([worker, *position.pack()], dtype=torch.int64)
            yield sample

    def _sample(
        self, stream: FrameStream, templates: TemplateCache, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        try:
            return make_sample(stream.take(), templates, self.settings, rng, self._backgrounds)
        except LibraryError as error:
            raise DataError(str(error), kind="damaged templates") from error


class TrainingLoader:
    """A DataLoader over a training stream that knows what was consumed, however far its workers have read ahead.

    Each sample carries its stream's position from the worker; the state is that of the batches handed out.

        loader = TrainingLoader(stream, batch_size=8, workers=2)
        loader.load_state_dict(state)            # when continuing
        for batch in loader:
            ...
            state = loader.state_dict()          # plain numbers and lists, for the checkpoint

    Args:
        stream: what to read.
        batch_size: samples in a batch.
        workers: processes that make samples; 0 makes them in this one.
        options: further options of `torch.utils.data.DataLoader`, such as prefetch_factor and pin_memory.
    """

    def __init__(self, stream: TrainingStream, *, batch_size: int, workers: int = 0, **options: Any) -> None:
        self.stream, self.batch_size, self.workers, self._options = stream, batch_size, workers, options
        self._positions: list[list[int]] | None = None
        self._batches = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches: the dict of `make_sample`, each tensor with a batch dimension before it.

        Raises:
            DataError: too many frames are damaged, or none can be used; one line, also from a worker.
        """
        self.stream.start_from(self._positions, self._batches % max(self.workers, 1))
        positions = self._positions or [[]] * max(self.workers, 1)
        options = {"batch_size": self.batch_size, "num_workers": self.workers, **self._options}
        if self.workers == 0:
            options.setdefault("collate_fn", _stacked)
        batches = iter(DataLoader(self.stream, **options))
        while True:
            try:
                batch = next(batches)
            except OcditError as error:
                raise DataError(_last_line(error)) from error
            worker, *position = batch.pop(_STATE_KEY)[-1].tolist()
            # New lists each time: a state that was handed out stays as it is.
            positions = [position if i == worker else before for i, before in enumerate(positions)]
            self._positions, self._batches = positions, self._batches + 1
            yield batch

    @property
    def skipped(self) -> int:
        """Number of damaged frames that were skipped for the consumed batches."""
        return sum(position[1] for position in self._positions or [] if position)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to continue after the batches handed out so far by this process."""
        stream = self.stream
        return {
            "version": _STATE_VERSION,
            "seed": stream.seed,
            "rank": stream.rank,
            "world": stream.world,
            "workers": self.workers,
            "sources": [source.frames.name for source in stream.sources],
            "restart": list(stream.restart),
            "batches": self._batches,
            "positions": self._positions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration continue where `state` was taken; the batch size may differ.

        Other numbers of processes or workers divide the data differently: then it continues in a new order.

        Raises:
            ConfigError: the state belongs to another seed or other data.
        """
        own = self.state_dict()
        for name in ("version", "seed", "sources"):
            if state[name] != own[name]:
                raise ConfigError(f"{name}: the data was saved with {state[name]!r}, now it is {own[name]!r}")
        self._batches, self._positions = state["batches"], state["positions"]
        self.stream.restart = tuple(state.get("restart", ()))
        if any(state[name] != own[name] for name in ("rank", "world", "workers")):
            logger.warning("other processes or workers than before: the data continues in a new order")
            self.stream.restart, self._positions = (self._batches,), None


def _stacked(samples: list[Batch]) -> Batch:
    """Stack samples without torch's threads: on a busy machine waiting for them takes longer than copying."""
    return {name: torch.from_numpy(np.stack([sample[name].numpy() for sample in samples])) for name in samples[0]}


def _last_line(error: OcditError) -> str:
    """Return the error's own line: DataLoader puts the worker's whole traceback before it."""
    line = str(error).strip().splitlines()[-1]
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return line.removeprefix(name)
