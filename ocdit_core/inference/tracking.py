"""Video: each frame starts from the masks of the one before, and instances keep their numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ocdit_core.images import as_rgb8
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import mask_iou

if TYPE_CHECKING:
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.targets import EncodedObjects


class Tracker:
    """Follows target objects through one video; several videos take a tracker each, and may share a Segmenter.

    The coarse network is evaluated once a frame, at `track.sigma`, from the masks of the frame before. A frame starts
    anew, as `Segmenter.segment` does, at the beginning, every `track.redetect_every` frames, after one that has lost
    an instance, and where the targets or the size of the image are others than before. One frame at a time: a tracker
    is not to be used by several threads at once.

    Args:
        segmenter: the models, the settings and, by default, the targets.
        numbers: of new instances, rising; shared by all trackers of the segmenter.
    """

    def __init__(self, segmenter: Segmenter, numbers: Iterator[int]) -> None:
        self._segmenter = segmenter
        self._settings = segmenter.settings.track
        self._identities = Identities(numbers, self._settings.keep)
        self.reset()

    def reset(self) -> None:
        """Forget the video: the next frame is the first one of another."""
        self._random = torch.Generator().manual_seed(self._segmenter.settings.seed)
        self._latents: tuple[Tensor, ...] | None = None
        self._objects: EncodedObjects | None = None
        self._size: tuple[int, ...] = ()
        self._followed = 0
        self._identities.forget()

    def segment(self, image: np.ndarray, objects: EncodedObjects | None = None) -> Segmentation:
        """Find the target objects in the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: the targets, by default those of `Segmenter.set_objects`.

        Returns:
            As `Segmenter.segment`; instances have a `track_id`.

        Raises:
            ImageError: `image` is not a picture.
            OcditError: no target objects have been set.
        """
        image = as_rgb8(image)
        objects = objects or self._segmenter.objects
        if self._size and image.shape != self._size:
            self.reset()
        if objects is not self._objects or self._followed + 1 >= self._settings.redetect_every:
            self._latents = None
        anew = self._latents is None
        result, latents = self._segmenter.follow(image, self._random, self._latents, objects)
        instances, lost = self._identities.assign(result.instances)
        self._objects, self._size = objects, image.shape
        self._followed = 0 if anew else self._followed + 1
        self._latents = None if lost else latents
        return dataclasses.replace(result, instances=instances)


@dataclasses.dataclass
class _Track:
    """What is known of one instance: where it was when it was last seen, and how many frames ago that was."""

    number: int
    instance: Instance
    unseen: int = 0


class Identities:
    """Which instance of a frame is which of those before.

    Args:
        numbers: of new instances.
        keep: frames for which an instance is remembered that is not seen.
    """

    def __init__(self, numbers: Iterator[int], keep: int) -> None:
        self._numbers = numbers
        self._keep = keep
        self._tracks: list[_Track] = []

    def forget(self) -> None:
        """Remember nothing."""
        self._tracks = []

    def assign(self, instances: Sequence[Instance]) -> tuple[tuple[Instance, ...], bool]:
        """Return the instances of the next frame with their numbers, and whether one of the last frame is missing.

        Args:
            instances: of one frame; masks are as large as in the frames before.
        """
        matched = match([track.instance for track in self._tracks], instances)
        partners = dict(matched)
        lost = False
        for index, track in enumerate(self._tracks):
            if index in partners:
                track.instance, track.unseen = instances[partners[index]], 0
            else:
                lost |= track.unseen == 0
                track.unseen += 1
        numbers = {instance: self._tracks[track].number for track, instance in matched}
        for index, instance in enumerate(instances):
            if index not in numbers:
                numbers[index] = next(self._numbers)
                self._tracks.append(_Track(numbers[index], instance))
        self._tracks = [track for track in self._tracks if track.unseen <= self._keep]
        named = (dataclasses.replace(one, track_id=numbers[index]) for index, one in enumerate(instances))
        return tuple(named), lost


def match(before: Sequence[Instance], now: Sequence[Instance]) -> list[tuple[int, int]]:
    """Return pairs of indices of instances of the same object, each in one pair at most.

    Greedy: by falling overlap of the masks, and where they do not overlap by rising distance of the boxes' centres,
    however far: what is seen again elsewhere has been moved.
    """
    pairs = []
    for i, old in enumerate(before):
        for j, new in enumerate(now):
            if old.object_id == new.object_id:
                pairs.append((-mask_iou(old.mask, new.mask), _distance(old.box, new.box), i, j))
    chosen: list[tuple[int, int]] = []
    for _, _, i, j in sorted(pairs):
        if all(i != old and j != new for old, new in chosen):
            chosen.append((i, j))
    return chosen


def _distance(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    return float(np.hypot(a[0] + a[2] / 2 - b[0] - b[2] / 2, a[1] + a[3] / 2 - b[1] - b[3] / 2))
