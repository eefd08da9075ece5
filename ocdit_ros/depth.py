"""Depth beside colour: images and depth images of about the same time, and camera matrices. No ROS in here."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_core.errors import ImageError

if TYPE_CHECKING:
    from ocdit_core.inference.depth import Instance3D

ENCODINGS = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}
SLOP = 0.02
"""Default of the largest difference of the stamps of an image and its depth, in seconds."""

KEPT = 16
"""Depth images that are kept for the image of their time."""

HOLD = 0.2
"""Seconds that an image waits for its depth."""

QUIET = 5.0
"""Seconds without a depth image after which images do not wait for one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Depth:
    """The depth of an image.

    Attributes:
        metres: (H, W) float32, 0 where there is none.
        camera_matrix: (3, 3) float64 intrinsics in pixels.
    """

    metres: np.ndarray
    camera_matrix: np.ndarray

    def part(self, x: int, y: int, width: int, height: int) -> Depth:
        """Return the depth of a part of the image."""
        matrix = self.camera_matrix.copy()
        matrix[:2, 2] -= (x, y)
        return Depth(metres=self.metres[y : y + height, x : x + width], camera_matrix=matrix)


def read_depth(message: Any, info: Any, image_size: tuple[int, ...]) -> Depth:
    """Return the depth of an image from its sensor_msgs/Image and the CameraInfo of the image.

    Args:
        message: 16UC1 (millimetres) or 32FC1 (metres), registered to the image; rows may be padded.
        info: the CameraInfo; None: there is none.
        image_size: (H, W) of the image.

    Raises:
        ImageError: another encoding or size, missing data, or no calibration that fits.
    """
    from ocdit_core.inference.depth import checked_camera, depth_in_metres

    kind = ENCODINGS.get(message.encoding)
    if kind is None:
        raise ImageError(
            f"depth encoding {message.encoding!r} is not supported; supported are 16UC1 (mm) and 32FC1 (m)"
        )
    if (message.height, message.width) != image_size:
        raise ImageError(
            f"depth has {message.width} x {message.height} pixels, the image {image_size[1]} x {image_size[0]}: "
            "register it to the image (RealSense: align_depth.enable, Orbbec: depth_registration)"
        )
    samples = message.step // int(kind[1])
    if samples < message.width or len(message.data) < message.step * message.height:
        raise ImageError(
            f"the depth image holds {len(message.data)} bytes in rows of {message.step}, too few for its size"
        )
    if info is None:
        raise ImageError("depth needs a calibration, and none has come on camera_info")
    pixels = np.frombuffer(message.data, np.uint8, message.step * message.height).reshape(message.height, message.step)
    pixels = np.ascontiguousarray(pixels[:, : message.width * int(kind[1])])
    values = pixels.view((">" if message.is_bigendian else "<") + kind).astype(kind, copy=False)
    if calibrated_size(info) != (message.width, message.height):
        sides = "{} x {}".format(*calibrated_size(info))
        raise ImageError(f"the calibration is for {sides} pixels, the image has {message.width} x {message.height}")
    return Depth(metres=depth_in_metres(values), camera_matrix=checked_camera(camera_matrix(info)))


def calibrated_size(info: Any) -> tuple[int, int]:
    """Return width and height of the images that a CameraInfo describes."""
    width, height = info.roi.width or info.width, info.roi.height or info.height
    return width // max(1, info.binning_x), height // max(1, info.binning_y)


def camera_matrix(info: Any) -> np.ndarray:
    """Return the (3, 3) camera matrix of the images that a CameraInfo describes."""
    matrix = np.array(info.k, np.float64).reshape(3, 3)
    matrix[0, 2] -= info.roi.x_offset
    matrix[1, 2] -= info.roi.y_offset
    matrix[0] /= max(1, info.binning_x)
    matrix[1] /= max(1, info.binning_y)
    return matrix


