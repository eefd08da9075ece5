"""numpy <-> messages: the one door for images, and a Segmentation as vision_msgs and label images.

Behind the door for images stand two rooms: cv_bridge where it is installed and works, else `ocdit_ros.converter`.
cv_bridge is tried on a small image first, because a build for another NumPy or OpenCV imports and then fails.
"""

from __future__ import annotations

import array
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from ocdit_core.errors import ImageError
from ocdit_ros import converter, pip_home
from ocdit_ros.message_maker import MessageMaker

if TYPE_CHECKING:
    from collections.abc import Callable

pip_home.prepare()

from sensor_msgs.msg import CompressedImage, Image  # noqa: E402  (needs the prefix)
from std_msgs.msg import Header  # noqa: E402
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


def _cv_bridge_to_rgb() -> Callable[[Image], np.ndarray] | None:
    """Return a converter made of cv_bridge, or None where it is missing or does not work."""
    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()
        probe = from_rgb(np.arange(12, dtype=np.uint8).reshape(2, 2, 3), Header())
        if not np.array_equal(bridge.imgmsg_to_cv2(probe, "bgr8")[..., ::-1], np.arange(12).reshape(2, 2, 3)):
            return None
    except Exception:
        # An ABI mismatch shows as ImportError, AttributeError, SystemError ...: whatever it is, ours serves.
        return None

    def convert(message: Image) -> np.ndarray:
        # 16 bits are ours: cv_bridge calls 16UC1 no colour format.
        if message.encoding in ("mono16", "16UC1"):
            return converter.to_rgb(message)
        return np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"))

    return convert


@lru_cache(maxsize=1)
def image_converter() -> tuple[str, Callable[[Image], np.ndarray]]:
    """Return the name of the converter that serves on this machine ("cv_bridge" or "ocdit_ros") and its function."""
    convert = _cv_bridge_to_rgb()
    return ("cv_bridge", convert) if convert else ("ocdit_ros", converter.to_rgb)


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
