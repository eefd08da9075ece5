"""Numbers of instances: the detections' ids, and the pixels of the label image. No ROS in here."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocdit_core.inference.results import Instance

MAX_MONO16 = 65535
"""The largest number that is a pixel of a mono16 image."""

KEPT_TRACKS = 4096


class InstanceNumbers:
    """Numbers that go on from frame to frame, for all cameras and services of a node.

    Safe to use from several threads.

    Args:
        reuse: whether 1 comes after 65535. Without tracking, thirty frames a second use that up in minutes, and a
            number means something on one frame only. With it, a number is never used again.
        first: the first one.
    """

    def __init__(self, *, reuse: bool, first: int = 1):
        self.reuse = reuse
        self._next = first
        self._lock = threading.Lock()

    def take(self, count: int) -> list[int]:
        """Return the next `count` numbers, all different.

        Raises:
            ValueError: more than 65535 at once, where they are used again.
        """
        if self.reuse and count > MAX_MONO16:
            raise ValueError(f"{count} instances on one frame: at most {MAX_MONO16} can be numbered")
        with self._lock:
            first = self._next
            self._next += count
        if not self.reuse:
            return list(range(first, first + count))
        return [(number - 1) % MAX_MONO16 + 1 for number in range(first, first + count)]


class Numbering:
    """Which number each instance of one camera has: its track's, if it is tracked, else a new one.

    The tracker's own numbers will not do: they begin anew when the network is loaded again.

    Args:
        numbers: of the node.
    """

    def __init__(self, numbers: InstanceNumbers):
        self._numbers = numbers
        self._of_track: OrderedDict[int, int] = OrderedDict()

    def __call__(self, instances: Sequence[Instance]) -> list[int]:
        """Return the number of each instance of the next frame."""
        return [self._number(instance.track_id) for instance in instances]

    def _number(self, track: int | None) -> int:
        if track is None:
            return self._numbers.take(1)[0]
        if track not in self._of_track:
            self._of_track[track] = self._numbers.take(1)[0]
            if len(self._of_track) > KEPT_TRACKS:
                self._of_track.popitem(last=False)
        self._of_track.move_to_end(track)
        return self._of_track[track]
