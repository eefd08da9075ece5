"""Identity over a video: instances of one object get the same number from frame to frame."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import Box, mask_iou

if TYPE_CHECKING:
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.targets import EncodedObjects


@dataclasses.dataclass
class _Track:
    """An instance as it was last seen, and the number of frames since then."""

    number: int
    instance: Instance
    unseen: int = 0


class Tracker:
    """Numbers the instances of one video; several trackers, one for each video, may share a segmenter.

    Each frame is segmented on its own. A tracker must not be used by several threads at once.

    Args:
        segmenter: model, settings and default targets.
        numbers: rising numbers of new instances, by default 1, 2, ...; trackers that share it use no number twice.
    """

    def __init__(self, segmenter: Segmenter, numbers: Iterator[int] | None = None) -> None:
        self._segmenter = segmenter
        self._settings = segmenter.settings.track
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._tracks: list[_Track] = []
        self._size: tuple[int, ...] = ()

    def reset(self) -> None:
        """Forget all instances: the next frame is the first one of another video."""
        self._tracks = []

    def segment(self, image: np.ndarray, objects: EncodedObjects | None = None) -> Segmentation:
        """Segment the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: target objects, by default those of `Segmenter.set_objects`.

        Returns:
            The result of `Segmenter.segment`; instances have a `track_id`.

        Raises:
            ImageError: `image` is not an image.
            OcditError: no target objects have been set.
        """
        return self.update(self._segmenter.segment(image, objects))

    def update(self, result: Segmentation) -> Segmentation:
        """Return the result of the next frame with a `track_id` for each instance.

        A frame of another size than the one before starts another video.
        """
        if result.image_size != self._size:
            self.reset()
        self._size = result.image_size
        numbers: dict[int, int] = {}
        for track in self._tracks:
            track.unseen += 1
        known = [track.instance for track in self._tracks]
        for index, number in match(known, result.instances, self._settings.max_distance):
            track = self._tracks[index]
            track.instance, track.unseen = result.instances[number], 0
            numbers[number] = track.number
        for number, instance in enumerate(result.instances):
            if number not in numbers:
                numbers[number] = next(self._numbers)
                self._tracks.append(_Track(numbers[number], instance))
        self._tracks = [track for track in self._tracks if track.unseen <= self._settings.keep]
        named = (
            dataclasses.replace(instance, track_id=numbers[number]) for number, instance in enumerate(result.instances)
        )
        return dataclasses.replace(result, instances=tuple(named))


def match(before: Sequence[Instance], now: Sequence[Instance], max_distance: float) -> list[tuple[int, int]]:
    """Return pairs of indices of instances of the same object, each in one pair at most.

    Greedy: by falling overlap of the masks, and where they do not overlap by rising distance of the boxes' centres, up
    to `TrackSettings.max_distance`.
    """
    pairs = []
    for i, old in enumerate(before):
        for j, new in enumerate(now):
            if old.object_id == new.object_id:
                overlap, distance = mask_iou(old.mask, new.mask), _distance(old.box, new.box)
                reach = max_distance * max(float(np.hypot(*box[2:])) for box in (old.box, new.box))
                if overlap > 0 or distance <= reach:
                    pairs.append((-overlap, distance, i, j))
    chosen: list[tuple[int, int]] = []
    for _, _, i, j in sorted(pairs):
        if all(i != old and j != new for old, new in chosen):
            chosen.append((i, j))
    return chosen


def _distance(a: Box, b: Box) -> float:
    """Return the distance of two boxes' centres in pixels."""
    return float(np.hypot(a[0] + a[2] / 2 - b[0] - b[2] / 2, a[1] + a[3] / 2 - b[1] - b[3] / 2))
