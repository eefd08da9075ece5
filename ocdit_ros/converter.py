"""sensor_msgs/Image and CompressedImage -> (H, W, 3) uint8 RGB: by cv_bridge where it works, else by OpenCV.

No ROS is imported here: any object with the fields of the message is accepted.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import cv2
import numpy as np

from ocdit_core.errors import ImageError
from ocdit_core.images import MAX_PIXELS, as_rgb8, decode_pixels

PROBE = """
import numpy as np
from cv_bridge import CvBridge
from sensor_msgs.msg import Image

pixels = np.arange(12, dtype=np.uint8)
message = Image(height=2, width=2, step=6, encoding="rgb8", data=pixels.tobytes())
converted = CvBridge().imgmsg_to_cv2(message, "bgr8")
assert np.array_equal(converted[..., ::-1], pixels.reshape(2, 2, 3))
"""
PROBE_TIMEOUT = 60.0

# encoding -> (channels, bytes of a sample, OpenCV conversion to RGB; None: is RGB already)
ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    "rgb8": (3, 1, None),
    "bgr8": (3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": (4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "mono16": (1, 2, cv2.COLOR_GRAY2RGB),
    "16UC1": (1, 2, cv2.COLOR_GRAY2RGB),
    # OpenCV names a Bayer pattern by the pixels 2 and 3 of the second row, ROS by the first four pixels.
    "bayer_rggb8": (1, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, 1, cv2.COLOR_BayerGB2RGB),
    "yuv422": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, 1, cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": (2, 1, cv2.COLOR_YUV2RGB_YUYV),
}


def check(message: Any) -> None:
    """Refuse an image message whose fields contradict one another, whichever converter will read it.

    Args:
        message: a sensor_msgs/Image.

    Raises:
        ImageError: an encoding that is not supported, no pixels, too many, a step below a row's bytes, missing data,
            or an odd width where pixels share their colour in pairs.
    """
    height, width, encoding = message.height, message.width, message.encoding
    if encoding not in ENCODINGS:
        raise ImageError(f"image encoding {encoding!r} is not supported; supported are {', '.join(ENCODINGS)}")
    if height < 1 or width < 1:
        raise ImageError(f"the {encoding} image has no pixels: width {width}, height {height}")
    if height * width > MAX_PIXELS:
        raise ImageError(f"the {encoding} image has {width} x {height} pixels, more than the {MAX_PIXELS:,} accepted")
    channels, size, _ = ENCODINGS[encoding]
    row = width * channels * size
    if message.step < row:
        raise ImageError(f"the {encoding} image's step is {message.step} bytes, but {width} pixels take {row}")
    if len(message.data) < message.step * height:
        raise ImageError(
            f"the {encoding} image holds {len(message.data)} bytes, but {height} rows of step {message.step} "
            f"take {message.step * height}"
        )
    if channels == 2 and width % 2:
        raise ImageError(f"the {encoding} image is {width} pixels wide; YUV 4:2:2 needs an even width")
    if encoding.startswith("bayer") and (width < 2 or height < 2):
        raise ImageError(f"the {encoding} image has {width} x {height} pixels; a Bayer pattern needs at least 2 x 2")


def to_rgb(message: Any, *, cv_bridge: bool = False) -> np.ndarray:
    """Return the image of a sensor_msgs/Image or CompressedImage.

    16-bit values are scaled by 1/257 (0..65535 -> 0..255); alpha is dropped, as a camera's alpha has no meaning.

    Args:
        message: a message of rclpy or of rosbags.
        cv_bridge: whether to use cv_bridge where it is installed and works (for messages of rclpy).

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        ImageError: an encoding that is not supported, inconsistent fields, or damaged bytes.
    """
    if hasattr(message, "format"):
        return decompress(message)
    check(message)
    convert = (_cv_bridge() if cv_bridge else None) or _convert
    try:
        return convert(message)
    except Exception as error:
        raise ImageError(f"the {message.encoding} image cannot be converted: {error}") from error


def decompress(message: Any) -> np.ndarray:
    """Decode a sensor_msgs/CompressedImage.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: a format that is not supported, too many pixels, or damaged bytes.
    """
    kind = f"compressed image (format {message.format!r})"
    pixels = decode_pixels(bytes(message.data), kind, upright=True)
    # A camera's alpha channel has no meaning.
    return as_rgb8(pixels[..., :3] if pixels.ndim == 3 else pixels)


def _convert(message: Any) -> np.ndarray:
    """Decode a message that `check` accepts; for unpadded rgb8 the result is a view of the message's bytes."""
    channels, size, conversion = ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(message.data, np.uint8, count=step * height).reshape(height, step)
    pixels = data[:, : width * channels * size]
    if size == 2:
        order = ">u2" if message.is_bigendian else "<u2"
        values = np.ascontiguousarray(pixels).view(order).astype(np.uint32)
        pixels = ((values + 128) // 257).astype(np.uint8)
    pixels = pixels.reshape(height, width, channels) if channels > 1 else pixels
    pixels = np.ascontiguousarray(pixels)
    if conversion is None:
        return pixels
    return cv2.cvtColor(pixels, conversion)


def converter_name() -> str:
    """Return what converts images on this machine, for the log."""
    if _cv_bridge():
        return "cv_bridge"
    broken = importlib.util.find_spec("cv_bridge") is not None
    return "ocdit_ros, as cv_bridge does not work here" if broken else "ocdit_ros"


@cache
def _cv_bridge() -> Callable[[Any], np.ndarray] | None:
    """Return a converter that does the same as `_convert`, or None.

    A cv_bridge that was built for another NumPy or OpenCV may be imported and then crash on its first image, so it is
    tried in a process of its own.
    """
    if importlib.util.find_spec("cv_bridge") is None or not _cv_bridge_works():
        return None
    from cv_bridge import CvBridge, CvBridgeError

    bridge = CvBridge()
    known = set()
    # 16 bits are converted here: to cv_bridge, 16UC1 is no colour format.
    for encoding in (name for name, (_, size, _) in ENCODINGS.items() if size == 1):
        # Some versions lack uyvy and yuyv.
        with suppress(CvBridgeError):
            bridge.encoding_to_cvtype2(encoding)
            known.add(encoding)

    def convert(message: Any) -> np.ndarray:
        # cv_bridge takes padding for pixels, and returns a scrambled image without an error.
        padded = message.step != message.width * ENCODINGS[message.encoding][0]
        if padded or message.encoding not in known:
            return _convert(message)
        return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))

    return convert


def _cv_bridge_works() -> bool:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE], env=environment, capture_output=True, timeout=PROBE_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0
