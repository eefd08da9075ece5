"""One camera of the node: its subscriptions, and the topics of its results."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data

from ocdit_core.errors import ImageError
from ocdit_ros import converter, topics
from ocdit_ros.depth import HOLD, Depth, DepthPairs, calibrated_size, read_depth
from ocdit_ros.messages import number
from ocdit_ros.regions import Regions
from ocdit_ros.space import Space, transformed
from ocdit_ros.worker import describe

if TYPE_CHECKING:
    from rclpy.callback_groups import CallbackGroup
    from rclpy.lifecycle import LifecycleNode
    from sensor_msgs.msg import CameraInfo

    from ocdit_core.inference.depth import Instance3D
    from ocdit_core.inference.results import Segmentation
    from ocdit_ros.parameters import Settings
    from ocdit_ros.worker import Result, Worker

KEEP_SECONDS = 10.0
"""How long an image and the CameraInfo of its stamp wait for one another."""

REGIONS = ("regions", "regions/instances")
"""Topics of the regions of other detectors."""

Stamp = tuple[int, int]


@dataclass(eq=False)
class Calibration:
    """The CameraInfo of one stamp, and whether the result of the image is published. `since`: first arrival."""

    since: float
    info: CameraInfo | None = None
    due: bool = False


@dataclass(eq=False)
class Frame:
    """A sensor_msgs/Image or CompressedImage on its way through the node; one of ~/segment has no camera.

    `depth` is the sensor_msgs/Image of its depth.
    """

    message: Any
    camera: Camera | None = None
    calibration: Calibration | None = None
    depth: Any = None


@dataclass
class CameraMonitor:
    """State of one camera between reports; times are time.monotonic() seconds.

    Attributes:
        received_at: arrival of the last image; the time of activation before the first one.
        processed_at: completion of the last frames, for the rate.
        last_result: the last frame's result, for its latencies.
        publishing: seconds that its publication took.
        age: seconds from its stamp to its publication; None where it had no stamp.
        lifting: seconds that its 3D results took after that; None without depth.
        stale: age in seconds of the last frame discarded for its age, and when.
        calibration: what is wrong with the calibration of the last frame, or "".
        depth: what is wrong with its depth, or "".
        valid_depth: fraction of the mask's pixels that have a depth, by object, of its instances.
    """

    received_at: float = 0.0
    processed_at: deque[float] = field(default_factory=lambda: deque(maxlen=30))
    last_result: Result | None = None
    publishing: float = 0.0
    age: float | None = None
    lifting: float | None = None
    stale: tuple[float, float] | None = None
    calibration: str = ""
    depth: str = ""
    valid_depth: dict[str, float] = field(default_factory=dict)

    def rate(self, now: float) -> float:
        """Return processed frames per second over the last 30 frames, falling while none comes."""
        if len(self.processed_at) < 2:
            return 0.0
        first, last = self.processed_at[0], self.processed_at[-1]
        return (len(self.processed_at) - 1) / max((now if now - last > 5.0 else last) - first, 1e-6)


def stamp_of(message: Any) -> Stamp:
    """Return a message's stamp as (seconds, nanoseconds)."""
    return message.header.stamp.sec, message.header.stamp.nanosec


def nanoseconds(message: Any) -> int:
    """Return a message's stamp in nanoseconds."""
    seconds, rest = stamp_of(message)
    return int(seconds) * 10**9 + int(rest)


def lifted(result: Result, space: Space) -> tuple[list[Instance3D], Any, np.ndarray | None]:
    """Return the instances of a result with depth in 3D, their header, and the transform to its frame; None: none."""
    from ocdit_core.inference.depth import lift

    assert result.depth is not None
    header, transform = space.place(result.frame.message.header)
    poses = [result.poses.get(id(instance)) for instance in result.segmentation.instances]
    instances = lift(result.segmentation, result.depth.metres, result.depth.camera_matrix, poses)
    return transformed(instances, transform), header, transform


