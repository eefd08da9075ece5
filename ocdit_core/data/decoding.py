"""Bytes become pictures, depth maps and masks; what is truncated or damaged is an error, never half a picture."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ocdit_core.errors import DataError

_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decode_image(data: bytes, where: str, *, reduction: int = 1) -> NDArray[np.uint8]:
    """Decode a colour or grey picture.

    Args:
        data: of a JPEG, PNG or TIFF file.
        where: it came from, for messages.
        reduction: 1, 2, 4 or 8: decode at so small a share of each side, which JPEG does much faster than at full size.

    Returns:
        (H, W, 3) uint8 RGB, H and W the file's divided by `reduction`, rounded up.

    Raises:
        DataError: truncated, damaged or no picture.
        ValueError: another reduction.
    """
    if reduction not in _REDUCED:
        raise ValueError(f"reduction is {reduction}, not 1, 2, 4 or 8")
    pixels = _decode(data, where, _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def decode_depth(data: bytes, where: str, scale: float) -> NDArray[np.float32]:
    """Decode a depth map.

    Args:
        data: of a PNG or TIFF file with one channel.
        where: it came from, for messages.
        scale: BOP's depth_scale, millimetres of one unit.

    Returns:
        (H, W) float32 metres, 0 where nothing was measured.

    Raises:
        DataError: truncated, damaged, or not one channel of numbers.
    """
    values = _decode(data, where, cv2.IMREAD_UNCHANGED)
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16, np.float32):
        raise DataError(f"{where}: is {values.dtype} {values.shape}, not one channel of 16 bits", kind="damaged depth")
    metres = values.astype(np.float32) * np.float32(scale / 1000)
    if not np.isfinite(metres).all():
        raise DataError(f"{where}: depth holds values that are not finite", kind="damaged depth")
    return metres


def decode_mask_image(data: bytes, where: str) -> NDArray[np.bool_]:
    """Decode a mask that is stored as a picture: (H, W) bool, True where it is not black.

    Raises:
        DataError: truncated, damaged or no picture.
    """
    pixels = _decode(data, where, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.asarray(pixels > 0)


def picture_size(data: bytes, where: str) -> tuple[int, int]:
    """Return height and width in pixels from a picture's header.

    Raises:
        DataError: no picture, or truncated.
    """
    _check_whole(data, where)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "TIFF")) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: not a picture that can be read", kind="damaged picture") from error


def _decode(data: bytes, where: str, flags: int) -> NDArray[Any]:
    _check_whole(data, where)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{where}: damaged picture ({error.err})", kind="damaged picture") from error
    if pixels is None:
        raise DataError(f"{where}: not a picture that can be read", kind="damaged picture")
    return pixels


def _check_whole(data: bytes, where: str) -> None:
    # OpenCV decodes what there is of a picture and fills the rest with grey: the end marks tell.
    if not data:
        raise DataError(f"{where}: is empty", kind="damaged picture")
    cut_off = (data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-512:]) or (
        data[:4] == b"\x89PNG" and b"IEND" not in data[-64:]
    )
    if cut_off:
        raise DataError(f"{where}: truncated picture ({len(data)} bytes)", kind="damaged picture")
