"""From masks and depth to 3D: points, oriented boxes and poses in the camera's frame (x right, y down, z forward)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from ocdit_core.errors import ImageError
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box

# Depths of one surface in neighbouring pixels differ by at most this: metres, and a fraction of the depth.
STEP, STEP_FRACTION = 0.005, 0.01
# Neighbours, of 8, of a pixel that have to be at its depth.
MIN_SUPPORT = 2
# Parts of an instance are not farther behind one another than this: metres, and a fraction of its width.
GAP, GAP_FRACTION = 0.02, 0.5
# Fewest points of a box; points that are used; fraction of the points beyond each side.
MIN_POINTS, BOX_POINTS, TRIM = 20, 800, 0.005
# Fitness from which the box of an object's pose replaces that of its visible surface.
MIN_FITNESS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Box3D:
    """An oriented box.

    Attributes:
        center: (3,) float64 metres.
        rotation: (3, 3) float64 rotation whose columns are the box's axes.
        size: (3,) float64 lengths along these axes, metres.
        valid_depth: fraction of the mask's pixels that have a depth, in [0, 1].
    """

    center: np.ndarray
    rotation: np.ndarray
    size: np.ndarray
    valid_depth: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """Approximate pose of an object, to initialise a pose refiner; see `Segmenter.poses`.

    Attributes:
        rotation: (3, 3) float64 camera-from-object.
        translation: (3,) float64 camera-from-object, metres.
        fitness: how well the object, in this pose, explains mask and depth, in [0, 1].
        box: the object's box in this pose, along the axes of its CAD model.
    """

    rotation: np.ndarray
    translation: np.ndarray
    fitness: float
    box: Box3D


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Instance3D:
    """An instance in 3D.

    Attributes:
        instance: the instance in 2D.
        surface: (H, W) bool, the pixels of its mask whose depth is that of the object.
        points: (N, 3) float32 points of these pixels, row by row, metres.
        box: box of the whole object where its pose fits, else of its visible surface; None: too few points.
        pose: pose; None where it was not estimated.
    """

    instance: Instance
    surface: np.ndarray
    points: np.ndarray
    box: Box3D | None
    pose: Pose | None = None


def depth_in_metres(depth: np.ndarray, scale: float = 0.001) -> np.ndarray:
    """Return depth in metres, 0 where there is none (0, negative, NaN or infinite).

    Args:
        depth: (H, W) uint16 in units of `scale`, or float32 metres.
        scale: metres of one unit of uint16 depth.

    Returns:
        (H, W) float32.

    Raises:
        ImageError: another type or shape.
    """
    if not isinstance(depth, np.ndarray) or depth.ndim != 2 or depth.dtype not in (np.uint16, np.float32):
        what = f"{depth.dtype} {depth.shape}" if isinstance(depth, np.ndarray) else type(depth).__name__
        raise ImageError(f"depth must be (H, W) uint16 (millimetres) or float32 (metres), is {what}")
    metres = depth * np.float32(scale if depth.dtype == np.uint16 else 1)
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))


def deproject(depth: np.ndarray, camera_matrix: np.ndarray, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return the point of each pixel in the camera's frame; the centre of the top left pixel is at (0, 0).

    Args:
        depth: (H, W) metres along the optical axis, see `depth_in_metres`.
        camera_matrix: (3, 3) intrinsics in pixels.
        origin: column and row of the first pixel, for a part of an image.

    Returns:
        (H, W, 3) float32 metres, NaN without depth.

    Raises:
        ImageError: depth or camera matrix have another shape, or the matrix is not that of a pinhole camera.
    """
    depth = depth_in_metres(np.asarray(depth, np.float32))
    K = checked_camera(camera_matrix)
    z = np.where(depth > 0, depth, np.float32(np.nan))
    x = ((np.arange(depth.shape[1]) + (origin[0] - K[0, 2])) / K[0, 0]).astype(np.float32)
    y = ((np.arange(depth.shape[0]) + (origin[1] - K[1, 2])) / K[1, 1]).astype(np.float32)
    return np.stack([x * z, y[:, None] * z, z], axis=-1)


def checked_camera(camera_matrix: np.ndarray | None) -> np.ndarray:
    """Return a (3, 3) float64 camera matrix; raises ImageError unless it is that of a pinhole camera."""
    try:
        K = np.asarray(camera_matrix, np.float64).reshape(3, 3)
    except (TypeError, ValueError):
        raise ImageError(f"camera_matrix must be (3, 3) numbers, is {camera_matrix!r:.80}") from None
    if not np.isfinite(K).all() or min(K[0, 0], K[1, 1]) <= 0 or not np.array_equal(K[2], (0, 0, 1)):
        raise ImageError(f"camera_matrix must be fx 0 cx 0 fy cy 0 0 1 with focal lengths above 0, is {K.tolist()}")
    return K


