"""A camera faster than the network for minutes: memory, answers of services, age of results, and where frames went.

python benchmarks/node_load.py --seconds 300

Camera, node and this script are processes of their own. The age of a result is the ROS time from the image's stamp to
the publication of its detections; beyond the network's own time on that frame it is made of the way from the camera
(transport), the wait for the frame before, reading, and publication.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from ocdit_ros.demo import Child, prepare_environment

NODE = "/ocdit_segmentation"
EXAMPLES = Path(__file__).parents[1] / "examples"
CASES = {"640 x 480 at 30 Hz": (640, 480, 30.0), "1920 x 1080 at 15 Hz": (1920, 1080, 15.0)}


def run_camera(width: int, height: int, rate: float, *, depth: bool = False, moving: bool = False) -> None:
    """Publish images, with depth and calibration if asked for, until SIGTERM; then say how many.

    If `moving`, the camera moves from side to side in front of one scene; else each example is shown for a second.
    """
    import cv2
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import CameraInfo, Image
    from std_msgs.msg import Header

    from ocdit_core.images import read_image
    from ocdit_ros import topics

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    rclpy.init(signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, "/image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    paths = sorted((EXAMPLES / "images").glob("*.jpg"))
    images = [cv2.resize(read_image(path), (width, height)) for path in paths]
    if moving:
        # A seventh of the width within two seconds.
        shifts = width / 14 * np.sin(np.arange(0, 2 * np.pi, np.pi / rate / 2))
        moves = [np.array([[1, 0, shift], [0, 1, 0]]) for shift in shifts]
        scene = images[[path.stem for path in paths].index("counter")]
        images = [cv2.warpAffine(scene, move, (width, height), borderMode=cv2.BORDER_REFLECT) for move in moves]
    messages = [topics.maker.from_rgb(image, Header()) for image in images]
    others: list[tuple[Any, Any]] = []
    if depth:
        # A table that rises from 0.6 m to 1 m, with noise and holes.
        rng = np.random.default_rng(0)
        metres = np.linspace(1.0, 0.6, height)[:, None] + rng.normal(0, 0.001, (height, width))
        metres[rng.random((height, width)) < 0.05] = 0
        plane = Image(height=height, width=width, encoding="16UC1", step=2 * width)
        plane.data = array("B", (1000 * metres).astype(np.uint16).tobytes())
        k = [1.1 * width, 0.0, width / 2, 0.0, 1.1 * width, height / 2, 0.0, 0.0, 1.0]
        info = CameraInfo(height=height, width=width, k=k)
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        for name, one in (("camera_info", info), ("depth", plane)):
            others.append((node.create_publisher(type(one), f"/{name}", qos), one))
    while not (publisher.get_subscription_count() or stop.is_set()):
        time.sleep(0.05)
    sent, start = 0, time.monotonic()
    while not stop.is_set():
        # Each for a second, so that the network has soon seen all: how much memory it takes depends on the image.
        message = messages[(sent if moving else int(sent / rate)) % len(messages)]
        message.header.stamp = node.get_clock().now().to_msg()
        for other, more in others:
            more.header.stamp = message.header.stamp
            other.publish(more)
        publisher.publish(message)
        sent += 1
        stop.wait(max(0.0, start + sent / rate - time.monotonic()))
    print(sent, flush=True)
    node.destroy_node()
    rclpy.shutdown()


class Client:
    """Listens to the node's diagnostics, and calls its services."""

    def __init__(self, *, depth: bool = False) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import PointCloud2

        from ocdit_interfaces.srv import ListObjects, SetTargetObjects

        rclpy.init()
        self.node = rclpy.create_node("load")
        self.state = ""
        self.frames: dict[str, dict[str, float]] = {}
        self.counts: dict[str, int] = {}
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 200)
        if depth:
            # The node makes the points while somebody listens; they are not looked at here.
            self.node.create_subscription(PointCloud2, f"{NODE}/points", lambda _: None, 1, raw=True)
        self.list_objects = self.node.create_client(ListObjects, f"{NODE}/list_objects")
        self.set_targets = self.node.create_client(SetTargetObjects, f"{NODE}/set_target_objects")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        threading.Thread(target=self._executor.spin, daemon=True).start()

    def close(self) -> None:
        """End it."""
        import rclpy

        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            values = {entry.key: entry.value for entry in status.values}
            self.state = values.get("state", self.state)
            self.counts = {
                name.removeprefix("frames "): int(value) for name, value in values.items() if name.startswith("frames ")
            }
            if "frame stamp" in values:
                self.frames[values["frame stamp"]] = {
                    name.removesuffix(" ms"): float(value) for name, value in values.items() if name.endswith(" ms")
                }

    def wait_until_active(self, node: Child) -> None:
        """Wait for the node to be configured and activated."""
        while self.state != "active":
            node.check()
            time.sleep(0.05)

    def call(self, client: Any, request: Any = None) -> float:
        """Return the milliseconds until a service's answer."""
        arrived = threading.Event()
        start = time.perf_counter()
        client.call_async(request or client.srv_type.Request()).add_done_callback(lambda _: arrived.set())
        if not arrived.wait(60):
            raise SystemExit(f"no answer from {client.srv_name} within a minute")
        return 1000 * (time.perf_counter() - start)


