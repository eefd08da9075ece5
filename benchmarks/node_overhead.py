"""What the ROS node adds to the bare segmenter: milliseconds a frame at 640 x 480, in one run.

python benchmarks/node_overhead.py

Images go one by one to the node, in a process of its own, and to a segmenter in this process: in turns, so that both
see the same machine. In the node, a frame waits for its thread, is read, segmented, and published; all but the
segmenting is what the node adds. Whether the network itself runs as fast in the node shows by its own time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from node_load import EXAMPLES, Client, make_library, start_node

from ocdit_ros.demo import prepare_environment

WIDTH, HEIGHT = 640, 480


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--library", type=Path, help="of rendered objects (default: the examples', rendered now)")
    parser.add_argument("--targets", nargs="+", default=["melon", "striped_mug"])
    parser.add_argument("--model", default="ocdit-small")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="ocdit_overhead_") as scratch:
        library = options.library or make_library(Path(scratch) / "library")
        node = start_node(library, options.targets, options.model, Path(scratch), options.device)
        client = Client()
        try:
            client.wait_until_active(node)
            frames, bare = measure(options, client, library)
        finally:
            client.close()
            node.stop()
    added = np.array([frame["waiting"] + frame["reading"] + frame["publishing"] for frame in frames])
    within = np.array([frame["total"] for frame in frames])
    print(
        f"{options.model}, {len(options.targets)} targets, {WIDTH} x {HEIGHT}, {len(frames)} frames (median, p95 in ms)"
    )
    for name, values in {
        "bare segmenter": bare,
        "network within the node": within,
        "waiting": np.array([frame["waiting"] for frame in frames]),
        "reading": np.array([frame["reading"] for frame in frames]),
        "publishing": np.array([frame["publishing"] for frame in frames]),
        "added by the node": added,
        "stamp to publication": np.array([frame["age"] for frame in frames]),
    }.items():
        print(f"  {name:<24} {np.median(values):8.1f} {np.quantile(values, 0.95):8.1f}")
    print(f"  network, node / bare     {np.median(within / bare):8.3f}")


def measure(options: argparse.Namespace, client: Client, library: Path) -> tuple[list[dict[str, float]], np.ndarray]:
    """Return the stages of each frame in the node, and the milliseconds of the bare segmenter on the same images."""
    import cv2
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from ocdit_core import ObjectLibrary, Segmenter
    from ocdit_core.images import read_image
    from ocdit_ros import topics

    segmenter = Segmenter.from_pretrained(options.model, device=options.device)
    segmenter.set_objects(ObjectLibrary(library), options.targets)
    paths = sorted((EXAMPLES / "images").glob("*.jpg"))
    images = [cv2.resize(read_image(path), (WIDTH, HEIGHT)) for path in paths]
    publisher = client.node.create_publisher(Image, "/image", QoSProfile(depth=1))
    while not publisher.get_subscription_count():
        time.sleep(0.05)
    segmenter.segment(images[0])
    frames, bare = [], []
    while len(frames) < options.frames:
        image = images[len(frames) % len(images)]
        stamp = client.node.get_clock().now().to_msg()
        publisher.publish(topics.maker.from_rgb(image, Header(stamp=stamp)))
        key, deadline = f"{stamp.sec}.{stamp.nanosec:09d}", time.monotonic() + 30
        while key not in client.frames and time.monotonic() < deadline:
            time.sleep(0.002)
        if key not in client.frames:
            continue
        frames.append(client.frames[key])
        start = time.perf_counter()
        segmenter.segment(image)
        bare.append(1000 * (time.perf_counter() - start))
    return frames, np.array(bare)


if __name__ == "__main__":
    main()
