"""The node's topics and services: name, type, what each is for. docs/ros.md is made of it by tools/ros_interface.py."""

from __future__ import annotations

from dataclasses import dataclass

from ocdit_ros import pip_home

pip_home.prepare()

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402  (needs the prefix)
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from vision_msgs.msg import Detection2DArray, LabelInfo, VisionInfo  # noqa: E402

from ocdit_interfaces.srv import ListObjects, Segment, SetTargetObjects  # type: ignore[attr-defined]  # noqa: E402


@dataclass(frozen=True)
class Entry:
    """A topic or a service.

    Attributes:
        kind: its class.
        description: in one line.
    """

    kind: type
    description: str


OF_A_FRAME = {
    "detections": Entry(
        Detection2DArray, "one for each instance: tight box, `class_id` (the object's name), score, id"
    ),
    "instances": Entry(
        Image,
        "mono16 (32SC1 above 65535): a pixel is the detection's id, 0 is background; the best score wins overlaps",
    ),
    "mask": Entry(Image, "mono8, 0 or 255: the best instance of the object that the parameter `mask_object` names"),
    "camera_info": Entry(CameraInfo, "the image's calibration, in step with the results"),
    "overlay": Entry(Image, "rgb8: masks, names and scores drawn over the image; only while somebody listens"),
    "uncertainty": Entry(
        Image, "32FC1, 0 to 1: how much of a toss-up each pixel is; computed only while somebody listens"
    ),
}
"""Published for each processed frame, with the image's header."""

LATCHED = {
    "label_info": Entry(LabelInfo, "names and lasting numbers of the library's objects, and the score threshold"),
    "vision_info": Entry(
        VisionInfo, "the model, the library, and a version that grows with every change of the targets"
    ),
}
"""Published on activation and on changes; whoever subscribes later gets the last one."""

SUBSCRIBED = {
    "image": Entry(Image, "with `image_transport: raw`"),
    "image/compressed": Entry(CompressedImage, "with `image_transport: compressed`: JPEG, PNG, WebP, BMP, TIFF"),
    "camera_info": Entry(CameraInfo, "optional; passed on with the results of the image of the same stamp"),
}

DIAGNOSTICS = {
    "/diagnostics": Entry(
        DiagnosticArray,
        "once a second: state, rate, milliseconds by stage, frames by fate, memory, last error, silence",
    )
}

SERVICES = {
    "set_target_objects": Entry(
        SetTargetObjects,
        "look for other objects from the next frame on; all or nothing: an unknown name changes nothing",
    ),
    "list_objects": Entry(ListObjects, "what the library holds, and what is looked for"),
    "segment": Entry(Segment, "segment one given image now, while the node is active"),
}
