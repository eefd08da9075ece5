"""Results of a segmentation, in pixels of the caller's image."""

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
        score: score in [0, 1], see `InferenceSettings.score`.
        box: modal bounding box (x, y, width, height), tight around the mask.
        mask: (H, W) bool mask of the visible pixels.
        track_id: id in a video (see `Tracker`), from 1 on; None without tracking.
    """

    object_id: str
    score: float
    box: Box
    mask: np.ndarray
    track_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Result of one image.

    Attributes:
        instances: instances by falling score.
        image_size: (H, W) of the image.
        target_ids: names of all target objects, found or not.
        timings: seconds by stage, and "total".
        uncertainty: (H, W) float32 uncertainty of each pixel in [0, 1] (see `uncertainty_map`); None unless requested.
    """

    instances: tuple[Instance, ...]
    image_size: tuple[int, int]
    target_ids: tuple[str, ...]
    timings: dict[str, float] = field(default_factory=dict)
    uncertainty: np.ndarray | None = None

    def label_map(self, numbers: Sequence[int] | None = None, dtype: npt.DTypeLike = np.uint16) -> np.ndarray:
        """Return a label image (H, W): 0 is background; the higher score wins where masks overlap.

        Args:
            numbers: label of each instance, by default 1, 2, ...
            dtype: type of the labels.
        """
        labels = np.zeros(self.image_size, dtype)
        numbers = range(1, len(self.instances) + 1) if numbers is None else numbers
        for number, instance in reversed(list(zip(numbers, self.instances, strict=True))):
            x, y, width, height = instance.box
            part = np.s_[y : y + height, x : x + width]
            labels[part][instance.mask[part]] = number
        return labels
