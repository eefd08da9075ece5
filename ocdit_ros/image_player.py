"""A camera made of image files, which it publishes in a loop: for `demo.launch.py`, for tests, for a first try."""

import os
import sys
from pathlib import Path

from ocdit_ros import interruptible_imports

with interruptible_imports():
    from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    from ocdit_core.errors import ImageError, OcditError
    from ocdit_core.images import SUFFIXES, read_image
    from ocdit_ros import topics
    from ocdit_ros.spinning import run
    from ocdit_ros.worker import describe


class ImagePlayer(Node):
    """Publishes `image` (rgb8); frame_id is the file's name without suffix, the stamp is the current time.

    Parameters: `folder`, and `rate` in Hz.

    Raises:
        OcditError: no such folder, or no image in it.
    """

    def __init__(self) -> None:
        super().__init__("image_player")
        about = ParameterDescriptor(description="Folder of images", read_only=True)
        self._images = list(find_images(self.declare_parameter("folder", "", about).value).items())
        about = ParameterDescriptor(description="Images per second", read_only=True)
        about.floating_point_range = [FloatingPointRange(from_value=0.01, to_value=120.0, step=0.0)]
        rate: float = self.declare_parameter("rate", 2.0, about).value
        self._publisher = self.create_publisher(Image, "image", qos_profile_sensor_data)
        self.create_timer(1.0 / rate, self._publish_next)
        self.get_logger().info(f"showing {len(self._images)} images on {self._publisher.topic_name}")

    def _publish_next(self) -> None:
        name, path = self._images.pop(0)
        try:
            image = read_image(path)
        except ImageError as error:
            # Reported once: it is not shown again.
            self.get_logger().error(describe(error))
            if not self._images:
                raise OcditError("none of the images can be read") from error
            return
        self._images.append((name, path))
        self._publisher.publish(
            topics.maker.from_rgb(image, Header(frame_id=name, stamp=self.get_clock().now().to_msg()))
        )


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
    return run(ImagePlayer, args)


if __name__ == "__main__":
    sys.exit(main())
