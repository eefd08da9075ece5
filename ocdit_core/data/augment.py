"""Crops and augmentation of training images: colours, focus and background (paper A.3)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Image = NDArray[np.uint8]
Size = tuple[int, int]
Rectangle = tuple[float, float, float, float]
"""x, y, width, height in pixels; x and y are the upper left corner."""

IMAGE_PROBABILITY = 0.9
"""Probability that an image is changed (paper A.3)."""
EACH_PROBABILITY = 0.5
"""Probability of each change of an image that is changed: blur, sharpness, contrast, brightness, colour."""
MAX_BLUR, MAX_SHARPNESS = 1.5, 1.5
"""Standard deviation in pixels for an image of 240 rows; 1 doubles the difference to a blurred image."""
CONTRAST, BRIGHTNESS, SATURATION, TINT = 0.4, 0.4, 0.4, 0.12
"""Factors range from 1 / (1 + x) to 1 + x; the tint is a factor of each channel."""

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle of whole pixels that a sample shows; outside the frame, the frame's border is repeated."""

    top: int
    left: int
    height: int
    width: int

    def image(self, image: Image, size: Size) -> Image:
        """Return this part of an (H, W, 3) or (H, W) image, resized to `size` (h, w)."""
        part = self._cut(image, cv2.BORDER_REPLICATE)
        if part.shape[:2] == size:
            return np.ascontiguousarray(part)
        return _resized(part, size, cv2.INTER_AREA if size[0] < part.shape[0] else cv2.INTER_LINEAR)

    def mask(self, mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
        """Return this part of an (H, W) mask, resized to `size` (h, w); False outside the frame."""
        part = self._cut(mask.view(np.uint8), cv2.BORDER_CONSTANT)
        if not part.any():
            return np.zeros(size, bool)
        # Averaging over areas costs ten times more, and up to the double size makes no difference to a mask.
        how = cv2.INTER_AREA if part.shape[0] >= 2 * size[0] else cv2.INTER_LINEAR
        return _resized(part * np.uint8(255), size, how) > 127

    def meets(self, box: Rectangle) -> bool:
        """Return whether any of the box is inside."""
        x, y, width, height = box
        across = x < self.left + self.width and self.left < x + width
        return across and y < self.top + self.height and self.top < y + height

    def aligned(self, factor: int) -> Crop:
        """Return the nearest crop whose numbers are all multiples of `factor`."""
        top, left = factor * (self.top // factor), factor * (self.left // factor)
        height, width = (max(round(side / factor), 1) * factor for side in (self.height, self.width))
        return Crop(top=top, left=left, height=height, width=width)

    def reduced(self, factor: int) -> Crop:
        """Return the same crop of the frame at 1/factor of its size; it must be aligned to `factor`."""
        return Crop(**{side: length // factor for side, length in vars(self).items()})

    def _cut(self, image: Image, border: int) -> Image:
        height, width = image.shape[:2]
        bottom, right = self.top + self.height, self.left + self.width
        part = image[max(self.top, 0) : bottom, max(self.left, 0) : right]
        if self.top >= 0 and self.left >= 0 and bottom <= height and right <= width:
            return part
        outside = (max(-self.top, 0), max(bottom - height, 0), max(-self.left, 0), max(right - width, 0))
        return np.asarray(cv2.copyMakeBorder(part, *outside, border), dtype=np.uint8)


def random_crop(
    rng: Rng, frame: Size, output: Size, scale: tuple[float, float], point: tuple[float, float] | None = None
) -> Crop:
    """Draw a crop with the output's aspect ratio anywhere in the frame.

    Args:
        rng: source of randomness.
        frame: height and width of the frame.
        output: height and width of the sample.
        scale: range of the size, relative to the largest crop that fits.
        point: x, y in the frame that the crop has to show.
    """
    largest = min(frame[0] / output[0], frame[1] / output[1])
    size = largest * rng.uniform(*scale)
    height, width = (min(max(round(size * side), 1), whole) for side, whole in zip(output, frame, strict=True))
    low, high = np.zeros(2), np.array([frame[0] - height, frame[1] - width], float)
    if point is not None:
        at = np.array(point[::-1])
        low = np.clip(at - (height - 1, width - 1), 0, high)
        high = np.clip(at, 0, high)
    top, left = np.floor(rng.uniform(low, high + 1 - 1e-9)).astype(int)
    top, left = min(int(top), frame[0] - height), min(int(left), frame[1] - width)
    return Crop(top=top, left=left, height=height, width=width)


def tight_crop(
    rng: Rng, box: Rectangle, frame: Size, output: Size, *, margin: tuple[float, float], shift: float
) -> Crop:
    """Draw a crop with the output's aspect ratio around a box.

    It stays inside the frame where it can; one that is wider or higher than the frame covers all of that side.

    Args:
        rng: source of randomness.
        box: x, y, width, height in pixels.
        frame: height and width of the frame.
        output: height and width of the sample.
        margin: range of the border on each side, relative to the box.
        shift: largest shift, relative to the box.
    """
    x, y, width, height = box
    grown_w = width * (1 + 2 * rng.uniform(*margin))
    grown_h = height * (1 + 2 * rng.uniform(*margin))
    scale = max(grown_h / output[0], grown_w / output[1], 8 / min(output))
    # No larger than it takes to show the whole frame.
    scale = min(scale, max(frame[0] / output[0], frame[1] / output[1]))
    wide, high = scale * output[1], scale * output[0]
    left = x + width / 2 + rng.uniform(-1, 1) * shift * width - wide / 2
    top = y + height / 2 + rng.uniform(-1, 1) * shift * height - high / 2
    left = np.clip(left, min(0.0, frame[1] - wide), max(0.0, frame[1] - wide))
    top = np.clip(top, min(0.0, frame[0] - high), max(0.0, frame[0] - high))
    return Crop(top=round(float(top)), left=round(float(left)), height=max(round(high), 1), width=max(round(wide), 1))


def augment_image(rng: Rng, image: Image) -> Image:
    """Return an (H, W, 3) image with changed colours and focus, or, with probability 0.1, unchanged."""
    if rng.random() >= IMAGE_PROBABILITY:
        return image
    blur, sharpen, contrast, brighten, colour = rng.random(5) < EACH_PROBABILITY
    matrix, offset = np.eye(3), np.zeros(3)
    if colour:
        tint, saturation = np.diag([_factor(rng, TINT) for _ in range(3)]), _factor(rng, SATURATION)
        matrix = tint @ (saturation * np.eye(3) + (1 - saturation) * np.broadcast_to(_LUMA, (3, 3)))
    if brighten:
        matrix = _factor(rng, BRIGHTNESS) * matrix
    if contrast:
        factor = _factor(rng, CONTRAST)
        grey = float(_LUMA @ np.clip(matrix @ np.array(cv2.mean(image)[:3]), 0, 255))
        matrix, offset = factor * matrix, offset + (1 - factor) * grey
    if colour or brighten or contrast:
        both = np.column_stack([matrix, offset]).astype(np.float32)
        image = np.asarray(cv2.transform(image, both), dtype=np.uint8)
    unit = image.shape[0] / 240
    if blur:
        image = _blurred(image, unit * rng.uniform(0.2, max(MAX_BLUR, 0.2)))
    elif sharpen:
        amount = rng.uniform(0, MAX_SHARPNESS)
        image = np.asarray(cv2.addWeighted(image, 1 + amount, _blurred(image, unit), -amount, 0), dtype=np.uint8)
    return image


def replace_background(image: Image, foreground: NDArray[np.bool_], background: Image) -> Image:
    """Return the (H, W, 3) image with all that is not foreground (H, W) taken from the background (H, W, 3)."""
    # A hard edge would give every mask away: it is softened as a lens does.
    alpha = cv2.blur(foreground.astype(np.float32), (3, 3))
    return np.asarray(cv2.blendLinear(image, background, alpha, 1 - alpha), dtype=np.uint8)


def _factor(rng: Rng, most: float) -> float:
    """Draw a factor of 1 / (1 + most) to 1 + most, log-uniformly."""
    return float(np.exp(rng.uniform(-1, 1) * np.log1p(most)))


def _blurred(image: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def _resized(part: Image, size: Size, how: int) -> Image:
    return np.asarray(cv2.resize(part, size[::-1], interpolation=how), dtype=np.uint8)
