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
from ocdit_core.masks import Box, tight_box
from ocdit_core.models.matching_prior import fine_bins, fine_histograms

if TYPE_CHECKING:
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.targets import EncodedObjects

# A smaller mask is compared with its outermost pixels, which show the background, too; of a larger one, a sample.
_MIN_PIXELS, _MAX_PIXELS = 50, 10_000

_FLOW_SIDE = 640  # pixels of the longer side of the image in which points are followed
_POINTS, _ENOUGH = 30, 4  # points of an instance, and how many are needed to tell its motion
_GAIN = 0.5  # of a new measurement of the velocity
_SLOWING = 0.9  # of the velocity of what is not seen, per frame
_SAME_AREA = np.log(1.25)  # larger changes of a mask come from hiding, or from a neighbour in the same mask
_APPEARING = 5  # sightings in which an instance may still be coming into view, and its mask grow so fast
_AREA_GAIN = 0.1  # of a new area, if it differs more
_SPREAD = 0.05  # of the velocities of an instance's points, relative to the diagonal of its box
_AGREEING = 0.25  # fraction of the points that must move as before; else, all of them tell the new motion
_FIT = 0.05  # smallest gain in IoU for which a mask shows one more instance
_SIGHTINGS = 2  # frames in which that was whole before; after fewer it may be a piece of the other
_VOTES, _NEARNESS = 1.0, 0.1  # weights of points and of nearness beside the overlap


@dataclasses.dataclass(eq=False)
class Track:
    """An instance, as it was when its mask was last whole, and what is known of its motion since then.

    Attributes:
        number: its id.
        instance: the instance.
        colours: (bins,) colour histogram, see `colour_histogram`.
        way: (2,) x, y in pixels from there to where it is expected now.
        velocity: (2,) x, y in pixels per frame.
        points: (N, 2) x, y in pixels of points on it in the last frame.
        area: usual number of pixels of its mask.
        age: frames since its mask was whole.
        unseen: frames since it was found.
        sightings: number of frames in which its mask was whole.
        expected: (H, W) bool mask that is expected in this frame.
    """

    number: int
    instance: Instance
    colours: np.ndarray
    way: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))
    velocity: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))
    points: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.float32))
    area: float = 0.0
    age: int = 0
    unseen: int = 0
    sightings: int = 0
    expected: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.expected = self.instance.mask

    def move(self, points: np.ndarray, ways: np.ndarray) -> None:
        """Expect the instance where its points are in this frame: see `follow_points`.

        Where enough of its points move as before, the others are dropped: what hides an instance drags them along.
        """
        spread = max(2.0, _SPREAD * float(np.hypot(*self.instance.box[2:])))
        agreeing = np.hypot(*(ways - self.velocity).T) <= spread
        if np.count_nonzero(agreeing) >= max(_ENOUGH, _AGREEING * len(ways)):
            points, ways = points[agreeing], ways[agreeing]
        step = np.median(ways, axis=0) if len(ways) >= _ENOUGH else None
        self.age, self.unseen, self.points = self.age + 1, self.unseen + 1, points
        if step is None:
            self.velocity = self.velocity * (1.0 if self.unseen == 1 else _SLOWING)
        else:
            self.velocity = self.velocity + _GAIN * (step - self.velocity)
        self.way = self.way + (self.velocity if step is None else step)
        self.expected = _moved(self.instance.mask, self.way)

    def see_part(self, instance: Instance) -> None:
        """Take over its part of a mask that it shares: neither its place nor its motion are known from that."""
        self.unseen, self.points = 0, self.points[shows(instance, self.points)]

    def see(self, instance: Instance, colours: np.ndarray, grey: np.ndarray, mixed: bool) -> None:
        """Take over what was found of it in this frame; `mixed`: perhaps with a neighbour of the same object."""
        followed = len(self.points) >= _ENOUGH
        self.see_part(instance)
        self.colours, area = colours, float(np.count_nonzero(instance.mask))
        change = np.log(area / self.area) if self.area else 0.0
        if change < -_SAME_AREA or (change > _SAME_AREA and (mixed or self.sightings > _APPEARING)):
            # Neither place nor motion are those of the mask.
            self.area *= float(np.exp(_AREA_GAIN * change))
            return
        if self.age and not followed:
            step = (_centre(instance.box) - _centre(self.instance.box)) / self.age
            self.velocity = self.velocity + _GAIN * (step - self.velocity)
        self.instance, self.way, self.age, self.area = instance, np.zeros(2), 0, area
        self.sightings += 1
        self.points = add_points(grey, instance, self.points)


