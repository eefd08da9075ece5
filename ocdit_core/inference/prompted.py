"""The prompted stage: finds the instance of an object that a location prompt points at, without further training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from ocdit_core.inference.crops import Crop
from ocdit_core.inference.edges import snap
from ocdit_core.inference.postprocess import Candidate, grouped_parts, min_pixels, score
from ocdit_core.inference.prompts import Point, Prompt, checked_box
from ocdit_core.inference.refine import RefineStage
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.masks import Box, box_iou, mask_iou, tight_box
from ocdit_core.models.ocdit import TargetSet
from ocdit_core.models.prompt_embedding import KINDS, STRIDE

# Sides of the squares around a point that are refined, as fractions of the geometric mean of the image's sides, beside
# the regions that the coarse stage sees there from these probabilities on.
_SQUARES = (0.06, 0.12, 0.24, 0.48)
_LEVELS = (0.1, 0.3, 0.5)
# Two boxes around a point are the same from this IoU on.
_SAME_BOX_IOU = 0.8
# A point counts as inside a mask up to this distance, as a fraction of the same mean.
_TOLERANCE = 0.005
# Scales of a box that are averaged, and of a box around a point outside of which nothing is of the instance.
_SCALES = (0.8, 1.0, 1.3)
_SLACK = 1.2
# Snapping: probability from which on a pixel is surely of the instance, and the fraction of the box from which on the
# probable pixels are the start, instead of the whole box.
_CERTAIN = 0.8
_LEAST_FOREGROUND = 0.1
# Score: sigmoid of the weighted logarithms of the refine stage's score, of the agreement with the prompt, of the mean
# coarse probabilities in the mask of the object and of the other target that fits best (at least the floor; the last
# value where there are no other targets), and of the object's highest probability in the whole image, plus an offset.
# Fitted on right prompts, and on as many on background and on other objects, of validation scenes.
_WEIGHTS = (0.79, 2.23, 1.05, -1.77, -2.09)
_OFFSET = 0.88
_OTHER_FLOOR, _NO_OTHER = 0.1, 0.25


class Evidence:
    """What a prompt says about the pixels of an image.

    Args:
        prompt: the prompt, checked for the image.
        names: names of the targets.
        size: (H, W) of the image.
    """

    def __init__(self, prompt: Prompt, names: Sequence[str], size: tuple[int, int]) -> None:
        self.target = names.index(prompt.object_id)
        self.places = prompt.places
        region = prompt.box if prompt.mask is None else prompt.mask
        self.box: Box | None = None if region is None else checked_box(region, size, "prompt")
        self.mask = prompt.mask
        self.on = _drawn(size, prompt.points, prompt.scribble)
        self.off = _drawn(size, prompt.negative)

    def excludes(self, candidate: Candidate) -> bool:
        """Return whether a candidate is one of this target and shows a negative point."""
        return candidate.target == self.target and bool((self.off[candidate.part] & candidate.mask).any())

    def touches(self, candidate: Candidate) -> bool:
        """Return whether points or a line, without a box or mask, lie in the region of a candidate of the target."""
        return candidate.target == self.target and self.box is None and bool(self.on[candidate.part].any())

    def agreement(self, mask: np.ndarray, region: Box) -> float:
        """Return how well a mask (height, width) of a region agrees with the prompt, in [0, 1]."""
        whole = np.zeros(self.on.shape, bool)
        x, y, width, height = region
        whole[y : y + height, x : x + width] = mask
        if (whole & self.off).any():
            return 0.0
        agreement = 1.0
        if self.on.any():
            radius = max(round(_TOLERANCE * _mean_side(whole.shape)), 1)
            near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
            agreement = float(cv2.dilate(whole.astype(np.uint8), near)[self.on].mean())
        if self.mask is not None:
            agreement *= float(mask_iou(whole, self.mask))
        elif self.box is not None:
            agreement *= box_iou(tight_box(whole), self.box)
        return agreement

    def map(self, crop: Crop) -> np.ndarray:
        """Return the prompt map of a crop, (KINDS, h / 4, w / 4) float32; see `PromptEmbedding`."""
        maps = np.zeros((KINDS, crop.input_size[0] // STRIDE, crop.input_size[1] // STRIDE), np.float32)
        for channel, points in enumerate((self.on, self.off)):
            places = crop.places(np.argwhere(points)) // STRIDE
            maps[channel, places[:, 0], places[:, 1]] = 1
        region = self.mask
        if region is None and self.box is not None:
            x, y, width, height = self.box
            region = np.zeros(self.on.shape, bool)
            region[y : y + height, x : x + width] = True
        if region is not None:
            inside = crop.forward(region.astype(np.float32))
            channel = 2 if self.mask is None else 3
            maps[channel] = cv2.resize(inside, maps.shape[:0:-1], interpolation=cv2.INTER_AREA)
        return maps


def prompted_candidates(
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    refined: Sequence[Candidate],
    prompts: Sequence[Evidence],
    stage: RefineStage,
    objects: TargetSet,
    settings: InferenceSettings,
) -> list[Candidate]:
    """Return a candidate for each prompt that says where its object is; prompts that nothing agrees with have none.

    Around a point, the regions that the coarse stage sees there, and squares, are refined; the best of them gives the
    box. A box, given or found, is segmented at three scales, whose mean is snapped to the edges of the image. Where a
    point is on an instance that is found without it, that is the mask.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (O, H, W) probabilities of the coarse stage.
        refined: candidates that are found without prompts, with calibrated scores.
        prompts: prompts for the image.
        stage: the refine stage.
        objects: all targets, as sets of one object each.
        settings: inference settings.
    """
    size = (image.shape[0], image.shape[1])
    boxes = {one: one.box for one in prompts if one.box is not None}
    tries = [(one, box) for one in prompts if one.places and one.box is None for box in _boxes_around(one, maps)]
    best: dict[Evidence, Candidate] = {}
    segmented = _segmented(stage, image, tries, objects)
    for (one, _), (region, probabilities, presence) in zip(tries, segmented, strict=True):
        for mask in grouped_parts(probabilities >= settings.refine.mask_threshold):
            candidate = _candidate(one, region, probabilities, mask, presence, settings)
            if candidate and (one not in best or candidate.score > best[one].score):
                best[one] = candidate
    boxes |= {one: candidate.box for one, candidate in best.items()}
    scaled = [(one, _scaled(box, scale, size)) for one, box in boxes.items() for scale in _SCALES]
    segmented = _segmented(stage, image, scaled, objects)
    candidates = []
    for number, (one, box) in enumerate(boxes.items()):
        region, probabilities, presence = _mean(segmented[number * len(_SCALES) : (number + 1) * len(_SCALES)], size)
        bounds = box if one.box else _scaled(box, _SLACK, size)
        probabilities, mask = _snapped(image, one, bounds, region, probabilities, settings.refine.mask_threshold)
        parts = grouped_parts(mask)
        if parts:
            mask = max(parts, key=lambda part: int(part.sum()))
            candidate = _candidate(one, region, probabilities, mask, presence, settings)
            if candidate:
                candidates.append(_or_unprompted(_scored(candidate, one, maps), one, refined, settings))
    return candidates


def _or_unprompted(
    candidate: Candidate, prompt: Evidence, refined: Sequence[Candidate], settings: InferenceSettings
) -> Candidate:
    """Return a prompt's candidate, or the one found without it that shows the points, with the score of the first."""
    found = [
        one
        for one in refined
        if prompt.touches(one) and one.score >= settings.score_threshold and prompt.agreement(one.mask, one.region) == 1
    ]
    return replace(max(found, key=lambda one: one.score), score=candidate.score) if found else candidate


