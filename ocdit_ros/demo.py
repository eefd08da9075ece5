"""The whole pipeline on any machine: images -> DDS -> segmentation node -> DDS -> overlays and a table.

python -m ocdit_ros.demo --images examples/images --library demo_output/objects --out demo_output

The node runs in a process of its own, as on a robot, on a ROS domain of the demo's own. This process is the camera and
receives the results.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ocdit_core.commands.options import print_table
from ocdit_core.errors import DataError, OcditError
from ocdit_core.files import check_output, protecting, write_text
from ocdit_core.images import read_image, write_image
from ocdit_core.masks import decode_mask, mask_iou
from ocdit_ros import profiles_variable, share_folder

NODE = "/ocdit_segmentation"
NODE_COMMAND = ("-m", "ocdit_ros.segmentation_node")
STAGES = ("waiting", "reading", "backbone", "sampling", "decoding")
PARTS = {"detections", "instances", "overlay", "stages"}
TIMEOUT = 120.0
"""Seconds to wait for any one event."""


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Names to ask for, and (H, W) bool masks of the objects in one image; empty and None where nothing is known."""

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


class Child:
    """A node in a process of its own: `python COMMAND`, with ROS parameters; NAME.log in `folder` is what it prints."""

    def __init__(self, name: str, command: Sequence[str], parameters: dict[str, Any], folder: Path):
        self._name = name
        self._log = folder / f"{name}.log"
        settings = folder / f"{name}.yaml"
        settings.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--ros-args", "--params-file", str(settings)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """Raise OcditError with its last line of output when the process has ended."""
        if self._process.poll() is not None:
            lines = self._log.read_text().strip().splitlines() or ["no output"]
            raise OcditError(f"the {self._name} ended with code {self._process.returncode}: {lines[-1]}")

    def stop(self) -> int:
        """End the process as Ctrl-C does; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Client:
    """Camera of the node and listener to its results; it spins while it waits."""

    def __init__(self, node: Child):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import Image
        from vision_msgs.msg import Detection2DArray

        from ocdit_interfaces.srv import SetTargetObjects  # type: ignore[attr-defined]

        self._process = node
        self._image: Any = None  # the message that is shown
        self._parts: dict[float, dict[str, Any]] = {}  # of the shown image: stamp in seconds -> what has arrived
        self._state = self._failure = ""
        rclpy.init(args=[])
        self._node = rclpy.create_node("ocdit_demo")
        self._camera = self._node.create_publisher(Image, "/image", 1)
        self._node.create_timer(0.2, self._publish)
        for kind, name in ((Detection2DArray, "detections"), (Image, "instances"), (Image, "overlay")):
            self._node.create_subscription(kind, f"{NODE}/{name}", lambda found, of=name: self._note(of, found), 20)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 20)
        self._set_targets: Any = self._node.create_client(SetTargetObjects, f"{NODE}/set_target_objects")

    def close(self) -> None:
        """Shut down ROS."""
        import rclpy

        self._node.destroy_node()
        rclpy.try_shutdown()

    def wait_until_active(self) -> None:
        """Wait until the node is active; raise OcditError with the reason if its configuration fails."""
        self._wait(lambda: self._state == "active" or bool(self._failure), "the node to become active")
        if self._failure:
            raise OcditError(self._failure)
        self._wait(self._set_targets.service_is_ready, f"the services of {NODE}")

    def segment(self, name: str, image: np.ndarray, targets: Sequence[str]) -> tuple[Seen, np.ndarray]:
        """Set the targets and show an image, (H, W, 3) uint8 RGB, until its result is complete.

        Returns:
            What was published for it, and the overlay, (H, W, 3) uint8 RGB.

        Raises:
            OcditError: the node refuses the targets or has ended, or something did not arrive in time.
        """
        from std_msgs.msg import Header

        from ocdit_ros import topics
        from ocdit_ros.converter import to_rgb

        future = self._set_targets.call_async(self._set_targets.srv_type.Request(object_ids=list(targets)))
        self._wait(future.done, "the new targets")
        if not future.result().success:
            raise OcditError(future.result().message)
        self._image, self._parts = topics.maker.from_rgb(image, Header(frame_id=name)), {}
        self._wait(lambda: any(found.keys() >= PARTS for found in self._parts.values()), f"the result for {name}")
        self._image = None
        stamp, found = next(item for item in self._parts.items() if item[1].keys() >= PARTS)
        labels = np.frombuffer(found["instances"].data, np.uint16).reshape(image.shape[:2])
        instances = []
        for detection in found["detections"].detections:
            best = detection.results[0].hypothesis
            instances.append((best.class_id, best.score, labels == int(detection.id)))
        seen = Seen(instances=tuple(instances), latency=found["arrived"] - stamp, stages=found["stages"])
        return seen, to_rgb(found["overlay"])

    def _publish(self) -> None:
        if self._image is not None:
            self._image.header.stamp = self._node.get_clock().now().to_msg()
            self._camera.publish(self._image)

    def _note(self, part: str, message: Any) -> None:
        header = message.header
        if self._image is None or header.frame_id != self._image.header.frame_id:
            return
        found = self._parts.setdefault(round(header.stamp.sec + header.stamp.nanosec * 1e-9, 6), {})
        found[part] = message
        if part == "detections":
            found["arrived"] = self._node.get_clock().now().nanoseconds * 1e-9

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if not status.name.startswith(NODE):
                continue
            values = {entry.key: entry.value for entry in status.values}
            self._state = values.get("state", "")
            if status.level == status.ERROR:
                self._failure = status.message
            found = self._parts.get(round(float(values.get("frame stamp", 0)), 6))
            if found is not None:
                found["stages"] = {
                    name.removesuffix(" ms"): float(value) for name, value in values.items() if name.endswith(" ms")
                }

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        import rclpy

        deadline = time.monotonic() + TIMEOUT
        while not condition():
            self._process.check()
            if time.monotonic() > deadline:
                reason = f"; the node says: {self._failure}" if self._failure else ""
                raise OcditError(f"timeout: waited {TIMEOUT:.0f} s for {what}{reason}")
            rclpy.spin_once(self._node, timeout_sec=0.05)


