"""One camera of the node: its images in, its results out, and what is known of both."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ocdit_ros import interface, pip_home
from ocdit_ros.diagnostics import CameraMonitor
from ocdit_ros.numbering import InstanceNumbers, Numbering
from ocdit_ros.outputs import RELIABILITY, FrameTopics, above

if TYPE_CHECKING:
    from rclpy.callback_groups import CallbackGroup
    from rclpy.lifecycle import LifecycleNode
    from sensor_msgs.msg import CameraInfo

    from ocdit_ros.parameters import Settings
    from ocdit_ros.worker_types import Result

pip_home.prepare()

from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data  # noqa: E402  (needs the prefix)
from rclpy.subscription import Subscription  # noqa: E402

KEPT = 300
"""A result comes seconds after its image on a slow machine: so many calibrations of that time are kept."""

PLAUSIBLE_WAIT = 1.0
"""Seconds; above it the clock was set, or the middleware does not know when an image came."""


class Calibrations:
    """Passes each frame's calibration on in step with its result, whichever of them comes first.

    Args:
        publish: called with the calibration of a frame that has a result.
    """

    def __init__(self, publish: Callable[[CameraInfo], None]):
        self._publish = publish
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[int, int], CameraInfo] = OrderedDict()
        self._missed: OrderedDict[tuple[int, int], None] = OrderedDict()

    def note(self, camera_info: CameraInfo) -> None:
        """Take a calibration that came in."""
        key = _key(camera_info)
        with self._lock:
            if key not in self._missed:
                _put(self._known, key, camera_info)
                return
            del self._missed[key]
        self._publish(camera_info)

    def pass_on(self, message: Any) -> None:
        """Publish the calibration of an image that has a result now, or as soon as it comes."""
        key = _key(message)
        with self._lock:
            camera_info = self._known.get(key)
            if camera_info is None:
                _put(self._missed, key, None)
                return
        self._publish(camera_info)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._known.clear()
            self._missed.clear()


def _key(message: Any) -> tuple[int, int]:
    return message.header.stamp.sec, message.header.stamp.nanosec


def _put(where: OrderedDict[tuple[int, int], Any], key: tuple[int, int], value: Any) -> None:
    where[key] = value
    if len(where) > KEPT:
        where.popitem(last=False)


class Camera:
    """One camera of a configured node.

    Args:
        node: whose it is.
        name: of its topics NAME/image, NAME/camera_info and ~/NAME/...; "" for image, camera_info and ~/...
        group: of callbacks that may run side by side.
        settings: of the node.
        submit: called with each image, the camera's name, and for how many seconds the image has waited.
        numbers: of the node's instances.
    """

    def __init__(
        self,
        node: LifecycleNode,
        name: str,
        group: CallbackGroup,
        settings: Settings,
        submit: Callable[[Any, str, float], None],
        numbers: InstanceNumbers,
    ):
        self.name = name
        self.monitor = CameraMonitor()
        self.outputs = FrameTopics(node, f"~/{name}/" if name else "~/", settings)
        self._node = node
        self._prefix = f"{name}/" if name else ""
        self._group = group
        self._submit = submit
        self._numbers = numbers
        self._numbering = Numbering(numbers)
        self._calibrations = Calibrations(self.outputs.publish_camera_info)
        self._subscriptions: list[Any] = []

    def topic(self, settings: Settings) -> str:
        """Return the resolved topic; the compressed one lies below the raw one, as image_transport lays it."""
        topic: str = self._node.resolve_topic_name(f"{self._prefix}image")
        return topic if settings.image_transport == "raw" else f"{topic}/compressed"

    def subscribe(self, settings: Settings) -> None:
        """Take images in."""
        # Silence counts from now on.
        self.monitor = CameraMonitor(received_at=time.monotonic())
        # The tracker is a new one after each pause, and counts from 1.
        self._numbering = Numbering(self._numbers)
        qos = QoSProfile(depth=settings.image_depth, reliability=RELIABILITY[settings.image_reliability])
        kind = interface.SUBSCRIBED["image" if settings.image_transport == "raw" else "image/compressed"].kind
        # rclpy of Humble tells callbacks nothing but the message.
        on_image = self._on_image_and_info if hasattr(Subscription, "CallbackType") else self._on_image
        self._subscriptions = [
            self._node.create_subscription(kind, self.topic(settings), on_image, qos, callback_group=self._group),
            self._node.create_subscription(
                interface.SUBSCRIBED["camera_info"].kind,
                f"{self._prefix}camera_info",
                self._calibrations.note,
                qos_profile_sensor_data,
                callback_group=self._group,
            ),
        ]

    def unsubscribe(self) -> None:
        """End the subscriptions."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())
        self._calibrations.clear()

    def destroy(self) -> None:
        """End the subscriptions and take the topics back."""
        self.unsubscribe()
        self.outputs.destroy()

    def is_stale(self, message: Any, settings: Settings) -> bool:
        """Whether an image is older than max_age; one without a stamp, or of a clock that is ahead, is not."""
        age = self._age(message)
        if not settings.max_age or age is None or age <= settings.max_age:
            return False
        self.monitor.stale = (age, time.monotonic())
        return True

    def publish(self, result: Result, settings: Settings, threshold: float) -> None:
        """Publish the instances of one frame whose score is not below the threshold."""
        started = time.monotonic()
        segmentation = above(result.segmentation, threshold)
        self._calibrations.pass_on(result.frame)
        self.outputs.publish(result, segmentation, self._numbering(segmentation.instances), settings.mask_object)
        now = time.monotonic()
        self.monitor.note(result, now=now, publishing=now - started, age=self._age(result.frame))

    def unheard(self, settings: Settings) -> str:
        """Return why no image can come in, as far as that can be told, or ""."""
        topic = self.topic(settings)
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not publishers:
            return "nobody publishes it"
        kind = "sensor_msgs/msg/Image" if settings.image_transport == "raw" else "sensor_msgs/msg/CompressedImage"
        publishers = [info for info in publishers if info.topic_type == kind]
        if not publishers:
            return f"it is no {kind}"
        reliable = settings.image_reliability == "reliable"
        if reliable and all(info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for info in publishers):
            return "its publisher is best effort, image_reliability is reliable"
        return ""

    def _on_image_and_info(self, message: Any, info: Mapping[str, Any]) -> None:
        # An image lies in the middleware until a thread is free to take it: tens of milliseconds on a busy machine.
        waited = time.time() - 1e-9 * info["received_timestamp"]
        self._on_image(message, waited if 0 < waited < PLAUSIBLE_WAIT else 0.0)

    def _on_image(self, message: Any, waited: float = 0.0) -> None:
        self.monitor.received_at = time.monotonic()
        self._submit(message, self.name, waited)

    def _age(self, message: Any) -> float | None:
        """Seconds of ROS time since the stamp; None without one."""
        seconds, nanoseconds = _key(message)
        if seconds == nanoseconds == 0:
            return None
        return float(self._node.get_clock().now().nanoseconds - seconds * 10**9 - nanoseconds) * 1e-9
