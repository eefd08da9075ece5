"""Validation: masks against the ground truth, their metrics, and drawings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from ocdit_core.colours import number_colour
from ocdit_core.masks import mask_iou

_MIN_PIXELS = 64  # a smaller mask is none: a quarter of a latent cell
_CELL, _GAP, _GREY = 160, 4, 32


class MaskResult(NamedTuple):
    """Result for one target in one image.

    Attributes:
        present: whether the image shows the target.
        found: whether there is a mask.
        iou: IoU of the mask with the ground truth; 0 if either is empty.
        prior_iou: IoU of the matching prior's read-out; None without a prior.
    """

    present: bool
    found: bool
    iou: float
    prior_iou: float | None = None


def mask_results(
    probabilities: Tensor, truth: Tensor, present: Tensor, prior_iou: Tensor | None = None
) -> list[MaskResult]:
    """Return the result for each target.

    Args:
        probabilities: (N, H, W); pixels above 0.5 belong to the mask.
        truth: (N, H, W) bool.
        present: (N,) bool.
        prior_iou: (N,) IoU of the matching prior's read-out.
    """
    masks = probabilities > 0.5
    found = (masks.sum((1, 2)) >= _MIN_PIXELS).tolist()
    ious = mask_iou(masks, truth).tolist()
    priors = [None] * len(ious) if prior_iou is None else prior_iou.tolist()
    return [
        MaskResult(present=there, found=has, iou=iou if there else 0.0, prior_iou=prior)
        for there, has, iou, prior in zip(present.tolist(), found, ious, priors, strict=True)
    ]


def summarise(results: Sequence[MaskResult]) -> dict[str, float]:
    """Return the metrics of a validation.

    iou: mean IoU over present targets; recall50, precision50: fraction of present targets, and of masks, with an IoU of
    0.5 or more; false_masks: fraction of absent targets that got a mask; prior_iou: mean IoU of the matching prior's
    read-out over present targets. `ocdit evaluate` measures average precision, on a dataset.
    """
    present = [result for result in results if result.present]
    absent = [result for result in results if not result.present]
    masks = [result for result in results if result.found]
    priors = [result.prior_iou for result in present if result.prior_iou is not None]
    metrics: dict[str, float] = {}
    if present:
        metrics["iou"] = sum(result.iou for result in present) / len(present)
        metrics["recall50"] = sum(result.found and result.iou >= 0.5 for result in present) / len(present)
    if masks:
        metrics["precision50"] = sum(result.iou >= 0.5 for result in masks) / len(masks)
    if absent:
        metrics["false_masks"] = sum(result.found for result in absent) / len(absent)
    if priors:
        metrics["prior_iou"] = sum(priors) / len(priors)
    return metrics


def mask_sheet(image: np.ndarray, templates: np.ndarray, truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Draw a row: image, ground truth, prediction, and one template of each target in a frame of its colour.

    Args:
        image: (H, W, 3) uint8 RGB.
        templates: (O, h, w, 3) uint8 RGB.
        truth: (O, H, W), above 0 where the target is.
        found: (O, H, W) probabilities.

    Returns:
        (h', w', 3) uint8 RGB.
    """
    cells = [_resize(image), _outline(image, truth > 0), _outline(image, found > 0.5)]
    for number, template in enumerate(templates, start=1):
        cell = cv2.resize(template, (_CELL, _CELL), interpolation=cv2.INTER_AREA)
        cells.append(cv2.rectangle(cell, (1, 1), (_CELL - 2, _CELL - 2), number_colour(number), 3))
    return _row(cells)


def denoising_strip(image: np.ndarray, truth: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Draw the sampler's estimates of all masks, from the highest noise level to none, then the ground truth.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (O, H, W), above 0 where the target is.
        steps: (N, O, H, W) probabilities.

    Returns:
        (h', w', 3) uint8 RGB.
    """
    return _row([*(_tint(image, step) for step in steps), _tint(image, (truth > 0).astype(np.float32))])


def _resize(image: np.ndarray) -> np.ndarray:
    width = round(_CELL * image.shape[1] / image.shape[0])
    how = cv2.INTER_AREA if image.shape[0] > _CELL else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (width, _CELL), interpolation=how))


def _outline(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    canvas = _resize(image)
    for number, mask in enumerate(masks, start=1):
        contours, _ = cv2.findContours(_resize(mask.astype(np.uint8)), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, number_colour(number), 2)
    return canvas


def _tint(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    canvas = image.astype(np.float32) * 0.4
    for number, probability in enumerate(probabilities, start=1):
        canvas += probability[..., None] * (np.array(number_colour(number), np.float32) - canvas) * 0.8
    return _resize(np.clip(canvas, 0, 255).astype(np.uint8))


def _row(cells: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((_CELL, _GAP, 3), _GREY, np.uint8)
    parts = [part for cell in cells for part in (cell, gap)]
    return np.concatenate(parts[:-1], axis=1)
