"""Labelling (paper table 3): the target object that each given box or mask shows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ocdit_core.errors import ConfigError
from ocdit_core.inference.postprocess import Candidate, candidate_in, snapped
from ocdit_core.inference.prompts import checked_box
from ocdit_core.inference.refine import RefineStage
from ocdit_core.inference.results import Instance
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.masks import Box, box_iou, mask_iou
from ocdit_core.models.ocdit import TargetSet

LABEL_THRESHOLD = 0.5
"""Default lowest score of a label."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Label:
    """Label of a region.

    Attributes:
        instance: the target object with its score and mask; None: the region shows none of the targets.
        scores: score in [0, 1] of each target, or of the one that the region is known to show.
    """

    instance: Instance | None
    scores: dict[str, float]


def label_regions(
    image: np.ndarray,
    regions: Sequence[Box | np.ndarray],
    stage: RefineStage,
    objects: TargetSet,
    names: Sequence[str],
    settings: InferenceSettings,
    threshold: float,
    known: Sequence[str] | None,
) -> tuple[Label, ...]:
    """Segment each region for every target, and return the best target of each region; see `Segmenter.label`.

    A target's score is multiplied by the IoU of its mask with the given mask, or of its box with the given box.

    Args:
        image: (H, W, 3) uint8 RGB.
        regions: boxes or masks.
        stage: the refine stage.
        objects: all targets, as sets of one object each.
        names: names of the targets.
        settings: inference settings.
        threshold: lowest score of a label.
        known: name of the target that each region shows; None: any.
    """
    if known is not None and (len(known) != len(regions) or not set(known) <= set(names)):
        raise ConfigError(f"names: {', '.join(map(str, known))[:80]} are not one of the targets for each region")
    size = (image.shape[0], image.shape[1])
    boxes = [checked_box(region, size, f"region {number}") for number, region in enumerate(regions, start=1)]
    asked = [range(len(names))] * len(boxes) if known is None else [[names.index(name)] for name in known]
    pairs = [(box, target) for box, targets in zip(boxes, asked, strict=True) for target in targets]
    segmented = iter(stage.segment(image, [box for box, _ in pairs], [target for _, target in pairs], objects))
    labels = []
    for region, targets in zip(regions, asked, strict=True):
        scores: dict[str, float] = {}
        best: Candidate | None = None
        for target in targets:
            candidate = candidate_in(target, *next(segmented), size, settings)
            score = 0.0 if candidate is None else candidate.score * _overlap(candidate, region)
            scores[names[target]] = score
            if candidate and score >= max(best.score if best else 0.0, threshold):
                best = replace(candidate, score=score)
        if best and settings.refine.snap:
            best = snapped(best, image)
        instance = None if best is None else _instance(best, names[best.target], size)
        labels.append(Label(instance=instance, scores=scores))
    return tuple(labels)


def _overlap(candidate: Candidate, region: Box | np.ndarray) -> float:
    """Return the IoU of a candidate's mask with that of a region, or of its box with a box."""
    if isinstance(region, np.ndarray):
        return float(mask_iou(candidate.whole(region.shape), region))
    return box_iou(candidate.box, region)


def _instance(candidate: Candidate, name: str, size: tuple[int, int]) -> Instance:
    return Instance(object_id=name, score=candidate.score, box=candidate.box, mask=candidate.whole(size))
