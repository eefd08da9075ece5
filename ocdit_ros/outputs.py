"""The node's topics: lifecycle publishers, and the messages that go out on them for each result."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ocdit_ros import interface, messages, pip_home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rclpy.lifecycle import LifecycleNode
    from sensor_msgs.msg import CameraInfo

    from ocdit_core.inference.results import Segmentation
    from ocdit_ros.parameters import Settings
    from ocdit_ros.worker_types import Result

pip_home.prepare()

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402  (needs the prefix)
from std_msgs.msg import Header  # noqa: E402
from vision_msgs.msg import VisionInfo  # noqa: E402

RELIABILITY = {"reliable": ReliabilityPolicy.RELIABLE, "best_effort": ReliabilityPolicy.BEST_EFFORT}
# Whoever subscribes later still gets the last message.
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def above(segmentation: Segmentation, threshold: float) -> Segmentation:
    """Return the result without the instances whose score is below a threshold in [0, 1]."""
    kept = tuple(instance for instance in segmentation.instances if instance.score >= threshold)
    return dataclasses.replace(segmentation, instances=kept)


class _Topics:
    """Some publishers of a configured node; they are silent until it is active."""

    def __init__(self, node: LifecycleNode, prefix: str, entries: Mapping[str, interface.Entry], qos: QoSProfile):
        self._node = node
        self._publishers: dict[str, Any] = {
            name: node.create_lifecycle_publisher(entry.kind, f"{prefix}{name}", qos) for name, entry in entries.items()
        }

    def destroy(self) -> None:
        """Take the topics back; nothing may be published afterwards."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def wanted(self, name: str) -> bool:
        """Whether somebody listens to a topic."""
        return bool(self._publishers[name].get_subscription_count())


class FrameTopics(_Topics):
    """The topics of one camera's results.

    Args:
        node: whose they are.
        prefix: of their names, "~/" or "~/left/".
        settings: which give their quality of service.
    """

    def __init__(self, node: LifecycleNode, prefix: str, settings: Settings):
        qos = QoSProfile(depth=settings.output_depth, reliability=RELIABILITY[settings.output_reliability])
        super().__init__(node, prefix, interface.OF_A_FRAME, qos)

    def publish(self, result: Result, segmentation: Segmentation, numbers: Sequence[int], mask_object: str) -> None:
        """Publish one frame's result, an empty one too: synchronisers downstream wait for each frame.

        Args:
            result: of the worker.
            segmentation: its instances that passed the threshold.
            numbers: one an instance.
            mask_object: whose mask goes to ~/mask; "" for none.
        """
        header = result.frame.header
        self._publishers["instances"].publish(messages.to_instances(segmentation, numbers, header))
        if mask_object:
            self._publishers["mask"].publish(messages.to_mask(segmentation, mask_object, header))
        if segmentation.uncertainty is not None and self.wanted("uncertainty"):
            self._publishers["uncertainty"].publish(messages.to_uncertainty(segmentation.uncertainty, header))
        # Last of those that a synchroniser may want, so that whoever sees it can expect the others.
        self._publishers["detections"].publish(messages.to_detections(segmentation, numbers, header))
        if self.wanted("overlay"):
            from ocdit_core.visualization import overlay

            self._publishers["overlay"].publish(messages.from_rgb(overlay(result.image, segmentation), header))

    def publish_camera_info(self, camera_info: CameraInfo) -> None:
        """Publish a frame's calibration."""
        self._publishers["camera_info"].publish(camera_info)


class InfoTopics(_Topics):
    """The node's latched topics: what is known, and what is looked for."""

    def __init__(self, node: LifecycleNode):
        super().__init__(node, "~/", interface.LATCHED, LATCHED)

    def publish(self, labels: Mapping[str, int], threshold: float, model: str, library: str, version: int) -> None:
        """Publish what downstream must know of the results.

        Args:
            labels: the library's objects with their numbers.
            threshold: on the score, in force.
            model: its name.
            library: its folder.
            version: of the targets, growing with every change.
        """
        header = Header(stamp=self._node.get_clock().now().to_msg())
        self._publishers["label_info"].publish(messages.to_label_info(labels, threshold, header))
        self._publishers["vision_info"].publish(
            VisionInfo(header=header, method=model, database_location=library, database_version=version)
        )
