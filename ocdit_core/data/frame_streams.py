"""Endless, shuffled streams of frames that can be continued from four numbers.

Of S streams over one data set, stream s takes every S-th frame of a folder, or every S-th shard. What a stream yields
depends on the seed, s, S and the data alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Frame
from ocdit_core.data.shards import OnError, ShardDataset, iterate_shard
from ocdit_core.errors import DataError

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
