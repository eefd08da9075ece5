"""What a segmentation returns: instances with masks, in the caller's image coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ocdit_core.masks import Box


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One segmented object.

    Attributes:
        object_id: name of the object in its library.
        score: confidence in [0, 1] (see `InferenceSettings.score`).
        box: modal bounding box (x, y, width, height) in pixels, tight around the mask.
        mask: (H, W) bool, the object's visible pixels.
        track_id: in a video, a positive number that is the same in every frame (see `Tracker`); None otherwise.
    """

    object_id: str
    score: float
    box: Box
    mask: np.ndarray
    track_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The result for one image.

    Attributes:
        instances: sorted by descending score.
        image_size: (H, W) of the image that was given, in pixels.
        target_ids: the objects that were looked for, found or not.
        timings: seconds spent, by stage.
        uncertainty: (H, W) float32 in [0, 1], how uncertain each pixel is (see `uncertainty_map`); None unless the
            settings ask for it.
    """

    instances: tuple[Instance, ...]
    image_size: tuple[int, int]
    target_ids: tuple[str, ...]
    timings: dict[str, float] = field(default_factory=dict)
    uncertainty: np.ndarray | None = None

    def label_map(self, numbers: Sequence[int] | None = None, dtype: npt.DTypeLike = np.uint16) -> np.ndarray:
        """Return (H, W) labels: 0 is background; the highest score wins where masks overlap.

        Args:
            numbers: one an instance, by default 1, 2 ... in their order.
            dtype: of the labels.
        """
        labels = np.zeros(self.image_size, dtype)
        numbers = range(1, len(self.instances) + 1) if numbers is None else numbers
        for number, instance in reversed(list(zip(numbers, self.instances, strict=True))):
            x, y, width, height = instance.box
            part = np.s_[y : y + height, x : x + width]
            labels[part][instance.mask[part]] = number
        return labels
