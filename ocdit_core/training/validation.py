"""Validation: masks against the ground truth, their metrics, and drawings."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from ocdit_core.colours import number_colour
from ocdit_core.masks import mask_iou

_MIN_PIXELS = 64  # a smaller mask is none: a quarter of a latent cell
_CELL = 160


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


def mask_sheets(batch: dict[str, Tensor], found: Tensor, templates: Tensor, count: int) -> dict[str, np.ndarray]:
    """Draw a row for each image: image, ground truth, prediction, and a template of each target, framed in its colour.

    Args:
        batch: G episodes of S images.
        found: (G S, O, H, W) probabilities.
        templates: (G S, T, h, w, 3) uint8 RGB.
        count: number of images.

    Returns:
        (h', w', 3) uint8 RGB by name.
    """
    sheets = {}
    images, truth = batch["images"].flatten(0, 1).permute(0, 2, 3, 1), batch["masks"].flatten(0, 1)
    for number, one in enumerate(zip(images[:count], truth, found, templates, strict=False)):
        image, masks, probabilities, views = (tensor.cpu().numpy() for tensor in one)
        cells = [_resize(image), _outline(image, masks > 0), _outline(image, probabilities > 0.5)]
        for target, view in enumerate(views, start=1):
            cell = cv2.resize(view, (_CELL, _CELL), interpolation=cv2.INTER_AREA)
            cells.append(cv2.rectangle(cell, (1, 1), (_CELL - 2, _CELL - 2), number_colour(target), 3))
        sheets[f"masks_{number}"] = cv2.hconcat(cells)
    return sheets


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
