"""The demo's ROS client, which collects the results of the node, and their comparison with ground truth."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from ocdit_core.commands.options import print_table
from ocdit_core.errors import DataError, OcditError
from ocdit_core.masks import decode_mask, mask_iou
from ocdit_interfaces.srv import SetTargetObjects  # type: ignore[attr-defined]
from ocdit_ros import converter

NODE = "/ocdit_segmentation"
CAMERA = "/picture_camera"
STAGES = ("waiting", "reading", "backbone", "sampling", "decoding")
PARTS = {"detections", "instances", "overlay", "stages"}


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


class DemoClient:
    """Client of the node and the camera; it spins while it waits.

    Args:
        check: called while waiting; raises OcditError when a process of the demo has ended.
        timeout: seconds to wait for any one event.
    """

    def __init__(self, *, check: Callable[[], None], timeout: float):
        self._check = check
        self._timeout = timeout
        # (frame_id, stamp in seconds) -> messages that have arrived for this frame
        self._frames: dict[tuple[str, float], dict[str, Any]] = defaultdict(dict)
        self._state, self._failure = "", ""
        rclpy.init(args=[])
        self._node = rclpy.create_node("ocdit_demo")
        for kind, name in ((Detection2DArray, "detections"), (Image, "instances"), (Image, "overlay")):
            self._node.create_subscription(kind, f"{NODE}/{name}", lambda found, of=name: self._note(of, found), 20)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 20)
        self._set_targets: Any = self._node.create_client(SetTargetObjects, f"{NODE}/set_target_objects")
        self._set_camera: Any = self._node.create_client(SetParameters, f"{CAMERA}/set_parameters")

    def close(self) -> None:
        """Shut down ROS."""
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

        def complete() -> list[tuple[str, float]]:
            return [
                key
                for key, found in self._frames.items()
                if key[0] in images and key[1] > since and found.keys() >= PARTS
            ]

        self._wait(lambda: bool(complete()), f"the result for {', '.join(images)}")
        name, stamp = complete()[0]
        found = self._frames[name, stamp]
        self._frames.clear()
        labels = np.frombuffer(found["instances"].data, np.uint16).reshape(found["instances"].height, -1)
        instances = []
        for detection in found["detections"].detections:
            best = detection.results[0].hypothesis
            instances.append((best.class_id, best.score, labels == int(detection.id)))
        seen = Seen(instances=tuple(instances), latency=found["arrived"] - stamp, stages=found["stages"])
        return name, seen, converter.to_rgb(found["overlay"])

    def _now(self) -> float:
        return float(self._node.get_clock().now().nanoseconds) * 1e-9

    def _note(self, name: str, message: Any) -> None:
        stamp = message.header.stamp
        found = self._frames[message.header.frame_id, round(stamp.sec + stamp.nanosec * 1e-9, 6)]
        found[name] = message
        if name == "detections":
            found["arrived"] = self._now()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if not status.name.startswith(NODE):
                continue
            values = {entry.key: entry.value for entry in status.values}
            self._state = values.get("state", "")
            if status.level == DiagnosticStatus.ERROR:
                self._failure = status.message
            if values.get("frame stamp"):
                found = self._frames[values["frame id"], round(float(values["frame stamp"]), 6)]
                found["stages"] = {
                    name.removesuffix(" ms"): float(value) for name, value in values.items() if name.endswith(" ms")
                }

    def _call(self, client: Any, request: Any, what: str) -> Any:
        future = client.call_async(request)
        self._wait(future.done, what)
        return future.result()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._timeout
        while not condition():
            self._check()
            if time.monotonic() > deadline:
                reason = f"; the node says: {self._failure}" if self._failure else ""
                raise OcditError(f"timeout: waited {self._timeout:.0f} s for {what}{reason}")
            rclpy.spin_once(self._node, timeout_sec=0.05)


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
            masks[entry["object_id"]] = mask | masks.get(entry["object_id"], mask)
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(f"{path}: not a ground truth file ({' '.join(str(error).split())})") from error
    return GroundTruth(targets=targets, masks=masks)


def compare(truth: GroundTruth, seen: Seen) -> list[dict[str, Any]]:
    """Return for each object its object_id, its score, its iou in [0, 1] with the ground truth, and a remark."""
    rows: list[dict[str, Any]] = []
    best: dict[str, tuple[float, np.ndarray]] = {}
    for name, score, mask in seen.instances:
        if name not in best or score > best[name][0]:
            best[name] = score, mask
    for name in truth.targets or tuple(best):
        found = best.get(name)
        target = truth.masks.get(name) if truth.masks is not None else None
        row = {"object_id": name, "score": found[0] if found else None, "iou": None, "remark": ""}
        if truth.masks is None:
            row["remark"] = "no ground truth"
        elif target is None:
            row["remark"] = "FALSE ALARM" if found else "not in the image"
        elif found is None:
            row |= {"iou": 0.0, "remark": "MISSED"}
        elif found[1].shape != target.shape:
            raise DataError(f"the ground truth of {name!r} is {target.shape} pixels, its image {found[1].shape}")
        else:
            row["iou"] = float(mask_iou(found[1], target))
        rows.append(row)
    return rows


def report(truths: dict[str, GroundTruth], seen: dict[str, Seen]) -> dict[str, Any]:
    """Print the tables of objects and latencies with a summary; return them as data."""
    rows = {image: compare(truths[image], result) for image, result in seen.items()}
    objects = [
        [image, row["object_id"], _text(row["score"], 2), _text(row["iou"], 2), row["remark"]]
        for image, found in rows.items()
        for row in found
    ]
    print_table(["image", "object", "score", "IoU", ""], objects)
    print()
    latencies = [
        [image, _text(1000 * result.latency), *(_text(result.stages.get(stage)) for stage in STAGES)]
        for image, result in seen.items()
    ]
    print_table(["image", "camera to result, ms", *STAGES], latencies)
    summary = f"{len(seen)} images"
    if overlaps := [row["iou"] for found in rows.values() for row in found if row["iou"] is not None]:
        alarms = sum(row["remark"] == "FALSE ALARM" for found in rows.values() for row in found)
        summary += f", mean IoU {np.mean(overlaps):.2f} over {len(overlaps)} objects, {alarms} false alarms"
    summary += f", median latency {1000 * float(np.median([result.latency for result in seen.values()])):.0f} ms"
    print(f"\n{summary}")
    return {
        image: {"objects": rows[image], "latency_ms": 1000 * result.latency, "stages_ms": result.stages}
        for image, result in seen.items()
    }


def _text(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
