"""Crops and augmentation of training samples: colours, focus, background and templates (paper A.3)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.painting import random_background
from ocdit_core.errors import ConfigError, DataError, ImageError
from ocdit_core.images import SUFFIXES, decode_image, image_size, read_bytes

logger = logging.getLogger(__name__)

Rng = np.random.Generator
Image = NDArray[np.uint8]
Size = tuple[int, int]
Rectangle = tuple[float, float, float, float]
"""x, y, width, height in pixels; x and y are the upper left corner."""

EACH_PROBABILITY = 0.5
"""Probability of each change of an image that is changed: blur, sharpness, contrast, brightness, colour."""
MAX_BLUR, MAX_SHARPNESS = 1.5, 1.5
"""Standard deviation in pixels for an image of 240 rows; 1 doubles the difference to a blurred image."""
CONTRAST, BRIGHTNESS, SATURATION, TINT = 0.4, 0.4, 0.4, 0.12
"""Factors range from 1 / (1 + x) to 1 + x; the tint is a factor of each channel."""
TEMPLATE_BRIGHTNESS, TEMPLATE_TINT = 0.3, 0.06
TEMPLATE_ROTATION = 15.0
"""In-plane rotation of each template, at most so many degrees."""

_LUMA = np.array([0.299, 0.587, 0.114])
_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """How the crop that a sample shows is drawn.

    Attributes:
        random_probability: coarse samples: probability of a random crop; else a tight one around the chosen objects.
        random_scale: range of the size of a random crop, relative to the largest that fits into the frame.
        margin: range of the border on each side of a tight crop, relative to the objects' box.
        shift: largest shift of a tight crop, relative to the objects' box.
    """

    random_probability: float = 0.5
    random_scale: tuple[float, float] = (0.5, 1.0)
    margin: tuple[float, float] = (0.05, 0.35)
    shift: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.random_probability <= 1:
            raise ConfigError(f"random_probability: {self.random_probability} is not in 0..1")
        low, high = self.random_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"random_scale: {self.random_scale} has to be two rising numbers above 0 and up to 1")
        if not 0 <= self.margin[0] <= self.margin[1]:
            raise ConfigError(f"margin: {self.margin} has to be two rising numbers from 0 on")
        if self.shift < 0:
            raise ConfigError(f"shift: {self.shift} is negative")


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """How samples are augmented.

    Attributes:
        image_probability: probability that an image's colours and focus are changed (paper A.3: 0.9).
        background_probability: probability that all that belongs to no annotated object is replaced (paper A.3: 0.2).
        backgrounds: folder of images to take backgrounds from, searched recursively; default: painted ones.
        template_probability: probability for each object that its templates are changed.
    """

    image_probability: float = 0.9
    background_probability: float = 0.2
    backgrounds: str | None = None
    template_probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("image_probability", "background_probability", "template_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in 0..1")


NO_AUGMENTATION = AugmentSettings(image_probability=0, background_probability=0, template_probability=0)


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
        return (
            x < self.left + self.width
            and self.left < x + width
            and y < self.top + self.height
            and self.top < y + height
        )

    def aligned(self, factor: int) -> Crop:
        """Return the nearest crop whose numbers are all multiples of `factor`."""
        top, left = factor * (self.top // factor), factor * (self.left // factor)
        height, width = (max(round(side / factor), 1) * factor for side in (self.height, self.width))
        return Crop(top=top, left=left, height=height, width=width)

    def reduced(self, factor: int) -> Crop:
        """Return the same crop of the frame at 1/factor of its size; it has to be aligned to `factor`."""
        return Crop(
            top=self.top // factor,
            left=self.left // factor,
            height=self.height // factor,
            width=self.width // factor,
        )

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


def tight_crop(rng: Rng, box: Rectangle, frame: Size, output: Size, settings: CropSettings) -> Crop:
    """Draw a crop with the output's aspect ratio around a box, with random margin and shift.

    It stays inside the frame where it can; one that is wider or higher than the frame covers all of that side.
    """
    x, y, width, height = box
    grown_w = width * (1 + 2 * rng.uniform(*settings.margin))
    grown_h = height * (1 + 2 * rng.uniform(*settings.margin))
    scale = max(grown_h / output[0], grown_w / output[1], 8 / min(output))
    # No larger than it takes to show the whole frame.
    scale = min(scale, max(frame[0] / output[0], frame[1] / output[1]))
    wide, high = scale * output[1], scale * output[0]
    left = x + width / 2 + rng.uniform(-1, 1) * settings.shift * width - wide / 2
    top = y + height / 2 + rng.uniform(-1, 1) * settings.shift * height - high / 2
    left = np.clip(left, min(0.0, frame[1] - wide), max(0.0, frame[1] - wide))
    top = np.clip(top, min(0.0, frame[0] - high), max(0.0, frame[0] - high))
    return Crop(top=round(float(top)), left=round(float(left)), height=max(round(high), 1), width=max(round(wide), 1))


def augment_image(rng: Rng, image: Image, settings: AugmentSettings) -> Image:
    """Return an (H, W, 3) image with changed colours and focus, or unchanged."""
    if rng.random() >= settings.image_probability:
        return image
    blur, sharpen, contrast, brighten, colour = rng.random(5) < EACH_PROBABILITY
    matrix, offset = np.eye(3), np.zeros(3)
    if colour:
        matrix = _tint(rng, TINT) @ _saturation(_factor(rng, SATURATION))
    if brighten:
        matrix = _factor(rng, BRIGHTNESS) * matrix
    if contrast:
        factor = _factor(rng, CONTRAST)
        grey = float(_LUMA @ np.clip(matrix @ np.array(cv2.mean(image)[:3]), 0, 255))
        matrix, offset = factor * matrix, offset + (1 - factor) * grey
    if colour or brighten or contrast:
        image = _transform(image, np.column_stack([matrix, offset]))
    unit = image.shape[0] / 240
    if blur:
        image = _blurred(image, unit * rng.uniform(0.2, max(MAX_BLUR, 0.2)))
    elif sharpen:
        amount = rng.uniform(0, MAX_SHARPNESS)
        image = np.asarray(cv2.addWeighted(image, 1 + amount, _blurred(image, unit), -amount, 0), dtype=np.uint8)
    return image


def augment_templates(rng: Rng, views: Image, settings: AugmentSettings) -> Image:
    """Return the (V, h, w, 4) templates of one object with other brightness and tint and rotated, or unchanged.

    Colours are RGB on black, the fourth channel is the mask, 0 or 255; both stay so.
    """
    if rng.random() >= settings.template_probability:
        return views
    matrix = np.eye(4)
    matrix[:3, :3] = _factor(rng, TEMPLATE_BRIGHTNESS) * _tint(rng, TEMPLATE_TINT)
    side = views.shape[1]
    rotated = np.empty_like(views)
    for view, out in zip(views, rotated, strict=True):
        angle = rng.uniform(-1, 1) * TEMPLATE_ROTATION
        c, s = abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle)))
        # Scaled down so that no corner of the template is cut off.
        rotation = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, 1 / (c + s))
        out[...] = cv2.warpAffine(view, rotation, (side, side), flags=cv2.INTER_LINEAR)
    rotated = _transform(rotated.reshape(-1, side, 4), matrix).reshape(views.shape)
    rotated[..., 3] = np.where(rotated[..., 3] > 127, np.uint8(255), np.uint8(0))
    return rotated


def replace_background(image: Image, foreground: NDArray[np.bool_], background: Image) -> Image:
    """Return the (H, W, 3) image with all that is not foreground (H, W) taken from the background (H, W, 3)."""
    # A hard edge would give every mask away: it is softened as a lens does.
    alpha = cv2.blur(foreground.astype(np.float32), (3, 3))
    return np.asarray(cv2.blendLinear(image, background, alpha, 1 - alpha), dtype=np.uint8)


class Backgrounds:
    """Replacement backgrounds: images of a folder, or painted ones.

    Args:
        folder: images (PNG, JPEG and the like), searched recursively; None: painted ones.

    Raises:
        DataError: the folder is missing or holds no image.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._paths = [] if folder is None else find_images(folder)
        self._damaged: set[Path] = set()

    def draw(self, rng: Rng, size: Size) -> Image:
        """Return a background of `size` (h, w): (h, w, 3) uint8 RGB.

        Raises:
            DataError: several images in a row cannot be read.
        """
        if not self._paths:
            return random_background(rng, size).astype(np.uint8)
        for _ in range(_ATTEMPTS):
            path = self._paths[int(rng.integers(len(self._paths)))]
            try:
                image = _read_at_least(path, size)
            except ImageError as error:
                if path not in self._damaged:
                    logger.warning("background left out: %s", error)
                    self._damaged.add(path)
                continue
            return random_crop(rng, (image.shape[0], image.shape[1]), size, (0.5, 1.0)).image(image, size)
        raise DataError(f"{path}: not readable as a background image, nor were {_ATTEMPTS - 1} others before it")


