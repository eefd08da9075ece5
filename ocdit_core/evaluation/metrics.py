"""How good masks are, counted simply: overlap with the truth, and false alarms for objects that are not there.

Average precision by BOP's rules is another matter; this is for scenes of which everything is known.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ocdit_core.inference.results import Segmentation
from ocdit_core.masks import mask_iou
from ocdit_core.objects.library import ObjectLibrary


class ObjectFinder(Protocol):
    """What can be evaluated: a Segmenter, or anything else with its facade."""

    def set_objects(self, library: ObjectLibrary, object_ids: Sequence[str]) -> None:
        """Look for these objects from now on."""

    def segment(self, image: np.ndarray) -> Segmentation:
        """Find them in a (H, W, 3) uint8 RGB image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledScene:
    """A picture whose truth is known.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        targets: names of the objects to look for.
        masks: for each target that is in the picture its visible pixels, (H, W) bool; the others are absent, as are
            those whose mask is empty.
    """

    image: np.ndarray
    targets: tuple[str, ...]
    masks: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class SceneMetrics:
    """What came out, over all scenes and targets.

    Attributes:
        mean_iou: over the targets that were present; one that was not found counts as 0.
        present: how many targets were in their pictures.
        found: how many of these got a mask, right or wrong.
        absent: how many targets were looked for in a picture without them.
        false_masks: how many of these got a mask.
        seconds: mean time for one picture.
        iou_by_object: mean overlap of each object over the pictures that it was in.
    """

    mean_iou: float
    present: int
    found: int
    absent: int
    false_masks: int
    seconds: float
    iou_by_object: dict[str, float] = field(default_factory=dict)

    @property
    def false_mask_rate(self) -> float:
        """Share of the absent targets that got a mask, 0 when none was absent."""
        return self.false_masks / self.absent if self.absent else 0.0

    def __str__(self) -> str:
        return (
            f"IoU {self.mean_iou:.3f} on {self.present} present targets ({self.found} found), "
            f"{self.false_masks} of {self.absent} absent ones got a mask, {self.seconds * 1000:.0f} ms a picture"
        )


def evaluate_scenes(
    finder: ObjectFinder, library: ObjectLibrary, scenes: Iterable[LabelledScene], *, threshold: float = 0.0
) -> SceneMetrics:
    """Run a segmenter on scenes; of each target only the best-scoring instance counts.

    Args:
        finder: a Segmenter or a baseline.
        library: with all the scenes' targets.
        scenes: any number of them; targets are set anew only where they change from one scene to the next.
        threshold: instances that score less are ignored.

    Raises:
        UnknownObjectError: the library lacks a target.
        ValueError: there is no scene.
    """
    current: tuple[str, ...] | None = None
    overlaps: dict[str, list[float]] = {}
    found = absent = false_masks = 0
    seconds: list[float] = []
    for scene in scenes:
        if scene.targets != current:
            finder.set_objects(library, scene.targets)
            current = scene.targets
        begin = time.perf_counter()
        result = finder.segment(scene.image)
        seconds.append(time.perf_counter() - begin)
        for name in scene.targets:
            candidates = [one for one in result.instances if one.object_id == name and one.score >= threshold]
            best = max(candidates, key=lambda one: one.score, default=None)
            truth = scene.masks.get(name)
            if truth is None or not truth.any():
                absent += 1
                false_masks += best is not None
            else:
                found += best is not None
                overlaps.setdefault(name, []).append(float(mask_iou(best.mask, truth)) if best is not None else 0.0)
    if not seconds:
        raise ValueError("there is no scene to evaluate")
    every = [value for values in overlaps.values() for value in values]
    return SceneMetrics(
        mean_iou=float(np.mean(every)) if every else 0.0,
        present=len(every),
        found=found,
        absent=absent,
        false_masks=false_masks,
        seconds=float(np.mean(seconds)),
        iou_by_object={name: float(np.mean(values)) for name, values in sorted(overlaps.items())},
    )
