"""numpy <-> messages: the one door for images, and a Segmentation as vision_msgs and label images.

Behind the door for images stand two rooms: cv_bridge where it is installed and works, else `ocdit_ros.converter`.
"""

from __future__ import annotations

import array
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from ocdit_core.errors import ImageError
from ocdit_ros import converter, cv_bridge_converter, pip_home
from ocdit_ros.message_maker import MessageMaker

if TYPE_CHECKING:
    from collections.abc import Callable

pip_home.prepare()

from sensor_msgs.msg import CompressedImage, Image  # noqa: E402  (needs the prefix)
from vision_msgs.msg import (  # noqa: E402
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    VisionClass,
)


def _as_data(pixels: np.ndarray) -> array.array[int]:
    """Return the bytes of an image as the one type that rclpy takes over without converting each of them."""
    data = array.array("B")
    data.frombytes(pixels.data.cast("B"))
    return data


_maker = MessageMaker(
    SimpleNamespace(
        Image=Image,
        Detection2DArray=Detection2DArray,
        Detection2D=Detection2D,
        ObjectHypothesisWithPose=ObjectHypothesisWithPose,
        LabelInfo=LabelInfo,
        VisionClass=VisionClass,
    ),
    _as_data,
)
from_rgb = _maker.from_rgb
to_detections = _maker.to_detections
to_instances = _maker.to_instances
to_mask = _maker.to_mask
to_uncertainty = _maker.to_uncertainty
to_label_info = _maker.to_label_info


@lru_cache(maxsize=1)
def image_converter() -> tuple[str, Callable[[Image], np.ndarray]]:
    """Return what converts images on this machine, "cv_bridge" or "ocdit_ros" with the reason, and its function."""
    convert = cv_bridge_converter.make()
    if convert:
        return "cv_bridge", convert
    broken = cv_bridge_converter.is_installed()
    return "ocdit_ros, as cv_bridge does not work here" if broken else "ocdit_ros", converter.to_rgb


def to_rgb(message: Image | CompressedImage) -> np.ndarray:
    """Return the picture of a sensor_msgs/Image or CompressedImage.

    Returns:
        (H, W, 3) uint8 RGB; see `ocdit_ros.converter` for what is done to 16 bits and transparency.

    Raises:
        ImageError: an encoding that is not supported, fields that contradict one another, or damaged bytes.
    """
    if isinstance(message, CompressedImage):
        return converter.decompress(message)
    converter.check(message)
    convert = image_converter()[1]
    try:
        return convert(message)
    except Exception as error:
        raise ImageError(f"the {message.encoding} image cannot be converted: {error}") from error
