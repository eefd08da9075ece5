"""Decode the images, depth maps and masks of datasets; failures are DataErrors with a kind, for counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ocdit_core import images
from ocdit_core.errors import DataError, ImageError


@contextmanager
def _data_errors(kind: str = "damaged picture") -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise DataError(str(error), kind=kind) from error


def decode_image(data: bytes, where: str, *, reduction: int = 1) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 RGB of a dataset's image, as stored (poses and masks belong to the stored pixels).

    Raises:
        DataError: truncated, damaged or not an image.
    """
    with _data_errors():
        return images.decode_image(data, where, upright=False, reduction=reduction)


def decode_depth(data: bytes, where: str, scale: float) -> NDArray[np.float32]:
    """Decode a depth map.

    Args:
        data: the bytes of a PNG or TIFF file with one channel.
        where: where they come from, for messages.
        scale: BOP's depth_scale, millimetres of one unit.

    Returns:
        (H, W) float32 metres, 0 where nothing was measured.

    Raises:
        DataError: truncated, damaged, or not one channel of numbers.
    """
    with _data_errors("damaged depth"):
        values = images.decode_pixels(data, where)
    if values.ndim != 2:
        raise DataError(f"{where}: is {values.dtype} {values.shape}, not one channel of 16 bits", kind="damaged depth")
    metres = values.astype(np.float32) * np.float32(scale / 1000)
    if not np.isfinite(metres).all():
        raise DataError(f"{where}: depth holds values that are not finite", kind="damaged depth")
    return metres


def decode_mask_image(data: bytes, where: str) -> NDArray[np.bool_]:
    """Decode a mask that is stored as an image: (H, W) bool, True where it is not black.

    Raises:
        DataError: truncated, damaged or not an image.
    """
    with _data_errors():
        pixels = images.decode_pixels(data, where)
    return np.asarray(pixels > 0 if pixels.ndim == 2 else pixels[..., :3].any(axis=2))


def picture_size(data: bytes, where: str) -> tuple[int, int]:
    """Return height and width in pixels from an image's header.

    Raises:
        DataError: truncated, or not an image.
    """
    with _data_errors():
        return images.image_size(data, where)