class Calibrations:
    """Brings each image and the CameraInfo of the same stamp together, whichever of them comes first.

    A frame keeps its calibration however long it waits and is processed.

    Args:
        publish: called with the CameraInfo of a published frame.

    Attributes:
        newest: the last CameraInfo.
    """

    def __init__(self, publish: Callable[[CameraInfo], None]):
        self._publish = publish
        self.newest: CameraInfo | None = None
        self._lock = threading.Lock()
        self._found: OrderedDict[Stamp, Calibration] = OrderedDict()

    def of(self, message: Any) -> Calibration:
        """Return the calibration of the stamp of an image or a CameraInfo."""
        now = time.monotonic()
        with self._lock:
            while self._found and now - next(iter(self._found.values())).since > KEEP_SECONDS:
                self._found.popitem(last=False)
            return self._found.setdefault(stamp_of(message), Calibration(since=now))

    def add_info(self, camera_info: CameraInfo) -> None:
        """Keep a CameraInfo, or publish it where the result of its image has been published."""
        self.newest = camera_info
        calibration = self.of(camera_info)
        with self._lock:
            late = calibration.due and calibration.info is None
            calibration.info = camera_info
        if late:
            self._publish(camera_info)

    def publish(self, calibration: Calibration) -> None:
        """Publish the CameraInfo of an image that has a result, now or as soon as it comes."""
        with self._lock:
            calibration.due = True
            camera_info = calibration.info
        if camera_info is not None:
            self._publish(camera_info)


