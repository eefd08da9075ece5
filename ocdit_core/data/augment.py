"""Crops and augmentation of training samples: colours, focus, background and templates (paper A.3)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ocdit_core.data.painting import random_background
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.images import SUFFIXES

logger = logging.getLogger(__name__)

Rng = np.random.Generator
Size = tuple[int, int]
Box = tuple[float, float, float, float]
"""x, y, width, height in pixels; x and y are the upper left corner."""
Picture = NDArray[np.uint8]
_LUMA = np.array([0.299, 0.587, 0.114])
_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """How the window is drawn that a sample shows.

    Attributes:
        random_share: coarse samples: chance of a random window; else a tight one around the chosen objects.
        random_scale: least and most size of a random window, as a share of the largest that fits into the frame.
        margin: least and most free border on each side of a tight window, as a share of the objects' box.
        shift: a tight window is moved by up to this share of the box, either way.
    """

    random_share: float = 0.5
    random_scale: tuple[float, float] = (0.5, 1.0)
    margin: tuple[float, float] = (0.05, 0.35)
    shift: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.random_share <= 1:
            raise ConfigError(f"random_share: {self.random_share} is not in 0..1")
        low, high = self.random_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"random_scale: {self.random_scale} has to be two rising numbers above 0 and up to 1")
        if not 0 <= self.margin[0] <= self.margin[1]:
            raise ConfigError(f"margin: {self.margin} has to be two rising numbers from 0 on")
        if self.shift < 0:
            raise ConfigError(f"shift: {self.shift} is negative")


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of whole pixels that a sample shows; what lies outside the frame repeats the frame's border."""

    top: int
    left: int
    height: int
    width: int

    def image(self, image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
        """Return this part of an (H, W, 3) or (H, W) picture, scaled to `size` (h, w)."""
        part = self._cut(image, cv2.BORDER_REPLICATE)
        if part.shape[:2] == size:
            return np.ascontiguousarray(part)
        return _resized(part, size, cv2.INTER_AREA if size[0] < part.shape[0] else cv2.INTER_LINEAR)

    def mask(self, mask: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
        """Return this part of an (H, W) mask, scaled to `size` (h, w); outside the frame there is nothing."""
        part = self._cut(mask.view(np.uint8), cv2.BORDER_CONSTANT)
        if not part.any():
            return np.zeros(size, bool)
        # Averaging over areas costs ten times more, and up to the double size makes no difference to a mask.
        how = cv2.INTER_AREA if part.shape[0] >= 2 * size[0] else cv2.INTER_LINEAR
        return _resized(part * np.uint8(255), size, how) > 127

    def meets(self, box: Box) -> bool:
        """Whether any of the box is inside."""
        x, y, width, height = box
        return (
            x < self.left + self.width
            and self.left < x + width
            and y < self.top + self.height
            and self.top < y + height
        )

    def aligned(self, factor: int) -> Window:
        """Return the nearest window whose numbers are all multiples of `factor`."""
        top, left = factor * (self.top // factor), factor * (self.left // factor)
        height, width = (max(round(side / factor), 1) * factor for side in (self.height, self.width))
        return Window(top=top, left=left, height=height, width=width)

    def reduced(self, factor: int) -> Window:
        """Return the same window on the frame at 1/factor of its size; it has to be aligned to it."""
        return Window(
            top=self.top // factor,
            left=self.left // factor,
            height=self.height // factor,
            width=self.width // factor,
        )

    def _cut(self, image: NDArray[np.uint8], border: int) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        bottom, right = self.top + self.height, self.left + self.width
        part = image[max(self.top, 0) : bottom, max(self.left, 0) : right]
        if self.top >= 0 and self.left >= 0 and bottom <= height and right <= width:
            return part
        outside = (max(-self.top, 0), max(bottom - height, 0), max(-self.left, 0), max(right - width, 0))
        return np.asarray(cv2.copyMakeBorder(part, *outside, border), dtype=np.uint8)


def _resized(part: NDArray[np.uint8], size: Size, how: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(part, size[::-1], interpolation=how), dtype=np.uint8)


def random_window(
    rng: Rng, frame: Size, output: Size, scale: tuple[float, float], point: tuple[float, float] | None = None
) -> Window:
    """Draw a window with the output's aspect anywhere in the frame.

    Args:
        rng: source of randomness.
        frame: height and width of the frame.
        output: height and width of the sample.
        scale: least and most size, as a share of the largest window that fits.
        point: x, y in the frame that the window has to show.
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
    return Window(top=top, left=left, height=height, width=width)


def tight_window(rng: Rng, box: Box, frame: Size, output: Size, settings: CropSettings) -> Window:
    """Draw a window with the output's aspect around a box, with random margin and shift.

    It keeps inside the frame where it can; one that is wider or higher than the frame covers all of that side.
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
    return Window(top=round(float(top)), left=round(float(left)), height=max(round(high), 1), width=max(round(wide), 1))


Mask = NDArray[np.bool_]
# Objects at this share of the frame's diagonal from the foreground point are half as probable as those at it.
_REACH = 0.05
_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """How much samples are changed.

    Attributes:
        rgb_share: chance that a picture's colours and focus are changed at all (paper A.3: 0.9).
        each_share: chance then of each change: blur, sharpness, contrast, brightness, colour.
        blur: most blur, standard deviation in pixels for a picture of 240 rows.
        sharpness: most sharpening; 1 doubles the difference to a blurred picture.
        contrast: a contrast of 1 is multiplied or divided by up to 1 + contrast.
        brightness: brightness is multiplied or divided by up to 1 + brightness.
        saturation: so is the distance of colours to grey.
        tint: so is each channel.
        background_share: chance that all that belongs to no annotated object is replaced (paper A.3: 0.2).
        backgrounds: folder of pictures to take backgrounds from, folders in it as well; without one they are drawn.
        template_share: chance for each object that its templates are changed.
        template_light: their brightness is multiplied or divided by up to 1 + template_light, the same in all views.
        template_tint: so is each channel.
        template_turn: most turn of a template in its plane, degrees, another one in each view.
    """

    rgb_share: float = 0.9
    each_share: float = 0.5
    blur: float = 1.5
    sharpness: float = 1.5
    contrast: float = 0.4
    brightness: float = 0.4
    saturation: float = 0.4
    tint: float = 0.12
    background_share: float = 0.2
    backgrounds: str | None = None
    template_share: float = 0.5
    template_light: float = 0.3
    template_tint: float = 0.06
    template_turn: float = 15.0

    def __post_init__(self) -> None:
        for name in ("rgb_share", "each_share", "background_share", "template_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in 0..1")
        for name in ("blur", "sharpness", "contrast", "brightness", "saturation", "tint", "template_light"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is negative")
        if self.template_tint < 0 or not 0 <= self.template_turn <= 180:
            raise ConfigError("template_tint has to be 0 or more, and template_turn 0 to 180 degrees")


NO_AUGMENTATION = AugmentSettings(rgb_share=0, background_share=0, template_share=0)
"""For evaluation: samples as they are."""


def augment_rgb(rng: Rng, image: Picture, settings: AugmentSettings) -> Picture:
    """Return an (H, W, 3) picture with other colours and focus, or with chance 1 - rgb_share the same."""
    if rng.random() >= settings.rgb_share:
        return image
    blur, sharpen, contrast, brighten, colour = rng.random(5) < settings.each_share
    matrix, offset = np.eye(3), np.zeros(3)
    if colour:
        matrix = _tint(rng, settings.tint) @ _saturation(_factor(rng, settings.saturation))
    if brighten:
        matrix = _factor(rng, settings.brightness) * matrix
    if contrast:
        factor = _factor(rng, settings.contrast)
        grey = float(_LUMA @ np.clip(matrix @ np.array(cv2.mean(image)[:3]), 0, 255))
        matrix, offset = factor * matrix, offset + (1 - factor) * grey
    if colour or brighten or contrast:
        image = _transform(image, np.column_stack([matrix, offset]))
    unit = image.shape[0] / 240
    if blur:
        image = _blurred(image, unit * rng.uniform(0.2, max(settings.blur, 0.2)))
    elif sharpen:
        amount = rng.uniform(0, settings.sharpness)
        image = np.asarray(cv2.addWeighted(image, 1 + amount, _blurred(image, unit), -amount, 0), dtype=np.uint8)
    return image


def augment_templates(rng: Rng, views: Picture, settings: AugmentSettings) -> Picture:
    """Return the (V, h, w, 4) views of one object under other light and turned, or with 1 - template_share the same.

    Colours are RGB on black, the fourth channel is the mask, 0 or 255; both stay so.
    """
    if rng.random() >= settings.template_share:
        return views
    matrix = np.eye(4)
    matrix[:3, :3] = _factor(rng, settings.template_light) * _tint(rng, settings.template_tint)
    side = views.shape[1]
    turned = np.empty_like(views)
    for view, out in zip(views, turned, strict=True):
        angle = rng.uniform(-1, 1) * settings.template_turn
        c, s = abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle)))
        # Small enough that no corner of the crop is cut off.
        turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), angle, 1 / (c + s))
        out[...] = cv2.warpAffine(view, turn, (side, side), flags=cv2.INTER_LINEAR)
    turned = _transform(turned.reshape(-1, side, 4), matrix).reshape(views.shape)
    turned[..., 3] = np.where(turned[..., 3] > 127, np.uint8(255), np.uint8(0))
    return turned


