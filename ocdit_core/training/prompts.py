"""Location prompts of training samples, drawn from the ground truth as people and detectors give them."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocdit_core.masks import tight_box
from ocdit_core.models.prompt_embedding import KINDS, STRIDE

PROMPTED, PROMPTED_ALONE = 0.5, 0.9
"""Share of the targets with a prompt, where all of the model is trained, and where only their embedding is."""

_KINDS = {"point": 0.45, "scribble": 0.1, "box": 0.28, "mask": 0.17}  # and their shares
_NEGATIVE_PROBABILITY = 0.3
_SHIFT = 0.05  # largest error of each side of a box, relative to its length
_BORDER = 0.06  # largest width of the border that a mask has too much, or too little, relative to the root of its area
_NEARBY = 15  # pixels from the object within which negative points are

Mask = NDArray[np.bool_]


def draw_prompt_maps(masks: Tensor, seeds: Sequence[int], share: float) -> Tensor:
    """Return the prompt maps (B, O, KINDS, H/4, W/4) of masks (B, O, H, W): prompts of random kinds, or none.

    Where a mask is empty, the prompt is somewhere: it is wrong, and the mask stays empty.

    Args:
        masks: masks of G S images, those of an episode in succession.
        seeds: a random seed for each of the G episodes.
        share: probability of a prompt.
    """
    generators = [np.random.default_rng(seed) for seed in seeds]
    images = len(masks) // len(seeds)
    drawn = [
        [_draw(mask, generators[number // images], share) for mask in image]
        for number, image in enumerate(masks.cpu().numpy() > 0)
    ]
    return torch.from_numpy(np.array(drawn)).to(masks.device)


def _draw(mask: Mask, rng: np.random.Generator, share: float) -> NDArray[np.float32]:
    maps = np.zeros((KINDS, mask.shape[0] // STRIDE, mask.shape[1] // STRIDE), np.float32)
    if rng.random() >= share:
        return maps
    mask = mask if mask.any() else _somewhere(mask.shape, rng)
    kind = rng.choice(list(_KINDS), p=list(_KINDS.values()))
    if kind == "box":
        x, y, width, height = tight_box(mask)
        shifts = rng.uniform(-_SHIFT, _SHIFT, 4) * (width, height, width, height)
        corners = np.rint(np.array([x, y, x + width, y + height]) + shifts).astype(int)
        left, top, right, bottom = np.maximum(corners, (0, 0, 1, 1))
        box = np.zeros(mask.shape, bool)
        box[top:bottom, left:right] = True
        maps[2] = _squares(box, np.mean)
    elif kind == "mask":
        side = 2 * round(rng.uniform(0, _BORDER) * float(mask.sum()) ** 0.5) + 1
        change = cv2.dilate if rng.random() < 0.7 else cv2.erode
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        maps[3] = _squares(change(mask.astype(np.uint8), kernel), np.mean)
    else:
        # The outside of the image is no edge of the object, but the mask ends there.
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        rows, columns = np.nonzero(depth >= depth.max() * rng.uniform(0.05, 0.6))
        ends = [(int(columns[i]), int(rows[i])) for i in rng.integers(len(rows), size=2)]
        line = cv2.line(np.zeros(mask.shape, np.uint8), ends[0], ends[1 if kind == "scribble" else 0], 1)
        maps[0] = _squares(line, np.max)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * _NEARBY + 1, 2 * _NEARBY + 1), np.uint8)).astype(bool)
    outside = np.flatnonzero(near & ~mask)
    if outside.size and rng.random() < _NEGATIVE_PROBABILITY:
        negative = np.zeros(mask.size, bool)
        negative[rng.choice(outside, int(rng.integers(1, 4)))] = True
        maps[1] = _squares(negative.reshape(mask.shape), np.max)
    return maps


def _somewhere(size: tuple[int, ...], rng: np.random.Generator) -> Mask:
    """Return a random ellipse, whose centre is in the image."""
    centre = [int(rng.integers(side)) for side in size[::-1]]
    axes = [int(rng.integers(3, side // 3)) for side in size[::-1]]
    drawn = np.zeros(size, np.uint8)
    cv2.ellipse(drawn, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return drawn.astype(bool)


def _squares(values: np.ndarray, reduce: Callable[..., NDArray[np.float64]]) -> NDArray[np.float64]:
    """Reduce each square of STRIDE pixels to a number."""
    high, wide = values.shape
    return reduce(values.reshape(high // STRIDE, STRIDE, wide // STRIDE, STRIDE).astype(np.float64), axis=(1, 3))
