"""Print where each object can be grasped: the centre of its visible surface, in metres, in the camera's frame.

python3 examples/grasp_centre.py --ros-args -r depth:=/camera/aligned_depth_to_color/image_raw
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
from vision_msgs.msg import Detection2DArray

RESULTS = {"detections": Detection2DArray, "instances": Image, "camera_info": CameraInfo}
TYPES = {"mono16": np.uint16, "32SC1": np.int32, "16UC1": np.uint16, "32FC1": np.float32}
KEEP_SECONDS = 10.0  # longer than an inference takes: depth waits that long for the results of its stamp


class GraspCentre(Node):
    """Subscribes to the segmentation node and to `depth`, an image aligned to the one that is segmented."""

    def __init__(self):
        super().__init__("grasp_centre")
        self.frames = {}  # stamp -> time of the first arrival, and messages by name
        for name, kind in RESULTS.items():
            self.create_subscription(kind, f"ocdit_segmentation/{name}", partial(self.collect, name), 5)
        self.create_subscription(Image, "depth", partial(self.collect, "depth"), qos_profile_sensor_data)

    def collect(self, name, message):
        """Keep a message until all four of its stamp have arrived."""
        now, stamp = time.monotonic(), (message.header.stamp.sec, message.header.stamp.nanosec)
        _, frame = self.frames.setdefault(stamp, (now, {}))
        frame[name] = message
        if len(frame) == 4:
            self.locate(**self.frames.pop(stamp)[1])
        while self.frames and now - next(iter(self.frames.values()))[0] > KEEP_SECONDS:
            del self.frames[next(iter(self.frames))]

    def locate(self, detections, instances, camera_info, depth):
        """Print the median of the points in space that each mask covers."""
        labels, metres = pixels(instances), pixels(depth) * (0.001 if depth.encoding == "16UC1" else 1.0)
        fx, cx, fy, cy = (camera_info.k[index] for index in (0, 2, 4, 5))
        for detection in detections.detections:
            v, u = np.nonzero((labels == int(detection.id)) & (metres > 0) & np.isfinite(metres))
            if len(u):
                z = metres[v, u]
                x, y, z = np.median([(u - cx) * z / fx, (v - cy) * z / fy, z], axis=1)
                name = detection.results[0].hypothesis.class_id
                print(f"{name} {detection.id}: {x:.3f} {y:.3f} {z:.3f} in {depth.header.frame_id}", flush=True)


def pixels(image):
    """Return a message's (H, W) pixels, without the bytes that pad its rows."""
    return np.frombuffer(image.data, TYPES[image.encoding]).reshape(image.height, -1)[:, : image.width]


if __name__ == "__main__":
    rclpy.init()
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(GraspCentre())
