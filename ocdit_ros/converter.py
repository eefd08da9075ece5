"""sensor_msgs/Image and CompressedImage -> (H, W, 3) uint8 RGB without cv_bridge.

Padded rows, both byte orders, Bayer and YUV 4:2:2 are read.

No ROS is imported here: anything with a message's fields is read.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from ocdit_core.errors import ImageError
from ocdit_core.images import MAX_PIXELS, as_rgb8, decode_pixels

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


def to_rgb(message: Any) -> np.ndarray:
    """Decode a message that `check` accepts.

    16 bits are scaled by 1/257 (0..65535 -> 0..255), transparency is dropped: a camera's alpha means nothing.

    Args:
        message: a sensor_msgs/Image.

    Returns:
        (H, W, 3) uint8 RGB, contiguous. For unpadded rgb8 it is a view of the message's bytes, not a copy.
    """
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


def decompress(message: Any) -> np.ndarray:
    """Decode a sensor_msgs/CompressedImage.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: a format that is not supported, too many pixels, or damaged bytes.
    """
    kind = f"compressed image (format {message.format!r})"
    pixels = decode_pixels(bytes(message.data), kind, upright=True)
    # A camera's alpha channel means nothing.
    return as_rgb8(pixels[..., :3] if pixels.ndim == 3 else pixels)
