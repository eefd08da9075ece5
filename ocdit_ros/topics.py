"""The node's topics and services: name, type, description, quality of service; messages of rclpy.

The tables of docs/ros.md are made from this file by tools/ros_interface.py.
"""

from __future__ import annotations

import array
import dataclasses
import math
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Point, PointStamped, TransformStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection2DArray, Detection3DArray, LabelInfo, VisionInfo

from ocdit_core.errors import ImageError
from ocdit_core.inference.prompts import Prompt
from ocdit_core.objects.making import NewObject
from ocdit_interfaces.srv import AddObject, ListObjects, RemoveObject, Segment, SegmentPrompted, SetTargetObjects  # type: ignore[attr-defined]
from ocdit_ros import converter
from ocdit_ros.messages import TYPES, MessageMaker

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from rclpy.lifecycle import LifecycleNode

    from ocdit_core.inference.results import Instance, Segmentation
    from ocdit_core.masks import Box


@dataclasses.dataclass(frozen=True)
class Entry:
    """A topic or a service.

    Attributes:
        kind: message or service class.
        description: one line for the documentation.
    """

    kind: type
    description: str


PER_FRAME = {
    "detections": Entry(Detection2DArray, "one per instance: tight box, `class_id` (object name), score, `id`"),
    "instances": Entry(
        Image,
        "mono16 (32SC1 above 65535): each pixel is the `id` of its detection, 0 is background; the best score wins",
    ),
    "classes": Entry(
        Image,
        "mono16: each pixel is the `class_id` of its object in `~/label_info`, 0 is background; only while subscribed",
    ),
    "mask": Entry(Image, "mono8, 0 or 255: the best instance of the object named by the parameter `mask_object`"),
    "camera_info": Entry(CameraInfo, "the calibration of the image, in step with the results"),
    "overlay": Entry(Image, "rgb8: masks, names and scores drawn over the image; only while subscribed"),
    "uncertainty": Entry(Image, "32FC1, 0 (certain) to 1 (undecided) per pixel; only while subscribed"),
    "detections_3d": Entry(
        Detection3DArray, "with depth: one per instance: oriented box in metres, pose, `class_id`, score, `id`"
    ),
    "points": Entry(
        PointCloud2, "with depth: points of the instances: x, y, z, rgb, instance_id (`id`); only while subscribed"
    ),
}
"""Published for each processed frame, with the header of the image."""

LATCHED = {
    "label_info": Entry(LabelInfo, "names and permanent numbers of the library's objects, and the score threshold"),
    "vision_info": Entry(VisionInfo, "model, library, and a version that grows with every change of the target set"),
}
"""Published on activation and on changes; late subscribers receive the last message."""

SUBSCRIBED = {
    "image": Entry(Image, "with `image_transport: raw`"),
    "image/compressed": Entry(CompressedImage, "with `image_transport: compressed`: JPEG, PNG, WebP, BMP, TIFF"),
    "camera_info": Entry(CameraInfo, "optional; republished with the results of the image of the same stamp"),
    "regions": Entry(Detection2DArray, "optional; boxes of another detector, with the stamp of their image"),
    "regions/instances": Entry(Image, "optional; masks of another detector: mono16, 0 is background"),
    "depth": Entry(
        Image, "optional; 16UC1 in millimetres or 32FC1 in metres, registered to the image, of the same size"
    ),
}

CLICKED = {
    "clicked_point": Entry(Point, "pixel (x, y) of the newest image; the target there is followed from then on"),
    "clicked_point/stamped": Entry(PointStamped, "the same; the header is not used"),
}
"""Subscribed below `~/` while the node is active."""

PER_REGIONS = {
    "regions/detections": Entry(
        Detection2DArray, "one per labelled region: box of its mask, `class_id`, score; `id` is the region's number"
    ),
    "regions/instances": Entry(Image, "mono16: each pixel is the number of its region, 0 is background"),
}
"""Published for each message with regions, with its header."""

TRANSFORMS = {"/tf": Entry(TFMessage, "with depth and `publish_tf`: the frame `object_<id>` of each instance")}

DIAGNOSTICS = {
    "/diagnostics": Entry(
        DiagnosticArray,
        "once a second: state, rate, latency by stage, frame counts, memory, last error, silent cameras, wrong "
        "calibrations, when each target was last seen",
    )
}

