"""Messages of rosbags in the place of rclpy's: the definitions that results need, and messages with default fields."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from ocdit_core.errors import BagError, ImageError
from ocdit_ros import converter, pip_home
from ocdit_ros.message_maker import MessageMaker

DEFINITIONS = "pip_home/vision_msgs/msg"
RESULT_TYPES = (
    "sensor_msgs/msg/Image",
    "vision_msgs/msg/Detection2D",
    "vision_msgs/msg/Detection2DArray",
    "vision_msgs/msg/LabelInfo",
    "vision_msgs/msg/ObjectHypothesisWithPose",
    "vision_msgs/msg/VisionClass",
)


def load_typestore() -> Any:
    """Return a typestore of rosbags that knows ROS's common messages and vision_msgs.

    Raises:
        BagError: rosbags is not installed, or our definitions of vision_msgs are missing.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError:
        raise BagError("recorded bags need the package rosbags: pip install rosbags") from None
    store = get_typestore(Stores.LATEST)
    try:
        files = sorted((pip_home.share_folder() / DEFINITIONS).glob("*.msg"))
    except FileNotFoundError as error:
        raise BagError(str(error)) from error
    types: dict[str, Any] = {}
    for file in files:
        types |= get_types_from_msg(file.read_text(), f"vision_msgs/msg/{file.stem}")
    store.register(types)
    return store


def message_maker(store: Any) -> MessageMaker:
    """Return what makes messages of a typestore from results."""
    types = {name.rpartition("/")[2]: partial(make, store, name) for name in RESULT_TYPES}
    return MessageMaker(SimpleNamespace(**types), lambda pixels: pixels.reshape(-1).view(np.uint8))


def read_image(store: Any, kind: str, data: bytes) -> tuple[Any, np.ndarray]:
    """Return the header and the (H, W, 3) uint8 RGB picture of a serialised Image or CompressedImage.

    Raises:
        ImageError: an encoding that is not supported, or damaged bytes.
    """
    try:
        message = store.deserialize_cdr(data, kind)
    except Exception as error:
        raise ImageError(f"the message is damaged: {error}") from error
    if kind.endswith("/CompressedImage"):
        return message.header, converter.decompress(message)
    converter.check(message)
    return message.header, converter.to_rgb(message)


def make(store: Any, name: str, **fields: Any) -> Any:
    """Return a message of a type, such as "std_msgs/msg/Header"; fields that are not given have ROS's default."""
    for field, description in store.fielddefs[name][1]:
        if field not in fields:
            fields[field] = _default(store, *description)
    if name == "geometry_msgs/msg/Quaternion":
        # The one definition used here with a default of its own, which rosbags does not keep.
        fields["w"] = 1.0
    return store.types[name](**fields)


def _default(store: Any, kind: Any, of: Any) -> Any:
    from rosbags.interfaces import Nodetype

    if kind == Nodetype.NAME:
        return make(store, of)
    if kind == Nodetype.BASE:
        return "" if of[0] == "string" else np.zeros((), of[0]).item()
    (item_kind, item), length = of
    if item_kind == Nodetype.NAME or item[0] == "string":
        return [_default(store, item_kind, item) for _ in range(length if kind == Nodetype.ARRAY else 0)]
    return np.zeros(length if kind == Nodetype.ARRAY else 0, item[0])