def prepare_environment() -> None:
    """Set a ROS domain of the demo's own, limited to this machine, and (unless one is set) the Fast DDS profile."""
    # Not the user's domain: a robot's own topics may be called /image too.
    os.environ["ROS_DOMAIN_ID"] = str(60 + os.getpid() % 40)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.setdefault(profiles_variable(), str(share_folder() / "config" / "fastdds.xml"))


def run(options: argparse.Namespace, node_command: Sequence[str] = NODE_COMMAND) -> None:
    """Show every image to the node, write overlays and results.json, and print the tables.

    Args:
        options: options of the command line.
        node_command: what Python runs as the segmentation node.

    Raises:
        OcditError: invalid input, an output that would replace a file of others, or something did not arrive in time.
    """
    prepare_environment()
    from ocdit_ros.image_player import find_images

    images = find_images(options.images)
    truths = {name: read_ground_truth(path) for name, path in images.items()}
    overlays = {name: options.out / f"{name}_overlay.png" for name in images}
    with protecting(options.images.iterdir()), tempfile.TemporaryDirectory(prefix="ocdit_demo_") as scratch:
        check_output(*overlays.values(), options.out / "results.json")
        parameters = {
            "library": str(options.library),
            "model": options.model,
            "device": options.device,
            "autostart": True,
        }
        node = Child("segmentation node", node_command, parameters, Path(scratch))
        client = Client(node)
        seen = {}
        try:
            client.wait_until_active()
            for name, path in images.items():
                seen[name], overlay = client.segment(name, read_image(path), truths[name].targets)
                write_image(overlays[name], overlay)
                found = ", ".join(f"{object_id} {score:.2f}" for object_id, score, _ in seen[name].instances)
                print(f"{name}: {found or 'nothing'}", flush=True)
        finally:
            client.close()
            code = node.stop()
        if code != 0:
            raise OcditError(f"the segmentation node ended with code {code}")
        write_text(options.out / "results.json", json.dumps(report(truths, seen), indent=2))


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


def report(truths: Mapping[str, GroundTruth], seen: Mapping[str, Seen]) -> dict[str, Any]:
    """Print the tables of objects and latencies with a summary; return them as data."""
    results: dict[str, dict[str, Any]] = {
        image: {
            "objects": compare(truths[image], result),
            "latency_ms": 1000 * result.latency,
            "stages_ms": result.stages,
        }
        for image, result in seen.items()
    }
    rows = [(image, row) for image, result in results.items() for row in result["objects"]]
    print_table(
        ["image", "object", "score", "IoU", ""],
        [[image, row["object_id"], _text(row["score"], 2), _text(row["iou"], 2), row["remark"]] for image, row in rows],
    )
    print()
    latencies = [
        [image, _text(result["latency_ms"]), *(_text(result["stages_ms"].get(stage)) for stage in STAGES)]
        for image, result in results.items()
    ]
    print_table(["image", "camera to result, ms", *STAGES], latencies)
    summary = f"{len(seen)} images"
    if overlaps := [row["iou"] for _, row in rows if row["iou"] is not None]:
        alarms = sum(row["remark"] == "FALSE ALARM" for _, row in rows)
        summary += f", mean IoU {np.mean(overlaps):.2f} over {len(overlaps)} objects, {alarms} false alarms"
    median = np.median([result["latency_ms"] for result in results.values()])
    print(f"\n{summary}, median latency {median:.0f} ms")
    return results


def _text(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main(argv: list[str] | None = None, node_command: Sequence[str] = NODE_COMMAND) -> int:
    """Run the demo; return 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m ocdit_ros.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images; <stem>.json: ground truth")
    parser.add_argument("--library", type=Path, required=True, help="folder made by `ocdit render`")
    parser.add_argument("--out", type=Path, required=True, help="folder for overlays and results.json")
    parser.add_argument("--model", default="ocdit-small", help="an embedded model, or a folder (default: ocdit-small)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    options = parser.parse_args(argv)
    try:
        run(options, node_command)
    except (OcditError, OSError) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"demo: error: ROS 2 is incomplete here ({error}); see pip_home/README.md", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"overlays and results.json are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