SERVICES = {
    "set_target_objects": Entry(
        SetTargetObjects,
        "change the target set, all or nothing; replies when the new set is in force, or why it is not",
    ),
    "list_objects": Entry(ListObjects, "the objects of the library, and the targets"),
    "add_object": Entry(
        AddObject, "add an object to the library, from a CAD file or images, and look for it if asked to"
    ),
    "remove_object": Entry(RemoveObject, "remove an object from the library and the targets"),
    "reload_library": Entry(Trigger, "read the library again after its folder was changed by others"),
    "segment": Entry(
        Segment,
        "segment one given image now, while the node is active; with targets, threshold and time-out of its own",
    ),
    "segment_prompted": Entry(
        SegmentPrompted, "segment one object where points or a box say that it is, in the newest image or a given one"
    ),
    "enable": Entry(SetBool, "false: pause, with the network loaded; true: go on; activation enables"),
    "reset_tracking": Entry(
        Trigger, "forget all tracked instances and clicked points: the instances of the next frame get new ids"
    ),
}

RELIABILITY = {"reliable": ReliabilityPolicy.RELIABLE, "best_effort": ReliabilityPolicy.BEST_EFFORT}
FRAME_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def _as_data(pixels: np.ndarray) -> array.array[int]:
    # The only type that rclpy takes over without converting each byte: 0.4 ms for VGA instead of 77 ms for an ndarray.
    data = array.array("B")
    if pixels.size:  # a memoryview of nothing cannot be cast
        data.frombytes(pixels.data.cast("B"))
    return data


maker = MessageMaker(
    SimpleNamespace(
        TransformStamped=TransformStamped,
        TFMessage=TFMessage,
        **{name: getattr(import_module(f"{package}.msg"), name) for package in TYPES for name in TYPES[package]},
    ),
    _as_data,
)
"""Makes the messages of rclpy."""


def limited(
    segmentation: Segmentation, threshold: float, thresholds: Mapping[str, float], most: Mapping[str, float]
) -> Segmentation:
    """Return the result without instances below a threshold, and without those beyond an object's limit.

    Args:
        segmentation: the result, its instances by falling score.
        threshold: minimum score in [0, 1].
        thresholds: minimum score of single objects, instead of `threshold`.
        most: maximum number of instances of single objects.
    """
    kept: list[Instance] = []
    counts: Counter[str] = Counter()
    for instance in segmentation.instances:
        name = instance.object_id
        if instance.score >= thresholds.get(name, threshold) and counts[name] < most.get(name, math.inf):
            counts[name] += 1
            kept.append(instance)
    return dataclasses.replace(segmentation, instances=tuple(kept))


def read_prompt(request: Any) -> Prompt:
    """Return the prompt of a request of ~/segment_prompted; raises ImageError for what is none."""
    points = [(point.x, point.y) for point in request.points]
    labels = list(request.labels) or [1] * len(points)
    if len(labels) != len(points) or not set(labels) <= {0, 1}:
        raise ImageError(f"labels: {labels!s:.80} are not 0 or 1 for each of {len(points)} points")
    box = request.box
    given = any(value != 0 for value in (box.size_x, box.size_y, box.center.position.x, box.center.position.y))
    return Prompt(
        object_id=request.object_id,
        points=[point for point, label in zip(points, labels, strict=True) if label],
        negative=[point for point, label in zip(points, labels, strict=True) if not label],
        box=corner_box(box) if given else None,
    )


def corner_box(box: Any) -> Box:
    """Return a BoundingBox2D as (x, y, width, height); raises ImageError if its values are not finite.

    A box over the columns 10 to 19 has the centre 14.5 and the size 10, as in `MessageMaker.to_detections`.
    """
    values = (box.center.position.x, box.center.position.y, box.size_x, box.size_y)
    if not all(map(math.isfinite, values)):
        raise ImageError(f"the box with center and size {list(values)} is no box")
    x, y, width, height = values
    return round(x - (width - 1) / 2), round(y - (height - 1) / 2), round(width), round(height)


def read_object(request: Any) -> NewObject:
    """Return what a request of ~/add_object asks for; raises ImageError for an image that cannot be read."""
    return NewObject(
        name=request.name,
        mesh=Path(request.mesh).expanduser() if request.mesh else None,
        unit=request.unit or "auto",
        images=[converter.to_rgb(image, cv_bridge=True) for image in request.images],
        masks=[converter.to_rgb(mask, cv_bridge=True)[..., 0] > 127 for mask in request.masks],
        boxes=[corner_box(box) for box in request.boxes],
        diameter=request.diameter or None,
    )


Publishers = dict[str, Any]


def create_publishers(node: LifecycleNode, prefix: str, entries: Mapping[str, Entry], qos: QoSProfile) -> Publishers:
    """Return publishers by name, on topics PREFIX + name; they are silent until the node is active."""
    create = node.create_lifecycle_publisher
    return {name: create(entry.kind, f"{prefix}{name}", qos) for name, entry in entries.items()}


def destroy_publishers(node: LifecycleNode, publishers: Publishers) -> None:
    """Destroy and forget publishers."""
    while publishers:
        node.destroy_lifecycle_publisher(publishers.popitem()[1])
