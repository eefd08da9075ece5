"""The frame of 3D results: `target_frame` by tf2 where it is installed, and the frames of the instances on /tf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.qos import QoSProfile
from rclpy.time import Time
from std_msgs.msg import Header

from ocdit_ros import topics
from ocdit_ros.depth import moved, rotation_of

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode

    from ocdit_core.inference.depth import Instance3D


class Space:
    """Moves 3D results into a frame, and publishes the frames of instances.

    Args:
        node: the node.
        target: the frame; "": that of the camera.
        broadcast: whether to publish on /tf.
    """

    def __init__(self, node: LifecycleNode, target: str, *, broadcast: bool):
        self._node = node
        self._target = target
        self._buffer: Any = None
        self._listener: Any = None
        self._said = False
        self._publishers = topics.create_publishers(
            node, "", topics.TRANSFORMS if broadcast else {}, QoSProfile(depth=100)
        )
        if target:
            try:
                from tf2_ros import Buffer, TransformListener
            except ImportError as error:
                self._say(f"tf2_ros cannot be imported ({error})")
            else:
                self._buffer = Buffer()
                self._listener = TransformListener(self._buffer, node, spin_thread=False)

    def place(self, header: Any) -> tuple[Any, np.ndarray | None]:
        """Return the header of the 3D results of an image, and the transform (4, 4) into its frame; None: none."""
        if self._buffer is None or header.frame_id == self._target:
            return header, None
        try:
            found = self._buffer.lookup_transform(self._target, header.frame_id, Time.from_msg(header.stamp))
        except Exception as error:  # tf2's exceptions have no common base that Humble exports
            self._say(" ".join(str(error).split()))
            return header, None
        turn, shift = found.transform.rotation, found.transform.translation
        matrix = np.eye(4)
        matrix[:3, :3] = rotation_of(turn.x, turn.y, turn.z, turn.w)
        matrix[:3, 3] = shift.x, shift.y, shift.z
        return Header(stamp=header.stamp, frame_id=self._target), matrix

    def broadcast(self, instances: Sequence[Instance3D], numbers: Sequence[int], header: Any) -> None:
        """Publish the frames of the instances, if they are to be published."""
        for publisher in self._publishers.values():
            publisher.publish(topics.maker.to_transforms(instances, numbers, header))

    def close(self) -> None:
        """End the subscriptions to /tf and its publication."""
        if self._listener is not None and hasattr(self._listener, "unregister"):
            self._listener.unregister()
        self._buffer = self._listener = None
        topics.destroy_publishers(self._node, self._publishers)

    def _say(self, reason: str) -> None:
        if not self._said:
            self._said = True
            text = (
                f"3D results stay in the camera's frame until they can be moved to {self._target}: {reason} (said once)"
            )
            self._node.get_logger().warning(text)


def transformed(instances: Sequence[Instance3D], transform: np.ndarray | None) -> list[Instance3D]:
    """Return instances moved by a transform (4, 4), if there is one."""
    return list(instances) if transform is None else [moved(instance, transform) for instance in instances]
