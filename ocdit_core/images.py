"""Read, decode, convert and write images; any common file or array becomes (H, W, 3) uint8 RGB."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ocdit_core.errors import ImageError
from ocdit_core.files import write_bytes

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused from their header, before they are decoded."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm")

_ORIENTATION = 0x0112  # EXIF tag
_TIFF = (b"II*\0", b"MM\0*")
# EXIF orientation -> upright array
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file of any size; see `decode_image`.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the file is missing, a folder or unreadable, or `decode_image` refuses its bytes.
    """
    return decode_image(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes of an image file; raises ImageError."""
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; give an image file")
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{path}: is not a regular file")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def decode_image(data: bytes, name: str, *, upright: bool = True, reduction: int = 1) -> np.ndarray:
    """Decode a still image to RGB.

    Grey becomes three equal channels, transparency is composited on black (as in templates), 16-bit values are scaled
    by 1/257 and floating-point values in [0, 1] by 255.

    Args:
        data: the bytes of a PNG, JPEG, BMP, TIFF, WebP, GIF or PNM file.
        name: where they come from, for error messages.
        upright: apply the orientation that a camera stored in EXIF.
        reduction: 1, 2, 4 or 8: decode at this fraction of each side, rounded up; quick for JPEG.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: empty, truncated or damaged, not an image, several pages or frames, more than MAX_PIXELS pixels,
            every pixel transparent, or floating-point values outside [0, 1].
    """
    pixels = decode_pixels(data, name, upright=upright, reduction=reduction)
    if pixels.ndim == 3 and pixels.shape[2] == 4 and not pixels[..., 3].any():
        raise ImageError(f"{name}: every pixel is fully transparent; save the image without its alpha channel")
    try:
        return as_rgb8(pixels)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None


def decode_pixels(data: bytes, name: str, *, upright: bool = False, reduction: int = 1) -> np.ndarray:
    """Decode a still image and keep its channels and its depth.

    Args:
        data: the bytes of the file.
        name: where they come from, for error messages.
        upright: apply the EXIF orientation (for TIFF it is always applied).
        reduction: as for `decode_image`.

    Returns:
        (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16 or float32. Palettes, 1 bit and CMYK become uint8.

    Raises:
        ImageError: empty, truncated or damaged, not an image, several pages or frames, or more than MAX_PIXELS pixels.
    """
    if reduction not in (1, 2, 4, 8):
        raise ValueError(f"reduction is {reduction}, not 1, 2, 4 or 8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF data: the image is there all the same
        if _is_float_colour_tiff(data) and (decoded := _decode_with_opencv(data)) is not None:
            return decoded
        with _opened(data, name) as image:
            try:
                # An MPO is a JPEG with further views for 3-D displays: its first frame is the photograph.
                frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
                if frames == 1:
                    return _pixels(image, data, upright, reduction)
            except Exception as error:
                # Pillow's plugins raise SyntaxError, struct.error, OSError ...
                raise ImageError(f"{name}: truncated or damaged image ({error})") from error
    raise ImageError(f"{name}: holds {frames} pages or frames; save the one you mean as a file of its own")


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Return height and width in pixels from an image's header; raises ImageError."""
    with _opened(data, name) as image:
        return image.height, image.width


def _opened(data: bytes, name: str) -> Image.Image:
    """Read the header and check its size."""
    if not data:
        raise ImageError(f"{name}: the file is empty")
    try:
        # Pillow's own limit only warns; MAX_PIXELS decides, on the header alone.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        hint = "; convert HEIC to JPEG first" if data[4:8] == b"ftyp" else ""
        if data[:4] in _TIFF:
            hint = "; it is damaged, or a TIFF of another kind: convert it to PNG"
        raise ImageError(
            f"{name}: not an image in a known format (PNG, JPEG, BMP, TIFF, WebP, GIF, PNM){hint}"
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: has far more than the {MAX_PIXELS:,} pixels that are accepted") from None
    except Exception as error:
        raise ImageError(f"{name}: truncated or damaged image ({error})") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{name}: {width} x {height} pixels is more than the {MAX_PIXELS:,} that are accepted")
    return image


def _pixels(image: Image.Image, data: bytes, upright: bool, reduction: int) -> np.ndarray:
    if reduction > 1 and image.format == "JPEG":
        image.draft("RGB", (image.width // reduction, image.height // reduction))
    stated = image.getexif().get(_ORIENTATION, 1)
    # load() raises an error for truncated files, of which OpenCV would return a half-grey image.
    image.load()
    pixels = _deep_colour(image, data)
    if pixels is None:
        # Pillow applies a TIFF's orientation while it loads.
        stated = image.getexif().get(_ORIENTATION, 1)
        pixels = _by_mode(image)
    if upright and stated in _UPRIGHT:
        pixels = np.ascontiguousarray(_UPRIGHT[stated](pixels))
    if reduction > 1 and image.format != "JPEG":
        size = (-(-pixels.shape[1] // reduction), -(-pixels.shape[0] // reduction))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return pixels


def _by_mode(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return values if values.dtype == np.uint16 else np.clip(values, 0, 65535).astype(np.uint16)
    if image.mode in ("L", "RGB", "RGBA", "F") and "transparency" not in image.info:
        return np.asarray(image)
    transparent = image.mode in ("PA", "La", "LA", "RGBa") or "transparency" in image.info
    grey = image.mode in ("1", "L") and not transparent
    return np.asarray(image.convert("RGBA" if transparent else "L" if grey else "RGB"))


def _deep_colour(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return a 16-bit colour image, which Pillow would reduce to 8 bits; None for any other."""
    if image.format not in ("PNG", "TIFF", "PPM") or image.mode not in ("RGB", "RGBA"):
        return None
    if image.format == "PNG" and data[24:25] != b"\x10":  # the bit depth in a PNG's first chunk
        return None
    if isinstance(image, TiffImagePlugin.TiffImageFile) and 16 not in image.tag_v2.get(
        TiffImagePlugin.BITSPERSAMPLE, ()
    ):
        return None
    decoded = _decode_with_opencv(data)
    return decoded if decoded is not None and decoded.dtype == np.uint16 else None


def _is_float_colour_tiff(data: bytes) -> bool:
    """Return whether this is a floating-point colour TIFF, which Pillow cannot read, of an acceptable size."""
    if data[:4] not in _TIFF:
        return False
    stream = io.BytesIO(data)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        stream.seek(tags.next)
        tags.load(stream)
        sizes = tags[TiffImagePlugin.IMAGEWIDTH] * tags[TiffImagePlugin.IMAGELENGTH]
        return tags[TiffImagePlugin.SAMPLEFORMAT] in ((3, 3, 3), (3, 3, 3, 3)) and sizes <= MAX_PIXELS
    except Exception:
        # Pillow reports the damage.
        return False


def _decode_with_opencv(data: bytes) -> np.ndarray | None:
    """Return the colour image as RGB or RGBA with its full depth; None if it has no colour or OpenCV cannot read it."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.ndim != 3:
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def as_rgb8(array: np.ndarray) -> np.ndarray:
    """Return an array as (H, W, 3) uint8 RGB; one of this shape and type is not copied.

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
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"an image must be uint8, uint16 or floats in [0, 1], not {array.dtype}")
    if not np.isfinite(array).all():
        raise ImageError(f"the image holds {np.count_nonzero(~np.isfinite(array))} values that are not finite")
    low, high = float(array.min()), float(array.max())
    # Resizing and colour conversion may overshoot slightly.
    if low < -0.01 or high > 1.01:
        raise ImageError(f"an image of floats must lie in [0, 1], not [{low:.3g}, {high:.3g}]; divide 0-255 by 255")
    return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """Return a uint8 image (H, W) or (H, W, C) whose longer side is at most `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def encode_image(image: np.ndarray, suffix: str) -> bytes:
    """Encode an image as a file.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 or bool for a single channel (True becomes 255).
        suffix: one of SUFFIXES, which chooses the format.

    Raises:
        ImageError: another shape or type, or a suffix of no image format.
    """
    if suffix.lower() not in SUFFIXES:
        raise ImageError(f"{suffix!r} is not the suffix of an image file; use .png or .jpg")
    if image.ndim == 2:
        pixels = np.ascontiguousarray(_as_uint8(image))
    else:
        pixels = cv2.cvtColor(as_rgb8(image), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix.lower(), pixels)
    if not done:
        raise ImageError(f"an image of {pixels.shape} cannot be encoded as {suffix}")
    return data.tobytes()


def write_image(path: str | Path, image: np.ndarray, *, guard: bool = True) -> None:
    """Write an image file atomically; the suffix of `path` chooses the format.

    Args:
        path: the file to write; its folder is created if missing.
        image: see `encode_image`.
        guard: see `files.replacing`.

    Raises:
        ImageError: another shape or type, or a suffix of no image format.
        OutputError: see `files.replacing`.
    """
    try:
        # Encoded in memory: OpenCV's own writer crashes on names that are not valid UTF-8.
        data = encode_image(image, Path(path).suffix)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    write_bytes(path, data, guard=guard)
