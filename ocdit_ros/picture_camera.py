"""A camera made of pictures: publishes a folder's pictures in a loop. For the demo, for tests, for a first try."""

from __future__ import annotations

import sys
from pathlib import Path

from ocdit_core.errors import ImageError, OcditError
from ocdit_core.images import SUFFIXES, read_image
from ocdit_ros import messages, pip_home
from ocdit_ros.parameters import names
from ocdit_ros.spinning import run
from ocdit_ros.worker_types import describe

pip_home.prepare()

from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor, SetParametersResult  # noqa: E402  (the prefix)
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402


class PictureCamera(Node):
    """Publishes `image` (rgb8). The header's frame_id is the picture's name without its suffix, the stamp is now.

    Parameters: `folder`; `rate` in Hz; `pictures`, which of the folder's names to show (empty: all; can change at run
    time); `reliable`, for receivers that must get every one.

    Raises:
        OcditError: no such folder, no picture in it, or `pictures` names one that is not there.
    """

    def __init__(self) -> None:
        super().__init__("picture_camera")
        self.declare_parameter("folder", "", ParameterDescriptor(description="Folder of pictures", read_only=True))
        self.declare_parameter(
            "rate",
            2.0,
            ParameterDescriptor(
                description="Pictures a second",
                read_only=True,
                floating_point_range=[FloatingPointRange(from_value=0.01, to_value=120.0, step=0.0)],
            ),
        )
        self.declare_parameter(
            "reliable",
            False,
            ParameterDescriptor(description="Reliable instead of best effort, as cameras are", read_only=True),
        )
        self.declare_parameter(
            "pictures", [""], ParameterDescriptor(description="Names to show, without suffix; empty: all")
        )
        self._paths = find_pictures(self.get_parameter("folder").value)
        self._loaded: dict[str, Image] = {}
        self._shown = self._chosen(self.get_parameter("pictures").value)
        self._next = 0
        self.add_on_set_parameters_callback(self._on_set_parameters)
        reliable = self.get_parameter("reliable").value
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        self._publisher = self.create_publisher(Image, "image", QoSProfile(depth=2, reliability=reliability))
        self.create_timer(1.0 / self.get_parameter("rate").value, self._publish_next)
        self.get_logger().info(f"showing {len(self._shown)} pictures on {self._publisher.topic_name}")

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
                # Shown as nothing at all it would be a riddle: say it once, and go on with the others.
                self.get_logger().error(describe(error))
                self._paths.pop(name)
                self._shown = [other for other in self._shown if other != name] or list(self._paths)
                if not self._shown:
                    raise OcditError("none of the pictures can be read") from error
                return self._load(self._shown[0])
            message = messages.from_rgb(image, Header(frame_id=name))
            self._loaded[name] = message
        return self._loaded[name]


def find_pictures(folder: str | Path) -> dict[str, Path]:
    """Return a folder's pictures: name without suffix -> path, sorted.

    Raises:
        OcditError: no folder was named, it is missing, or it holds no picture.
    """
    if not str(folder):
        raise OcditError("folder is not set: name a folder of pictures")
    if not Path(folder).is_dir():
        raise OcditError(f"{folder}: no such folder of pictures")
    found = {path.stem: path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in SUFFIXES}
    if not found:
        raise OcditError(f"{folder}: no pictures in it (looked for {', '.join(SUFFIXES)})")
    return found


def main(args: list[str] | None = None) -> int:
    """Run the camera until it is told to stop; returns the exit code."""
    return run(PictureCamera, args)


if __name__ == "__main__":
    sys.exit(main())
