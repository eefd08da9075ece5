"""The segmenter as the worker runs it, with a tracker for each camera and the region of interest. No ROS in here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_core.errors import OcditError

if TYPE_CHECKING:
    from ocdit_core.inference.depth import Pose
    from ocdit_core.inference.results import Segmentation
    from ocdit_core.inference.tracker import Tracker
    from ocdit_core.masks import Box
    from ocdit_ros.depth import Depth
    from ocdit_ros.parameters import Settings


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
    torch.set_num_threads(settings.compute_threads or default)
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
        self.encode_objects = segmenter.encode_objects
        self.label = segmenter.label

    def reset_tracking(self) -> None:
        """Forget all tracked instances: those of the next frames get new numbers."""
        self._trackers.clear()

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
    ) -> list[Segmentation]:
        """Segment images of several cameras; see `Segmenter.segment_batch`.

        Args:
            images: (H, W, 3) uint8 RGB images.
            objects: features from `encode_objects`.
            sources: camera whose video an image continues; None for a single image, which is segmented whole.
            uncertainty: whether to compute the uncertainty maps.
            depths: depth of each image, or none.

        Raises:
            OcditError: the region of interest is outside an image.
        """
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
        found = [
            result if box is None else _placed(result, box, (image.shape[0], image.shape[1]))
            for result, box, image in zip(
                self._segmenter.segment_batch(parts, objects, **options), boxes, images, strict=True
            )
        ]
        if self._numbers is None:
            return found
        from ocdit_core.inference.tracker import Tracker

        for index, source in enumerate(sources):
            if source is not None:
                tracker = self._trackers.setdefault(source, Tracker(self._segmenter, self._numbers))
                found[index] = tracker.update(found[index], images[index])
        return found


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
