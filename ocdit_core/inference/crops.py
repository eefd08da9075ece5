"""Crops of an image: test-time augmentation (paper 3.4, 4.2), and crops around proposals."""

from dataclasses import dataclass

import cv2
import numpy as np

from ocdit_core.masks import Box, tight_box

# Offsets of test-time crops, as fractions of the free space: the centre and the corners.
_OFFSETS = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
# Margin of the guided crop, as a fraction of the box, and the fraction of the image from which on it is of no use.
_GUIDED_MARGIN = 0.1
_GUIDED_AREA = 0.9


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A part of an image, scaled to fit the model input and centred in it; the border is replicated around it.

    Attributes:
        box: the part in pixels, inside the image.
        input_size: (h, w) of the model input in pixels.
    """

    box: Box
    input_size: tuple[int, int]

    @property
    def part(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        x, y, width, height = self.box
        return slice(y, y + height), slice(x, x + width)

    def forward(self, image: np.ndarray) -> np.ndarray:
        """Return the model input: image (H, W, 3) uint8 -> (h, w, 3) uint8; or (H, W) float32 -> (h, w) float32."""
        part, (top, left, height, width) = image[self.part], self._inner()
        interpolation = cv2.INTER_AREA if height < part.shape[0] else cv2.INTER_LINEAR
        scaled = cv2.resize(part, (width, height), interpolation=interpolation)
        bottom, right = self.input_size[0] - height - top, self.input_size[1] - width - left
        return cv2.copyMakeBorder(scaled, top, bottom, left, right, cv2.BORDER_REPLICATE)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Return values (h, w) float32 on the model input as values (height, width) float32 on the crop."""
        top, left, height, width = self._inner()
        inner = values[top : top + height, left : left + width]
        return cv2.resize(inner, self.box[2:], interpolation=cv2.INTER_LINEAR)

    def places(self, pixels: np.ndarray) -> np.ndarray:
        """Return where pixels (N, 2) of the image, as row and column, are on the model input; others are left out."""
        top, left, height, width = self._inner()
        x, y, wide, high = self.box
        found = (pixels - (y, x)) * (height / high, width / wide)
        found = np.floor(found).astype(int)
        return found[((found >= 0) & (found < (height, width))).all(axis=1)] + (top, left)

    def _inner(self) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of the scaled crop in the model input."""
        wide, high = self.box[2:]
        scale = min(self.input_size[0] / high, self.input_size[1] / wide)
        height, width = max(round(high * scale), 1), max(round(wide * scale), 1)
        return (self.input_size[0] - height) // 2, (self.input_size[1] - width) // 2, height, width


class CropMean:
    """Mean probabilities over the crops that show a pixel.

    Args:
        objects: number of objects.
        image_size: (H, W) of the image.
    """

    def __init__(self, objects: int, image_size: tuple[int, int]) -> None:
        self._sum = np.zeros((objects, *image_size), np.float32)
        self._count = np.zeros(image_size, np.float32)

    def add(self, crop: Crop, probabilities: np.ndarray, objects: slice = slice(None)) -> None:
        """Add the probabilities of one crop.

        Args:
            crop: the crop.
            probabilities: (O, h, w) float32 on the model input.
            objects: the objects that they belong to, for a crop whose objects are added in several runs, in order.
        """
        for total, values in zip(self._sum[objects], probabilities, strict=True):
            total[crop.part] += crop.inverse(values)
        if not objects.start:
            self._count[crop.part] += 1

    def result(self) -> np.ndarray:
        """Return (O, H, W) float32 probabilities, 0 outside of all crops."""
        return self._sum / np.maximum(self._count, 1)


def full_crop(image_size: tuple[int, int], input_size: tuple[int, int]) -> Crop:
    """Return the crop that is the whole image."""
    return Crop(box=(0, 0, image_size[1], image_size[0]), input_size=input_size)


def augmentation_crops(image_size: tuple[int, int], input_size: tuple[int, int], count: int) -> list[Crop]:
    """Return the crops of test-time augmentation: the centre and the corners, smaller with each round of five.

    Their sides are 0.75 of the image's for the first five, then 0.6, then 0.5.
    """
    crops = []
    for index in range(count):
        side = (0.75, 0.6, 0.5)[min(index // 5, 2)]
        height, width = (max(round(whole * side), 1) for whole in image_size)
        right, down = _OFFSETS[index % 5]
        left, top = round((image_size[1] - width) * right), round((image_size[0] - height) * down)
        crops.append(Crop(box=(left, top, width, height), input_size=input_size))
    return crops


def guided_crop(probabilities: np.ndarray, input_size: tuple[int, int], threshold: float) -> Crop | None:
    """Return the crop around all pixels of any object (paper 4.2); None if there are none, or nearly the whole image.

    Args:
        probabilities: (O, H, W).
        input_size: (h, w) of the model input.
        threshold: probability from which a pixel counts.
    """
    mask: np.ndarray = np.asarray((probabilities >= threshold).any(axis=0))
    if not mask.any():
        return None
    box = expand(tight_box(mask), mask.shape, _GUIDED_MARGIN, input_size)
    return None if box[2] * box[3] > _GUIDED_AREA * mask.size else Crop(box=box, input_size=input_size)


def expand(box: Box, image_size: tuple[int, ...], margin: float, input_size: tuple[int, int]) -> Box:
    """Return a box with a margin and the aspect ratio of the model input, as far as the image allows.

    Args:
        box: the box in pixels.
        image_size: (H, W) of the image.
        margin: margin on each side, as a fraction of the box.
        input_size: (h, w) of the model input.
    """
    x, y, width, height = box
    wide, high = width * (1 + 2 * margin), height * (1 + 2 * margin)
    aspect = input_size[1] / input_size[0]
    wide, high = max(wide, high * aspect), max(high, wide / aspect)
    wide, high = min(round(wide), image_size[1]), min(round(high), image_size[0])
    left = min(max(round(x + (width - wide) / 2), 0), image_size[1] - wide)
    top = min(max(round(y + (height - high) / 2), 0), image_size[0] - high)
    return left, top, wide, high