class Tracker:
    """Numbers the instances of one video; several trackers, one for each video, may share a segmenter.

    Every `track.interval`-th frame is segmented on its own; in the frames between, instances are segmented where they
    are expected. A tracker must not be used by several threads at once.

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
        self._targets: tuple[str, ...] = ()
        self._grey: np.ndarray | None = None
        self._followed = 0  # frames since one was segmented on its own

    def reset(self) -> None:
        """Forget all instances: the next frame is the first one of another video."""
        self._tracks, self._grey, self._followed = [], None, 0

    def follows(self, image: np.ndarray, objects: EncodedObjects | None = None) -> bool:
        """Return whether `segment` takes the next frame, (H, W, 3), for one between those segmented on their own.

        The first frame of a size, or with other targets than the one before, is segmented on its own.
        """
        if self._grey is None or image.shape[:2] != self._size or self._followed + 1 >= self._settings.interval:
            return False
        return self._names(objects) == self._targets

    def _names(self, objects: EncodedObjects | None) -> tuple[str, ...]:
        """Return the names of these target objects, or of those of `Segmenter.set_objects`."""
        source = self._segmenter if objects is None else objects
        return () if source is None else tuple(source.object_ids)

    def segment(self, image: np.ndarray, objects: EncodedObjects | None = None) -> Segmentation:
        """Segment the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: target objects, by default those of `Segmenter.set_objects`.

        Returns:
            The result of `Segmenter.segment`, or of `Segmenter.follow` (see `follows`); instances have a `track_id`.

        Raises:
            ImageError: `image` is not an image.
            OcditError: no target objects have been set, or there is no segmenter.
        """
        if self._segmenter is None:
            raise OcditError("this tracker has settings alone: give it a segmenter, or results to `update`")
        if not self.follows(image, objects):
            return self.update(self._segmenter.segment(image, objects), image)
        image = as_rgb8(image)
        grey = self._move(image)
        done, self._followed = self._followed, self._settings.interval  # after an error, the next frame is whole
        result = self._segmenter.follow(image, self._expected(self._segmenter.settings.score_threshold), objects)
        self._followed = done + 1
        return self._assign(result, image, grey)

    def update(self, result: Segmentation, image: np.ndarray) -> Segmentation:
        """Return the result of the next frame with a `track_id` for each instance.

        A mask that shows several instances at the places where they are expected is divided between them. A frame of
        another size than the one before starts another video.

        Args:
            result: the result.
            image: (H, W, 3) uint8 RGB, the frame.
        """
        if result.image_size != self._size:
            self.reset()
        self._size, self._targets, self._followed = result.image_size, tuple(result.target_ids), 0
        image = as_rgb8(image)
        return self._assign(result, image, self._move(image))

    def _move(self, image: np.ndarray) -> np.ndarray:
        """Move all tracks to where they are expected in the next frame; return it in grey, (H, W) uint8."""
        grey: np.ndarray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        before = grey if self._grey is None else self._grey
        followed = follow_points(before, grey, [track.points for track in self._tracks])
        for track, (points, ways) in zip(self._tracks, followed, strict=True):
            track.move(points, ways)
        self._grey = grey
        return grey

    def _expected(self, score: float) -> list[tuple[str, Box]]:
        """Return object and expected box of each target's instance that the frame before showed for certain."""
        return [
            (track.instance.object_id, tight_box(track.expected))
            for track in self._tracks
            if track.unseen == 1 and track.instance.object_id in self._targets and track.instance.score >= score
            if track.expected.any()
        ]

    def _assign(self, result: Segmentation, image: np.ndarray, grey: np.ndarray) -> Segmentation:
        """Return the result with the ids of the tracks that its instances belong to, or new ones."""
        now = [Track(0, instance, colour_histogram(image, instance)) for instance in result.instances]
        shown: list[tuple[Track, Instance]] = []
        certain = self._segmenter.settings.score_threshold if self._segmenter else 0.0
        shared = share(self._tracks, now, self._settings, certain)
        alone = [track for track in self._tracks if not any(track in owners for owners in shared)]
        for found, owners in zip(now, shared, strict=True):
            if len(owners) > 1:
                parts = divide(found.instance, owners)
                for track, part in parts:
                    track.see_part(part)
            else:
                track = owners[0] if owners else found
                track.number = track.number or next(self._numbers)
                track.see(found.instance, found.colours, grey, any(_meet(one, found) for one in alone))
                parts = [(track, found.instance)]
            shown += parts
        lost = [track for track in self._tracks if track.unseen and track.unseen <= self._settings.keep]
        for track in lost:
            for instance in result.instances:  # what hides it
                track.points = track.points[~shows(instance, track.points)]
        self._tracks = lost + [track for track, _ in shown]
        named = tuple(dataclasses.replace(instance, track_id=track.number) for track, instance in shown)
        return dataclasses.replace(result, instances=named)


