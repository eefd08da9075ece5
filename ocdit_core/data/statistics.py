"""Statistics of a dataset, and whether its parts agree."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Frame
from ocdit_core.data.shards import OnError, ShardDataset
from ocdit_core.errors import DataError
from ocdit_core.masks import tight_box

SIZE_EDGES = (0, 16, 32, 64, 128, 256, 512)
"""Pixels of an object's longer side, from which a row of the table begins."""

SHARE_EDGES = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
"""The same as a share of the picture's shorter side."""

VISIBLE_EDGES = tuple(number / 10 for number in range(10))


@dataclass(kw_only=True)
class Survey:
    """Counts over the frames that were added.

    Attributes:
        frames: how many were sound.
        scenes: those met.
        picture_sizes: frames by (height, width).
        objects: instances by object number.
        per_frame: frames by their number of instances.
        visible: visible fraction of each instance, NaN where the dataset does not say.
        sizes: longer side in pixels of what is seen of an instance; only of those seen.
        shares: the same divided by the picture's shorter side.
        damaged: errors by kind.
        problems: the first of them in full.
    """

    frames: int = 0
    scenes: set[int] = field(default_factory=set)
    picture_sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    per_frame: Counter[int] = field(default_factory=Counter)
    visible: array[float] = field(default_factory=lambda: array("d"))
    sizes: array[float] = field(default_factory=lambda: array("d"))
    shares: array[float] = field(default_factory=lambda: array("d"))
    damaged: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    max_problems: int = 50

    def add(self, frame: Frame, *, thorough: bool = False) -> bool:
        """Count a frame; a damaged one is noted and left out of all numbers but `damaged`.

        Args:
            frame: of which JSON and the picture's header are read.
            thorough: also decode the picture, the depth map and all masks, and hold them against the JSON.

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
        self.picture_sizes[height, width] += 1
        self.per_frame[len(annotations)] += 1
        for annotation, box in zip(annotations, boxes, strict=True):
            self.objects[annotation.object_id] += 1
            self.visible.append(annotation.visible_fraction)
            if box is not None:
                self.sizes.append(max(box[2:]))
                self.shares.append(max(box[2:]) / min(height, width))
        return True

    def note(self, error: DataError) -> None:
        """Count an error."""
        self.damaged[error.kind] += 1
        if len(self.problems) < self.max_problems:
            self.problems.append(str(error))

    @property
    def instances(self) -> int:
        """The number of objects in all frames, seen or not."""
        return self.objects.total()

    def histograms(self) -> dict[str, list[tuple[str, int]]]:
        """Return the label and count of each row of three tables: visibility, size in pixels, share of the side."""
        known = array("d", (value for value in self.visible if value == value))
        visible = _histogram(known, VISIBLE_EDGES, lambda value: f"{value:.0%}")
        unknown = len(self.visible) - len(known)
        if unknown:
            visible.append(("unknown", unknown))
        return {
            "visible": visible,
            "size in pixels": _histogram(self.sizes, SIZE_EDGES, lambda value: f"{value:g}"),
            "share of the shorter side": _histogram(self.shares, SHARE_EDGES, lambda value: f"{value:.0%}"),
        }


def survey_frames(dataset: BopFolder | ShardDataset, *, limit: int | None = None, on_error: OnError) -> Iterator[Frame]:
    """Yield frames to be looked at, none of which is held.

    Args:
        dataset: the frames of a folder are spread evenly over it; those of shards are the first.
        limit: at most so many; None for all.
        on_error: called for scenes, shards and frames that cannot be opened at all.
    """
    if isinstance(dataset, BopFolder):
        for error in dataset.damaged:
            on_error(error)
        for index in spread(len(dataset), limit):
            yield dataset[index]
        return
    for number, frame in enumerate(dataset.frames(on_error=on_error)):
        if limit is not None and number >= limit:
            return
        yield frame


def spread(count: int, limit: int | None) -> list[int]:
    """Return at most `limit` of the numbers from 0 to count - 1, evenly spread, ascending."""
    if limit is None or count <= limit:
        return list(range(count))
    return [int(index) for index in (np.arange(limit) + 0.5) * count / limit]


def check_frame(frame: Frame) -> None:
    """Decode all of a frame and hold masks against boxes and visible fractions.

    Raises:
        DataError: something is missing, damaged, or contradicts something else.
    """
    if frame.image().shape[:2] != frame.size:
        raise DataError(f"{frame.where}: the picture's header says another size", kind="damaged picture")
    frame.depth()
    for index, annotation in enumerate(frame.annotations):
        mask = frame.mask(index)
        box, stated = tight_box(mask) if mask.any() else None, frame.visible_box(index)
        if (box is None) != (stated is None):
            what = "is empty, and its box is not" if box is None else "is not empty, and it has no box"
            raise DataError(f"{frame.where}: the mask of object {index} {what}", kind="mask and box")
        # Masks of real datasets were made by several tools, whose borders differ.
        if box is not None and stated is not None and max(abs(a - b) for a, b in zip(box, stated, strict=True)) > 3:
            raise DataError(
                f"{frame.where}: the mask of object {index} has the box {box}, not {stated} as bbox_visib says",
                kind="mask and box",
            )
        if box is not None and annotation.visible_fraction == 0:
            raise DataError(f"{frame.where}: object {index} is seen, but its visib_fract is 0", kind="mask and box")


def _histogram(
    values: Iterable[float], edges: tuple[float, ...], text: Callable[[float], str]
) -> list[tuple[str, int]]:
    """Rows from each edge up to the next; the last has no end."""
    counts, _ = np.histogram(np.fromiter(values, np.float64), [*edges, np.inf])
    labels = [f"{text(low)} .. {text(high)}" for low, high in itertools.pairwise(edges)]
    return list(zip([*labels, f"{text(edges[-1])} and more"], counts.tolist(), strict=True))
