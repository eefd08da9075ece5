"""Between the caller's image and the size that the model works at."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """An image scaled to fit a canvas, centred, its border replicated to fill the rest.

    Attributes:
        image_size: (H, W) of the caller's image, in pixels.
        canvas_size: (h, w) of the model's input, in pixels.
    """

    image_size: tuple[int, int]
    canvas_size: tuple[int, int]

    @property
    def inner_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the scaled image inside the canvas."""
        scale = min(self.canvas_size[0] / self.image_size[0], self.canvas_size[1] / self.image_size[1])
        height, width = (max(round(side * scale), 1) for side in self.image_size)
        return height, width

    @property
    def offset(self) -> tuple[int, int]:
        """(top, left) in pixels of the scaled image inside the canvas."""
        inner = self.inner_size
        return (self.canvas_size[0] - inner[0]) // 2, (self.canvas_size[1] - inner[1]) // 2

    def forward(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (h, w, 3) uint8."""
        height, width = self.inner_size
        shrinks = height < image.shape[0]
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        top, left = self.offset
        bottom, right = self.canvas_size[0] - height - top, self.canvas_size[1] - width - left
        return cv2.copyMakeBorder(scaled, top, bottom, left, right, cv2.BORDER_REPLICATE)

    def inverse(self, canvas: np.ndarray) -> np.ndarray:
        """(h, w) float32 on the canvas -> (H, W) float32 on the caller's image."""
        top, left = self.offset
        height, width = self.inner_size
        inner = canvas[top : top + height, left : left + width]
        return cv2.resize(inner, self.image_size[::-1], interpolation=cv2.INTER_LINEAR)