def make_library(folder: Path) -> Path:
    """Render the example objects."""
    from ocdit_core.objects.onboarding import add_objects

    add_objects(folder, sorted((EXAMPLES / "meshes").glob("*.glb")), unit="m")
    return folder


def start_node(
    library: Path, targets: list[str], model: str, folder: Path, device: str, threads: int = 0, **more: Any
) -> Child:
    """Start the node; `more` are further parameters."""
    parameters = {
        "library": str(library),
        "target_objects": targets,
        "model": model,
        "device": device,
        "compute_threads": threads,
        "autostart": True,
        **more,
    }
    return Child("node", ("-m", "ocdit_ros.segmentation_node"), parameters, folder)


def resident_mib(pid: int) -> float:
    """Return a process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def points_cost() -> str:
    """Return the CPU time of the 3D results of four objects, of 640 x 480 pixels."""
    from std_msgs.msg import Header

    from ocdit_core.inference.depth import lift
    from ocdit_core.inference.results import Instance, Segmentation
    from ocdit_core.masks import tight_box
    from ocdit_ros import topics

    y, x = np.mgrid[:480, :640]
    masks = [(x - 120 - 130 * number) ** 2 + (y - 240) ** 2 < 50**2 for number in range(4)]
    instances = tuple(Instance(object_id="one", score=1.0, box=tight_box(mask), mask=mask) for mask in masks)
    found = Segmentation(instances=instances, image_size=(480, 640), target_ids=("one",))
    metres = (0.8 + 0.0002 * y).astype(np.float32)
    matrix = np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]])
    image = np.zeros((480, 640, 3), np.uint8)
    seconds = []
    for _ in range(30):
        start = time.thread_time()
        lifted = lift(found, metres, matrix)
        middle = time.thread_time()
        message = topics.maker.to_points(image, lifted, range(1, 5), Header())
        seconds.append((middle - start, time.thread_time() - middle))
    boxes, points = 1000 * np.median(seconds, axis=0)
    return f"four objects, {message.width} points: surfaces and boxes {boxes:.1f} ms, ~/points {points:.1f} ms"


def measure(case: str, options: argparse.Namespace, client: Client, node: Child) -> list[str]:
    """Run one camera against the node; returns the report's lines."""
    width, height, rate = CASES[case]
    command = [sys.executable, __file__, "--camera", str(width), str(height), str(rate), *["--depth"] * options.depth]
    command += ["--tracking"] * options.tracking
    before, began = dict(client.counts), time.monotonic()
    camera = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while client.counts["processed"] - before["processed"] < 5:
        time.sleep(0.1)
    client.frames.clear()
    answers, changes, memory = [], [], []
    request = client.set_targets.srv_type.Request(object_ids=options.targets)
    start = time.monotonic()
    while (passed := time.monotonic() - start) < options.seconds:
        node.check()
        answers.append(client.call(client.list_objects))
        if passed > 10 * (len(changes) + 1):
            changes.append(client.call(client.set_targets, request))
        memory.append(resident_mib(node.pid))
        time.sleep(0.2)
    # The last image has waited in vain for a newer one.
    frames = list(client.frames.values())
    camera.terminate()
    seconds = time.monotonic() - began
    sent = int(camera.communicate(timeout=30)[0])
    time.sleep(3.0)
    counts = {name: count - before[name] for name, count in client.counts.items()}
    return report(case, seconds, sent, counts, frames, answers, changes, memory)