def moved(instance: Instance3D, transform: np.ndarray) -> Instance3D:
    """Return an instance in another frame.

    Args:
        instance: the instance.
        transform: (4, 4) float64 from its frame to the other one.
    """
    rotation, translation = transform[:3, :3], transform[:3, 3]

    def box(old: Any) -> Any:
        return old and replace(old, center=rotation @ old.center + translation, rotation=rotation @ old.rotation)

    pose = instance.pose and replace(
        instance.pose,
        rotation=rotation @ instance.pose.rotation,
        translation=rotation @ instance.pose.translation + translation,
        box=box(instance.pose.box),
    )
    points = instance.points @ rotation.T.astype(np.float32) + translation.astype(np.float32)
    return replace(instance, points=points, box=box(instance.box), pose=pose)


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Return a (3, 3) rotation as a unit quaternion x, y, z, w."""
    # Of q q^T, which is linear in the rotation, the row with the largest diagonal is the best conditioned.
    (a, b, c), (d, e, f), (g, h, i) = rotation
    outer = np.array(
        [
            [1 + a - e - i, b + d, c + g, h - f],
            [b + d, 1 - a + e - i, f + h, c - g],
            [c + g, f + h, 1 - a - e + i, d - b],
            [h - f, c - g, d - b, 1 + a + e + i],
        ]
    )
    row = outer[np.argmax(np.diag(outer))]
    x, y, z, w = (row / np.linalg.norm(row)).tolist()
    return x, y, z, w


def rotation_of(x: float, y: float, z: float, w: float) -> np.ndarray:
    """Return the (3, 3) rotation of a unit quaternion."""
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


class DepthPairs:
    """Approximate time synchronisation: brings each image and the depth image nearest in time together.

    An image without a partner waits for it, at most HOLD seconds and only while depth images come; a newer image takes
    its place.

    Args:
        submit: called with each image to be processed, and its depth or None.
        drop: called for each image whose place a newer one has taken.
        slop: returns the largest difference of the stamps in seconds.
    """

    def __init__(self, submit: Callable[[Any, Any], None], drop: Callable[[], None], slop: Callable[[], float]):
        self._submit = submit
        self._drop = drop
        self._slop = slop
        self._lock = threading.Lock()
        self._depths: deque[tuple[int, Any]] = deque(maxlen=KEPT)
        self._waiting: tuple[int, Any] | None = None
        self._since = 0.0  # when the first image began to wait since one was submitted
        self._received = -QUIET
        self.problem = ""

    @property
    def in_use(self) -> bool:
        """Whether depth images come."""
        return time.monotonic() - self._received < QUIET

    def clear(self) -> None:
        """Forget all images."""
        with self._lock:
            self._depths.clear()
            self._waiting, self._received, self.problem = None, -QUIET, ""

    def add_image(self, stamp: int, image: Any) -> None:
        """Take an image with its stamp (ns)."""
        with self._lock:
            now = time.monotonic()
            if self._waiting is not None:
                self._waiting = None
                self._drop()
            else:
                self._since = now
            depth = self._partner(stamp)
            if depth is None and self.in_use and now - self._since < HOLD:
                self._waiting = (stamp, image)
            else:
                self._submit(image, depth)

    def add_depth(self, stamp: int, depth: Any) -> None:
        """Take a depth image with its stamp (ns)."""
        with self._lock:
            self._received = time.monotonic()
            self._depths.append((stamp, depth))
            if self._waiting is not None and (partner := self._partner(self._waiting[0])) is not None:
                (_, image), self._waiting = self._waiting, None
                self._submit(image, partner)

    def expire(self) -> None:
        """Submit an image that has waited for long, without depth."""
        with self._lock:
            if self._waiting is not None and time.monotonic() - self._since >= HOLD:
                (_, image), self._waiting = self._waiting, None
                self._submit(image, None)

    def _partner(self, stamp: int) -> Any:
        """Return the nearest depth image, if it is near enough, and note what is wrong where none is."""
        if not self._depths or not self.in_use:
            self.problem = ""
            return None
        other, depth = min(self._depths, key=lambda one: abs(one[0] - stamp))
        seconds, slop = abs(other - stamp) * 1e-9, self._slop()
        self.problem = (
            ""
            if seconds <= slop
            else f"no depth image within depth_slop {slop:g} s of the image: the nearest stamp is {seconds:.3f} s off"
        )
        return None if self.problem else depth
