"""Overlapping tiles of an image, for what is too small to be found in the whole.

After Akyon et al., "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection", ICIP 2022. What is found
in a tile is not averaged with what other looks show, as test-time augmentation does: it is a proposal of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ocdit_core.inference.proposals import Candidate, propose
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.inference.windows import Window
from ocdit_core.masks import box_iou


def tile_windows(
    image_size: tuple[int, int], canvas_size: tuple[int, int], settings: InferenceSettings
) -> list[Window]:
    """Return the tiles of an image, row by row; none where the settings want none.

    Args:
        image_size: (H, W) in pixels.
        canvas_size: (h, w) of the model's input where the settings have none for tiles.
        settings: of the inference.
    """
    tiles = settings.tiles
    height, width = (math.ceil(side * tiles.share) for side in image_size)
    tops, lefts = (
        np.linspace(0, whole - part, tiles.grid).round().astype(int).tolist()
        for whole, part in zip(image_size, (height, width), strict=True)
    )
    size = tiles.image_size or canvas_size
    return [Window(box=(left, top, width, height), canvas_size=size) for top in tops for left in lefts]


def new_proposals(
    known: Sequence[Candidate],
    seen: Sequence[tuple[Window, np.ndarray]],
    targets: int,
    image_size: tuple[int, int],
    settings: InferenceSettings,
    *,
    threshold: float,
) -> list[Candidate]:
    """Return the places that tiles show and that are not known yet, the best few of each target.

    Args:
        known: proposals from the whole image.
        seen: tiles, and (O, height, width) probabilities of their pixels, targets before distractors.
        targets: how many of the objects are targets.
        image_size: (H, W) in pixels.
        settings: of the inference.
        threshold: probability from which a pixel counts.
    """
    tiles = settings.tiles
    least = settings.min_area * math.prod(image_size)
    found = []
    for window, probabilities in seen:
        left, top = window.box[:2]
        for one in propose(probabilities, targets, settings, threshold=threshold, exclusive=False):
            if one.mask.sum() >= least:
                x, y, width, height = one.region
                found.append(dataclasses.replace(one, region=(left + x, top + y, width, height)))
    boxes = [[one.box for one in known if one.target == target] for target in range(targets)]
    kept: list[Candidate] = []
    counts = [0] * targets
    for one in sorted(found, key=lambda one: -one.score):
        mine = boxes[one.target]
        if counts[one.target] < tiles.max_proposals and all(box_iou(one.box, box) < tiles.max_overlap for box in mine):
            mine.append(one.box)
            counts[one.target] += 1
            kept.append(one)
    return kept