def find_images(folder: str | Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of images")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{root}: holds no image ({', '.join(SUFFIXES)})")
    return paths


def _read_at_least(path: Path, size: Size) -> Image:
    """Read an image as RGB, reduced as far as it still has twice `size`: large JPEGs are faster to decode so."""
    data = read_bytes(path)
    height, width = image_size(data, str(path))
    factor = next(f for f in (8, 4, 2, 1) if f == 1 or min(height / size[0], width / size[1]) >= 2 * f)
    return decode_image(data, str(path), reduction=factor)


def _factor(rng: Rng, most: float) -> float:
    """Draw a factor of 1 / (1 + most) to 1 + most, log-uniformly."""
    return float(np.exp(rng.uniform(-1, 1) * np.log1p(most)))


def _saturation(factor: float) -> NDArray[np.float64]:
    return factor * np.eye(3) + (1 - factor) * np.broadcast_to(_LUMA, (3, 3))


def _tint(rng: Rng, most: float) -> NDArray[np.float64]:
    return np.diag([_factor(rng, most) for _ in range(3)])


def _transform(image: Image, matrix: NDArray[np.float64]) -> Image:
    return np.asarray(cv2.transform(image, matrix.astype(np.float32)), dtype=np.uint8)


def _blurred(image: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)


def _resized(part: Image, size: Size, how: int) -> Image:
    return np.asarray(cv2.resize(part, size[::-1], interpolation=how), dtype=np.uint8)