def replace_background(image: Picture, foreground: NDArray[np.bool_], background: Picture) -> Picture:
    """Return the picture (H, W, 3) with all that is not foreground (H, W) taken from the background (H, W, 3)."""
    # A hard edge would give every mask away: it is softened as a lens does.
    alpha = cv2.blur(foreground.astype(np.float32), (3, 3))
    return np.asarray(cv2.blendLinear(image, background, alpha, 1 - alpha), dtype=np.uint8)


class Backgrounds:
    """Where replaced backgrounds come from: a folder of pictures, or drawn ones.

    Args:
        folder: any folder of pictures (PNG, JPEG and the like), folders in it included; None draws them.

    Raises:
        DataError: the folder is missing or holds no picture.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._paths: list[Path] = []
        if folder is not None:
            root = Path(folder)
            if not root.is_dir():
                raise DataError(f"{root}: no such folder of background pictures")
            self._paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not self._paths:
                raise DataError(f"{root}: holds no picture to take backgrounds from ({', '.join(SUFFIXES)})")
        self._damaged: set[Path] = set()

    def draw(self, rng: Rng, size: tuple[int, int]) -> Picture:
        """Return a background of `size` (h, w): (h, w, 3) uint8 RGB.

        Raises:
            DataError: one picture after the other cannot be read.
        """
        if not self._paths:
            return random_background(rng, size).astype(np.uint8)
        for _ in range(_ATTEMPTS):
            path = self._paths[int(rng.integers(len(self._paths)))]
            try:
                picture = _read_at_least(path, size)
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
                if path not in self._damaged:
                    logger.warning("%s: left out, no picture that can be read (%s)", path, error)
                    self._damaged.add(path)
                continue
            window = random_window(rng, (picture.shape[0], picture.shape[1]), size, (0.5, 1.0))
            return window.image(picture, size)
        raise DataError(f"{path}: not readable as a background picture, nor were {_ATTEMPTS - 1} others before it")


def _read_at_least(path: Path, size: tuple[int, int]) -> Picture:
    """A picture as RGB; a large JPEG is decoded at the least scale that still has `size`, which saves most of it."""
    with Image.open(path) as image:
        image.draft("RGB", (2 * size[1], 2 * size[0]))
        return np.asarray(image.convert("RGB"))


def _factor(rng: Rng, most: float) -> float:
    """1 / (1 + most) to 1 + most, either way with the same chance."""
    return float(np.exp(rng.uniform(-1, 1) * np.log1p(most)))


def _saturation(factor: float) -> NDArray[np.float64]:
    return factor * np.eye(3) + (1 - factor) * np.broadcast_to(_LUMA, (3, 3))


def _tint(rng: Rng, most: float) -> NDArray[np.float64]:
    return np.diag([_factor(rng, most) for _ in range(3)])


def _transform(image: Picture, matrix: NDArray[np.float64]) -> Picture:
    return np.asarray(cv2.transform(image, matrix.astype(np.float32)), dtype=np.uint8)


def _blurred(image: Picture, sigma: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8)
