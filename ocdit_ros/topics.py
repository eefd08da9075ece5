"""The node's topics and services: name, type, description; publishers, and messages of rclpy.

The tables of docs/ros.md are made from this file by tools/ros_interface.py.
"""

from __future__ import annotations

import array
import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    VisionClass,
    VisionInfo,
)

from ocdit_interfaces.srv import ListObjects, Segment, SetTargetObjects  # type: ignore[attr-defined]
from ocdit_ros.messages import MessageMaker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from rclpy.lifecycle import LifecycleNode

    from ocdit_core.inference.results import Segmentation
    from ocdit_ros.worker import Result


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
}

DIAGNOSTICS = {
    "/diagnostics": Entry(
        DiagnosticArray,
        "once a second: state, rate, latency by stage, frame counts, memory, last error, silent cameras",
    )
}

SERVICES = {
    "set_target_objects": Entry(
        SetTargetObjects,
        "change the target set, all or nothing; replies when the new set is in force, or why it is not",
    ),
    "list_objects": Entry(ListObjects, "the objects of the library, and the targets"),
    "segment": Entry(Segment, "segment one given image now, while the node is active"),
}

RELIABILITY = {"reliable": ReliabilityPolicy.RELIABLE, "best_effort": ReliabilityPolicy.BEST_EFFORT}
FRAME_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def _as_data(pixels: np.ndarray) -> array.array[int]:
    # The only type that rclpy takes over without converting each byte: 0.4 ms for VGA instead of 77 ms for an ndarray.
    data = array.array("B")
    data.frombytes(pixels.data.cast("B"))
    return data


maker = MessageMaker(
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
"""Makes the messages of rclpy."""


def above(segmentation: Segmentation, threshold: float) -> Segmentation:
    """Return the result without instances whose score is below a threshold in [0, 1]."""
    kept = tuple(instance for instance in segmentation.instances if instance.score >= threshold)
    return dataclasses.replace(segmentation, instances=kept)


class _Topics:
    """Publishers of a configured node; they are silent until it is active."""

    def __init__(self, node: LifecycleNode, prefix: str, entries: Mapping[str, Entry], qos: QoSProfile):
        self._node = node
        self._publishers: dict[str, Any] = {
            name: node.create_lifecycle_publisher(entry.kind, f"{prefix}{name}", qos) for name, entry in entries.items()
        }

    def destroy(self) -> None:
        """Destroy the publishers; nothing may be published afterwards."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def wanted(self, name: str) -> bool:
        """Whether a topic has subscribers."""
        return bool(self._publishers[name].get_subscription_count())


class FrameTopics(_Topics):
    """The topics of one camera's results.

    Args:
        node: the node.
        prefix: of the topic names, "~/" or "~/left/".
    """

    def __init__(self, node: LifecycleNode, prefix: str):
        super().__init__(node, prefix, PER_FRAME, FRAME_QOS)

    def publish(
        self,
        result: Result,
        segmentation: Segmentation,
        numbers: Sequence[int],
        mask_object: str,
        labels: Mapping[str, int],
    ) -> None:
        """Publish one frame's result, an empty one too: downstream synchronisers wait for each frame.

        Args:
            result: result of the worker.
            segmentation: its instances above the threshold.
            numbers: one for each instance.
            mask_object: object whose mask goes to ~/mask; "" for none.
            labels: object name -> number in ~/label_info.
        """
        header = result.frame.message.header
        self._publishers["instances"].publish(maker.to_instances(segmentation, numbers, header))
        if self.wanted("classes"):
            self._publishers["classes"].publish(maker.to_classes(segmentation, labels, header))
        if mask_object:
            self._publishers["mask"].publish(maker.to_mask(segmentation, mask_object, header))
        if segmentation.uncertainty is not None and self.wanted("uncertainty"):
            self._publishers["uncertainty"].publish(maker.to_uncertainty(segmentation.uncertainty, header))
        # After the label images, so that whoever receives it can expect them.
        self._publishers["detections"].publish(maker.to_detections(segmentation, numbers, header))
        if self.wanted("overlay"):
            from ocdit_core.visualization import overlay

            self._publishers["overlay"].publish(maker.from_rgb(overlay(result.image, segmentation), header))

    def publish_camera_info(self, camera_info: CameraInfo) -> None:
        """Publish the calibration of a frame."""
        self._publishers["camera_info"].publish(camera_info)


class InfoTopics(_Topics):
    """The latched topics of the node."""

    def __init__(self, node: LifecycleNode):
        super().__init__(node, "~/", LATCHED, LATCHED_QOS)

    def publish(self, labels: Mapping[str, int], threshold: float, model: str, library: str, version: int) -> None:
        """Publish label_info and vision_info.

        Args:
            labels: object name -> number, of the whole library.
            threshold: score threshold in force.
            model: name of the model.
            library: folder of the library.
            version: version of the target set.
        """
        header = Header(stamp=self._node.get_clock().now().to_msg())
        self._publishers["label_info"].publish(maker.to_label_info(labels, threshold, header))
        self._publishers["vision_info"].publish(
            VisionInfo(header=header, method=model, database_location=library, database_version=version)
        )
