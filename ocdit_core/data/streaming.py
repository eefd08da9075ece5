"""Training streams: samples mixed from several datasets, split over processes and workers, exactly resumable."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ocdit_core.data.augment import Backgrounds
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Frame
from ocdit_core.data.sampling import SampleSettings, make_sample
from ocdit_core.data.shards import OnError, ShardDataset, iterate_shard
from ocdit_core.data.templates import TemplateCache
from ocdit_core.errors import ConfigError, DataError, LibraryError, OcditError

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


Position = tuple[int, int, int, int]
"""Where a stream stands; (0, 0, 0, 0) is its beginning."""
START: Position = (0, 0, 0, 0)
NO_FRAMES = "no frames"
"""The kind of the DataError that ends a stream: going on would not help."""


class FrameStream(Protocol):
    """What both kinds have in common."""

    position: Position
    """After the frames taken so far; setting it continues from there."""

    def take(self) -> Frame:
        """Return the next frame and go on, past a damaged one as well; raises DataError for that."""


class FolderStream:
    """Frames of an indexable data set (a BOP folder), each once in an epoch, in another order in each.

    Args:
        frames: the data set.
        seed: of the order.
        index: of this stream (s).
        streams: their number (S).
    """

    def __init__(self, frames: BopFolder, *, seed: Sequence[int], index: int, streams: int) -> None:
        self._frames, self._seed, self._index, self._streams = frames, tuple(seed), index, streams
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self.position: Position = START

    def take(self) -> Frame:
        """Return the next frame; raises DataError when it is damaged."""
        epoch, at, *_ = self.position
        order = self._ordered(epoch)
        self.position = (epoch, at + 1, 0, 0) if at + 1 < len(order) else (epoch + 1, 0, 0, 0)
        return self._frames[int(order[at])]

    def _ordered(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([*self._seed, epoch]).permutation(len(self._frames))
            # With more streams than frames, several share one.
            self._order = (epoch, order[self._index % len(order) :: self._streams])
        return self._order[1]


class ShardStream:
    """Frames of shards: shards in random order, each read from its beginning to its end, shuffled in blocks.

    Blocks are read whole and emptied before the next, unlike a buffer that is topped up: so a few numbers say what is
    left. Depth maps and amodal masks are dropped.

    Args:
        dataset: the shards.
        on_error: called for each damaged frame or shard, once.
        seed: of the order.
        index: of this stream (s).
        streams: their number (S); where it is above that of shards, several streams share the frames of one.
        block: frames that are shuffled together, their bytes held in memory.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        on_error: OnError,
        seed: Sequence[int],
        index: int,
        streams: int,
        block: int = 256,
    ) -> None:
        self._dataset, self._on_error = dataset, on_error
        self._seed, self._index, self._streams, self._block_size = tuple(seed), index, streams, block
        # Each shard in so many parts that there is work for all streams.
        self._parts = -(-streams // len(dataset.shards))
        self._order: tuple[int, list[tuple[str, int]]] | None = None
        self.position = START

    @property
    def position(self) -> Position:
        """Epoch, unit (a shard's part) and frame in it where the block begins, and the frames taken from the block."""
        return self._position

    @position.setter
    def position(self, value: Position) -> None:
        self._position = value
        self._block: list[Frame] = []
        self._next: tuple[int, int, int] = value[:3]
        self._open: Iterator[Frame] | None = None

    def take(self) -> Frame:
        """Return the next frame; raises DataError, of the kind NO_FRAMES, when no shard holds one."""
        if not self._block:
            self._fill()
        epoch, unit, record, taken = self._position
        frame = self._block[taken]
        if taken + 1 < len(self._block):
            self._position = (epoch, unit, record, taken + 1)
        else:
            self._block = []
            self._position = (*self._next, 0)
        return frame

    def _fill(self) -> None:
        """Read the block that begins where the position says."""
        begin, taken = self._position[:3], self._position[3]
        # What was damaged in a block that is read again, to go on in its middle, was reported the first time.
        report = self._on_error if taken == 0 else _ignore
        block: list[Frame] = []
        empty_units = 0
        while len(block) < self._block_size:
            epoch, unit, record = self._next
            units = self._units(epoch)
            if self._open is None:
                self._open = self._continued(*units[unit], record, report)
            frame = next(self._open, None)
            if frame is not None:
                block.append(frame)
                empty_units = 0
                self._next = (epoch, unit, record + 1)
                continue
            self._open = None
            empty_units += record == 0
            # Two epochs, since shards come in another order in the next.
            if empty_units >= 2 * len(units):
                raise DataError(f"{self._dataset}: none of the shards holds a whole frame", kind=NO_FRAMES)
            self._next = (epoch, unit + 1, 0) if unit + 1 < len(units) else (epoch + 1, 0, 0)
        rng = np.random.default_rng([*self._seed, self._index, *begin])
        self._block = [block[i] for i in rng.permutation(len(block))]

    def _continued(self, shard: str, part: int, record: int, report: OnError) -> Iterator[Frame]:
        """The frames of a part of a shard after its first `record`, up to which nothing is reported again."""
        reporters = [_ignore if record else report]
        frames = iterate_shard(
            shard,
            dataset=self._dataset.name,
            depth=False,
            amodal=False,
            on_error=lambda error: reporters[-1](error),
        )
        for number, frame in enumerate(itertools.islice(frames, part, None, self._parts), start=1):
            if number > record:
                yield frame
            elif number == record:
                reporters.append(report)

    def _units(self, epoch: int) -> list[tuple[str, int]]:
        """This stream's shares of the shards in an epoch, in the order in which they are read."""
        if self._order is None or self._order[0] != epoch:
            rng, shards = np.random.default_rng([*self._seed, epoch]), self._dataset.shards
            units = [(shards[i], part) for part in range(self._parts) for i in rng.permutation(len(shards))]
            self._order = (epoch, units[self._index :: self._streams])
        return self._order[1]


def _ignore(error: DataError) -> None:
    pass


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


Batch = dict[str, Tensor]
STATE_VERSION = 1


class TrainingLoader:
    """A DataLoader over a training stream that knows what was consumed, however far its workers have read ahead.

    Each sample carries its stream's position from the worker; what a batch that was handed out says is the state.

        loader = TrainingLoader(stream, batch_size=8, workers=2)
        loader.load_state_dict(state)            # when continuing
        for batch in loader:
            ...
            state = loader.state_dict()          # plain numbers and lists: put it into the checkpoint

    Args:
        stream: what to read.
        batch_size: samples in a batch.
        workers: processes that make samples; 0 makes them in this one.
        options: further ones of `torch.utils.data.DataLoader`, such as prefetch_factor and pin_memory.
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
            worker, *position = batch.pop(STATE_KEY)[-1].tolist()
            # New lists each time: a state that was handed out stays as it is.
            positions = [position if i == worker else before for i, before in enumerate(positions)]
            self._positions, self._batches = positions, self._batches + 1
            yield batch

    @property
    def skipped(self) -> int:
        """Damaged frames that the consumed batches had to do without."""
        return sum(position[1] for position in self._positions or [] if position)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on after the batches handed out so far, of this process alone."""
        stream = self.stream
        return {
            "version": STATE_VERSION,
            "seed": stream.seed,
            "rank": stream.rank,
            "world": stream.world,
            "workers": self.workers,
            "sources": [source.frames.name for source in stream.sources],
            "batches": self._batches,
            "positions": self._positions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken; another batch size is possible.

        Raises:
            ConfigError: the state is of another seed, other data, or other numbers of processes or workers, whose
                streams divide the data differently.
        """
        own = self.state_dict()
        for name in ("version", "seed", "rank", "world", "workers", "sources"):
            if state.get(name) != own[name]:
                raise ConfigError(
                    f"{name}: the training stream was saved with {state.get(name)!r}, now it is {own[name]!r}; "
                    "continue with the same, or start a stream with another seed"
                )
        self._batches, self._positions = state["batches"], state["positions"]


def _stacked(samples: list[Batch]) -> Batch:
    """A batch without torch's threads: on a busy machine they wait longer for each other than copying takes."""
    return {name: torch.from_numpy(np.stack([sample[name].numpy() for sample in samples])) for name in samples[0]}


def _last_line(error: OcditError) -> str:
    """The error's own line: DataLoader puts the worker's whole traceback before it."""
    line = str(error).strip().splitlines()[-1]
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return line.removeprefix(name)