def share(
    before: Sequence[Track], now: Sequence[Track], settings: TrackSettings, certain: float = 0.0
) -> list[list[Track]]:
    """Return the instances that each new mask shows: none, the one of `match`, or several that it covers together.

    An instance that `match` leaves without a mask is in that of others if the IoU of that mask with all their expected
    masks together is larger by `_FIT` with its own than without. It must have been whole in `_SIGHTINGS` frames, and
    within the last `keep`, with a score of at least `certain`: a weaker mask is often a piece of another.
    """
    owners: list[list[int]] = [[] for _ in now]
    alone = set(range(len(before)))
    for i, j in match(before, now, settings):
        owners[j].append(i)
        alone.remove(i)
    for i in sorted(alone):
        track = before[i]
        if track.sightings < _SIGHTINGS or track.age > settings.keep or track.instance.score < certain:
            continue
        for new, group in zip(now, owners, strict=True):
            if not group or not _meet(track, new):
                continue
            others = np.any([before[one].expected for one in group], axis=0)
            if _iou(others | track.expected, new.instance) > _iou(others, new.instance) + _FIT:
                group.append(i)
                break
    return [[before[i] for i in group] for group in owners]


def divide(instance: Instance, tracks: Sequence[Track]) -> list[tuple[Track, Instance]]:
    """Divide a mask between instances: a pixel goes to the one whose expected mask is nearest, the first of equals.

    Returns:
        The instances that get pixels, and their parts of the mask.
    """
    x, y, width, height = instance.box
    part = np.s_[y : y + height, x : x + width]
    outside = [(~track.expected).astype(np.uint8) for track in tracks]
    nearest = np.argmin([cv2.distanceTransform(one, cv2.DIST_L2, cv2.DIST_MASK_5)[part] for one in outside], axis=0)
    parts = []
    for number, track in enumerate(tracks):
        mask = instance.mask.copy()
        mask[part] &= nearest == number
        if mask.any():
            parts.append((track, dataclasses.replace(instance, mask=mask, box=tight_box(mask))))
    return parts


def match(before: Sequence[Track], now: Sequence[Track], settings: TrackSettings) -> list[tuple[int, int]]:
    """Return pairs of indices of instances of the same object, each in one pair at most.

    Only instances that look alike and are near to where they are expected, or were, are paired (see `TrackSettings`).
    The sum of what speaks for the pairs is the largest: points of the instance in the new mask, overlap with the
    expected mask, and nearness to it.
    """
    from scipy.optimize import linear_sum_assignment

    worth = np.zeros((len(before), len(now)))
    for i, old in enumerate(before):
        for j, new in enumerate(now):
            first, second = old.instance, new.instance
            if first.object_id != second.object_id:
                continue
            overlap, step = _iou(old.expected, second), _centre(second.box) - _centre(first.box)
            votes = float(shows(second, old.points).mean()) if len(old.points) >= _ENOUGH else overlap
            reach = settings.max_distance * max(float(np.hypot(*box[2:])) for box in (first.box, second.box))
            distance = float(np.hypot(*(step - old.way)))
            near = max(overlap, votes) > 0 or min(distance, float(np.hypot(*step))) <= reach
            if near and similarity(old.colours, new.colours) >= settings.min_similarity:
                worth[i, j] = _VOTES * votes + overlap + _NEARNESS / (1 + distance / max(reach, 1.0))
    pairs = zip(*linear_sum_assignment(-worth), strict=True)
    return [(int(i), int(j)) for i, j in pairs if worth[i, j]]


