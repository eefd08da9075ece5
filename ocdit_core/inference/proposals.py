"""From probabilities to places: where each target may be, once or several times (paper 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ocdit_core.inference.settings import InferenceSettings, Score
from ocdit_core.masks import Box, tight_box


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A place where a target may be: a proposal of the coarse stage, or what the refine stage makes of it.

    Attributes:
        target: index of the target object.
        score: confidence in [0, 1].
        region: x, y, width, height in pixels: the part of the image that the arrays below cover.
        probabilities: (height, width) float32, of the region's pixels to show the target.
        mask: (height, width) bool, the pixels that are taken to show it; at least one.
    """

    target: int
    score: float
    region: Box
    probabilities: np.ndarray
    mask: np.ndarray

    @property
    def box(self) -> Box:
        """The modal box, tight around the mask, in the image."""
        x, y, width, height = tight_box(self.mask)
        return self.region[0] + x, self.region[1] + y, width, height


def propose(
    probabilities: np.ndarray, targets: int, settings: InferenceSettings, *, threshold: float, exclusive: bool
) -> list[Candidate]:
    """Return where targets may be: groups of connected parts, those of one target not overlapping.

    Args:
        probabilities: (O, H, W) of the coarse stage, targets before distractors.
        targets: how many of the objects are targets.
        settings: of the inference.
        threshold: probability from which a pixel counts.
        exclusive: whether a pixel counts for the most probable object alone.
    """
    winner = probabilities.argmax(axis=0) if exclusive else None
    least = max(settings.min_area * probabilities[0].size, 1)
    found = []
    for target in range(targets):
        own = probabilities[target]
        mask = own >= threshold
        if winner is not None:
            mask &= winner == target
        groups = [group for group in grouped_parts(mask, settings) if group.sum() >= least]
        groups.sort(key=lambda group: -float(own[group].sum()))
        for group in groups[: settings.max_instances]:
            x, y, width, height = region = tight_box(group)
            part = (slice(y, y + height), slice(x, x + width))
            found.append(
                Candidate(
                    target=target,
                    score=score(own, group, settings.score, groups),
                    region=region,
                    probabilities=own[part],
                    mask=group[part],
                )
            )
    return found


def score(probabilities: np.ndarray, mask: np.ndarray, kind: Score, others: list[np.ndarray] | None = None) -> float:
    """Return the confidence of a mask, in [0, 1].

    Args:
        probabilities: (H, W).
        mask: (H, W) bool, at least one pixel.
        kind: of score.
        others: masks of other instances of the same object, whose pixels do not speak against this one.
    """
    inside = float(probabilities[mask].sum())
    area = int(mask.sum())
    if kind == "mean":
        return inside / area
    outside = float(probabilities.sum()) - inside
    for other in others or ():
        if other is not mask:
            outside -= float(probabilities[other & ~mask].sum())
    return inside / (area + max(outside, 0.0))


def grouped_parts(mask: np.ndarray, settings: InferenceSettings) -> list[np.ndarray]:
    """Return a (H, W) bool mask's connected parts, near ones together, without small ones.

    An object that others cover may well be seen in two pieces, but hardly as a piece and a speck.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    # The background is not a part.
    areas = stats[:, cv2.CC_STAT_AREA] * (np.arange(count) > 0)
    groups: list[list[int]] = []
    for part in (int(i) for i in np.argsort(-areas, kind="stable") if areas[i] > 0):
        if areas[part] < settings.min_instance * areas.max():
            break
        near = next((group for group in groups if _gap(stats[group[0]], stats[part]) <= settings.merge_gap), None)
        if near is None:
            groups.append([part])
        elif areas[part] >= settings.min_part * areas[near[0]]:
            near.append(part)
    return [np.isin(np.arange(count), group)[labels] for group in groups]


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of two parts' boxes, over the mean side of the first one's."""
    apart = np.maximum(np.maximum(a[:2], b[:2]) - np.minimum(a[:2] + a[2:4], b[:2] + b[2:4]), 0)
    return float(np.hypot(*apart) / np.sqrt(a[2] * a[3]))
