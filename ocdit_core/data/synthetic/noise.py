"""Cheap smooth noise: small random arrays, enlarged and added up."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def smooth_noise(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    cells: float = 4.0,
    octaves: int = 3,
    persistence: float = 0.5,
    channels: int = 1,
) -> NDArray[np.float32]:
    """Multi-octave value noise.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        cells: features of the coarsest octave along the longer side.
        octaves: each has twice the detail of the one before.
        persistence: strength of an octave against the one before.
        channels: independent layers.

    Returns:
        (H, W) float32, or (H, W, channels) for more than one; zero mean, values mostly in -1..1.
    """
    height, width = size
    longer = max(height, width)
    total = np.zeros((height, width) if channels == 1 else (height, width, channels), np.float32)
    weight, norm = 1.0, 0.0
    for octave in range(octaves):
        n = min(cells * 2**octave, longer)
        shape = (max(2, round(n * height / longer) + 1), max(2, round(n * width / longer) + 1))
        small = rng.random((*shape, channels), dtype=np.float32) * 2 - 1
        total += np.float32(weight) * cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        norm += weight**2
        weight *= persistence
    return total / np.float32(norm**0.5)