def follow_points(
    before: np.ndarray, now: np.ndarray, groups: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Follow groups of points by optical flow (Lucas and Kanade, in pyramids).

    Args:
        before: (H, W) uint8, grey.
        now: (H, W) uint8, grey.
        groups: (N, 2) float32 x, y in pixels of the first image, of each instance.

    Returns:
        Of each group, the (M, 2) x, y in the second image of those that lead back to where they were, and the way
        (M, 2) of each.
    """
    if not sum(map(len, groups)):
        return [(points, points) for points in groups]
    scale = min(1.0, _FLOW_SIDE / max(now.shape))
    if scale < 1:
        before, now = (cv2.resize(one, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for one in (before, now))
    start = np.concatenate(groups).astype(np.float32) * np.float32(scale)
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, now, start, np.empty_like(start))
    back, again, _ = cv2.calcOpticalFlowPyrLK(now, before, there, np.empty_like(start))
    kept = (found[:, 0] > 0) & (again[:, 0] > 0) & (np.abs(back - start).max(axis=1) < 1)
    ends = np.cumsum([len(points) for points in groups])[:-1]
    parts = zip(*(np.split(one, ends) for one in (start, there, kept)), strict=True)
    return [(new[good] / np.float32(scale), (new[good] - old[good]) / scale) for old, new, good in parts]


def add_points(grey: np.ndarray, instance: Instance, points: np.ndarray) -> np.ndarray:
    """Return the points (N, 2) with more corners inside the mask, without its outline, of an image (H, W) uint8."""
    x, y, width, height = instance.box
    part = np.s_[y : y + height, x : x + width]
    inner = _eroded(instance.mask[part], 5)
    if len(points) >= _POINTS or not inner.any():
        return points
    corners = cv2.goodFeaturesToTrack(grey[part], _POINTS - len(points), 0.01, 3, mask=inner)
    return points if corners is None else np.concatenate([points, corners[:, 0] + np.array([x, y], np.float32)])


def shows(instance: Instance, points: np.ndarray) -> np.ndarray:
    """Return which of the points (N, 2) x, y in pixels lie in the mask of an instance, (N,) bool."""
    x, y = np.round(points).astype(int).T
    height, width = instance.mask.shape
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    inside[inside] = instance.mask[y[inside], x[inside]]
    return np.asarray(inside)


def colour_histogram(image: np.ndarray, instance: Instance) -> np.ndarray:
    """Return the colour histogram of an instance, (bins,) float32 that sums to 1, without the pixels of its outline.

    Args:
        image: (H, W, 3) uint8 RGB.
        instance: the instance.
    """
    x, y, width, height = instance.box
    part = np.s_[y : y + height, x : x + width]
    mask = instance.mask[part].astype(np.uint8)
    inner = _eroded(mask, 3)
    inside = image[part][(inner if inner.sum() >= _MIN_PIXELS else mask) > 0]
    inside = inside[:: -(-len(inside) // _MAX_PIXELS)]
    pixels = torch.from_numpy(inside.T.copy())[:, None].float() / 255
    histogram: np.ndarray = fine_histograms(fine_bins(pixels))[0].numpy()
    return histogram


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Bhattacharyya coefficient of two histograms, in [0, 1]: 1 if they are equal."""
    return float(np.sqrt(first * second).sum())


def _meet(track: Track, found: Track) -> bool:
    """Return whether a track is expected where a mask of its object was found."""
    return track.instance.object_id == found.instance.object_id and _iou(track.expected, found.instance) > 0


def _eroded(mask: np.ndarray, side: int) -> np.ndarray:
    kernel = np.ones((side, side), np.uint8)
    return np.asarray(cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0))


def _centre(box: Box) -> np.ndarray:
    """Return the centre (2,) x, y of a box in pixels."""
    return np.array([box[0] + box[2] / 2, box[1] + box[3] / 2])


def _moved(mask: np.ndarray, way: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) bool that is moved by `way` (2,) x, y in pixels."""
    height, width = mask.shape
    x, y = np.round(way).astype(int).tolist()
    moved = np.zeros_like(mask)
    part = mask[max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]
    moved[max(y, 0) : max(height + y, 0), max(x, 0) : max(width + x, 0)] = part
    return moved


def _iou(mask: np.ndarray, instance: Instance) -> float:
    """Return the IoU of a mask (H, W) bool and an instance."""
    x, y, width, height = instance.box
    part = np.s_[y : y + height, x : x + width]
    both = int(np.count_nonzero(mask[part] & instance.mask[part]))
    return both and both / (int(np.count_nonzero(mask)) + int(np.count_nonzero(instance.mask)) - both)
