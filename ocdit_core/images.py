"""Pictures in and out: any common file or array becomes (H, W, 3) uint8 RGB, or an error says why it cannot."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ocdit_core.errors import ImageError
from ocdit_core.files import replacing

MAX_PIXELS = 100_000_000
"""Pictures of more pixels are refused from their header, before a byte is decoded."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm")


def read_image(path: str | Path) -> np.ndarray:
    """Read a still picture of any size.

    Grey becomes three equal channels, transparency is composited on black (as templates are), 16 bits are scaled
    by 1/257, and the rotation that a camera stored in EXIF is applied.

    Args:
        path: a PNG, JPEG, BMP, TIFF, WebP, GIF or PNM file.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: missing, a folder, empty, truncated or damaged, not a picture, animated, or over MAX_PIXELS.
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        # Pillow has its own, lower limit that warns; ours decides, on the header alone.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not a picture that can be read (PNG, JPEG, BMP, TIFF, WebP, GIF, PNM)") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path}: has far more than the {MAX_PIXELS:,} pixels that are accepted") from None
    except Exception as error:
        # Pillow's plugins raise whatever their parser meets (SyntaxError, struct.error, OSError ...).
        raise ImageError(f"{path}: damaged picture ({error})") from error
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"{path}: {width} x {height} pixels is more than the {MAX_PIXELS:,} that are accepted")
        # An MPO is a JPEG with further frames for 3-D displays: its first frame is the photograph.
        frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
        if frames > 1:
            raise ImageError(f"{path}: holds {frames} frames; give a still picture (extract one frame first)")
        try:
            return _decode(image, data)
        except Exception as error:
            raise ImageError(f"{path}: truncated or damaged picture ({error})") from error


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; give a picture file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such picture") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise ImageError(f"{path}: the file is empty")
    return data


def _decode(image: Image.Image, data: bytes) -> np.ndarray:
    # load() meets truncation with an error, where OpenCV would return a half-grey picture.
    image.load()
    orientation = image.getexif().get(0x0112, 1)
    deep = _decode_deep(image, data)
    if deep is not None:
        # The rotation is applied by Pillow as for any other picture.
        image = Image.fromarray(deep)
        image.getexif()[0x0112] = orientation
    if image.mode in ("PA", "La", "LA", "RGBa") or (image.mode in ("P", "L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return as_rgb8(np.asarray(ImageOps.exif_transpose(image)))


def _decode_deep(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return a 16-bit picture as uint8, grey, RGB or RGBA; None when it is not one that needs this."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return _scale16(np.clip(values, 0, 65535).astype(np.uint16))
    # Pillow gives 16-bit colour by its high byte, without a word of it; OpenCV keeps all 16.
    if image.format not in ("PNG", "TIFF", "PPM") or image.mode not in ("RGB", "RGBA"):
        return None
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    if image.format == "PNG" and data[24:25] != b"\x10":  # the bit depth in a PNG's first chunk
        return None
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        return None
    order = cv2.COLOR_BGRA2RGBA if decoded.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return _scale16(cv2.cvtColor(decoded, order))


def _scale16(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def as_rgb8(array: np.ndarray) -> np.ndarray:
    """Return an in-memory picture as (H, W, 3) uint8 RGB; an array that is one already is not copied.

    Args:
        array: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA (composited on black); uint8, bool,
            uint16 (scaled by 1/257), or floats in [0, 1].

    Raises:
        ImageError: not an array, another shape or type, empty, or floats that are not finite or not in [0, 1].
    """
    if not isinstance(array, np.ndarray):
        raise ImageError(f"an image must be a NumPy array (H, W, 3), not {type(array).__name__}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ImageError(f"an image must have the shape (H, W, 3), (H, W, 4) or (H, W), not {array.shape}")
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise ImageError(f"the image has no pixels: its shape is {array.shape}")
    array = _as_uint8(array)
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.uint16)
        array = ((array[..., :3] * alpha + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(array)


def _as_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return _scale16(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"an image must be uint8, uint16 or floats in [0, 1], not {array.dtype}")
    if not np.isfinite(array).all():
        raise ImageError(f"the image holds {np.count_nonzero(~np.isfinite(array))} values that are not finite")
    low, high = float(array.min()), float(array.max())
    # A little over the ends is what resizing and colour conversion leave behind.
    if low < -0.01 or high > 1.01:
        raise ImageError(f"an image of floats must lie in [0, 1], not [{low:.3g}, {high:.3g}]; divide 0-255 by 255")
    return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write a picture atomically; the suffix of `path` chooses the format.

    Args:
        path: where to; its folder is made when missing.
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 or bool for a single channel (True becomes 255).

    Raises:
        ImageError: another shape or type, a suffix that names no picture format, or a path that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(f"{path}: cannot write a picture with the suffix {path.suffix!r}; use .png or .jpg")
    if image.ndim == 2:
        pixels = np.ascontiguousarray(_as_uint8(image))
    else:
        pixels = cv2.cvtColor(as_rgb8(image), cv2.COLOR_RGB2BGR)
    try:
        with replacing(path) as temporary:
            if not cv2.imwrite(str(temporary), pixels):
                raise ImageError(f"{path}: the picture could not be written")
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror})") from error
