"""The node's topics: lifecycle publishers, and the messages that go out on them for each result."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ocdit_ros import messages, pip_home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rclpy.lifecycle import LifecycleNode

    from ocdit_core.inference.results import Segmentation
    from ocdit_ros.worker_types import Result

pip_home.prepare()

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402  (needs the prefix)
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from vision_msgs.msg import Detection2DArray, LabelInfo, VisionInfo  # noqa: E402

RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
# Whoever subscribes later still gets the last message.
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TOPICS: dict[str, tuple[type, QoSProfile]] = {
    "detections": (Detection2DArray, RELIABLE),
    "instances": (Image, RELIABLE),
    "mask": (Image, RELIABLE),
    "camera_info": (CameraInfo, RELIABLE),
    "overlay": (Image, RELIABLE),
    "label_info": (LabelInfo, LATCHED),
    "vision_info": (VisionInfo, LATCHED),
}


def above(segmentation: Segmentation, threshold: float) -> Segmentation:
    """Return the result without the instances whose score is below a threshold in [0, 1]."""
    kept = tuple(instance for instance in segmentation.instances if instance.score >= threshold)
    return dataclasses.replace(segmentation, instances=kept)


class Outputs:
    """The publishers of one configured node; they are silent until it is active."""

    def __init__(self, node: LifecycleNode):
        self._node = node
        self._publishers: dict[str, Any] = {
            name: node.create_lifecycle_publisher(kind, f"~/{name}", qos) for name, (kind, qos) in TOPICS.items()
        }

    def destroy(self) -> None:
        """Take the topics back; nothing may be published afterwards."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def publish(
        self,
        result: Result,
        segmentation: Segmentation,
        numbers: Sequence[int],
        mask_object: str,
        camera_info: CameraInfo | None = None,
    ) -> None:
        """Publish one frame's result, an empty one too: synchronisers downstream wait for each frame.

        Args:
            result: of the worker.
            segmentation: its instances that passed the threshold.
            numbers: one an instance.
            mask_object: whose mask goes to ~/mask; "" for none.
            camera_info: the frame's calibration, where it came in: republished in step, for 3-D use downstream.
        """
        header = result.frame.header
        if camera_info is not None:
            self._publishers["camera_info"].publish(camera_info)
        self._publishers["instances"].publish(messages.to_instances(segmentation, numbers, header))
        if mask_object:
            self._publishers["mask"].publish(messages.to_mask(segmentation, mask_object, header))
        # Last of those that a synchroniser may want, so that whoever sees it can expect the others.
        self._publishers["detections"].publish(messages.to_detections(segmentation, numbers, header))
        if self._publishers["overlay"].get_subscription_count():
            from ocdit_core.visualization import overlay

            self._publishers["overlay"].publish(messages.from_rgb(overlay(result.image, segmentation), header))

    def publish_label_info(self, object_ids: Sequence[str], threshold: float) -> None:
        """Publish the library's names with their numbers, and the score threshold in force."""
        self._publishers["label_info"].publish(messages.to_label_info(object_ids, threshold, self._header()))

    def publish_vision_info(self, model: str, library: str, version: int) -> None:
        """Publish the model, the library's folder, and a version that grows with every change of the targets."""
        self._publishers["vision_info"].publish(
            VisionInfo(header=self._header(), method=model, database_location=library, database_version=version)
        )

    def _header(self) -> Header:
        return Header(stamp=self._node.get_clock().now().to_msg())