def report(
    case: str,
    seconds: float,
    sent: int,
    counts: dict[str, int],
    frames: list[dict[str, float]],
    answers: list[float],
    changes: list[float],
    memory: list[float],
) -> list[str]:
    """Return what was measured, line by line."""
    inference = np.array([frame["total"] for frame in frames])
    beyond = np.array([frame["age"] for frame in frames]) - inference
    parts = {name: np.array([frame[name] for frame in frames]) for name in ("waiting", "reading", "publishing")}
    parts["transport"] = beyond - sum(parts.values())
    # The first tenth is left to caches that fill.
    tenth = max(1, len(memory) // 10)
    early, late = np.mean(memory[tenth : 2 * tenth]), np.mean(memory[-tenth:])
    left = counts["received"] - sum(counts[name] for name in ("processed", "dropped", "stale", "failed"))
    middle = ", ".join(f"{name} {np.median(values):.1f}" for name, values in parts.items())
    late_ones = beyond >= np.quantile(beyond, 0.9)
    slowest = ", ".join(f"{name} {np.mean(values[late_ones]):.1f}" for name, values in parts.items())
    lifting = [frame["3D"] for frame in frames if "3D" in frame]
    deep = f"; 3D results {np.median(lifting):.1f} ms later ({len(lifting)} of {len(frames)})" if lifting else ""
    low, median, high = np.quantile(beyond, (0.5, 0.95, 0.99))
    return [
        f"{case}, {seconds:.0f} s: {counts['processed']} results, {counts['processed'] / seconds:.2f} a second",
        f"  memory          {early:.0f} -> {late:.0f} MiB ({100 * (late / early - 1):+.1f}%)",
        f"  services        {len(answers)} answers: median {np.median(answers):.1f} ms, "
        f"p99 {np.quantile(answers, 0.99):.1f} ms, most {max(answers):.1f} ms",
        # set_target_objects answers when the new set is in force: after the frame in progress.
        f"  target changes  {len(changes)}: median {np.median(changes):.0f} ms, most {max(changes):.0f} ms",
        f"  inference       median {np.median(inference):.0f} ms",
        f"  age beyond it   median {low:.1f} ms, p95 {median:.1f} ms, p99 {high:.1f} ms; "
        f"within 20 ms: {100 * np.mean(beyond <= 20):.0f}% (medians: {middle}){deep}",
        f"                  the latest tenth, means: {slowest}",
        f"  frames          {sent} sent, {sent - counts['received']} lost on the way, {counts['received']} received = "
        f"{counts['processed']} processed + {counts['dropped']} dropped + {counts['stale']} stale + "
        f"{counts['failed']} failed + {left} under way",
    ]


def main() -> None:
    """Run both cameras against one node and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="for each camera")
    parser.add_argument("--library", type=Path, help="of rendered objects (default: the examples', rendered now)")
    parser.add_argument("--targets", nargs="+", default=["melon", "striped_mug"])
    parser.add_argument("--model", default="ocdit-small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of the network on the CPU (default: PyTorch's choice)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an inference setting")
    parser.add_argument("--tracking", action="store_true", help="track instances, with a camera that moves")
    parser.add_argument("--case", choices=list(CASES), help="one camera only")
    parser.add_argument("--camera", nargs=3, metavar=("WIDTH", "HEIGHT", "RATE"), help=argparse.SUPPRESS)
    parser.add_argument("--depth", action="store_true", help="publish depth and listen to the points, too")
    options = parser.parse_args()
    if options.camera:
        run_camera(
            int(options.camera[0]),
            int(options.camera[1]),
            float(options.camera[2]),
            depth=options.depth,
            moving=options.tracking,
        )
        return
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="ocdit_load_") as scratch:
        library = options.library or make_library(Path(scratch) / "library")
        more = {"inference_settings": options.set or [""], "tracking": options.tracking}
        node = start_node(
            library, options.targets, options.model, Path(scratch), options.device, options.threads, **more
        )
        client = Client(depth=options.depth)
        try:
            client.wait_until_active(node)
            cores, load = os.cpu_count(), os.getloadavg()[0]
            if options.depth:
                print(points_cost())
            print(f"{options.model}, {len(options.targets)} targets; {cores} cores, load before the start {load:.1f}")
            for case in [options.case] if options.case else CASES:
                print("\n".join(measure(case, options, client, node)), flush=True)
        finally:
            client.close()
            node.stop()


if __name__ == "__main__":
    main()
