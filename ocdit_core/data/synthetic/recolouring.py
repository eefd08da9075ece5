"""New colours for drawn objects: one linear map for all pictures of an object makes it another object."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def random_recolouring(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draws a colour map (3, 3): hue rotation, channel permutation, saturation and gains; black stays black.

    Apply it with `recolour` to the templates and the sprites of an object alike.
    """
    matrix = np.eye(3)
    if rng.random() < 0.5:
        matrix = matrix[rng.permutation(3)]
    if rng.random() < 0.7:  # turn about the grey axis
        angle = rng.uniform(-np.pi, np.pi)
        c, s = np.cos(angle), np.sin(angle) / 3**0.5
        a, b = c + (1 - c) / 3, (1 - c) / 3
        matrix = np.array([[a, b - s, b + s], [b + s, a, b - s], [b - s, b + s, a]]) @ matrix
    saturation = rng.uniform(0.5, 1.2)
    matrix = (saturation * np.eye(3) + (1 - saturation) / 3) @ matrix
    gains = rng.uniform(0.75, 1.15) * rng.uniform(0.88, 1.12, 3)
    return np.asarray(gains[:, None] * matrix, dtype=np.float32)


def recolour(rgba: NDArray[np.uint8], matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Applies a colour map to RGBA pictures (..., h, w, 4) with colours multiplied by coverage; coverage is kept."""
    flat = np.ascontiguousarray(rgba).reshape(-1, rgba.shape[-2], 4)
    full = np.zeros((4, 4), np.float32)
    full[:3, :3] = matrix
    full[3, 3] = 1
    out = cv2.transform(flat, full)
    np.minimum(out[..., :3], out[..., 3:], out=out[..., :3])  # stays premultiplied
    return np.asarray(out, dtype=np.uint8).reshape(rgba.shape)
