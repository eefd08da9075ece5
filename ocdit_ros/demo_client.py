"""The demo's own ROS node: asks for targets, chooses pictures, and collects what the segmentation node publishes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ocdit_core.errors import OcditError
from ocdit_ros import messages, pip_home
from ocdit_ros.demo_report import Seen

pip_home.prepare()

import rclpy  # noqa: E402  (needs the prefix)
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from vision_msgs.msg import Detection2DArray  # noqa: E402

from ocdit_interfaces.srv import ListObjects, SetTargetObjects  # type: ignore[attr-defined]  # noqa: E402

NODE = "/ocdit_segmentation"
CAMERA = "/picture_camera"
Key = tuple[str, float]


class DemoError(OcditError):
    """Something of the demo did not come in time, or ended."""


@dataclass
class _Parts:
    """What has come so far for one frame."""

    detections: Detection2DArray | None = None
    arrived: float = 0.0
    instances: Image | None = None
    overlay: Image | None = None
    stages: dict[str, float] = field(default_factory=dict)

    def complete(self) -> bool:
        return None not in (self.detections, self.instances, self.overlay) and bool(self.stages)


def _key(message: Any) -> Key:
    stamp = message.header.stamp
    return message.header.frame_id, round(stamp.sec + stamp.nanosec * 1e-9, 6)


class DemoClient:
    """Spins in a thread of its own until `close`.

    Args:
        check: called while waiting; raises DemoError when a process of the demo has ended.
        timeout: seconds to wait for any one thing.
    """

    def __init__(self, *, check: Callable[[], None], timeout: float):
        self._check = check
        self._timeout = timeout
        self._changed = threading.Condition()
        self._frames: dict[Key, _Parts] = {}
        self._state, self._failure = "", ""
        rclpy.init(args=[])
        self._node = rclpy.create_node("ocdit_demo")
        for kind, topic, callback in (
            (Detection2DArray, f"{NODE}/detections", self._on_detections),
            (Image, f"{NODE}/instances", lambda message: self._note(message, "instances")),
            (Image, f"{NODE}/overlay", lambda message: self._note(message, "overlay")),
            (DiagnosticArray, "/diagnostics", self._on_diagnostics),
        ):
            self._node.create_subscription(kind, topic, callback, 20)
        self._set_targets: Any = self._node.create_client(SetTargetObjects, f"{NODE}/set_target_objects")
        self._list_objects: Any = self._node.create_client(ListObjects, f"{NODE}/list_objects")
        self._set_camera: Any = self._node.create_client(SetParameters, f"{CAMERA}/set_parameters")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop spinning and leave ROS."""
        self._executor.shutdown()
        self._thread.join(10)
        self._node.destroy_node()
        rclpy.try_shutdown()

    def wait_until_active(self) -> None:
        """Wait for the node's weights to be loaded; DemoError says why they are not."""
        self._wait(lambda: self._state == "active" or bool(self._failure), "the node to become active")
        if self._failure:
            raise DemoError(self._failure)
        for client, name in ((self._set_targets, NODE), (self._list_objects, NODE), (self._set_camera, CAMERA)):
            self._wait(client.service_is_ready, f"the services of {name}")

    def set_targets(self, object_ids: Sequence[str]) -> float:
        """Ask for targets; returns the ROS time of the reply in seconds."""
        reply = self._call(self._set_targets, SetTargetObjects.Request(object_ids=list(object_ids)), "the new targets")
        if not reply.success:
            raise DemoError(reply.message)
        return self._now()

    def library_objects(self) -> tuple[str, ...]:
        """Return all names of the node's library."""
        return tuple(self._call(self._list_objects, ListObjects.Request(), "the list of objects").object_ids)

    def show(self, pictures: Sequence[str]) -> None:
        """Let the camera show these pictures only."""
        request = SetParameters.Request(parameters=[Parameter("pictures", value=list(pictures)).to_parameter_msg()])
        result = self._call(self._set_camera, request, "the camera's new pictures").results[0]
        if not result.successful:
            raise DemoError(result.reason)

    def collect(self, pictures: Sequence[str], since: float) -> tuple[str, Seen, np.ndarray]:
        """Wait for the complete result of one of these pictures, of a frame stamped after a time (s).

        Returns:
            The picture's name, what was seen on it, and the overlay, (H, W, 3) uint8 RGB.
        """

        def ready() -> Key | None:
            for key, parts in self._frames.items():
                if key[0] in pictures and key[1] > since and parts.complete():
                    return key
            return None

        self._wait(lambda: ready() is not None, f"the result for {', '.join(pictures)}")
        with self._changed:
            key = ready()
            assert key is not None
            parts = self._frames[key]
            self._frames.clear()
        assert parts.detections is not None
        assert parts.instances is not None
        assert parts.overlay is not None
        labels = np.frombuffer(parts.instances.data, np.uint16).reshape(parts.instances.height, parts.instances.width)
        instances = tuple(
            (
                detection.results[0].hypothesis.class_id,
                detection.results[0].hypothesis.score,
                labels == int(detection.id),
            )
            for detection in parts.detections.detections
        )
        seen = Seen(instances=instances, latency=parts.arrived - key[1], stages=parts.stages)
        return key[0], seen, messages.to_rgb(parts.overlay)

    def _now(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9

    def _parts(self, key: Key) -> _Parts:
        return self._frames.setdefault(key, _Parts())

    def _note(self, message: Any, name: str) -> None:
        with self._changed:
            setattr(self._parts(_key(message)), name, message)
            self._changed.notify_all()

    def _on_detections(self, message: Detection2DArray) -> None:
        arrived = self._now()
        with self._changed:
            parts = self._parts(_key(message))
            parts.detections, parts.arrived = message, arrived
            self._changed.notify_all()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if not status.name.startswith(NODE):
                continue
            values = {entry.key: entry.value for entry in status.values}
            with self._changed:
                self._state = values.get("state", "")
                if status.level == DiagnosticStatus.ERROR:
                    self._failure = status.message
                if values.get("frame stamp"):
                    key = (values["frame id"], round(float(values["frame stamp"]), 6))
                    self._parts(key).stages = {
                        name.removesuffix(" ms"): float(value) for name, value in values.items() if name.endswith(" ms")
                    }
                self._changed.notify_all()

    def _call(self, client: Any, request: Any, what: str) -> Any:
        future = client.call_async(request)
        self._wait(future.done, what)
        return future.result()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._timeout
        with self._changed:
            while not condition():
                self._check()
                if time.monotonic() > deadline:
                    reason = f"; the node says: {self._failure}" if self._failure else ""
                    raise DemoError(f"waited {self._timeout:.0f} s in vain for {what}{reason}")
                # Services and the end of a process are not announced by the condition.
                self._changed.wait(0.05)
