"""The segmenter as the worker runs it, with a tracker for each camera and the region of interest. No ROS in here."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_core.errors import OcditError
from ocdit_core.inference.prompts import Point, Prompt

if TYPE_CHECKING:
    from ocdit_core.inference.depth import Pose
    from ocdit_core.inference.results import Segmentation
    from ocdit_core.inference.tracker import Tracker
    from ocdit_core.masks import Box
    from ocdit_ros.depth import Depth
    from ocdit_ros.parameters import Settings

log = logging.getLogger(__name__)


def load_segmenter(settings: Settings) -> Any:
    """Load the network with the model's recommended settings and those of the parameters.

    Raises:
        WeightsError: the model is missing or damaged.
        ConfigError: an inference setting is invalid.
    """
    import torch

    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.settings import recommended_settings

    default = _default_threads()
    # One is left for images, results and services, unless that halves what computes.
    torch.set_num_threads(settings.compute_threads or (default - 1 if default > 2 else default))
    inference = recommended_settings(
        settings.model, preset=settings.preset or None, overrides=settings.inference_settings
    )
    return Segmenter.from_pretrained(settings.model, device=settings.device, settings=inference)


@cache
def _default_threads() -> int:
    """Return PyTorch's number of threads before it was set."""
    import torch

    return torch.get_num_threads()


class Network:
    """The segmenter as the worker uses it.

    Args:
        segmenter: a `Segmenter`.
        numbers: numbers of tracked instances; None: no tracking.
        region: returns the part (x, y, width, height) of a camera's image to segment; None: all of it.
        posed: returns a result with the instances whose poses are to be estimated.
    """

    def __init__(
        self,
        segmenter: Any,
        numbers: Iterator[int] | None,
        region: Callable[[], Box | None],
        posed: Callable[[Segmentation], Segmentation],
    ):
        self._segmenter = segmenter
        self._numbers = numbers
        self._region = region
        self._posed = posed
        self._trackers: dict[str, Tracker] = {}
        self._followed: dict[str, Followed] = {}
        self.encode_objects = segmenter.encode_objects
        self.label = segmenter.label

    def reset_tracking(self) -> None:
        """Forget all tracked instances and clicked points: the instances of the next frames get new numbers."""
        self._trackers.clear()
        self._followed.clear()

    def follow(self, image: np.ndarray, objects: Any, source: str, point: Point) -> tuple[str, float]:
        """Follow the target at a point of a camera's image in its next frames, alone of its object's instances.

        Args:
            image: (H, W, 3) uint8 RGB.
            objects: features from `encode_objects`.
            source: the camera.
            point: (x, y) in pixels.

        Returns:
            Name and score of the target.

        Raises:
            ImageError: the point is not inside the image.
            OcditError: none of the targets is there; what was followed before still is.
        """
        region = self._region()
        if region is not None and not _contains(_inside(region, image.shape), point):
            raise OcditError(f"({point[0]:g}, {point[1]:g}) is outside of region_of_interest {list(region)}")
        threshold = self._segmenter.settings.score_threshold
        prompts = [Prompt(object_id=name, points=[point]) for name in objects.object_ids]
        (result,) = self._segmenter.segment_batch([image], objects, score_threshold=threshold, prompts=[prompts])
        if not result.instances:
            raise OcditError(f"none of {', '.join(objects.object_ids)} is at ({point[0]:g}, {point[1]:g})")
        best = result.instances[0]
        self._followed[source] = Followed(best.object_id, inner_point(best.mask))
        return best.object_id, best.score

    def poses(self, image: np.ndarray, result: Segmentation, depth: Depth, objects: Any) -> dict[int, Pose]:
        """Return approximate poses of instances of a result by the `id()` of the instance; see `Segmenter.poses`."""
        posed = self._posed(result)
        if not posed.instances:
            return {}
        found = self._segmenter.poses(image, posed, depth.camera_matrix, depth=depth.metres, objects=objects)
        return {id(instance): pose for instance, pose in zip(posed.instances, found, strict=True) if pose is not None}

    def segment_batch(
        self,
        images: Sequence[np.ndarray],
        objects: Any,
        sources: Sequence[str | None],
        *,
        uncertainty: bool,
        depths: Sequence[Depth | None] = (),
        prompts: Sequence[Sequence[Prompt]] = (),
    ) -> list[Segmentation]:
        """Segment images of several cameras; see `Segmenter.segment_batch`.

        Args:
            images: (H, W, 3) uint8 RGB images.
            objects: features from `encode_objects`.
            sources: camera whose video an image continues; None for a single image, which is segmented whole.
            uncertainty: whether to compute the uncertainty maps.
            depths: depth of each image, or none.
            prompts: prompts of each image, or none: only what they are for is segmented. Those of a camera follow its
                clicked point.

        Raises:
            OcditError: the region of interest is outside an image.
        """
        between: dict[int, Segmentation] = {}
        if not (uncertainty or prompts or self._region()):
            for index, (image, source) in enumerate(zip(images, sources, strict=True)):
                tracker = self._tracker(source)
                if tracker is not None and source not in self._followed and tracker.follows(image, objects):
                    between[index] = tracker.segment(image, objects)
        rest = [index for index in range(len(images)) if index not in between]
        whole = self._segment_whole(
            [images[index] for index in rest],
            objects,
            [sources[index] for index in rest],
            uncertainty,
            [depths[index] for index in rest] if depths else (),
            [prompts[index] for index in rest] if prompts else (),
        )
        found = between | dict(zip(rest, whole, strict=True))
        return [found[index] for index in range(len(images))]

    def _segment_whole(
        self,
        images: Sequence[np.ndarray],
        objects: Any,
        sources: Sequence[str | None],
        uncertainty: bool,
        depths: Sequence[Depth | None],
        prompts: Sequence[Sequence[Prompt]],
    ) -> list[Segmentation]:
        """See `segment_batch`; whatever trackers have seen before, all of the images are segmented."""
        region = self._region()
        boxes = [
            None if region is None or source is None else _inside(region, image.shape)
            for image, source in zip(images, sources, strict=True)
        ]
        parts = [
            image if box is None else np.ascontiguousarray(image[_part(box)])
            for image, box in zip(images, boxes, strict=True)
        ]
        # The node applies its own threshold, which can change while it runs.
        options: dict[str, Any] = {"score_threshold": 0.0, "uncertainty": uncertainty}
        if any(depths):
            own = [
                depth and (depth if box is None else depth.part(*box)) for depth, box in zip(depths, boxes, strict=True)
            ]
            options["depths"] = [depth and depth.metres for depth in own]
            options["camera_matrices"] = [depth and depth.camera_matrix for depth in own]
        asked = [
            [*given, *self._following(source, objects, box)]
            for given, source, box in zip(prompts or [()] * len(images), sources, boxes, strict=True)
        ]
        if any(asked):
            options |= {"prompts": asked, "only_prompted": bool(prompts)}
        found = [
            result if box is None else _placed(result, box, (image.shape[0], image.shape[1]))
            for result, box, image in zip(
                self._segmenter.segment_batch(parts, objects, **options), boxes, images, strict=True
            )
        ]
        for index, source in enumerate(sources):
            if (tracker := self._tracker(source)) is not None:
                found[index] = tracker.update(found[index], images[index])
        return [self._update(source, result) for source, result in zip(sources, found, strict=True)]

    def _tracker(self, source: str | None) -> Tracker | None:
        """Return the tracker of a camera; None: a single image, or no tracking."""
        if self._numbers is None or source is None:
            return None
        from ocdit_core.inference.tracker import Tracker

        return self._trackers.setdefault(source, Tracker(self._segmenter, self._numbers))

    def _following(self, source: str | None, objects: Any, box: Box | None) -> list[Prompt]:
        """Return the prompt for what is followed, in pixels of the part `box` of the image; none: nothing is."""
        followed = self._followed.get(source or "") if source is not None else None
        if followed is None or followed.object_id not in objects.object_ids:
            return []
        x, y = followed.point
        if box is not None:
            if not _contains(box, followed.point):
                return []
            x, y = x - box[0], y - box[1]
        return [Prompt(object_id=followed.object_id, points=[(x, y)])]

    def _update(self, source: str | None, result: Segmentation) -> Segmentation:
        """Move the point that is followed to where the instance is now; forget it when it is not found for long.

        Returns:
            The result; of a mask that the tracker divided, only the part that shows the point.
        """
        followed = self._followed.get(source or "") if source is not None else None
        if followed is None:
            return result
        settings = self._segmenter.settings
        x, y = map(round, followed.point)
        parts = [one for one in result.instances if one.object_id == followed.object_id]
        instance = next((one for one in parts if one.mask[y : y + 1, x : x + 1].any()), parts[0] if parts else None)
        if len(parts) > 1:
            kept = tuple(one for one in result.instances if one.object_id != followed.object_id or one is instance)
            result = dataclasses.replace(result, instances=kept)
        if instance is not None and instance.score >= settings.score_threshold:
            followed.point, followed.missed = inner_point(instance.mask), 0
            return result
        followed.missed += 1
        if followed.missed > settings.track.keep:
            del self._followed[source or ""]
            log.warning("the clicked %s is lost: all its instances are published again", followed.object_id)
        return result


