"""The refine stage (paper 3.3, 4.2): a close look at each proposal, which sharpens it or rejects it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from ocdit_core.inference.clock import StageClock
from ocdit_core.inference.mask_generator import MaskGenerator
from ocdit_core.inference.proposals import Candidate, grouped_parts, score
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.inference.windows import Window, WindowMean, expanded
from ocdit_core.masks import Box
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet

# Crops of a proposal, in turn: margin over the setting's, shift right and down over the box's size.
_PLACES = (
    (1.0, 0.0, 0.0),
    (1.2, 0.0, 0.0),
    (0.8, 0.0, 0.0),
    (1.0, 0.06, 0.06),
    (1.0, -0.06, 0.06),
    (1.0, 0.06, -0.06),
    (1.0, -0.06, -0.06),
)


class RefineStage:
    """Looks at crops, each for one target.

    Args:
        generator: of masks, with the refine model.
        settings: of the inference.
    """

    def __init__(self, generator: MaskGenerator, settings: InferenceSettings) -> None:
        self._generator = generator
        self._settings = settings
        self._canvas_size = settings.refine.image_size or generator.model.config.image_size

    @property
    def model(self) -> OCDiT:
        """The refine model."""
        return self._generator.model

    def refine(
        self,
        image: np.ndarray,
        proposals: Sequence[Candidate],
        objects: TargetSet,
        random: torch.Generator,
        clock: StageClock,
    ) -> list[Candidate]:
        """Return what the proposals turn out to show; those that show nothing of their target are left out.

        Args:
            image: (H, W, 3) uint8 RGB.
            proposals: any number of them.
            objects: the targets, as sets of one object each.
            random: of the initial noise.
            clock: takes the time.
        """
        found = sorted(proposals, key=lambda one: -one.score)[: self._settings.refine.max_proposals]
        for _ in range(self._settings.refine.rounds):
            found = self._closer(image, found, objects, random, clock)
        return found

    def _closer(
        self,
        image: np.ndarray,
        proposals: Sequence[Candidate],
        objects: TargetSet,
        random: torch.Generator,
        clock: StageClock,
    ) -> list[Candidate]:
        """One round."""
        boxes, targets = [one.box for one in proposals], [one.target for one in proposals]
        seen = self.look(image, boxes, targets, objects, random, clock)
        share = self._settings.refine.coarse_share
        refined = []
        for proposal, (region, probabilities) in zip(proposals, seen, strict=True):
            found = self.candidate(proposal.target, region, probabilities, image.shape[:2])
            if found is not None:
                combined = proposal.score**share * found.score ** (1 - share)
                refined.append(dataclasses.replace(found, score=combined))
        return refined

    def candidate(
        self, target: int, region: Box, probabilities: np.ndarray, image_size: tuple[int, ...]
    ) -> Candidate | None:
        """Return what a crop shows of its target, None for nothing."""
        groups = grouped_parts(probabilities >= self._settings.refine.mask_threshold, self._settings)
        if not groups:
            return None
        mask = max(groups, key=lambda group: float(probabilities[group].sum()))
        if mask.sum() < max(self._settings.min_area * math.prod(image_size), 1):
            return None
        confidence = score(probabilities, mask, self._settings.score, groups)
        return Candidate(target=target, score=confidence, region=region, probabilities=probabilities, mask=mask)

    def look(
        self,
        image: np.ndarray,
        boxes: Sequence[Box],
        targets: Sequence[int],
        objects: TargetSet,
        random: torch.Generator,
        clock: StageClock,
    ) -> list[tuple[Box, np.ndarray]]:
        """Return for each box the region that was looked at and its (height, width) float32 probabilities.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: x, y, width, height in pixels, B of them, no matter if the same several times.
            targets: index of the target that each is looked at for.
            objects: the targets, as sets of one object each.
            random: of the initial noise.
            clock: takes the time.
        """
        if not boxes:
            return []
        size = (image.shape[0], image.shape[1])
        crops = [self._windows(box, size) for box in boxes]
        distinct = {window: number for number, window in enumerate(dict.fromkeys(w for c in crops for w in c))}
        features = self._generator.encode(np.stack([window.forward(image) for window in distinct]), clock)
        chosen = torch.tensor([distinct[window] for windows in crops for window in windows])
        found = self._generator.generate(
            _select_pictures(features, chosen),
            objects.select(torch.as_tensor(targets)),
            sampler=self._settings.refine.sampler,
            ensemble=self._settings.refine.ensemble,
            random=random,
            clock=clock,
        )
        return [_together(windows, canvases) for windows, canvases in zip(crops, found.probabilities, strict=True)]

    def _windows(self, box: Box, image_size: tuple[int, int]) -> list[Window]:
        """Crops around a box."""
        x, y, width, height = box
        windows = []
        for number in range(self._settings.refine.windows):
            wider, right, down = _PLACES[number % len(_PLACES)]
            moved = (x + round(right * width), y + round(down * height), width, height)
            around = expanded(moved, image_size, wider * self._settings.refine.margin, self._canvas_size)
            windows.append(Window(box=around, canvas_size=self._canvas_size))
        return windows


def _together(windows: Sequence[Window], canvases: np.ndarray) -> tuple[Box, np.ndarray]:
    """The part of the image that all windows of a proposal cover together, and its mean probabilities."""
    left, top = (min(window.box[axis] for window in windows) for axis in (0, 1))
    width = max(window.box[0] + window.box[2] for window in windows) - left
    height = max(window.box[1] + window.box[3] for window in windows) - top
    mean = WindowMean(1, (height, width))
    for window, canvas in zip(windows, canvases, strict=True):
        x, y, *sides = window.box
        moved = dataclasses.replace(window, box=(x - left, y - top, sides[0], sides[1]))
        mean.add(moved, canvas)
    return (left, top, width, height), mean.result()[0]


def _select_pictures(features: ImageFeatures, chosen: torch.Tensor) -> ImageFeatures:
    device = features.features.device
    return ImageFeatures(
        features=features.features[chosen.to(device)],
        descriptors=tuple(part[chosen.to(device)] for part in features.descriptors),
    )