def instance_surface(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask whose depth is that of the instance.

    Left out are pixels without depth, mixed pixels between a near and a far surface, specks, and what lies far before
    or behind the rest of the mask.

    Args:
        mask: (H, W) bool.
        points: (H, W, 3) metres, see `deproject`.

    Returns:
        (H, W) bool.

    Raises:
        ImageError: the sizes of mask and points differ.
    """
    if points.shape != (*mask.shape, 3):
        raise ImageError(f"points {points.shape} do not belong to a mask of {mask.shape}: they must be (H, W, 3)")
    kept = mask & np.isfinite(points[..., 2])
    if not kept.any():
        return kept
    # One more pixel on each side, for the neighbours.
    x, y, width, height = tight_box(kept)
    part = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    z, inside = points[part][..., 2], kept[part]
    step = STEP + STEP_FRACTION * z
    around = np.pad(z, 1, constant_values=np.nan)
    nearer, farther, support = np.zeros(z.shape, bool), np.zeros(z.shape, bool), np.zeros(z.shape, np.int8)
    for row, column in np.ndindex(3, 3):
        if (row, column) != (1, 1):
            difference = around[row : row + z.shape[0], column : column + z.shape[1]] - z  # NaN compares as False
            nearer |= difference < -step
            farther |= difference > step
            support += np.abs(difference) <= step
    inside = inside & ~(nearer & farther) & (support >= MIN_SUPPORT)
    kept[part] = main_depths(points[part], inside)
    return kept


def main_depths(points: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return which of the chosen pixels (H, W) are at depths of their largest group that no gap divides.

    `points` (H, W, 3) are those of the pixels, in metres.
    """
    z, own = points[..., 2], points[chosen]
    if not len(own):
        return chosen
    own = own[:: -(-len(own) // BOX_POINTS)]
    lateral = np.ptp(np.percentile(own[:, :2], (5, 95), axis=0), axis=0).max()
    ordered = np.sort(own[:, 2])
    ends = np.append(np.flatnonzero(np.diff(ordered) > max(GAP, GAP_FRACTION * lateral)), len(ordered) - 1)
    largest = int(np.diff(ends, prepend=-1).argmax())
    first, last = ordered[ends[largest - 1] + 1 if largest else 0], ordered[ends[largest]]
    return chosen & (z >= first - GAP) & (z <= last + GAP)


def instance_points(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the (N, 3) points of an instance, without outliers; see `instance_surface`, also for errors."""
    return points[instance_surface(mask, points)]


def oriented_box(points: np.ndarray, *, valid_depth: float = 1.0) -> Box3D | None:
    """Return a small box around points, its longest axis first; None: fewer than 20 finite points.

    Of the boxes with one side along a principal axis, it is the one of least volume. Half a percent of the points may
    lie beyond each side.

    Args:
        points: (N, 3) metres.
        valid_depth: see `Box3D`.
    """
    points = np.asarray(points, np.float64).reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < MIN_POINTS:
        return None
    points = points[:: -(-len(points) // BOX_POINTS)]
    centred = points - np.median(points, axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    boxes = []
    for axis in range(3):
        first, second = (vectors[:, (axis + step) % 3] for step in (1, 2))
        plane = (centred @ np.stack([first, second], axis=1)).astype(np.float32)
        angle = np.radians(cv2.minAreaRect(plane)[2])
        along = np.cos(angle) * first + np.sin(angle) * second
        axes = np.stack([along, np.cross(vectors[:, axis], along), vectors[:, axis]], axis=1)
        low, high = np.quantile(centred @ axes, (TRIM, 1 - TRIM), axis=0)
        boxes.append((float(np.prod(high - low)), axes, low, high))
    _, axes, low, high = min(boxes, key=lambda box: box[0])
    order = np.argsort(low - high)
    rotation = axes[:, order]
    rotation[:, 2] = np.cross(rotation[:, 0], rotation[:, 1])
    center = np.median(points, axis=0) + axes @ ((low + high) / 2)
    return Box3D(center=center, rotation=rotation, size=(high - low)[order], valid_depth=valid_depth)


def lift(
    segmentation: Segmentation, depth: np.ndarray, camera_matrix: np.ndarray, poses: Sequence[Pose | None] | None = None
) -> list[Instance3D]:
    """Return the instances of an image in 3D.

    Args:
        segmentation: the result for the image.
        depth: (H, W) depth of the image's pixels, see `depth_in_metres`.
        camera_matrix: (3, 3) intrinsics of the image in pixels.
        poses: pose of each instance (see `Segmenter.poses`), whose boxes include the unseen side of the objects;
            default: none.

    Raises:
        ImageError: the depth is not of the image's size, or the camera matrix is not valid.
        ValueError: there is another number of poses than of instances.
    """
    metres = registered_depth(depth, segmentation.image_size)
    lifted = []
    for instance, pose in zip(segmentation.instances, poses or [None] * len(segmentation.instances), strict=True):
        x, y, width, height = instance.box
        # Two more pixels on each side, for the neighbours.
        left, top = max(x - 2, 0), max(y - 2, 0)
        part = np.s_[top : y + height + 2, left : x + width + 2]
        points = deproject(metres[part], camera_matrix, (left, top))
        surface = np.zeros(segmentation.image_size, bool)
        surface[part] = instance_surface(instance.mask[part], points)
        own = points[surface[part]]
        valid = float((metres[part] > 0)[instance.mask[part]].mean())
        if pose is not None and pose.fitness >= MIN_FITNESS:
            box: Box3D | None = dataclasses.replace(pose.box, valid_depth=valid)
        else:
            box = oriented_box(own, valid_depth=valid)
        lifted.append(Instance3D(instance=instance, surface=surface, points=own, box=box, pose=pose))
    return lifted


def registered_depth(depth: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Return `depth_in_metres` of a depth image; raises ImageError unless it has the size (H, W) of its image."""
    metres = depth_in_metres(depth)
    if metres.shape != image_size:
        raise ImageError(f"depth is {metres.shape} (H, W), the image {image_size}: register it to the image")
    return metres
