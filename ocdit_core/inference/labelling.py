"""Labelling mode (paper table 3): boxes or masks from any detector, and which target object each of them shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ocdit_core.errors import ImageError
from ocdit_core.inference.clock import StageClock
from ocdit_core.inference.proposals import Candidate
from ocdit_core.inference.refinement import RefineStage
from ocdit_core.inference.results import Instance
from ocdit_core.masks import Box, box_iou, tight_box
from ocdit_core.models.ocdit import TargetSet


@dataclass(frozen=True, kw_only=True, eq=False)
class Label:
    """What a region shows.

    Attributes:
        instance: the target object with its score and mask; None when it shows none of the targets.
        scores: for each target how well it fits, in [0, 1].
    """

    instance: Instance | None
    scores: dict[str, float]


def label_regions(
    image: np.ndarray,
    regions: Sequence[Box | np.ndarray],
    stage: RefineStage,
    objects: TargetSet,
    names: Sequence[str],
    *,
    threshold: float,
    random: torch.Generator,
    clock: StageClock,
) -> tuple[Label, ...]:
    """Look at each region for every target, and keep the one that fits best.

    A given box or mask counts: a target's score is multiplied by the overlap of its mask with the given mask, or of its
    box with the given box.

    Args:
        image: (H, W, 3) uint8 RGB.
        regions: x, y, width, height in pixels; or (H, W) bool masks.
        stage: the refine stage.
        objects: the targets, as sets of one object each.
        names: of the targets.
        threshold: regions whose best target scores less show none.
        random: of the initial noise.
        clock: takes the time.

    Raises:
        ImageError: a box lies outside the image, or a mask is empty or of another size.
    """
    size = (image.shape[0], image.shape[1])
    boxes = [_box(region, size, number) for number, region in enumerate(regions, start=1)]
    pairs = [(box, target) for box in boxes for target in range(len(names))]
    seen = stage.look(image, [box for box, _ in pairs], [target for _, target in pairs], objects, random, clock)
    labels = []
    for number, region in enumerate(regions):
        scores: dict[str, float] = {}
        best: Instance | None = None
        for target, name in enumerate(names):
            around, probabilities = seen[number * len(names) + target]
            found = stage.candidate(target, around, probabilities, size)
            instance = None if found is None else _instance(found, name, region, size)
            scores[name] = instance.score if instance else 0.0
            if instance and instance.score >= max(threshold, best.score if best else 0.0):
                best = instance
        labels.append(Label(instance=best, scores=scores))
    return tuple(labels)


def _instance(found: Candidate, name: str, region: Box | np.ndarray, size: tuple[int, int]) -> Instance:
    x, y, width, height = found.region
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = found.mask
    if isinstance(region, np.ndarray):
        fit = float((mask & region).sum() / max((mask | region).sum(), 1))
    else:
        fit = box_iou(found.box, region)
    return Instance(object_id=name, score=found.score * fit, box=found.box, mask=mask)


def _box(region: Box | np.ndarray, size: tuple[int, int], number: int) -> Box:
    if isinstance(region, np.ndarray):
        if region.shape != size or region.dtype != bool:
            raise ImageError(
                f"region {number}: a mask must be bool and of the image's size {size}, is {region.dtype} {region.shape}"
            )
        if not region.any():
            raise ImageError(f"region {number}: the mask is empty")
        return tight_box(region)
    x, y, width, height = region
    if width < 1 or height < 1 or x < 0 or y < 0 or x + width > size[1] or y + height > size[0]:
        raise ImageError(
            f"region {number}: box {tuple(region)} (x, y, width, height) is not inside the image of "
            f"{size[1]} x {size[0]} pixels"
        )
    return x, y, width, height
