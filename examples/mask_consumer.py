"""Hand image, depth, mask and camera matrix to a pose estimator such as FoundationPose, once the object is found.

python3 examples/mask_consumer.py --ros-args -r image:=/camera/color/image_raw -r depth:=/camera/depth/image_raw

The segmentation node publishes the mask of the object that its parameter mask_object names, and the calibration.
"""

import time
from contextlib import suppress
from functools import partial

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

TYPES = {"mono8": np.uint8, "rgb8": np.uint8, "bgr8": np.uint8, "16UC1": np.uint16, "32FC1": np.float32}
KEEP_SECONDS = 10.0  # longer than an inference takes: images wait that long for the mask of their stamp


class MaskConsumer(Node):
    """Collects what belongs to one stamp."""

    def __init__(self):
        super().__init__("mask_consumer")
        self.frames = {}  # stamp -> time of the first arrival, and messages by name
        for name in ("image", "depth"):
            self.create_subscription(Image, name, partial(self.collect, name), qos_profile_sensor_data)
        self.create_subscription(Image, "ocdit_segmentation/mask", partial(self.collect, "mask"), 5)
        self.create_subscription(CameraInfo, "ocdit_segmentation/camera_info", partial(self.collect, "camera_info"), 5)

    def collect(self, name, message):
        """Keep a message until all four of its stamp have arrived."""
        now, stamp = time.monotonic(), (message.header.stamp.sec, message.header.stamp.nanosec)
        _, frame = self.frames.setdefault(stamp, (now, {}))
        frame[name] = message
        if len(frame) == 4:
            frame = self.frames.pop(stamp)[1]
            image, depth, mask = (pixels(frame[key]) for key in ("image", "depth", "mask"))
            if mask.any():
                metres = np.nan_to_num(depth * (0.001 if frame["depth"].encoding == "16UC1" else 1.0))
                colours = image[..., ::-1] if frame["image"].encoding == "bgr8" else image
                register(np.reshape(frame["camera_info"].k, (3, 3)), colours, metres, mask)
        while self.frames and now - next(iter(self.frames.values()))[0] > KEEP_SECONDS:
            del self.frames[next(iter(self.frames))]


def register(camera_matrix, rgb, depth, mask):
    """Call the estimator here: FoundationPose's is `register(K=camera_matrix, rgb=rgb, depth=depth, ob_mask=mask)`.

    Args:
        camera_matrix: (3, 3) intrinsics in pixels.
        rgb: (H, W, 3) uint8.
        depth: (H, W) metres, 0 where there is none.
        mask: (H, W) uint8, 255 on the object.
    """
    seen = depth[(mask > 0) & (depth > 0)]
    distance = f"{np.median(seen):.3f} m away" if len(seen) else "without depth"
    print(f"{np.count_nonzero(mask)} pixels, {distance}, focal length {camera_matrix[0, 0]:g}", flush=True)


def pixels(image):
    """Return a message's pixels (H, W) or (H, W, 3), without the bytes that pad its rows."""
    rows = np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)
    channels = 3 if image.encoding in ("rgb8", "bgr8") else 1
    kind = np.dtype(TYPES[image.encoding])
    values = np.ascontiguousarray(rows[:, : image.width * channels * kind.itemsize]).view(kind)
    return values.reshape(image.height, image.width, channels) if channels > 1 else values


if __name__ == "__main__":
    rclpy.init()
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(MaskConsumer())
