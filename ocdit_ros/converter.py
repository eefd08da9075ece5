"""sensor_msgs/Image and CompressedImage -> (H, W, 3) uint8 RGB: by cv_bridge where it works, else by OpenCV.

No ROS is imported here: any object with the fields of the message is accepted.
"""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np

from ocdit_core.errors import ImageError
from ocdit_core.images import MAX_PIXELS, as_rgb8, decode_pixels

log = logging.getLogger(__name__)

PROBE = """
import numpy as np
from cv_bridge import CvBridge
from sensor_msgs.msg import Image

pixels = np.arange(12, dtype=np.uint8)
message = Image(height=2, width=2, step=6, encoding="rgb8", data=pixels.tobytes())
converted = CvBridge().imgmsg_to_cv2(message, "bgr8")
assert np.array_equal(converted[..., ::-1], pixels.reshape(2, 2, 3))
"""
# encoding -> (channels, bytes per sample, OpenCV conversion to RGB; None: is RGB already). 8UC3 and 8UC4 name no order
# of colours; OpenCV programs, which publish them, mean BGR.
ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    **{
        f"{name}{bits}": (channels, bits // 8, conversion)
        for bits in (8, 16)
        for name, channels, conversion in (
            ("rgb", 3, None),
            ("bgr", 3, cv2.COLOR_BGR2RGB),
            ("rgba", 4, cv2.COLOR_RGBA2RGB),
            ("bgra", 4, cv2.COLOR_BGRA2RGB),
            ("mono", 1, cv2.COLOR_GRAY2RGB),
            # OpenCV names a Bayer pattern by pixels 2 and 3 of the second row, ROS by the first four pixels.
            ("bayer_rggb", 1, cv2.COLOR_BayerBG2RGB),
            ("bayer_bggr", 1, cv2.COLOR_BayerRG2RGB),
            ("bayer_gbrg", 1, cv2.COLOR_BayerGR2RGB),
            ("bayer_grbg", 1, cv2.COLOR_BayerGB2RGB),
        )
    },
    "8UC1": (1, 1, cv2.COLOR_GRAY2RGB),
    "8UC3": (3, 1, cv2.COLOR_BGR2RGB),
    "8UC4": (4, 1, cv2.COLOR_BGRA2RGB),
    "yuv422": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, 1, cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": (2, 1, cv2.COLOR_YUV2RGB_YUYV),
    # YUV 4:2:0: a plane of brightness, then one of half the height with pairs of colours.
    "nv12": (1, 1, cv2.COLOR_YUV2RGB_NV12),
    "nv21": (1, 1, cv2.COLOR_YUV2RGB_NV21),
}
CV_BRIDGE_ENCODINGS = [
    name for name in ENCODINGS if not name.endswith(("16", "UC1", "UC3", "UC4", "nv12", "nv21", "uyvy", "yuyv"))
]
"""What every version of cv_bridge converts as we do; it cuts 16 bits off, and reads other layouts of nv21."""
DEPTH = ("16UC1", "32FC1")
DARK = 4096
"""A 16-bit image without a value from here on comes from a sensor of 12 bits or less, or from a depth camera."""


class EncodingError(ImageError):
    """An image has an encoding that cannot be segmented: so have all images of its topic."""


def check(message: Any) -> None:
    """Refuse a sensor_msgs/Image whose fields contradict one another, whichever converter will read it.

    Raises:
        EncodingError: an encoding that is not supported, or a depth image.
        ImageError: no pixels, too many, a step below a row's bytes, missing data, or an odd size where pixels share
            their colour.
    """
    height, width, encoding = message.height, message.width, message.encoding
    if encoding in DEPTH:
        raise _depth_error(encoding)
    if encoding not in ENCODINGS:
        raise EncodingError(f"image encoding {encoding!r} is not supported; supported are {', '.join(ENCODINGS)}")
    if height < 1 or width < 1:
        raise ImageError(f"the {encoding} image has no pixels: width {width}, height {height}")
    if height * width > MAX_PIXELS:
        raise ImageError(f"the {encoding} image has {width} x {height} pixels, more than the {MAX_PIXELS:,} accepted")
    channels, size, _ = ENCODINGS[encoding]
    row = width * channels * size
    if message.step < row:
        raise ImageError(f"the {encoding} image's step is {message.step} bytes, but {width} pixels take {row}")
    planar = encoding in ("nv12", "nv21")
    if planar and (width % 2 or height % 2):
        raise ImageError(f"the {encoding} image has {width} x {height} pixels; YUV 4:2:0 needs an even size")
    rows = height * 3 // 2 if planar and not _is_packed(message) else height
    if len(message.data) < message.step * rows:
        raise ImageError(
            f"the {encoding} image holds {len(message.data)} bytes, but {rows} rows of step {message.step} "
            f"take {message.step * rows}"
        )
    if channels == 2 and width % 2:
        raise ImageError(f"the {encoding} image is {width} pixels wide; YUV 4:2:2 needs an even width")
    if encoding.startswith("bayer") and (width < 2 or height < 2):
        raise ImageError(f"the {encoding} image has {width} x {height} pixels; a Bayer pattern needs at least 2 x 2")


