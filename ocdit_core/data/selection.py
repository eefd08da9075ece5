"""Which objects of a frame a training sample asks for, and which part of the frame it shows (paper 4.1, A.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ConfigError

Rng = np.random.Generator
Size = tuple[int, int]
Box = tuple[float, float, float, float]
"""x, y, width, height in pixels; x and y are the upper left corner."""


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


def nearest_objects(
    rng: Rng, point: tuple[float, float], boxes: Mapping[int, Sequence[Box]], count: int, *, reach: float
) -> list[int]:
    """Draw objects, those near a point with greater chance (paper 4.1).

    Args:
        rng: source of randomness.
        point: x, y in pixels.
        boxes: of each object's instances, by object number.
        count: how many to draw.
        reach: the distance in pixels at which an object is half as probable as at the point itself.

    Returns:
        At most `count` different numbers, in the order drawn.
    """
    ids = list(boxes)
    if len(ids) <= count:
        return [ids[i] for i in rng.permutation(len(ids))]
    near = np.array([min(distance(point, box) for box in boxes[number]) for number in ids])
    weights = 1 / (1 + near / reach)
    return [ids[i] for i in rng.choice(len(ids), count, replace=False, p=weights / weights.sum())]


def distance(point: tuple[float, float], box: Box) -> float:
    """Return the distance in pixels from a point to the nearest point of a box; 0 inside."""
    x, y, width, height = box
    right = max(x - point[0], 0.0, point[0] - (x + width))
    down = max(y - point[1], 0.0, point[1] - (y + height))
    return float(np.hypot(right, down))


def random_point(rng: Rng, mask: NDArray[np.bool_]) -> tuple[float, float] | None:
    """Return x, y of a random pixel of a mask (H, W), or None where it is empty."""
    seen = np.flatnonzero(mask)
    if not seen.size:
        return None
    row, column = divmod(int(seen[rng.integers(seen.size)]), mask.shape[1])
    return float(column), float(row)


def around(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that holds all the given ones."""
    corners = np.array([(x, y, x + width, y + height) for x, y, width, height in boxes])
    left, top = corners[:, :2].min(axis=0)
    right, bottom = corners[:, 2:].max(axis=0)
    return float(left), float(top), float(right - left), float(bottom - top)


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