def _segmented(
    stage: RefineStage, image: np.ndarray, places: Sequence[tuple[Evidence, Box]], objects: TargetSet
) -> list[tuple[Box, np.ndarray, float]]:
    """Return what `RefineStage.segment` finds for prompts in boxes."""
    targets, drawn = [one.target for one, _ in places], [one.map for one, _ in places]
    return stage.segment(image, [box for _, box in places], targets, objects, drawn)


def _boxes_around(prompt: Evidence, maps: Sequence[np.ndarray]) -> list[Box]:
    """Return boxes of different sizes in which an instance that shows the points may lie."""
    size = prompt.on.shape
    x, y, width, height = tight_box(prompt.on)
    boxes = []
    for own in (one[prompt.target] for one in maps):
        for level in _LEVELS:
            _, labels = cv2.connectedComponents((own >= level).astype(np.uint8))
            touched = np.setdiff1d(labels[prompt.on], [0])
            if touched.size:
                boxes.append(tight_box(np.isin(labels, touched) | prompt.on))
    for fraction in _SQUARES:
        side = round(fraction * _mean_side(size))
        wide, high = max(side, width), max(side, height)
        left, top = max(x + (width - wide) // 2, 0), max(y + (height - high) // 2, 0)
        boxes.append((left, top, min(wide, size[1] - left), min(high, size[0] - top)))
    kept: list[Box] = []
    for box in boxes:
        if all(box_iou(box, other) < _SAME_BOX_IOU for other in kept):
            kept.append(box)
    return kept


def _snapped(
    image: np.ndarray, prompt: Evidence, box: Box, region: Box, probabilities: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities (height, width) of a region, 0 outside of a box, and the mask at the edges of the image.

    Of a given mask, this one and the probable pixels, the majority counts.
    """
    x, y, width, height = region
    part = np.s_[y : y + height, x : x + width]
    bounds = np.zeros(prompt.on.shape, bool)
    bounds[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    bounds = bounds[part]
    probabilities = np.where(bounds, probabilities, 0)
    probable = probabilities >= threshold
    start = bounds if probable.sum() < _LEAST_FOREGROUND * box[2] * box[3] else probable
    off = prompt.off[part]
    certain = ((probabilities >= _CERTAIN) | prompt.on[part]) & bounds & ~off
    mask = snap(image[part], start, certain, ~bounds | off)
    if prompt.mask is not None:
        mask = np.sum([mask, probable, prompt.mask[part]], axis=0) >= 2
    return probabilities, mask


def _candidate(
    prompt: Evidence,
    region: Box,
    probabilities: np.ndarray,
    mask: np.ndarray,
    presence: float,
    settings: InferenceSettings,
) -> Candidate | None:
    """Return a mask as a candidate; None: it is too small, or does not agree with the prompt."""
    if mask.sum() < min_pixels(prompt.on.shape):
        return None
    confidence = presence * score(probabilities, mask, settings.score) * prompt.agreement(mask, region)
    if not confidence:
        return None
    return Candidate(target=prompt.target, score=confidence, region=region, probabilities=probabilities, mask=mask)


def _scored(candidate: Candidate, prompt: Evidence, maps: Sequence[np.ndarray]) -> Candidate:
    """Return a candidate with the score of prompts: that of a right one, against one on something else."""
    rows, columns = candidate.part
    means = np.max([one[:, rows, columns][:, candidate.mask].mean(axis=1) for one in maps], axis=0)
    others = np.delete(means, candidate.target)
    agreement = prompt.agreement(candidate.mask, candidate.region)
    other = max(float(others.max()), _OTHER_FLOOR) if others.size else _NO_OTHER
    best = max(float(one[candidate.target].max()) for one in maps)
    values = (candidate.score / agreement, agreement, float(means[candidate.target]), other, best)
    logit = _OFFSET + sum(weight * math.log(max(value, 1e-3)) for weight, value in zip(_WEIGHTS, values, strict=True))
    return replace(candidate, score=1 / (1 + math.exp(-logit)), snapped=True)


def _mean(parts: Sequence[tuple[Box, np.ndarray, float]], size: tuple[int, int]) -> tuple[Box, np.ndarray, float]:
    """Return the box around all regions, the mean of their probabilities in it, and of the presence."""
    total, count = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for (x, y, width, height), probabilities, _ in parts:
        total[y : y + height, x : x + width] += probabilities
        count[y : y + height, x : x + width] += 1
    x, y, width, height = region = tight_box(count > 0)
    part = np.s_[y : y + height, x : x + width]
    return region, total[part] / np.maximum(count[part], 1), sum(presence for *_, presence in parts) / len(parts)


def _scaled(box: Box, scale: float, size: tuple[int, int]) -> Box:
    """Return a box scaled about its centre, inside the image."""
    ends = []
    for begin, length, most in ((box[0], box[2], size[1]), (box[1], box[3], size[0])):
        low, high = (round(begin + length / 2 + side * scale * length / 2) for side in (-1, 1))
        ends.append((max(min(low, most - 1), 0), min(max(high, low + 1), most)))
    (left, right), (top, bottom) = ends
    return left, top, right - left, bottom - top


def _drawn(size: tuple[int, int], points: Sequence[Point], line: Sequence[Point] = ()) -> np.ndarray:
    """Return the (H, W) bool mask of points and a line."""
    drawn = np.zeros(size, np.uint8)
    for x, y in points:
        drawn[round(y), round(x)] = 1
    if line:
        cv2.polylines(drawn, [np.rint(np.asarray(line)).astype(np.int32)[:, None]], False, 1)
    return drawn.astype(bool)


def _mean_side(size: tuple[int, ...]) -> float:
    return math.sqrt(size[0] * size[1])