def to_rgb(message: Any, *, cv_bridge: bool = False, warn: Callable[[str], None] = log.warning) -> np.ndarray:
    """Return the (H, W, 3) uint8 RGB image, contiguous, of a sensor_msgs/Image or CompressedImage.

    16-bit values are scaled by 1/257 (0..65535 -> 0..255); alpha is dropped, as a camera's alpha has no meaning.

    Args:
        message: a message of rclpy or of rosbags.
        cv_bridge: whether to use cv_bridge where it is installed and works (for messages of rclpy).
        warn: called with one line about an image that is probably not what was meant.

    Raises:
        EncodingError: an encoding that is not supported, or a depth image.
        ImageError: inconsistent fields, or damaged bytes.
    """
    if hasattr(message, "format"):
        return _decompress(message, warn)
    check(message)
    # cv_bridge takes padding for pixels, and returns a scrambled image without an error.
    padded = message.step != message.width * ENCODINGS[message.encoding][0]
    bridge = _cv_bridge() if cv_bridge and not padded and message.encoding in CV_BRIDGE_ENCODINGS else None
    try:
        return _convert(message, warn) if bridge is None else np.ascontiguousarray(bridge(message, "rgb8"))
    except Exception as error:
        raise ImageError(f"the {message.encoding} image cannot be converted: {error}") from error


def _decompress(message: Any, warn: Callable[[str], None]) -> np.ndarray:
    # image_transport writes "ENCODING; CODEC compressed STORED_ENCODING", other programs "jpeg" or "png".
    encoding = message.format.split(";")[0].strip()
    if encoding in DEPTH or "compressedDepth" in message.format:
        raise _depth_error(message.format.strip())
    name = f"compressed image (format {message.format!r})"
    mosaic = encoding.startswith("bayer_") and encoding in ENCODINGS
    pixels = decode_pixels(bytes(message.data), name, upright=not mosaic)
    if pixels.ndim == 3 and mosaic and (pixels[..., :1] == pixels[..., 1:3]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    if pixels.dtype == np.uint16:
        _warn_if_dark(pixels, name, warn)
    if pixels.ndim == 2 and mosaic:
        conversion = ENCODINGS[encoding][2]
        assert conversion is not None
        pixels = cv2.cvtColor(pixels, conversion)
    return as_rgb8(pixels[..., :3] if pixels.ndim == 3 else pixels)


def _depth_error(encoding: str) -> EncodingError:
    return EncodingError(
        f"{encoding!r} is a depth image: connect the topic of the colour image (publish grey images as mono16)"
    )


def _warn_if_dark(values: np.ndarray, name: str, warn: Callable[[str], None]) -> None:
    if 0 < values.max() < DARK:
        warn(
            f"{name} is nearly black: all values are below {DARK} of 65535; if it comes from a 12-bit camera, publish "
            "its values times 16 or mono8; if it is a depth image, connect the topic of the colour image"
        )


def _is_packed(message: Any) -> bool:
    """Whether `step` counts the bytes of both planes per row of the image, with no padding between the rows."""
    return bool(2 * message.step == 3 * message.width and len(message.data) < message.step * message.height * 3 // 2)


def _convert(message: Any, warn: Callable[[str], None]) -> np.ndarray:
    """Decode a message that `check` accepts; for unpadded rgb8 the result is a view of the message's bytes."""
    channels, size, conversion = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    if message.encoding in ("nv12", "nv21"):
        step, height = (width if _is_packed(message) else step), height * 3 // 2
    data = np.frombuffer(message.data, np.uint8, count=step * height).reshape(height, step)
    pixels = np.ascontiguousarray(data[:, : width * channels * size])
    if size == 2:
        pixels = pixels.view(">u2" if message.is_bigendian else "<u2")
        _warn_if_dark(pixels, f"the {message.encoding} image", warn)
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    pixels = pixels.reshape(height, width, channels) if channels > 1 else pixels
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)


def converter_name() -> str:
    """Return what converts images on this machine, for the log."""
    if _cv_bridge():
        return "cv_bridge"
    broken = importlib.util.find_spec("cv_bridge") is not None
    return "ocdit_ros, as cv_bridge does not work here" if broken else "ocdit_ros"


@cache
def _cv_bridge() -> Callable[..., np.ndarray] | None:
    """Return cv_bridge's conversion, or None where there is none that works.

    A cv_bridge that was built for another NumPy or OpenCV may be imported and then crash on its first image, so it is
    tried in a process of its own.
    """
    if importlib.util.find_spec("cv_bridge") is None:
        return None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, timeout=60, check=True)
    except subprocess.SubprocessError:
        return None
    from cv_bridge import CvBridge

    convert: Callable[..., np.ndarray] = CvBridge().imgmsg_to_cv2
    return convert
