"""`ocdit bag`: a recorded bag with the results that the node would have published; no ROS is needed for it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdit_core.commands.options import (
    add_command,
    add_model,
    add_targets,
    load_segmenter,
    open_library,
    print_table,
    report,
)
from ocdit_core.errors import BagError, ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from ocdit_core.inference.results import Segmentation
    from ocdit_ros.depth import Depth

NODE = "/ocdit_segmentation"
EXAMPLES = """\
  ocdit bag recording/ --objects my_objects/ --targets melon striped_mug --out results.mcap
  ocdit bag recording.mcap --objects my_objects/ --image-topic /camera/color/image_raw --out results
  ros2 bag play results

OUT holds what the node publishes: detections, instances, classes, overlay and label_info, with the stamps of the
images; detections_3d and points, too, if BAG has depth registered to the images and their camera_info.
"""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "bag", "find objects of a library in a recorded bag of ROS 2", EXAMPLES)
    parser.add_argument("bag", metavar="BAG", type=Path, help="folder of `ros2 bag record`, or an .mcap or .db3 file")
    add_targets(parser)
    add_model(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="OUT", help="new bag: an .mcap file, or else a folder with SQLite"
    )
    parser.add_argument(
        "--image-topic", metavar="TOPIC", help="raw or compressed images (default: the only such topic)"
    )
    parser.add_argument(
        "--depth-topic", metavar="TOPIC", help="depth registered to the images (default: the only such topic, if any)"
    )
    parser.add_argument("--no-overlay", action="store_true", help="leave out the overlay, by far the largest topic")
    parser.add_argument("--tracking", action="store_true", help="instances keep their number from image to image")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segment a bag; return 2 if an image could not be read (the others are done), else 0."""
    from tqdm import tqdm

    from ocdit_core.inference.tracker import Tracker
    from ocdit_ros.bag_files import RecordedDepth, RecordedImages, load_typestore, new_bag, read_image
    from ocdit_ros.converter import EncodingError
    from ocdit_ros.depth import read_depth
    from ocdit_ros.messages import instance_numbers

    store = load_typestore()
    library, targets = open_library(arguments)
    with (
        RecordedImages(arguments.bag, arguments.image_topic) as images,
        RecordedDepth(arguments.bag, images.topic, store, arguments.depth_topic) as depths,
    ):
        topic, count = images.topic, images.count
        # Once through all of it: a bag that is cut off is better refused now than after hours of work.
        for _ in tqdm(images, total=count, desc="checking", unit="image", disable=None, leave=False):
            pass
        with new_bag(arguments.out) as writer:
            labels = {name: entry.id for name, entry in library.manifest.items()}
            numbers = instance_numbers(unique=arguments.tracking)
            results = Results(
                writer, store, labels, numbers, overlay=not arguments.no_overlay, depth=bool(depths.topic)
            )
            # Only now: loading torch and the model takes seconds.
            segmenter = load_segmenter(arguments, library, targets)
            tracker = Tracker(segmenter, numbers) if arguments.tracking else None
            failed = 0
            warned: set[str] = set()
            progress = tqdm(images, total=count, desc="segmenting", unit="image", disable=None)
            for number, (kind, time, data) in enumerate(progress, start=1):
                warnings: list[str] = []
                try:
                    header, image = read_image(store, kind, data, warnings.append)
                except ImageError as error:
                    if isinstance(error, EncodingError) and not results.images:
                        # All others have the same encoding.
                        raise EncodingError(f"{arguments.bag}: {topic}: {error}") from None
                    failed += 1
                    when = f"recorded at {time / 1e9:.3f}"
                    report(ImageError(f"{arguments.bag}: {topic}: image {number} of {count}, {when}: {error}"))
                    continue
                depth: Depth | None = None
                if depths.topic:
                    message = depths.nearest(header.stamp.sec * 10**9 + header.stamp.nanosec)
                    try:
                        if message is not None:
                            depth = read_depth(message, depths.info, image.shape[:2])
                    except ImageError as error:
                        warnings.append(f"{depths.topic}: {error}")
                for text in set(warnings) - warned:
                    tqdm.write(f"ocdit: warning: image {number}: {text} (said once)", file=sys.stderr)
                warned.update(warnings)
                if not results.images:
                    results.write_labels(segmenter.settings.score_threshold, header, time)
                if tracker is not None and tracker.follows(image):
                    segmentation = tracker.segment(image)
                else:
                    segmentation = segmenter.segment(
                        image,
                        depth=None if depth is None else depth.metres,
                        camera_matrix=None if depth is None else depth.camera_matrix,
                    )
                    if tracker is not None:
                        segmentation = tracker.update(segmentation, image)
                results.write(image, segmentation, header, time, depth)
            if not results.images:
                raise BagError(f"{arguments.bag}: {topic}: none of the {count} images can be read; nothing is written")
    print_table(["object", "found on images"], [[name, str(results.found[name])] for name in targets])
    left_out_images = f"; {failed} of {count} left out" if failed else ""
    print(f"{arguments.out}: {results.images} images of {topic}, results under {NODE}{left_out_images}")
    return 2 if failed else 0


