"""Add and remove objects while a camera runs: memory, names on the frames, and whether every failure is reported.

python benchmarks/object_changes.py --cycles 100

Objects come from CAD files and from images with masks in turn. In every fifth cycle requests that must fail are sent.
Two frames a second are segmented, and shown whatever their scores, so that each frame has the names of all
targets. A name is wrong on a frame that was made before the object was asked for, or after the reply to its removal.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from node_load import EXAMPLES, NODE, Client, make_library, resident_mib, start_node

from ocdit_ros.demo import prepare_environment

TARGETS = ["melon", "striped_mug"]


class Watch:
    """Notes when each object could be on the frames, and checks the frames' names.

    Args:
        client: the client of the node.
    """

    def __init__(self, client: Client) -> None:
        from vision_msgs.msg import Detection2DArray, LabelInfo

        self.client = client
        self.spans: dict[str, list[float]] = {}  # name -> time of the request, and of the reply to its removal
        self.frames = 0
        self.wrong: list[str] = []
        self.numbers: dict[int, str] = {}
        self.lock = threading.Lock()
        client.node.create_subscription(Detection2DArray, f"{NODE}/detections", self.on_detections, 50)
        client.node.create_subscription(LabelInfo, f"{NODE}/label_info", self.on_labels, 50)

    def now(self) -> float:
        """Return the ROS time in seconds."""
        return float(self.client.node.get_clock().now().nanoseconds) * 1e-9

    def on_detections(self, message: Any) -> None:
        """Check the names of a frame."""
        stamp, arrived = message.header.stamp.sec + message.header.stamp.nanosec * 1e-9, self.now()
        with self.lock:
            self.frames += 1
            for detection in message.detections:
                name = detection.results[0].hypothesis.class_id
                asked, gone = [0.0, np.inf] if name in TARGETS else self.spans.get(name, [np.inf, np.inf])
                if arrived < asked or stamp > gone:
                    self.wrong.append(f"{name} on a frame of {stamp:.3f}, asked for at {asked:.3f}, gone at {gone:.3f}")

    def on_labels(self, message: Any) -> None:
        """Check that no number is given to a second name."""
        with self.lock:
            for entry in message.class_map:
                known = self.numbers.setdefault(entry.class_id, entry.class_name)
                if known != entry.class_name:
                    self.wrong.append(f"number {entry.class_id}: {known}, then {entry.class_name}")


def photographs() -> tuple[list[Any], list[Any]]:
    """Return messages of a striped ball, in three sizes, and of its masks."""
    from std_msgs.msg import Header

    from ocdit_ros import topics

    images, masks = [], []
    for radius in (40, 50, 60):
        image, mask = np.full((200, 200, 3), 90, np.uint8), np.zeros((200, 200, 3), np.uint8)
        cv2.circle(mask, (100, 100), radius, (255, 255, 255), -1)
        stripes = np.where(np.arange(200)[:, None, None] // 8 % 2, 220, 30) + np.zeros((200, 200, 3))
        image[mask > 0] = stripes.astype(np.uint8)[mask > 0]
        images.append(topics.maker.from_rgb(image, Header()))
        masks.append(topics.maker.from_rgb(mask, Header()))
    return images, masks


def main() -> None:
    """Run the cycles and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--model", default="ocdit-small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of the network on the CPU (default: PyTorch's choice)")
    options = parser.parse_args()
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="ocdit_changes_") as scratch:
        library = make_library(Path(scratch) / "library")
        node = start_node(
            library,
            TARGETS,
            options.model,
            Path(scratch),
            options.device,
            options.threads,
            score_threshold=0.0,
            max_rate=2.0,
        )
        client = Client()
        camera = None
        try:
            client.wait_until_active(node)
            load = Path(__file__).with_name("node_load.py")
            command = [sys.executable, str(load), "--camera", "640", "480", "10"]
            camera = subprocess.Popen(command, stdout=subprocess.PIPE)
            run(client, node, options.cycles, Path(scratch))
        finally:
            if camera is not None:
                camera.terminate()
                camera.wait(30)
            client.close()
            node.stop()


def run(client: Client, node: Any, cycles: int, scratch: Path) -> None:
    """Run the cycles against a running node."""
    from ocdit_interfaces.srv import AddObject, RemoveObject

    add = client.node.create_client(AddObject, f"{NODE}/add_object")
    remove = client.node.create_client(RemoveObject, f"{NODE}/remove_object")
    add.wait_for_service(30)
    watch, (images, masks) = Watch(client), photographs()
    mesh = str(EXAMPLES / "meshes" / "mallet.glb")
    (scratch / "broken.glb").write_bytes(b"glTF")
    failures = [
        AddObject.Request(mesh=str(scratch / "broken.glb"), target=True),
        AddObject.Request(mesh=str(scratch / "none.stl"), target=True),
        AddObject.Request(name="melon", mesh=mesh, target=True),
        AddObject.Request(name="ball", images=images, masks=masks[:2]),
    ]
    seconds, memory, reported, silent = [], [], 0, []
    for cycle in range(cycles):
        node.check()
        name = f"part_{cycle}"
        given = {"mesh": mesh, "unit": "m"} if cycle % 2 else {"images": images, "masks": masks}
        started = time.monotonic()
        with watch.lock:
            watch.spans[name] = [watch.now(), np.inf]
        reply = answer(add, AddObject.Request(name=name, target=True, **given))
        if not reply.success:
            raise SystemExit(f"{name} could not be added: {reply.message}")
        seconds.append(time.monotonic() - started)
        if cycle % 5 == 0:
            for request in failures:
                failed = answer(add, request)
                reported += not failed.success and bool(failed.message)
                silent += [str(request.mesh or request.name)] * (failed.success or not failed.message)
        seen = client.counts["processed"]
        while client.counts["processed"] < seen + 2:
            node.check()
            time.sleep(0.05)
        reply = answer(remove, RemoveObject.Request(object_id=name))
        if not reply.success:
            raise SystemExit(f"{name} could not be removed: {reply.message}")
        with watch.lock:
            watch.spans[name][1] = watch.now()
        memory.append(resident_mib(node.pid))
        if cycle % 10 == 9:
            print(
                f"{cycle + 1} cycles, {memory[-1]:.0f} MiB, {len(watch.wrong)} wrong names, "
                f"failures: {reported} reported, {len(silent)} not",
                flush=True,
            )
    tenth = max(1, cycles // 10)
    early, late = np.mean(memory[tenth : 2 * tenth]), np.mean(memory[-tenth:])
    print(
        f"{cycles} cycles: in force after {np.median(seconds):.1f} s (median), {max(seconds):.1f} s (longest)\n"
        f"memory    {early:.0f} -> {late:.0f} MiB ({100 * (late / early - 1):+.1f}%)\n"
        f"names     {watch.frames} frames, {len(watch.wrong)} wrong; {len(watch.numbers)} numbers, each of one name\n"
        f"failures  {reported} reported, {len(silent)} not {sorted(set(silent)) or ''}"
    )
    print("\n".join(watch.wrong[:10]))


def answer(client: Any, request: Any) -> Any:
    """Return a service's reply."""
    arrived = threading.Event()
    future = client.call_async(request)
    future.add_done_callback(lambda _: arrived.set())
    if not arrived.wait(300):
        raise SystemExit(f"no answer from {client.srv_name} within five minutes")
    return future.result()


if __name__ == "__main__":
    main()
