"""The refine stage (paper 3.3, 4.2): segments one object in the crop around each proposal."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ocdit_core.inference.crops import Crop, CropMean, expand
from ocdit_core.inference.network import Network
from ocdit_core.inference.postprocess import Candidate, candidate_in
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.masks import Box, box_iou
from ocdit_core.models.ocdit import ImageFeatures, TargetSet

# The best proposals of an image that are refined.
MAX_PROPOSALS = 64

# Two refined proposals of one target are the same from this box IoU on.
EQUAL_BOX_IOU = 0.7

# Crops of a proposal: factor on the margin, shift right and down as a fraction of the box.
_VARIATIONS = (
    (1.0, 0.0, 0.0),
    (1.2, 0.0, 0.0),
    (0.8, 0.0, 0.0),
    (1.0, 0.06, 0.06),
    (1.0, -0.06, 0.06),
    (1.0, 0.06, -0.06),
    (1.0, -0.06, -0.06),
)


class RefineStage:
    """Segments crops, each for one target.

    Args:
        network: the refine model.
        settings: inference settings.
    """

    def __init__(self, network: Network, settings: InferenceSettings) -> None:
        self._network = network
        self._settings = settings
        self._input_size = settings.refine.image_size or network.model.config.image_size

    def refine(
        self, image: np.ndarray, proposals: Sequence[Candidate], objects: TargetSet, *, min_score: float = 0.0
    ) -> list[Candidate]:
        """Return refined proposals; those in which the target is not found, or that became equal, are left out.

        Args:
            image: (H, W, 3) uint8 RGB.
            proposals: proposals of the coarse stage.
            objects: all targets, as sets of one object each.
            min_score: drop proposals whose final score cannot reach it.
        """
        weight, rounds = self._settings.refine.coarse_weight, self._settings.refine.rounds
        candidates = sorted(proposals, key=lambda one: -one.score)[:MAX_PROPOSALS]
        for left in range(rounds, 0, -1):
            # The upper bound: a score of 1 in all remaining rounds.
            candidates = [one for one in candidates if one.score ** (weight**left) >= min_score]
            boxes, targets = [one.box for one in candidates], [one.target for one in candidates]
            refined = []
            for before, segmented in zip(candidates, self.segment(image, boxes, targets, objects), strict=True):
                after = candidate_in(before.target, *segmented, image.shape[:2], self._settings)
                if after is not None:
                    refined.append(dataclasses.replace(after, score=before.score**weight * after.score ** (1 - weight)))
            candidates = distinct(refined)
        return candidates

    def segment(
        self,
        image: np.ndarray,
        boxes: Sequence[Box],
        targets: Sequence[int],
        objects: TargetSet,
        prompts: Sequence[Callable[[Crop], np.ndarray]] = (),
    ) -> list[tuple[Box, np.ndarray, float]]:
        """Return for each box the region of its crops, (height, width) float32 probabilities, and that of presence.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: boxes in pixels; one may occur repeatedly.
            targets: index of the target for each box.
            objects: all targets, as sets of one object each.
            prompts: return the prompt map of a crop, for each box; default: no prompts.
        """
        if not boxes:
            return []
        crops = [self._crops(box, image.shape[:2]) for box in boxes]
        distinct = {crop: number for number, crop in enumerate(dict.fromkeys(c for own in crops for c in own))}
        features = self._network.encode(np.stack([crop.forward(image) for crop in distinct]))
        chosen = torch.tensor([distinct[crop] for own in crops for crop in own], device=features.features.device)
        features = ImageFeatures(
            features=features.features[chosen], descriptors=tuple(part[chosen] for part in features.descriptors)
        )
        maps = None
        if prompts and self._network.model.prompts is not None and self._settings.refine.prompts:
            drawn = [draw(crop) for draw, own in zip(prompts, crops, strict=True) for crop in own]
            maps = torch.from_numpy(np.stack(drawn))[:, None]
        found = self._network.generate(features, objects.select(torch.as_tensor(targets)), len(crops[0]), prompts=maps)
        return [
            (*_mean(own, probabilities), float(presence.mean()))
            for own, probabilities, presence in zip(crops, *found, strict=True)
        ]

    def _crops(self, box: Box, image_size: tuple[int, ...]) -> list[Crop]:
        """Return the crops around a box."""
        x, y, width, height = box
        crops = []
        for number in range(self._settings.refine.crops):
            wider, right, down = _VARIATIONS[number % len(_VARIATIONS)]
            moved = (x + round(right * width), y + round(down * height), width, height)
            around = expand(moved, image_size, wider * self._settings.refine.margin, self._input_size)
            crops.append(Crop(box=around, input_size=self._input_size))
        return crops


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates by falling score, without those that equal a better one of their target."""
    kept: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: -one.score):
        if all(one.target != other.target or box_iou(one.box, other.box) < EQUAL_BOX_IOU for other in kept):
            kept.append(one)
    return kept


def _mean(crops: Sequence[Crop], probabilities: np.ndarray) -> tuple[Box, np.ndarray]:
    """Return the box around all crops of a proposal, and the mean of their probabilities (W, 1, h, w) in it."""
    left, top = (min(crop.box[axis] for crop in crops) for axis in (0, 1))
    width = max(crop.box[0] + crop.box[2] for crop in crops) - left
    height = max(crop.box[1] + crop.box[3] for crop in crops) - top
    mean = CropMean(1, (height, width))
    for crop, values in zip(crops, probabilities, strict=True):
        x, y, *sides = crop.box
        mean.add(dataclasses.replace(crop, box=(x - left, y - top, sides[0], sides[1])), values)
    return (left, top, width, height), mean.result()[0]