@dataclasses.dataclass
class Followed:
    """The instance that was clicked in the images of a camera.

    Attributes:
        object_id: name of its object.
        point: the innermost pixel (x, y) of its last mask.
        missed: frames since it was found.
    """

    object_id: str
    point: Point
    missed: int = 0


def _contains(box: Box, point: Point) -> bool:
    return 0 <= point[0] - box[0] < box[2] and 0 <= point[1] - box[1] < box[3]


def inner_point(mask: np.ndarray) -> Point:
    """Return the pixel (x, y) of a mask (H, W) that is farthest from its edge."""
    import cv2

    inner = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(inner.argmax()), inner.shape)
    return float(x), float(y)


def _part(box: Box) -> tuple[slice, slice]:
    x, y, width, height = box
    return np.s_[y : y + height, x : x + width]


def _inside(region: Box, shape: Sequence[int]) -> Box:
    """Return the part of a region that lies inside an image of a shape (H, W, ...)."""
    x, y, width, height = region
    box = (x, y, min(width, shape[1] - x), min(height, shape[0] - y))
    if min(box[2:]) < 1:
        raise OcditError(
            f"region_of_interest {list(region)} (x, y, width, height) is outside the image of {shape[1]} x {shape[0]} "
            "pixels"
        )
    return box


def _placed(result: Segmentation, box: Box, size: tuple[int, int]) -> Segmentation:
    """Return the result for a part of an image of a size (H, W) as one for the whole image; outside it is certain."""

    def whole(part: np.ndarray) -> np.ndarray:
        pixels = np.zeros(size, part.dtype)
        pixels[_part(box)] = part
        return pixels

    instances = []
    for instance in result.instances:
        x, y, width, height = instance.box
        moved = (x + box[0], y + box[1], width, height)
        instances.append(dataclasses.replace(instance, box=moved, mask=whole(instance.mask)))
    uncertainty = None if result.uncertainty is None else whole(result.uncertainty)
    return dataclasses.replace(result, instances=tuple(instances), image_size=size, uncertainty=uncertainty)
