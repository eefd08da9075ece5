"""numpy <-> messages: the one door for images, and a Segmentation as vision_msgs and label images.

Behind the door for images stand two rooms: cv_bridge where it is installed and works, else `ocdit_ros.converter`.
cv_bridge is tried on a small image first, because a build for another NumPy or OpenCV imports and then fails.
"""

from __future__ import annotations

import array
import io
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ocdit_core.errors import ImageError
from ocdit_ros import converter, pip_home
from ocdit_ros.numbering import MAX_MONO16

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ocdit_core.inference.results import Segmentation

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

COMPRESSED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


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
        return _decompress(message)
    converter.check(message)
    convert = image_converter()[1]
    try:
        return convert(message)
    except Exception as error:
        raise ImageError(f"the {message.encoding} image cannot be converted: {error}") from error


def _decompress(message: CompressedImage) -> np.ndarray:
    # Pillow reads the size from the header alone, before a pixel is decoded.
    from PIL import Image as Picture

    kind = f"compressed image (format {message.format!r})"
    if not message.data:
        raise ImageError(f"the {kind} is empty")
    try:
        picture = Picture.open(io.BytesIO(bytes(message.data)), formats=COMPRESSED_FORMATS)
    except Picture.DecompressionBombError as error:
        raise ImageError(f"the {kind} has more than the {converter.MAX_PIXELS:,} pixels accepted: {error}") from error
    except Exception as error:
        raise ImageError(f"the {kind} is not readable as {', '.join(COMPRESSED_FORMATS)}: {error}") from error
    with picture:
        width, height = picture.size
        if width * height > converter.MAX_PIXELS:
            raise ImageError(
                f"the {kind} has {width} x {height} pixels, more than the {converter.MAX_PIXELS:,} accepted"
            )
        try:
            return np.array(picture.convert("RGB"))
        except Exception as error:
            raise ImageError(f"the {kind} is truncated or damaged: {error}") from error


def _image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Wrap contiguous pixels; array.array is the one type that rclpy takes over without converting each byte."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(pixels).data.cast("B"))
    height, width = pixels.shape[:2]
    message = Image(header=header, height=height, width=width, encoding=encoding)
    message.step = width * pixels.itemsize * (pixels.shape[2] if pixels.ndim == 3 else 1)
    message.is_bigendian = int(sys.byteorder == "big")
    message.data = data
    return message


def from_rgb(image: np.ndarray, header: Header) -> Image:
    """Return an rgb8 message of an (H, W, 3) uint8 RGB image.

    Raises:
        ImageError: another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"an rgb8 message needs (H, W, 3) uint8, not {image.shape} {image.dtype}")
    return _image(image, "rgb8", header)


def to_detections(segmentation: Segmentation, numbers: Sequence[int], header: Header) -> Detection2DArray:
    """Return the instances as detections.

    Args:
        segmentation: the result for one image.
        numbers: one an instance; `id` holds it in decimal.
        header: the image's header, copied to every detection.

    Returns:
        Boxes are tight around the masks: pixel columns x .. x + width - 1 give size_x = width and the centre
        x + width / 2, in pixels from the image's left edge. results[0] holds the object's name and the score.
    """
    message = Detection2DArray(header=header)
    for number, instance in zip(numbers, segmentation.instances, strict=True):
        x, y, width, height = instance.box
        detection = Detection2D(header=header, id=str(number))
        detection.bbox.center.position.x = x + width / 2
        detection.bbox.center.position.y = y + height / 2
        detection.bbox.size_x = float(width)
        detection.bbox.size_y = float(height)
        result = ObjectHypothesisWithPose()
        result.hypothesis.class_id = instance.object_id
        result.hypothesis.score = float(instance.score)
        detection.results = [result]
        message.detections.append(detection)
    return message


def to_instances(segmentation: Segmentation, numbers: Sequence[int], header: Header) -> Image:
    """Return a label image: 0 is background, else int(detection.id); the highest score wins where masks overlap.

    It is mono16, or 32SC1 where a number does not fit into 16 bits.
    """
    wide = max(numbers, default=0) > MAX_MONO16
    table = np.array([0, *numbers], np.int32 if wide else np.uint16)
    return _image(table[segmentation.label_map()], "32SC1" if wide else "mono16", header)


def to_mask(segmentation: Segmentation, object_id: str, header: Header) -> Image:
    """Return a mono8 image: 255 on the best-scoring instance of one object, 0 elsewhere and where it was not found."""
    mask = np.zeros(segmentation.image_size, np.uint8)
    best = next((instance for instance in segmentation.instances if instance.object_id == object_id), None)
    if best is not None:
        mask[best.mask] = 255
    return _image(mask, "mono8", header)


def to_uncertainty(uncertainty: np.ndarray, header: Header) -> Image:
    """Return a 32FC1 image of an (H, W) float32 map in [0, 1]: 1 is a toss-up, 0 is certain."""
    return _image(np.asarray(uncertainty, np.float32), "32FC1", header)


def to_label_info(labels: Mapping[str, int], threshold: float, header: Header) -> LabelInfo:
    """Return names and numbers of a library's objects, by number; they do not depend on the targets.

    Args:
        labels: name -> number, 1 or above.
        threshold: scores below it are not published.
        header: of the message.
    """
    message = LabelInfo(header=header, threshold=float(threshold))
    message.class_map = [
        VisionClass(class_id=number, class_name=name)
        for name, number in sorted(labels.items(), key=lambda item: item[1])
    ]
    return message
