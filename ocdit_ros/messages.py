"""Results as vision_msgs and label images. No ROS in here: the caller brings the message classes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_ros.depth import quaternion

if TYPE_CHECKING:
    from ocdit_core.inference.depth import Instance3D
    from ocdit_core.inference.results import Instance, Segmentation

MAX_MONO16 = 65535
TYPES = {
    "sensor_msgs": ("Image", "PointCloud2", "PointField"),
    "vision_msgs": (
        "Detection2D",
        "Detection2DArray",
        "Detection3D",
        "Detection3DArray",
        "LabelInfo",
        "ObjectHypothesisWithPose",
        "VisionClass",
    ),
}
"""Messages of which results consist, by package."""

POINT = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("rgb", "u4"), ("instance_id", "u4")])


def instance_numbers(*, unique: bool) -> Iterator[int]:
    """Return the numbers of instances, from 1; `next` may be called from several threads.

    Args:
        unique: whether a number is never used again, as for tracked instances. Otherwise a number is valid on one frame
            only, and 1 follows 65535, which 30 frames a second use up within minutes.
    """
    return itertools.count(1) if unique else itertools.cycle(range(1, MAX_MONO16 + 1))


def number(instances: Sequence[Instance], numbers: Iterator[int]) -> list[int]:
    """Return the number of each instance: its track id, or the next one."""
    return [next(numbers) if instance.track_id is None else instance.track_id for instance in instances]


def _set_pose(pose: Any, position: np.ndarray, rotation: np.ndarray) -> None:
    pose.position.x, pose.position.y, pose.position.z = position.tolist()
    pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w = quaternion(rotation)


def _packed(colours: np.ndarray) -> np.ndarray:
    """Return (...) uint32 0xRRGGBB of (..., 3) uint8 RGB."""
    red, green, blue = (colours[..., channel].astype(np.uint32) for channel in range(3))
    return red << np.uint32(16) | green << np.uint32(8) | blue


class MessageMaker:
    """Makes messages of rclpy in the node, and of rosbags for a recorded bag.

    Args:
        types: namespace with the classes of TYPES; they take fields by name and fill in ROS's defaults.
        as_data: converts contiguous pixels to the field `data` of an Image.
    """

    def __init__(self, types: Any, as_data: Callable[[np.ndarray], Any]):
        self._types = types
        self._as_data = as_data

    def from_rgb(self, image: np.ndarray, header: Any) -> Any:
        """Return an rgb8 message of an (H, W, 3) uint8 RGB image."""
        return self._image(image, "rgb8", header)

    def to_overlay(self, image: np.ndarray, segmentation: Segmentation, header: Any) -> Any:
        """Return an rgb8 message of an (H, W, 3) uint8 RGB image with masks, names and scores drawn over it."""
        from ocdit_core.visualization import overlay

        return self.from_rgb(overlay(image, segmentation), header)

    def to_detections(self, segmentation: Segmentation, numbers: Sequence[int], header: Any) -> Any:
        """Return the instances as detections, each with the header, `id` (its number in decimal), name and score.

        Boxes are tight around the masks: pixel columns x .. x + width - 1 give size_x = width and the centre
        x + (width - 1) / 2, in pixels, where the centre of the top left pixel is (0, 0) as in CameraInfo.
        """
        message = self._types.Detection2DArray(header=header)
        for number, instance in zip(numbers, segmentation.instances, strict=True):
            x, y, width, height = instance.box
            detection = self._types.Detection2D(header=header, id=str(number))
            detection.bbox.center.position.x = x + (width - 1) / 2
            detection.bbox.center.position.y = y + (height - 1) / 2
            detection.bbox.size_x = float(width)
            detection.bbox.size_y = float(height)
            result = self._types.ObjectHypothesisWithPose()
            result.hypothesis.class_id = instance.object_id
            result.hypothesis.score = float(instance.score)
            detection.results = [result]
            message.detections.append(detection)
        return message

    def to_detections_3d(self, instances: Sequence[Instance3D], numbers: Sequence[int], header: Any) -> Any:
        """Return the instances that have a box as detections in 3D, in the frame of the header.

        `bbox` is an oriented box in metres; the pose of the result is that of the object where it was estimated, else
        the box's.
        """
        message = self._types.Detection3DArray(header=header)
        for number, instance in zip(numbers, instances, strict=True):
            box, pose = instance.box, instance.pose
            if box is None:
                continue
            detection = self._types.Detection3D(header=header, id=str(number))
            _set_pose(detection.bbox.center, box.center, box.rotation)
            detection.bbox.size.x, detection.bbox.size.y, detection.bbox.size.z = box.size.tolist()
            result = self._types.ObjectHypothesisWithPose()
            result.hypothesis.class_id = instance.instance.object_id
            result.hypothesis.score = float(instance.instance.score)
            if pose is not None:
                _set_pose(result.pose.pose, pose.translation, pose.rotation)
            else:
                _set_pose(result.pose.pose, box.center, box.rotation)
            detection.results = [result]
            message.detections.append(detection)
        return message

    def to_points(
        self,
        image: np.ndarray,
        instances: Sequence[Instance3D],
        numbers: Sequence[int],
        header: Any,
        scene: np.ndarray | None = None,
    ) -> Any:
        """Return a sensor_msgs/PointCloud2 of the instances: x, y, z (metres), rgb and instance_id.

        Args:
            image: (H, W, 3) uint8 RGB.
            instances: the instances.
            numbers: number of each instance.
            header: header of the message.
            scene: (H, W, 3) point of each pixel, NaN without depth: the cloud has one point for each pixel then, with
                instance_id 0 outside of the instances.
        """
        if scene is not None:
            cloud = np.empty(image.shape[:2], POINT)
            for axis, name in enumerate("xyz"):
                cloud[name] = scene[..., axis]
            cloud["rgb"], cloud["instance_id"] = _packed(image), 0
            for number, instance in zip(numbers, instances, strict=True):
                cloud["instance_id"][instance.surface] = number
        else:
            cloud = np.empty((1, sum(len(instance.points) for instance in instances)), POINT)
            start = 0
            for number, instance in zip(numbers, instances, strict=True):
                part = cloud[0, start : (start := start + len(instance.points))]
                for axis, name in enumerate("xyz"):
                    part[name] = instance.points[:, axis]
                x, y, width, height = instance.instance.box
                box = np.s_[y : y + height, x : x + width]
                part["rgb"], part["instance_id"] = _packed(image[box][instance.surface[box]]), number
        height = len(cloud)
        width = cloud.size // height
        message = self._types.PointCloud2(header=header, height=height, width=width, is_dense=scene is None)
        message.point_step, message.row_step = POINT.itemsize, POINT.itemsize * width
        message.is_bigendian = sys.byteorder == "big"
        # As rviz and PCL expect it, the bytes of rgb are declared as a float.
        message.fields = [
            self._types.PointField(name=name, offset=4 * index, datatype=6 if name == "instance_id" else 7, count=1)
            for index, name in enumerate(POINT.names or ())
        ]
        message.data = self._as_data(cloud.view(np.uint8))
        return message

    def to_transforms(self, instances: Sequence[Instance3D], numbers: Sequence[int], header: Any) -> Any:
        """Return a tf2_msgs/TFMessage with the frame `object_<id>` of each instance that has a pose or a box."""
        message = self._types.TFMessage()
        for number, instance in zip(numbers, instances, strict=True):
            position, rotation = (
                (instance.pose.translation, instance.pose.rotation)
                if instance.pose is not None
                else (instance.box.center, instance.box.rotation)
                if instance.box is not None
                else (None, None)
            )
            if position is None or rotation is None:
                continue
            transform = self._types.TransformStamped(header=header, child_frame_id=f"object_{number}")
            part = transform.transform
            part.translation.x, part.translation.y, part.translation.z = position.tolist()
            part.rotation.x, part.rotation.y, part.rotation.z, part.rotation.w = quaternion(rotation)
            message.transforms.append(transform)
        return message

    def to_instances(self, segmentation: Segmentation, numbers: Sequence[int], header: Any) -> Any:
        """Return a label image: 0 is background, else int(detection.id); the highest score wins where masks overlap.

        It is mono16, or 32SC1 where a number does not fit into 16 bits.
        """
        wide = max(numbers, default=0) > MAX_MONO16
        labels = segmentation.label_map(numbers, np.int32 if wide else np.uint16)
        return self._image(labels, "32SC1" if wide else "mono16", header)

    def to_classes(self, segmentation: Segmentation, labels: Mapping[str, int], header: Any) -> Any:
        """Return a mono16 image: 0 is background, else the object's number in `labels`; the highest score wins."""
        numbers = [labels[instance.object_id] for instance in segmentation.instances]
        return self._image(segmentation.label_map(numbers, np.uint16), "mono16", header)

    def to_mask(self, segmentation: Segmentation, object_id: str, header: Any) -> Any:
        """Return a mono8 image: 255 on an object's best-scoring instance, 0 elsewhere and where it was not found."""
        mask = np.zeros(segmentation.image_size, np.uint8)
        best = next((instance for instance in segmentation.instances if instance.object_id == object_id), None)
        if best is not None:
            mask[best.mask] = 255
        return self._image(mask, "mono8", header)

    def to_uncertainty(self, uncertainty: np.ndarray, header: Any) -> Any:
        """Return a 32FC1 image of an (H, W) float32 map in [0, 1]: 1 is undecided, 0 is certain."""
        return self._image(np.asarray(uncertainty, np.float32), "32FC1", header)

    def to_label_info(self, labels: Mapping[str, int], threshold: float, header: Any) -> Any:
        """Return names and numbers (1 to 65535) of a library's objects, by number, and the minimum score."""
        message = self._types.LabelInfo(header=header, threshold=float(threshold))
        message.class_map = [
            self._types.VisionClass(class_id=number, class_name=name)
            for name, number in sorted(labels.items(), key=lambda item: item[1])
        ]
        return message

    def _image(self, pixels: np.ndarray, encoding: str, header: Any) -> Any:
        height, width = pixels.shape[:2]
        message = self._types.Image(header=header, height=height, width=width, encoding=encoding)
        message.step = width * pixels.itemsize * (pixels.shape[2] if pixels.ndim == 3 else 1)
        message.is_bigendian = int(sys.byteorder == "big")
        message.data = self._as_data(np.ascontiguousarray(pixels))
        return message
