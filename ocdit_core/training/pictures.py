"""Pictures of a validation: what was asked for, what was found, and how denoising comes to it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ocdit_core.colours import number_colour

_CELL = 160
_GAP = 4
_GREY = 32


def mask_sheet(image: np.ndarray, templates: np.ndarray, truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Draw a row: the image, the truth, the prediction, and one template of each target in its colour's frame.

    Args:
        image: (H, W, 3) uint8 RGB.
        templates: (O, h, w, 3) uint8 RGB.
        truth: (O, H, W), above 0 where the target is.
        found: (O, H, W) probabilities.

    Returns:
        (h', w', 3) uint8 RGB.
    """
    cells = [_scaled(image), _outlined(image, truth > 0), _outlined(image, found > 0.5)]
    for number, template in enumerate(templates, start=1):
        cell = cv2.resize(template, (_CELL, _CELL), interpolation=cv2.INTER_AREA)
        cells.append(cv2.rectangle(cell, (1, 1), (_CELL - 2, _CELL - 2), number_colour(number), 3))
    return _row(cells)


def denoising_strip(image: np.ndarray, truth: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Draw the sampler's estimates of all targets' masks, from the highest noise level to none, then the truth.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (O, H, W), above 0 where the target is.
        steps: (N, O, H, W) probabilities.

    Returns:
        (h', w', 3) uint8 RGB.
    """
    return _row([*(_tinted(image, step) for step in steps), _tinted(image, (truth > 0).astype(np.float32))])


def _scaled(picture: np.ndarray) -> np.ndarray:
    width = round(_CELL * picture.shape[1] / picture.shape[0])
    how = cv2.INTER_AREA if picture.shape[0] > _CELL else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(np.ascontiguousarray(picture), (width, _CELL), interpolation=how))


def _outlined(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    canvas = _scaled(image)
    for number, mask in enumerate(masks, start=1):
        contours, _ = cv2.findContours(_scaled(mask.astype(np.uint8)), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, number_colour(number), 2)
    return canvas


def _tinted(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    canvas = image.astype(np.float32) * 0.4
    for number, probability in enumerate(probabilities, start=1):
        canvas += probability[..., None] * (np.array(number_colour(number), np.float32) - canvas) * 0.8
    return _scaled(np.clip(canvas, 0, 255).astype(np.uint8))


def _row(cells: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((_CELL, _GAP, 3), _GREY, np.uint8)
    parts = [part for cell in cells for part in (cell, gap)]
    return np.concatenate(parts[:-1], axis=1)