class Camera:
    """One camera of a configured node.

    Args:
        node: the node.
        name: prefix of its topics NAME/image, NAME/camera_info and ~/NAME/...; "" for image, camera_info and ~/...
        group: callback group whose callbacks may run in parallel.
        worker: segments the images.
        numbers: numbers of instances without a track id.
        labels: object name -> number in ~/label_info.
        settings: returns the values of the parameters.
        space: moves 3D results into the target frame.
        on_error: called with one line about regions that could not be labelled, and points that show no target.
    """

    def __init__(
        self,
        node: LifecycleNode,
        name: str,
        group: CallbackGroup,
        worker: Worker,
        numbers: Iterator[int],
        labels: Mapping[str, int],
        settings: Callable[[], Settings],
        space: Space,
        on_error: Callable[[str], None],
    ):
        self.name = name
        self.monitor = CameraMonitor()
        self._node = node
        self._prefix = f"{name}/" if name else ""
        self._publishers = topics.create_publishers(node, f"~/{self._prefix}", topics.PER_FRAME, topics.FRAME_QOS)
        self._group = group
        self._worker = worker
        self._numbers = numbers
        self._labels = labels
        self._settings = settings
        self._space = space
        self._calibrations = Calibrations(lambda camera_info: self._publishers["camera_info"].publish(camera_info))
        self._subscriptions: list[Any] = []
        self._publishers |= topics.create_publishers(node, f"~/{self._prefix}", topics.PER_REGIONS, topics.FRAME_QOS)
        self._regions = Regions(worker, partial(converter.to_rgb, cv_bridge=True), self._publish_regions, on_error)
        self._pairs = DepthPairs(self._submit, lambda: worker.drop(name), lambda: settings().depth_slop)
        self.newest: Any = None  # the last image, while subscribed
        self._on_error = on_error
        self._timer: Any = None
        self._due = 0.0  # time.monotonic() from which the next image is taken, see max_rate

    @property
    def calibration(self) -> CameraInfo | None:
        """The newest CameraInfo."""
        return self._calibrations.newest

    def topic(self) -> str:
        """Return the resolved image topic; image_transport puts the compressed one below the raw one."""
        topic: str = self._node.resolve_topic_name(f"{self._prefix}image")
        return topic if self._settings().image_transport == "raw" else f"{topic}/compressed"

    def subscribe(self) -> None:
        """Subscribe to images and their calibrations."""
        settings = self._settings()
        # Silence counts from now on.
        self.monitor = CameraMonitor(received_at=time.monotonic())
        qos = QoSProfile(depth=1, reliability=topics.RELIABILITY[settings.image_reliability])
        kind = topics.SUBSCRIBED["image" if settings.image_transport == "raw" else "image/compressed"].kind
        self._subscriptions = [
            self._node.create_subscription(kind, self.topic(), self._on_image, qos, callback_group=self._group),
            self._node.create_subscription(
                topics.SUBSCRIBED["camera_info"].kind,
                f"{self._prefix}camera_info",
                self._calibrations.add_info,
                qos_profile_sensor_data,
                callback_group=self._group,
            ),
            self._node.create_subscription(
                topics.SUBSCRIBED["depth"].kind,
                f"{self._prefix}depth",
                lambda message: self._pairs.add_depth(nanoseconds(message), message),
                qos_profile_sensor_data,
                callback_group=self._group,
            ),
        ]
        self._subscriptions += [
            self._node.create_subscription(
                topics.SUBSCRIBED[name].kind,
                f"{self._prefix}{name}",
                self._regions.add_regions,
                5,
                callback_group=self._group,
            )
            for name in REGIONS
        ]
        self._subscriptions += [
            self._node.create_subscription(
                entry.kind, f"~/{self._prefix}{name}", self._on_click, 5, callback_group=self._group
            )
            for name, entry in topics.CLICKED.items()
        ]
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self._node.create_timer(HOLD / 2, self._pairs.expire, callback_group=self._group, clock=steady)

    def unsubscribe(self) -> None:
        """End the subscriptions."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
        self._pairs.clear()
        self._regions.clear()
        self._worker.drop_waiting(self.name)
        self.newest = None

    def destroy(self) -> None:
        """End the subscriptions and destroy the publishers."""
        self.unsubscribe()
        topics.destroy_publishers(self._node, self._publishers)

    def is_stale(self, message: Any, max_age: float) -> bool:
        """Whether an image is older than `max_age` seconds (0: no limit); one without a stamp never is."""
        age = self._age(message)
        if not max_age or age is None or age <= max_age:
            return False
        self.monitor.stale = (age, time.monotonic())
        return True

    def publish(self, result: Result) -> None:
        """Publish the instances of a frame; also if there are none: downstream synchronisers wait for each frame."""
        started, header, settings = time.monotonic(), result.frame.message.header, self._settings()
        segmentation = result.segmentation
        self._calibrations.publish(result.frame.calibration)
        self.monitor.calibration = self._check_calibration(result)
        numbers = number(segmentation.instances, self._numbers)
        messages = {"instances": topics.maker.to_instances(segmentation, numbers, header)}
        if self._wanted("classes"):
            messages["classes"] = topics.maker.to_classes(segmentation, self._labels, header)
        if settings.mask_object:
            messages["mask"] = topics.maker.to_mask(segmentation, settings.mask_object, header)
        if segmentation.uncertainty is not None and self._wanted("uncertainty"):
            messages["uncertainty"] = topics.maker.to_uncertainty(segmentation.uncertainty, header)
        # After the label images, so that whoever receives it can expect them.
        messages["detections"] = topics.maker.to_detections(segmentation, numbers, header)
        for name, message in messages.items():
            self._publishers[name].publish(message)
        if self._wanted("overlay"):
            self._publishers["overlay"].publish(topics.maker.to_overlay(result.image, segmentation, header))
        now, monitor = time.monotonic(), self.monitor
        monitor.last_result, monitor.publishing, monitor.age = result, now - started, self._age(result.frame.message)
        monitor.lifting = None
        if result.depth is not None:
            self._publish_3d(result, numbers)
            monitor.lifting = time.monotonic() - now
        monitor.processed_at.append(now)

    def _publish_3d(self, result: Result, numbers: Sequence[int]) -> None:
        from ocdit_core.inference.depth import deproject

        assert result.depth is not None
        instances, header, transform = lifted(result, self._space)
        self._publishers["detections_3d"].publish(topics.maker.to_detections_3d(instances, numbers, header))
        self._space.broadcast(instances, numbers, header)
        if self._wanted("points"):
            scene = None
            if self._settings().organized_points:
                scene = deproject(result.depth.metres, result.depth.camera_matrix)
                if transform is not None:
                    scene = scene @ transform[:3, :3].T.astype(np.float32) + transform[:3, 3].astype(np.float32)
            self._publishers["points"].publish(topics.maker.to_points(result.image, instances, numbers, header, scene))
        self.monitor.valid_depth = {
            each.instance.object_id: each.box.valid_depth if each.box is not None else 0.0 for each in instances
        }

    def read_depth(self, frame: Frame, image_size: tuple[int, ...]) -> Depth | None:
        """Return the depth of a frame; None where there is none, or where it does not fit: /diagnostics says why."""
        self.monitor.depth = self._pairs.problem
        if frame.depth is None:
            self.monitor.valid_depth = {}
            return None
        try:
            info = (frame.calibration.info if frame.calibration else None) or self.calibration
            return read_depth(frame.depth, info, image_size)
        except ImageError as error:
            self.monitor.depth = str(error)
            return None

    def _check_calibration(self, result: Result) -> str:
        """Return what is wrong with the calibration of a frame, or "": one that nobody uses may be missing."""
        info = result.frame.calibration.info or self.calibration
        topic = self._node.resolve_topic_name(f"{self._prefix}camera_info")
        if info is None:
            return f"no calibration on {topic}" if self._wanted("camera_info") else ""
        height, width = result.segmentation.image_size
        sides = calibrated_size(info)
        if sides != (width, height):
            return f"the calibration on {topic} is for {sides[0]} x {sides[1]} pixels, the image has {width} x {height}"
        return "" if min(info.k[0], info.k[4]) > 0 else f"the calibration on {topic} is empty: the focal length is 0"

    def _publish_regions(self, message: Any, result: Segmentation, numbers: list[int]) -> None:
        header = message.header
        self._publishers["regions/instances"].publish(topics.maker.to_instances(result, numbers, header))
        self._publishers["regions/detections"].publish(topics.maker.to_detections(result, numbers, header))

    def why_silent(self) -> str:
        """Return why no image can arrive, as far as the ROS graph shows it, or ""."""
        settings = self._settings()
        publishers = self._node.get_publishers_info_by_topic(self.topic())
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

    def _wanted(self, name: str) -> bool:
        return bool(self._publishers[name].get_subscription_count())

    def _on_image(self, message: Any) -> None:
        self.monitor.received_at = now = time.monotonic()
        self.newest = message
        if any(self._node.count_publishers(f"{self._prefix}{name}") for name in REGIONS):
            self._regions.add_image(message)
        rate = self._settings().max_rate
        if now < self._due and rate:
            self._worker.drop(self.name)
            return
        # Not `now` alone: of 30 images a second, a limit of 20 takes two of three, not one of two.
        self._due = max(now, self._due + 1 / rate) if rate else 0.0
        frame = Frame(message, camera=self, calibration=self._calibrations.of(message))
        self._pairs.add_image(nanoseconds(message), frame)

    def _on_click(self, message: Any) -> None:
        """Follow the target at a clicked point from the next frame on; a point that shows none changes nothing."""
        point, image = getattr(message, "point", message), self.newest
        try:
            if image is None:
                raise ImageError("no image has come yet")
            self._worker.label(
                lambda network, objects: network.follow(
                    converter.to_rgb(image, cv_bridge=True), objects, self.name, (point.x, point.y)
                )
            ).add_done_callback(self._followed)
        except Exception as error:
            self._on_error(f"clicked_point: {describe(error)}")

    def _followed(self, reply: Future[tuple[str, float]]) -> None:
        error = reply.exception()
        if error is not None:
            self._on_error(f"clicked_point: {describe(error)}")
            return
        name, score = reply.result()
        self._node.get_logger().info(f"clicked_point: following {name} (score {score:.2f})")

    def _submit(self, frame: Frame, depth: Any) -> None:
        frame.depth = depth
        self._worker.submit(frame, self.name, uncertainty=self._wanted("uncertainty"))

    def _age(self, message: Any) -> float | None:
        """Return the ROS time in seconds since the stamp; None without a stamp."""
        seconds, nanoseconds = stamp_of(message)
        if seconds == nanoseconds == 0:
            return None
        return float(self._node.get_clock().now().nanoseconds - seconds * 10**9 - nanoseconds) * 1e-9
