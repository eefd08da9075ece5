"""Statistics of a dataset, and checks that its parts agree."""

from __future__ import annotations

import itertools
import math
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ocdit_core.data.frame import Frame
from ocdit_core.errors import DataError
from ocdit_core.masks import tight_box

VISIBLE_EDGES = tuple(number / 10 for number in range(10))
SIZE_EDGES = (0, 16, 32, 64, 128, 256, 512)
RELATIVE_EDGES = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
MAX_PROBLEMS = 50
_MAX_BOX_ERROR = 3  # pixels; the masks of real datasets were made by several tools, whose borders differ


@dataclass(kw_only=True)
class DatasetStatistics:
    """Counts over the frames that were added.

    Attributes:
        frames: number of sound frames.
        scenes: scene numbers.
        image_sizes: frames by (height, width).
        objects: instances by object number.
        per_frame: frames by their number of instances.
        visible: visible fraction of each instance, NaN where the dataset does not say.
        sizes: longer side in pixels of the visible part of each visible instance.
        relative_sizes: the same divided by the image's shorter side.
        damaged: errors by kind.
        problems: the first MAX_PROBLEMS errors in full.
    """

    frames: int = 0
    scenes: set[int] = field(default_factory=set)
    image_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    per_frame: Counter[int] = field(default_factory=Counter)
    visible: array[float] = field(default_factory=lambda: array("d"))
    sizes: array[float] = field(default_factory=lambda: array("d"))
    relative_sizes: array[float] = field(default_factory=lambda: array("d"))
    damaged: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, frame: Frame, *, thorough: bool = False) -> bool:
        """Count a frame; a damaged one is noted and left out of all numbers but `damaged`.

        Args:
            frame: JSON entries and the image's header are read.
            thorough: also decode the image, the depth map and all masks, and compare them with the JSON entries.

        Returns:
            Whether it is sound.
        """
        try:
            height, width = frame.size
            annotations = frame.annotations
            _ = frame.K
            boxes = [frame.visible_box(index) for index in range(len(annotations))]
            if thorough:
                check_frame(frame)
        except DataError as error:
            self.note(error)
            return False
        self.frames += 1
        self.scenes.add(frame.scene_id)
        self.image_sizes[height, width] += 1
        self.per_frame[len(annotations)] += 1
        for annotation, box in zip(annotations, boxes, strict=True):
            self.objects[annotation.object_id] += 1
            self.visible.append(annotation.visible_fraction)
            if box is not None:
                self.sizes.append(max(box[2:]))
                self.relative_sizes.append(max(box[2:]) / min(height, width))
        return True

    def note(self, error: DataError) -> None:
        """Count an error."""
        self.damaged[error.kind] += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(str(error))

    @property
    def instances(self) -> int:
        """The number of objects in all frames, visible or not."""
        return self.objects.total()

    def histograms(self) -> dict[str, list[tuple[str, int]]]:
        """Return tables of visibility, size in pixels and relative size: the label and count of each row."""
        known = array("d", (value for value in self.visible if not math.isnan(value)))
        visible = _histogram(known, VISIBLE_EDGES, lambda value: f"{value:.0%}")
        unknown = len(self.visible) - len(known)
        if unknown:
            visible.append(("unknown", unknown))
        return {
            "visible": visible,
            "size in pixels": _histogram(self.sizes, SIZE_EDGES, lambda value: f"{value:g}"),
            "size / shorter side": _histogram(self.relative_sizes, RELATIVE_EDGES, lambda value: f"{value:.0%}"),
        }


def check_frame(frame: Frame) -> None:
    """Decode all of a frame and compare masks with boxes and visible fractions.

    Raises:
        DataError: something is missing, damaged, or contradicts something else.
    """
    if frame.image().shape[:2] != frame.size:
        raise DataError(f"{frame.where}: the image's header says another size", kind="damaged image")
    frame.depth()
    for index, annotation in enumerate(frame.annotations):
        mask = frame.mask(index)
        box, stated = tight_box(mask) if mask.any() else None, frame.visible_box(index)
        if (box is None) != (stated is None):
            what = "is empty, and its box is not" if box is None else "is not empty, and it has no box"
            raise DataError(f"{frame.where}: the mask of object {index} {what}", kind="mask and box")
        if box is None or stated is None:
            continue
        if max(abs(a - b) for a, b in zip(box, stated, strict=True)) > _MAX_BOX_ERROR:
            raise DataError(
                f"{frame.where}: the mask of object {index} has the box {box}, not {stated} as bbox_visib says",
                kind="mask and box",
            )
        if annotation.visible_fraction == 0:
            raise DataError(f"{frame.where}: object {index} is visible, but its visib_fract is 0", kind="mask and box")


def _histogram(values: array[float], edges: tuple[float, ...], text: Callable[[float], str]) -> list[tuple[str, int]]:
    """Return a row from each edge up to the next; the last has no end."""
    counts, _ = np.histogram(np.array(values), [*edges, np.inf])
    labels = [f"{text(low)} .. {text(high)}" for low, high in itertools.pairwise(edges)]
    return list(zip([*labels, f"{text(edges[-1])} and more"], counts.tolist(), strict=True))
