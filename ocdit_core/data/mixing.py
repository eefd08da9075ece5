"""The training stream: samples from several data sets mixed by weights, split over processes, exactly resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ocdit_core.data.augment import Backgrounds
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame_streams import NO_FRAMES, FolderStream, FrameStream, ShardStream
from ocdit_core.data.sampling import SampleSettings, make_sample
from ocdit_core.data.shards import OnError, ShardDataset
from ocdit_core.data.skipping import SkipCounter
from ocdit_core.data.template_cache import TemplateCache
from ocdit_core.errors import ConfigError, DataError, LibraryError

STATE_KEY = "stream_state"
"""Where a sample tells how its stream stands after it; `TrainingLoader` takes it out."""

_MOST_UNUSABLE = 1000


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set of a mixture.

    Attributes:
        frames: a BOP folder, or shards.
        templates: of its objects.
        weight: its share of the samples, relative to the others' weights.
    """

    frames: BopFolder | ShardDataset
    templates: TemplateCache
    weight: float = 1.0


@dataclass
class _Position:
    """Where one worker's stream stands."""

    draws: int
    """Frames drawn so far, used or not: what the randomness of the next sample goes by."""
    skipped: int
    """Those of them that were damaged."""
    frames: list[tuple[int, int, int, int]]
    """Of each source's frame stream."""

    def pack(self) -> list[int]:
        return [self.draws, self.skipped, *(number for position in self.frames for number in position)]

    def unpack(self, numbers: Sequence[int]) -> None:
        self.draws, self.skipped, *rest = numbers
        self.frames = [(a, b, c, d) for a, b, c, d in zip(*(rest[i::4] for i in range(4)), strict=True)]


class TrainingStream(IterableDataset[dict[str, Tensor]]):
    """Endless samples of `make_sample`, the same for the same settings, seed and numbers of processes and workers.

    Each loader worker of each process has a stream of its own over its part of the data; nothing depends on timing.
    To save and continue where training stands, read it through a `TrainingLoader`.

    Args:
        sources: the data sets.
        settings: what samples hold.
        seed: of everything.
        rank: the number of this process among those that train together.
        world: how many these are.
        max_skip_share: a worker that has to skip more damaged frames than this share, of 100 or more, stops the run.
        block: frames of shards that are shuffled together.

    Raises:
        ConfigError: no source, a weight below 0, a library with too few objects, or templates of another size.
        DataError: a data set without frames, or no background pictures.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        settings: SampleSettings,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        max_skip_share: float = 0.05,
        block: int = 256,
    ) -> None:
        weights = np.array([source.weight for source in sources], float)
        if not len(weights) or not (np.isfinite(weights) & (weights >= 0)).all() or weights.sum() <= 0:
            raise ConfigError(f"weights: {weights.tolist()} have to be 0 or more, and not all 0")
        for source in sources:
            if len(source.templates) < settings.objects:
                raise ConfigError(
                    f"objects: samples ask for {settings.objects}, "
                    f"{source.templates.library.path} holds {len(source.templates)}"
                )
            if source.templates.size != settings.template_size:
                raise ConfigError(
                    f"template_size: {settings.template_size} wanted, the cache of "
                    f"{source.templates.library.path} makes {source.templates.size}"
                )
        if not 0 <= rank < world:
            raise ConfigError(f"rank: {rank} is not in 0..{world - 1}")
        self.sources, self.settings = list(sources), settings
        self.seed, self.rank, self.world = seed, rank, world
        self.max_skip_share, self.block = max_skip_share, block
        self._shares = weights / weights.sum()
        self._backgrounds = Backgrounds(settings.augment.backgrounds)
        self._positions: list[list[int]] | None = None
        self._first_worker = 0

    def start_from(self, positions: list[list[int]] | None, first_worker: int) -> None:
        """Let the next iteration go on: from `positions`, one for each worker, None for the beginning.

        Loaders ask their workers in turn; `first_worker` is whose turn it is.
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
        counter = SkipCounter(max_skip_share=self.max_skip_share)
        position = _Position(0, 0, [])

        def skip(error: DataError) -> None:
            position.skipped += 1
            counter.skip(error)

        frames = [self._frame_stream(number, index, streams, skip) for number in range(len(self.sources))]
        position.frames = [stream.position for stream in frames]
        if self._positions is not None and self._positions[worker]:
            position.unpack(self._positions[worker])
            for stream, at in zip(frames, position.frames, strict=True):
                stream.position = at
        unusable = 0
        while True:
            rng = np.random.default_rng([self.seed, index, position.draws])
            chosen = int(rng.choice(len(frames), p=self._shares))
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
                if unusable >= _MOST_UNUSABLE:
                    raise DataError(
                        f"{unusable} frames in a row show no object with templates that is seen enough "
                        f"(min_visible {self.settings.min_visible}, min_box {self.settings.min_box})",
                        kind="nothing seen",
                    )
                continue
            unusable = 0
            counter.use()
            sample[STATE_KEY] = torch.tensor([worker, *position.pack()], dtype=torch.int64)
            yield sample

    def _sample(
        self, stream: FrameStream, templates: TemplateCache, rng: np.random.Generator
    ) -> dict[str, Tensor] | None:
        try:
            return make_sample(stream.take(), templates, self.settings, rng, self._backgrounds)
        except LibraryError as error:
            raise DataError(str(error), kind="damaged templates") from error

    def _frame_stream(self, number: int, index: int, streams: int, skip: OnError) -> FrameStream:
        frames = self.sources[number].frames
        seed = (self.seed, number)
        if isinstance(frames, ShardDataset):
            return ShardStream(frames, on_error=skip, seed=seed, index=index, streams=streams, block=self.block)
        return FolderStream(frames, seed=seed, index=index, streams=streams)
