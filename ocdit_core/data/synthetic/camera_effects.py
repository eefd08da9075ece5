"""What a camera adds to a scene: uneven light, exposure, white balance, contrast, blur, noise, JPEG."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


def photograph(
    rng: np.random.Generator, image: Image, *, strength: float = 1.0, blur: float | None = None
) -> NDArray[np.uint8]:
    """Turns a clean picture into one as from a camera.

    Args:
        rng: source of randomness.
        image: (H, W, 3) float32 sRGB in 0..255; it is changed.
        strength: 0 leaves the picture as it is, 1 is the usual amount.
        blur: standard deviation in pixels of the strongest blur; default: it grows with the picture.

    Returns:
        (H, W, 3) uint8.
    """
    if strength <= 0:
        return np.clip(image, 0, 255).astype(np.uint8)
    height, width = image.shape[:2]
    unit = min(height, width) / 144 if blur is None else blur

    gain = np.exp(rng.normal(0, 0.18 * strength)) * np.exp(rng.normal(0, 0.06 * strength, 3))
    if rng.random() < 0.6:  # light falls off towards one side
        corners = np.exp(rng.normal(0, 0.22 * strength, (2, 2))).astype(np.float32)
        image *= cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    image *= gain.astype(np.float32)
    if rng.random() < 0.5:
        grey = image.mean(axis=2, keepdims=True)
        image += np.float32(rng.uniform(-0.5, 0.25) * strength) * (image - grey)
    if rng.random() < 0.5:
        image -= 110
        image *= np.float32(np.exp(rng.normal(0, 0.18 * strength)))
        image += np.float32(110 + rng.normal(0, 8 * strength))

    if rng.random() < 0.35 * strength:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), unit * rng.uniform(0.3, 1.0)), dtype=np.float32)
    elif rng.random() < 0.1 * strength:
        image = _shake(rng, image, unit)
    if rng.random() < 0.75:
        sigma = strength * 8 * rng.random() ** 2
        noise = rng.standard_normal((height, width, 1 if rng.random() < 0.3 else 3), dtype=np.float32)
        image = image + np.float32(sigma) * noise
    picture = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.4 * strength:
        quality = int(rng.integers(45, 96))
        _, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), dtype=np.uint8)
    return picture


def _shake(rng: np.random.Generator, image: Image, unit: float) -> Image:
    """Motion blur along a random direction."""
    length = max(2, round(unit * rng.uniform(2, 4)))
    kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    low, high = np.round(length - reach).astype(int), np.round(length + reach).astype(int)
    cv2.line(kernel, low.tolist(), high.tolist(), 1.0, 1)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), dtype=np.float32)
