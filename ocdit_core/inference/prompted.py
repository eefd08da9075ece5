"""The prompted stage: finds the instance of an object that a location prompt points at, without further training."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ocdit_core.inference.labelling import checked_box
from ocdit_core.inference.postprocess import Candidate, grouped_parts, min_pixels, score
from ocdit_core.inference.prompts import Point, Prompt
from ocdit_core.inference.refine import RefineStage
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.masks import Box, box_iou, mask_iou, tight_box
from ocdit_core.models.ocdit import TargetSet

# Sides of the squares around a point that are refined, as fractions of the geometric mean of the image's sides, beside
# the regions that the coarse stage sees there from these probabilities on.
_SQUARES = (0.06, 0.12, 0.24, 0.48)
_LEVELS = (0.1, 0.3, 0.5)
# Scales of a known box that are averaged.
_SCALES = (0.8, 1.0, 1.3)
# Two boxes around a point are the same from this IoU on.
_SAME_BOX_IOU = 0.8
# A point counts as inside a mask up to this distance, as a fraction of the same mean.
_TOLERANCE = 0.005


def prompted_candidates(
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    prompts: Sequence[Evidence],
    stage: RefineStage,
    objects: TargetSet,
    settings: InferenceSettings,
) -> list[Candidate]:
    """Return a candidate for each prompt that says where its object is; prompts that nothing agrees with have none.

    Around a point, the regions that the coarse stage sees there, and squares, are refined; the best of them gives the
    box. A box, given or found, is segmented at three scales, whose mean is the candidate.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (O, H, W) probabilities of the coarse stage.
        prompts: prompts for the image.
        stage: the refine stage.
        objects: all targets, as sets of one object each.
        settings: inference settings.
    """
    size = (image.shape[0], image.shape[1])
    jobs = [(one, box) for one in prompts if one.places for box in one.boxes(maps)]
    boxes = {one: box for one, box in jobs if one.box is not None}
    open_jobs = [(one, box) for one, box in jobs if one.box is None]
    best: dict[Evidence, Candidate] = {}
    segmented = stage.segment(image, [box for _, box in open_jobs], [one.target for one, _ in open_jobs], objects)
    for (one, _), found in zip(open_jobs, segmented, strict=True):
        candidate = one.candidate(*found, settings)
        if candidate and (one not in best or candidate.score > best[one].score):
            best[one] = candidate
    boxes |= {one: candidate.box for one, candidate in best.items()}
    scaled = [(one, _scaled(box, scale, size)) for one, box in boxes.items() for scale in _SCALES]
    segmented = stage.segment(image, [box for _, box in scaled], [one.target for one, _ in scaled], objects)
    candidates = []
    for number, one in enumerate(boxes):
        parts = segmented[number * len(_SCALES) : (number + 1) * len(_SCALES)]
        found = one.candidate(*_mean(parts, size), settings)
        candidates += [found] if found else []
    return candidates


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
        self._size = size
        self._mask = prompt.mask
        region = prompt.box if prompt.mask is None else prompt.mask
        self.box: Box | None = None if region is None else checked_box(region, size, "prompt")
        self._on = self._drawn(prompt.points, prompt.scribble)
        self._off = self._drawn(prompt.negative, ())
        radius = max(round(_TOLERANCE * self._mean_side()), 1)
        self._near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))

    def boxes(self, maps: Sequence[np.ndarray]) -> list[Box]:
        """Return boxes in which the instance may lie: the known one, or else some around the points.

        Args:
            maps: (O, H, W) probabilities of the coarse stage.
        """
        if self.box is not None:
            return [self.box]
        x, y, width, height = tight_box(self._on)
        boxes = []
        for own in (one[self.target] for one in maps):
            for level in _LEVELS:
                _, labels = cv2.connectedComponents((own >= level).astype(np.uint8))
                touched = np.setdiff1d(labels[self._on], [0])
                if touched.size:
                    boxes.append(tight_box(np.isin(labels, touched) | self._on))
        for fraction in _SQUARES:
            side = round(fraction * self._mean_side())
            wide, high = max(side, width), max(side, height)
            left, top = max(x + (width - wide) // 2, 0), max(y + (height - high) // 2, 0)
            boxes.append((left, top, min(wide, self._size[1] - left), min(high, self._size[0] - top)))
        kept: list[Box] = []
        for box in boxes:
            if all(box_iou(box, other) < _SAME_BOX_IOU for other in kept):
                kept.append(box)
        return kept

    def candidate(
        self, region: Box, probabilities: np.ndarray, presence: float, settings: InferenceSettings
    ) -> Candidate | None:
        """Return the instance in a segmented region that agrees best with the prompt; None: there is none.

        Args:
            region: part of the image in pixels.
            probabilities: (height, width) float32 probabilities of the target in the region.
            presence: probability of the target being in the region at all.
            settings: inference settings.
        """
        x, y, width, height = region
        part = (slice(y, y + height), slice(x, x + width))
        if self.box is not None:
            left, top, wide, high = self.box
            inside = np.zeros(self._size, bool)
            inside[top : top + high, left : left + wide] = True
            probabilities = np.where(inside[part], probabilities, 0)
        best: Candidate | None = None
        for mask in grouped_parts(probabilities >= settings.refine.mask_threshold):
            if mask.sum() < min_pixels(self._size):
                continue
            confidence = presence * score(probabilities, mask, settings.score) * self._agreement(mask, region)
            if confidence > (best.score if best else 0.0):
                best = Candidate(
                    target=self.target, score=confidence, region=region, probabilities=probabilities, mask=mask
                )
        return best

    def excludes(self, candidate: Candidate) -> bool:
        """Return whether a candidate is one of this target and shows a negative point."""
        return candidate.target == self.target and bool((self._off[candidate.part] & candidate.mask).any())

    def _agreement(self, mask: np.ndarray, region: Box) -> float:
        """Return how well a mask (height, width) in a region agrees with the prompt, in [0, 1]."""
        whole = np.zeros(self._size, bool)
        x, y, width, height = region
        whole[y : y + height, x : x + width] = mask
        if (whole & self._off).any():
            return 0.0
        agreement = 1.0
        if self._on.any():
            near = cv2.dilate(whole.astype(np.uint8), self._near).astype(bool)
            agreement *= float(near[self._on].mean())
        if self._mask is not None:
            agreement *= float(mask_iou(whole, self._mask))
        elif self.box is not None:
            agreement *= box_iou(tight_box(whole), self.box)
        return agreement

    def _drawn(self, points: Sequence[Point], line: Sequence[Point]) -> np.ndarray:
        """Return the (H, W) bool mask of points and a line."""
        drawn = np.zeros(self._size, np.uint8)
        for x, y in points:
            drawn[round(y), round(x)] = 1
        if line:
            cv2.polylines(drawn, [np.rint(np.asarray(line)).astype(np.int32)[:, None]], False, 1)
        return drawn.astype(bool)

    def _mean_side(self) -> float:
        return float(np.sqrt(self._size[0] * self._size[1]))


def _scaled(box: Box, scale: float, size: tuple[int, int]) -> Box:
    """Return a box scaled about its centre, inside the image."""
    ends = []
    for begin, length, most in ((box[0], box[2], size[1]), (box[1], box[3], size[0])):
        half = scale * length / 2
        centre = begin + length / 2
        ends.append((max(round(centre - half), 0), min(max(round(centre + half), round(centre - half) + 1), most)))
    (left, right), (top, bottom) = ends
    return left, top, right - left, bottom - top


def _mean(parts: Sequence[tuple[Box, np.ndarray, float]], size: tuple[int, int]) -> tuple[Box, np.ndarray, float]:
    """Return the box around all regions, the mean of their probabilities in it, and of the presence."""
    total, count = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for (x, y, width, height), probabilities, _ in parts:
        total[y : y + height, x : x + width] += probabilities
        count[y : y + height, x : x + width] += 1
    x, y, width, height = region = tight_box(count > 0)
    part = np.s_[y : y + height, x : x + width]
    mean = total[part] / np.maximum(count[part], 1)
    return region, mean, sum(presence for *_, presence in parts) / len(parts)
