"""A camera made of image files, which it publishes in a loop: for the demo, for tests, for a first try."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ocdit_ros import interruptible_imports

with interruptible_imports():
    from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor, SetParametersResult
    from rclpy.node import Node
    from rclpy.parameter import Parameter
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from ocdit_core.errors import ImageError, OcditError
    from ocdit_core.images import SUFFIXES, read_image
    from ocdit_ros import topics
    from ocdit_ros.parameters import names
    from ocdit_ros.spinning import run
    from ocdit_ros.worker import describe


class PictureCamera(Node):
    """Publishes `image` (rgb8); frame_id is the file's name without suffix, the stamp is the current time.

    Parameters: `folder`; `rate` in Hz; `pictures`, the names to show (empty: all; can change at run time); `reliable`,
    for subscribers that must receive every image.

    Raises:
        OcditError: no such folder, no image in it, or `pictures` names one that does not exist.
    """

    def __init__(self) -> None:
        super().__init__("picture_camera")
        rates = [FloatingPointRange(from_value=0.01, to_value=120.0, step=0.0)]
        for name, default, descriptor in (
            ("folder", "", ParameterDescriptor(description="Folder of images", read_only=True)),
            (
                "rate",
                2.0,
                ParameterDescriptor(description="Images per second", read_only=True, floating_point_range=rates),
            ),
            (
                "reliable",
                False,
                ParameterDescriptor(description="Reliable instead of best effort, which cameras use", read_only=True),
            ),
            ("pictures", [""], ParameterDescriptor(description="Names to show, without suffix; empty: all")),
        ):
            self.declare_parameter(name, default, descriptor)
        self._paths = find_images(self.get_parameter("folder").value)
        self._loaded: dict[str, Image] = {}
        self._shown = self._chosen(self.get_parameter("pictures").value)
        self._next = 0
        self.add_on_set_parameters_callback(self._on_set_parameters)
        reliable = self.get_parameter("reliable").value
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        self._publisher = self.create_publisher(Image, "image", QoSProfile(depth=2, reliability=reliability))
        self.create_timer(1.0 / self.get_parameter("rate").value, self._publish_next)
        self.get_logger().info(f"showing {len(self._shown)} images on {self._publisher.topic_name}")

    def _chosen(self, wanted: list[str]) -> list[str]:
        missing = [name for name in names(wanted) if name not in self._paths]
        if missing:
            raise OcditError(f"pictures: {', '.join(missing)} not found; there are {', '.join(self._paths)}")
        return list(names(wanted)) or list(self._paths)

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        for change in changes:
            if change.name == "pictures":
                try:
                    self._shown = self._chosen(change.value)
                except OcditError as error:
                    return SetParametersResult(successful=False, reason=describe(error))
        return SetParametersResult(successful=True)

    def _publish_next(self) -> None:
        shown = self._shown
        name = shown[self._next % len(shown)]
        self._next += 1
        message = self._load(name)
        message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _load(self, name: str) -> Image:
        if name not in self._loaded:
            try:
                image = read_image(self._paths[name])
            except ImageError as error:
                # Report it once, and go on with the others.
                self.get_logger().error(describe(error))
                self._paths.pop(name)
                self._shown = [other for other in self._shown if other != name] or list(self._paths)
                if not self._shown:
                    raise OcditError("none of the images can be read") from error
                return self._load(self._shown[0])
            self._loaded[name] = topics.maker.from_rgb(image, Header(frame_id=name))
        return self._loaded[name]


def find_images(folder: str | Path) -> dict[str, Path]:
    """Return the images of a folder: name without suffix -> path, sorted.

    Raises:
        OcditError: no folder was given, it does not exist, or it holds no image.
    """
    if not str(folder):
        raise OcditError("folder is not set: name a folder of images")
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise OcditError(f"{folder}: no such folder of images")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    if not found:
        raise OcditError(f"{folder}: no images in it (looked for {', '.join(SUFFIXES)})")
    return found


def main(args: list[str] | None = None) -> int:
    """Run the camera until it is told to stop; return the exit code."""
    return run(PictureCamera, args)


if __name__ == "__main__":
    sys.exit(main())
