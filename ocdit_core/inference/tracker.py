"""Identity over a video: instances of one object keep their id from frame to frame."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from ocdit_core.errors import OcditError
from ocdit_core.images import as_rgb8
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.inference.settings import TrackSettings
from ocdit_core.masks import Box, mask_iou
from ocdit_core.models.matching_prior import fine_bins, fine_histograms

if TYPE_CHECKING:
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.targets import EncodedObjects

# A smaller mask is compared with its outermost pixels, which show the background, too; of a larger one, a sample.
_MIN_PIXELS, _MAX_PIXELS = 50, 10_000


@dataclasses.dataclass
class Track:
    """An instance as it was last seen.

    Attributes:
        number: its id.
        instance: the instance.
        colours: (bins,) colour histogram, see `colour_histogram`.
        unseen: number of frames since then.
    """

    number: int
    instance: Instance
    colours: np.ndarray
    unseen: int = 0


class Tracker:
    """Numbers the instances of one video; several trackers, one for each video, may share a segmenter.

    Each frame is segmented on its own. A tracker must not be used by several threads at once.

    Args:
        segmenter: model, settings and default targets; or the settings alone, for `update`.
        numbers: rising numbers of new instances, by default 1, 2, ...; trackers that share it use no number twice.
    """

    def __init__(self, segmenter: Segmenter | TrackSettings, numbers: Iterator[int] | None = None) -> None:
        self._segmenter = None if isinstance(segmenter, TrackSettings) else segmenter
        self._settings = segmenter if isinstance(segmenter, TrackSettings) else segmenter.settings.track
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._tracks: list[Track] = []
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
            OcditError: no target objects have been set, or there is no segmenter.
        """
        if self._segmenter is None:
            raise OcditError("this tracker has settings alone: give it a segmenter, or results to `update`")
        return self.update(self._segmenter.segment(image, objects), image)

    def update(self, result: Segmentation, image: np.ndarray) -> Segmentation:
        """Return the result of the next frame with a `track_id` for each instance.

        A frame of another size than the one before starts another video.

        Args:
            result: the result.
            image: (H, W, 3) uint8 RGB, the frame.
        """
        if result.image_size != self._size:
            self.reset()
        self._size = result.image_size
        image = as_rgb8(image)
        for track in self._tracks:
            track.unseen += 1
        now = [Track(0, instance, colour_histogram(image, instance)) for instance in result.instances]
        for index, number in match(self._tracks, now, self._settings):
            now[number].number = self._tracks[index].number
        for track in now:
            track.number = track.number or next(self._numbers)
        found = {track.number for track in now}
        lost = [t for t in self._tracks if t.number not in found and t.unseen <= self._settings.keep]
        self._tracks = lost + now
        named = (dataclasses.replace(track.instance, track_id=track.number) for track in now)
        return dataclasses.replace(result, instances=tuple(named))


def match(before: Sequence[Track], now: Sequence[Track], settings: TrackSettings) -> list[tuple[int, int]]:
    """Return pairs of indices of instances of the same object, each in one pair at most.

    Only instances that are near to each other and look alike (see `TrackSettings`) are paired. Greedy: by falling
    overlap of the masks, and where they do not overlap by rising distance of the boxes' centres.
    """
    pairs = []
    for i, old in enumerate(before):
        for j, new in enumerate(now):
            first, second = old.instance, new.instance
            if first.object_id != second.object_id:
                continue
            overlap, distance = mask_iou(first.mask, second.mask), _distance(first.box, second.box)
            reach = settings.max_distance * max(float(np.hypot(*box[2:])) for box in (first.box, second.box))
            if (overlap > 0 or distance <= reach) and similarity(old.colours, new.colours) >= settings.min_similarity:
                pairs.append((-overlap, distance, i, j))
    chosen: list[tuple[int, int]] = []
    for _, _, i, j in sorted(pairs):
        if all(i != old and j != new for old, new in chosen):
            chosen.append((i, j))
    return chosen


def colour_histogram(image: np.ndarray, instance: Instance) -> np.ndarray:
    """Return the colour histogram of an instance, (bins,) float32 that sums to 1, without the pixels of its outline.

    Args:
        image: (H, W, 3) uint8 RGB.
        instance: the instance.
    """
    x, y, width, height = instance.box
    part = np.s_[y : y + height, x : x + width]
    mask = instance.mask[part].astype(np.uint8)
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    inside = image[part][(inner if inner.sum() >= _MIN_PIXELS else mask) > 0]
    inside = inside[:: -(-len(inside) // _MAX_PIXELS)]
    pixels = torch.from_numpy(inside.T.copy())[:, None].float() / 255
    histogram: np.ndarray = fine_histograms(fine_bins(pixels))[0].numpy()
    return histogram


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Bhattacharyya coefficient of two histograms, in [0, 1]: 1 if they are equal."""
    return float(np.sqrt(first * second).sum())


def _distance(a: Box, b: Box) -> float:
    """Return the distance of two boxes' centres in pixels."""
    return float(np.hypot(a[0] + a[2] / 2 - b[0] - b[2] / 2, a[1] + a[3] / 2 - b[1] - b[3] / 2))
