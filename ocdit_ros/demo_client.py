"""The demo's ROS client, which collects the results of the node, and their comparison with ground truth."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from ocdit_core.commands.common import print_table
from ocdit_core.errors import DataError, OcditError
from ocdit_core.masks import decode_mask, mask_iou
from ocdit_interfaces.srv import SetTargetObjects  # type: ignore[attr-defined]
from ocdit_ros import converter

STAGES = ("waiting", "reading", "backbone", "sampling", "decoding")
NODE = "/ocdit_segmentation"
CAMERA = "/picture_camera"
Key = tuple[str, float]


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """What one image shows.

    Attributes:
        targets: names to ask for; empty where nothing is known about the image.
        masks: object name -> (H, W) bool, of the objects in the image; None where there is no ground truth.
    """

    targets: tuple[str, ...]
    masks: dict[str, np.ndarray] | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the node published for one image.

    Attributes:
        instances: (name, score in [0, 1], (H, W) bool mask), in the order of the detections.
        latency: seconds from the image's stamp to the arrival of its detections.
        stages: milliseconds by stage, from /diagnostics.
    """

    instances: tuple[tuple[str, float, np.ndarray], ...]
    latency: float
    stages: dict[str, float]


@dataclass
class _Parts:
    """Messages that have arrived for one frame."""

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
    """Client of the node and the camera; it spins in a thread of its own until `close`.

    Args:
        check: called while waiting; raises OcditError when a process of the demo has ended.
        timeout: seconds to wait for any one event.
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
        self._set_camera: Any = self._node.create_client(SetParameters, f"{CAMERA}/set_parameters")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop spinning and shut down ROS."""
        self._executor.shutdown()
        self._thread.join(10)
        self._node.destroy_node()
        rclpy.try_shutdown()

    def wait_until_active(self) -> None:
        """Wait until the node is active; raise OcditError with the reason if its configuration fails."""
        self._wait(lambda: self._state == "active" or bool(self._failure), "the node to become active")
        if self._failure:
            raise OcditError(self._failure)
        for client, name in ((self._set_targets, NODE), (self._set_camera, CAMERA)):
            self._wait(client.service_is_ready, f"the services of {name}")

    def set_targets(self, object_ids: Sequence[str]) -> float:
        """Set the target objects; return the ROS time of the reply in seconds."""
        reply = self._call(self._set_targets, SetTargetObjects.Request(object_ids=list(object_ids)), "the new targets")
        if not reply.success:
            raise OcditError(reply.message)
        return self._now()

    def show(self, images: Sequence[str]) -> None:
        """Make the camera show these images only."""
        request = SetParameters.Request(parameters=[Parameter("pictures", value=list(images)).to_parameter_msg()])
        result = self._call(self._set_camera, request, "the camera's new images").results[0]
        if not result.successful:
            raise OcditError(result.reason)

    def collect(self, images: Sequence[str], since: float) -> tuple[str, Seen, np.ndarray]:
        """Wait for the complete result of one of these images, of a frame stamped after `since` (s).

        Returns:
            The image's name, what was published for it, and the overlay, (H, W, 3) uint8 RGB.
        """

        def ready() -> Key | None:
            for key, parts in self._frames.items():
                if key[0] in images and key[1] > since and parts.complete():
                    return key
            return None

        self._wait(lambda: ready() is not None, f"the result for {', '.join(images)}")
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
        return key[0], seen, converter.to_rgb(parts.overlay)

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
                    raise OcditError(f"timeout: waited {self._timeout:.0f} s for {what}{reason}")
                # Services and the end of a process are not announced by the condition.
                self._changed.wait(0.05)


def read_ground_truth(image: Path) -> GroundTruth:
    """Read `<stem>.json` beside an image; without one, nothing is known and all objects are asked for.

    Raises:
        DataError: the file is damaged.
    """
    path = image.with_suffix(".json")
    if not path.is_file():
        return GroundTruth(targets=(), masks=None)
    try:
        content = json.loads(path.read_text())
        targets = tuple(str(name) for name in content["targets"])
        masks: dict[str, np.ndarray] = {}
        for entry in content["objects"]:
            mask = decode_mask(entry["segmentation"])
            known = masks.get(entry["object_id"])
            masks[entry["object_id"]] = mask if known is None else known | mask
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(f"{path}: not a ground truth file ({' '.join(str(error).split())})") from error
    return GroundTruth(targets=targets, masks=masks)


def compare(truth: GroundTruth, seen: Seen) -> list[tuple[str, float | None, float | None, str]]:
    """Return one row for each object: name, score, IoU in [0, 1] with the ground truth, and a remark."""
    rows: list[tuple[str, float | None, float | None, str]] = []
    best: dict[str, tuple[float, np.ndarray]] = {}
    for name, score, mask in seen.instances:
        if name not in best or score > best[name][0]:
            best[name] = score, mask
    for name in truth.targets or tuple(best):
        found, found_mask = best.get(name, (None, None))
        target = truth.masks.get(name) if truth.masks is not None else None
        if truth.masks is None:
            rows.append((name, found, None, "no ground truth"))
        elif target is None:
            rows.append((name, found, None, "not in the image" if found_mask is None else "FALSE ALARM"))
        elif found_mask is None:
            rows.append((name, None, 0.0, "MISSED"))
        elif found_mask.shape != target.shape:
            raise DataError(f"the ground truth of {name!r} is {target.shape} pixels, its image {found_mask.shape}")
        else:
            rows.append((name, found, float(mask_iou(found_mask, target)), ""))
    return rows


def print_report(truths: dict[str, GroundTruth], seen: dict[str, Seen]) -> None:
    """Print the tables of objects and latencies, and one line of summary."""
    objects, overlaps, alarms = [], [], 0
    for image, result in seen.items():
        for name, score, overlap, remark in compare(truths[image], result):
            objects.append([image, name, _number(score, 2), _number(overlap, 2), remark])
            if overlap is not None:
                overlaps.append(overlap)
            alarms += remark == "FALSE ALARM"
    print_table(["image", "object", "score", "IoU", ""], objects)
    print()
    print_table(
        ["image", "camera to result, ms", *STAGES],
        [
            [image, _number(1000 * result.latency), *(_number(result.stages.get(stage)) for stage in STAGES)]
            for image, result in seen.items()
        ],
    )
    summary = f"{len(seen)} images"
    if overlaps:
        summary += f", mean IoU {np.mean(overlaps):.2f} over {len(overlaps)} objects, {alarms} false alarms"
    if seen:
        summary += f", median latency {1000 * float(np.median([result.latency for result in seen.values()])):.0f} ms"
    print(f"\n{summary}")


def to_json(truths: dict[str, GroundTruth], seen: dict[str, Seen]) -> dict[str, Any]:
    """Return the report as data."""
    return {
        image: {
            "objects": [
                {"object_id": name, "score": score, "iou": overlap, "remark": remark}
                for name, score, overlap, remark in compare(truths[image], result)
            ],
            "latency_ms": 1000 * result.latency,
            "stages_ms": result.stages,
        }
        for image, result in seen.items()
    }


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