class Results:
    """The topics of the results in a new bag; `images` counts the images written, `found` those by object.

    Args:
        writer: writer of rosbags.
        store: typestore that knows vision_msgs.
        labels: object name -> number.
        numbers: numbers of instances without a track id.
        overlay: whether to write the images with the masks drawn over them.
        depth: whether there is depth.
    """

    def __init__(
        self,
        writer: Any,
        store: Any,
        labels: Mapping[str, int],
        numbers: Iterator[int],
        *,
        overlay: bool,
        depth: bool = False,
    ):
        from ocdit_ros.bag_files import message_maker, quality_of_service

        self.images = 0
        self._writer = writer
        self._store = store
        self._labels = labels
        self._maker = message_maker(store)
        self._numbers = numbers
        self.found: Counter[str] = Counter()
        kinds = {
            "detections": "vision_msgs/msg/Detection2DArray",
            "instances": "sensor_msgs/msg/Image",
            "classes": "sensor_msgs/msg/Image",
            "overlay": "sensor_msgs/msg/Image",
            "label_info": "vision_msgs/msg/LabelInfo",
            **({"detections_3d": "vision_msgs/msg/Detection3DArray"} if depth else {}),
            **({"points": "sensor_msgs/msg/PointCloud2"} if depth else {}),
        }
        self._connections = {
            name: writer.add_connection(
                f"{NODE}/{name}",
                kind,
                typestore=store,
                offered_qos_profiles=[quality_of_service(latched=name == "label_info")],
            )
            for name, kind in kinds.items()
            if overlay or name != "overlay"
        }

    def write_labels(self, threshold: float, header: Any, time: int) -> None:
        """Write the names and numbers of the library's objects, and the score threshold."""
        self._write("label_info", self._maker.to_label_info(self._labels, threshold, header), time)

    def write(
        self, image: np.ndarray, segmentation: Segmentation, header: Any, time: int, depth: Depth | None = None
    ) -> None:
        """Write the result for an image, (H, W, 3) uint8 RGB, with its header and the time of its recording (ns)."""
        from ocdit_ros.messages import number

        numbers = number(segmentation.instances, self._numbers)
        self._write("instances", self._maker.to_instances(segmentation, numbers, header), time)
        self._write("classes", self._maker.to_classes(segmentation, self._labels, header), time)
        self._write("detections", self._maker.to_detections(segmentation, numbers, header), time)
        if depth is not None:
            from ocdit_core.inference.depth import lift

            instances = lift(segmentation, depth.metres, depth.camera_matrix)
            self._write("detections_3d", self._maker.to_detections_3d(instances, numbers, header), time)
            self._write("points", self._maker.to_points(image, instances, numbers, header), time)
        if "overlay" in self._connections:
            self._write("overlay", self._maker.to_overlay(image, segmentation, header), time)
        self.images += 1
        self.found.update({instance.object_id for instance in segmentation.instances})

    def _write(self, name: str, message: Any, time: int) -> None:
        connection = self._connections[name]
        self._writer.write(connection, time, self._store.serialize_cdr(message, connection.msgtype))
