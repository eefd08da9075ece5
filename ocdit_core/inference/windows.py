"""Spatial test-time augmentation (paper 3.4, 4.2): looking at parts of the image, and putting what is seen together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ocdit_core.inference.geometry import Letterbox
from ocdit_core.masks import Box, tight_box

# Left and top edges of the windows as shares of what is free: the centre, the corners.
_PLACES = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of an image, scaled to the size that the model works at.

    Attributes:
        box: the part, x, y, width, height in pixels, inside the image.
        canvas_size: (h, w) of the model's input.
    """

    box: Box
    canvas_size: tuple[int, int]

    @property
    def letterbox(self) -> Letterbox:
        """From the part to the canvas."""
        return Letterbox(image_size=(self.box[3], self.box[2]), canvas_size=self.canvas_size)

    def forward(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (h, w, 3) uint8."""
        x, y, width, height = self.box
        return self.letterbox.forward(image[y : y + height, x : x + width])


class WindowMean:
    """The mean of several windows' probabilities, over those that see a pixel.

    Args:
        objects: how many objects the probabilities are of.
        image_size: (H, W) of the image.
    """

    def __init__(self, objects: int, image_size: tuple[int, int]) -> None:
        self._sum = np.zeros((objects, *image_size), np.float32)
        self._seen = np.zeros(image_size, np.float32)

    def add(self, window: Window, canvases: np.ndarray, objects: slice = slice(None)) -> None:
        """Take in what one window shows.

        Args:
            window: where the model looked.
            canvases: (O, h, w) float32 probabilities.
            objects: those of the objects that they are of; the first of them counts the pixels as seen.
        """
        x, y, width, height = window.box
        part = (slice(y, y + height), slice(x, x + width))
        for total, canvas in zip(self._sum[objects], canvases, strict=True):
            total[part] += window.letterbox.inverse(canvas)
        if not objects.start:
            self._seen[part] += 1

    def result(self) -> np.ndarray:
        """Return (O, H, W) float32 probabilities, 0 where no window looked."""
        return self._sum / np.maximum(self._seen, 1)


def full_window(image_size: tuple[int, int], canvas_size: tuple[int, int]) -> Window:
    """Return the window that shows the whole image."""
    return Window(box=(0, 0, image_size[1], image_size[0]), canvas_size=canvas_size)


def crop_windows(image_size: tuple[int, int], canvas_size: tuple[int, int], count: int) -> list[Window]:
    """Return `count` scaled and shifted windows, always the same: centre and corners, smaller with each round of five.

    The first five show three quarters of each side and together the whole image, the next five three fifths, then half.
    """
    windows = []
    for index in range(count):
        share = (0.75, 0.6, 0.5)[min(index // 5, 2)]
        height, width = (max(round(side * share), 1) for side in image_size)
        right, down = _PLACES[index % 5]
        left, top = round((image_size[1] - width) * right), round((image_size[0] - height) * down)
        windows.append(Window(box=(left, top, width, height), canvas_size=canvas_size))
    return windows


def guided_window(
    probabilities: np.ndarray, canvas_size: tuple[int, int], *, threshold: float, margin: float = 0.1
) -> Window | None:
    """Return the window around all pixels that some object is found in, None where that is nothing or nearly all.

    Args:
        probabilities: (O, H, W), found so far.
        canvas_size: (h, w) of the model's input.
        threshold: probability from which a pixel counts.
        margin: added on each side, as a share of the box.
    """
    found: np.ndarray = np.asarray((probabilities >= threshold).any(axis=0))
    if not found.any():
        return None
    window = Window(box=expanded(tight_box(found), found.shape, margin, canvas_size), canvas_size=canvas_size)
    return None if window.box[2] * window.box[3] > 0.9 * found.size else window


def expanded(box: Box, image_size: tuple[int, ...], margin: float, canvas_size: tuple[int, int]) -> Box:
    """Return a box with `margin` of its size added on each side, grown to the canvas's aspect, inside the image."""
    x, y, width, height = box
    wide, high = width * (1 + 2 * margin), height * (1 + 2 * margin)
    aspect = canvas_size[1] / canvas_size[0]
    wide, high = max(wide, high * aspect), max(high, wide / aspect)
    wide, high = min(round(wide), image_size[1]), min(round(high), image_size[0])
    left = min(max(round(x + (width - wide) / 2), 0), image_size[1] - wide)
    top = min(max(round(y + (height - high) / 2), 0), image_size[0] - high)
    return left, top, wide, high
