"""Propose grasps for a parallel gripper from the points of each object, and publish them as poses.

python3 examples/grasp_candidates.py --ros-args -p max_width:=0.08

Subscribes to ocdit_segmentation/points and detections_3d, which the segmentation node publishes where it has depth.
Publishes grasp_candidates (geometry_msgs/PoseArray): z is the direction of approach, the fingers close along x.
"""

from contextlib import suppress

import numpy as np
import rclpy
from geometry_msgs.msg import Pose, PoseArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2
from vision_msgs.msg import Detection3DArray

POINT = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("rgb", "u4"), ("instance_id", "u4")])
MIN_POINTS = 20


class GraspCandidates(Node):
    """Grasps the visible surface of each object along the line of sight, across its narrow side."""

    def __init__(self):
        super().__init__("grasp_candidates")
        self.max_width = self.declare_parameter("max_width", 0.08).value  # metres between the open fingers
        self.names = {}  # name of the object by the id of the detection, of the newest frame
        self.publisher = self.create_publisher(PoseArray, "grasp_candidates", 5)
        # The detections of a frame are published before its points.
        self.create_subscription(Detection3DArray, "ocdit_segmentation/detections_3d", self.remember, 5)
        self.create_subscription(PointCloud2, "ocdit_segmentation/points", self.propose, 5)

    def remember(self, message):
        """Keep the names of a frame's detections."""
        self.names = {found.id: found.results[0].hypothesis.class_id for found in message.detections}

    def propose(self, cloud):
        """Publish and print a candidate for each object that fits between the fingers."""
        points = np.frombuffer(cloud.data, POINT)
        candidates = PoseArray(header=cloud.header)
        for number in np.unique(points["instance_id"][points["instance_id"] > 0]):
            own = points[points["instance_id"] == number]
            xyz = np.stack([own["x"], own["y"], own["z"]], axis=1).astype(float)
            xyz = xyz[np.isfinite(xyz).all(axis=1)]
            name = self.names.get(str(number), "object")
            if len(xyz) < MIN_POINTS:
                continue
            centre, axes, width = grasp(xyz)
            where = "{:.3f} {:.3f} {:.3f}".format(*centre)
            if width > self.max_width:
                print(f"{name} {number}: {where}, too wide: {width:.3f} m", flush=True)
                continue
            print(f"{name} {number}: {where} in {cloud.header.frame_id}, width {width:.3f} m", flush=True)
            candidates.poses.append(pose(centre, axes))
        self.publisher.publish(candidates)


def grasp(points):
    """Return the centre of a surface (N, 3), the axes of the gripper (columns x, y, z) and the opening in metres.

    The median tolerates outliers, such as wrong pixels of a mask. The camera is at the origin.
    """
    centre = np.median(points, axis=0)
    approach = centre / np.linalg.norm(centre)
    # The narrow direction of the points as the camera sees them.
    flat = points - centre
    flat = flat - np.outer(flat @ approach, approach)
    near = flat[np.linalg.norm(flat, axis=1) <= 2 * np.median(np.linalg.norm(flat, axis=1))]
    across = np.linalg.eigh(near.T @ near)[1][:, 1]  # the smallest of the three is along the approach
    across -= approach * (across @ approach)
    across /= np.linalg.norm(across)
    width = np.ptp(np.percentile(flat @ across, (2, 98)))
    return centre, np.stack([across, np.cross(approach, across), approach], axis=1), width


def pose(position, axes):
    """Return the geometry_msgs/Pose of a position and axes (columns)."""
    result = Pose()
    result.position.x, result.position.y, result.position.z = position.tolist()
    # A half turn of the gripper about its approach is the same grasp: choose the one that the formula is good for.
    if np.trace(axes) < 0:
        axes = axes * [-1, -1, 1]
    w = 0.5 * np.sqrt(max(1 + np.trace(axes), 1e-12))
    turn = np.array([axes[2, 1] - axes[1, 2], axes[0, 2] - axes[2, 0], axes[1, 0] - axes[0, 1]]) / (4 * w)
    turn = np.append(turn, w) / np.linalg.norm([*turn, w])
    result.orientation.x, result.orientation.y, result.orientation.z, result.orientation.w = turn.tolist()
    return result


if __name__ == "__main__":
    rclpy.init()
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(GraspCandidates())
