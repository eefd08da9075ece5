"""A picture with its truth, on its way to disk: what a renderer knows, and BOP's numbers worked out from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.decoding import picture_size
from ocdit_core.data.frame import mask_box
from ocdit_core.errors import DataError

DEPTH_SCALE = 0.1
"""Millimetres of one unit of the depth maps that are written: up to 6.5 m."""

_UNSEEN = [-1, -1, -1, -1]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTruth:
    """One object of a picture.

    Attributes:
        object_id: BOP's obj_id, 0 or more.
        rotation: (3, 3) camera-from-model, OpenCV axes.
        translation: (3,) camera-from-model, metres.
        visible: (H, W) bool, what is seen of it.
        silhouette: (h, w) bool, all of it, on the picture or on a larger canvas, where objects that the picture's
            border cuts are whole.
        origin: x and y of the picture's first pixel on that canvas.
        whole: pixels of the whole silhouette and its box (x, y, width, height, from the picture's first pixel), where
            they are known though the canvas ends at the picture's border; default: counted on the canvas.
    """

    object_id: int
    rotation: NDArray[np.floating[Any]]
    translation: NDArray[np.floating[Any]]
    visible: NDArray[np.bool_]
    silhouette: NDArray[np.bool_]
    origin: tuple[int, int] = (0, 0)
    whole: tuple[int, tuple[int, int, int, int]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameTruth:
    """A picture and all that is known of it.

    Attributes:
        image: (H, W, 3) uint8 RGB, or the bytes of a JPEG or PNG file, which are kept as they are.
        K: (3, 3) intrinsics in pixels.
        depth: (H, W) metres along the optical axis, 0 where there is nothing; None: no depth map is written.
        objects: those in the picture; what is not seen at all may be among them.
        rotation: (3, 3) camera-from-world, optional.
        translation: (3,) camera-from-world, metres, optional.
    """

    image: NDArray[np.uint8] | bytes
    K: NDArray[np.floating[Any]]
    depth: NDArray[np.floating[Any]] | None = None
    objects: Sequence[ObjectTruth] = field(default_factory=tuple)
    rotation: NDArray[np.floating[Any]] | None = None
    translation: NDArray[np.floating[Any]] | None = None


def camera_entry(frame: FrameTruth) -> dict[str, Any]:
    """Return a picture's entry in scene_camera.json."""
    entry: dict[str, Any] = {"cam_K": _list(frame.K, (3, 3), "K"), "depth_scale": DEPTH_SCALE}
    if frame.rotation is not None and frame.translation is not None:
        entry["cam_R_w2c"] = _list(frame.rotation, (3, 3), "rotation")
        entry["cam_t_w2c"] = _list(np.asarray(frame.translation) * 1000, (3,), "translation")
    return entry


def object_entry(truth: ObjectTruth) -> dict[str, Any]:
    """Return an object's entry in scene_gt.json: the pose in millimetres."""
    return {
        "obj_id": int(truth.object_id),
        "cam_R_m2c": _list(truth.rotation, (3, 3), "rotation"),
        "cam_t_m2c": _list(np.asarray(truth.translation) * 1000, (3,), "translation"),
    }


def info_entry(truth: ObjectTruth, depth: NDArray[np.floating[Any]] | None) -> dict[str, Any]:
    """Return an object's entry in scene_gt_info.json, by the rules of the BOP toolkit's calc_gt_info.py.

    Counts of the whole silhouette hold its part outside the picture, as far as the canvas reaches. A box is x, y and
    the differences from the first to the last column and row, so that one pixel has the box x, y, 0, 0; an object of
    which nothing is seen has the boxes -1, -1, -1, -1.
    """
    everything = pixels_of_silhouette(truth)
    seen = int(np.count_nonzero(truth.visible))
    valid = 0 if depth is None else int(np.count_nonzero((depth > 0) & inside(truth)))
    return {
        "bbox_obj": _whole_box(truth) if seen else _UNSEEN,
        "bbox_visib": _bop_box(truth.visible, (0, 0)) if seen else _UNSEEN,
        "px_count_all": everything,
        "px_count_valid": valid,
        "px_count_visib": seen,
        "visib_fract": visible_fraction(truth),
    }


def pixels_of_silhouette(truth: ObjectTruth) -> int:
    """Return the pixels of the whole silhouette, as far as it is known."""
    counted = int(np.count_nonzero(truth.silhouette))
    # Two drawings of one silhouette differ by a pixel of its rim now and then.
    return counted if truth.whole is None else max(counted, truth.whole[0])


def visible_fraction(truth: ObjectTruth) -> float:
    """Return BOP's visib_fract: the share of the whole silhouette that is seen, 0 to 1."""
    everything = pixels_of_silhouette(truth)
    return int(np.count_nonzero(truth.visible)) / everything if everything else 0.0


def inside(truth: ObjectTruth) -> NDArray[np.bool_]:
    """Return the (H, W) part of a silhouette that is in the picture: BOP's `mask`."""
    (x, y), (height, width) = truth.origin, truth.visible.shape
    return truth.silhouette[y : y + height, x : x + width]


def check(frame: FrameTruth, where: str) -> tuple[int, int]:
    """Return a picture's height and width.

    Raises:
        DataError: masks or depth of another size, pixels that are seen but not of the silhouette, or a canvas that does
            not hold the picture; the message names `where`.
    """
    image = frame.image
    if isinstance(image, bytes):
        size = picture_size(image, f"{where}: the image's bytes")
    else:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(f"{where}: the image is {image.dtype} {image.shape}, not uint8 (H, W, 3)")
        size = image.shape[:2]
    if frame.depth is not None and frame.depth.shape != size:
        raise DataError(f"{where}: depth has the shape {frame.depth.shape}, the image {size}")
    for number, truth in enumerate(frame.objects):
        if truth.visible.shape != size:
            raise DataError(f"{where}: object {number}: visible has the shape {truth.visible.shape}, the image {size}")
        if min(truth.origin) < 0 or inside(truth).shape != size:
            raise DataError(
                f"{where}: object {number}: the canvas {truth.silhouette.shape} from {truth.origin} does not hold "
                f"the image {size}"
            )
        stray = int(np.count_nonzero(truth.visible & ~inside(truth)))
        if stray:
            raise DataError(f"{where}: object {number}: {stray} pixels are visible but not of its silhouette")
    return size[0], size[1]


def encode_image(image: NDArray[np.uint8] | bytes, *, quality: int) -> tuple[bytes, str]:
    """Return a picture's file and its suffix: JPEG of this quality, or the bytes that were given."""
    if isinstance(image, bytes):
        return image, ".png" if image.startswith(b"\x89PNG") else ".jpg"
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return _encoded(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality]), ".jpg"


def encode_depth(depth: NDArray[np.floating[Any]]) -> bytes:
    """Return a PNG file of 16 bits in units of DEPTH_SCALE; what is beyond its range or not finite becomes 0."""
    units = np.nan_to_num(np.asarray(depth, np.float32) * np.float32(1000 / DEPTH_SCALE), posinf=0, neginf=0)
    units = np.where((units < 0) | (units > 65535), 0, np.rint(units))
    # Surfaces are smooth from row to row; by itself OpenCV tries all filters in each row, which takes twice as long.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, *_filter("IMWRITE_PNG_FILTER_UP")]
    return _encoded(".png", units.astype(np.uint16), options)


def encode_mask_image(mask: NDArray[np.bool_]) -> bytes:
    """Return a PNG file of a mask: 255 where it is True."""
    # Runs of equal bytes are what masks are made of: five times as quick as OpenCV's own choice, and smaller.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    options += _filter("IMWRITE_PNG_FILTER_NONE")
    return _encoded(".png", mask.astype(np.uint8) * 255, options)


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask as BOP's shards hold it: {"counts": [...], "size": [H, W]}, run lengths column by column.

    COCO's tools write them as a compressed string, the BOP toolkit and so the published shards as a list.
    """
    values = np.ascontiguousarray(mask.T).reshape(-1)
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    edges = np.concatenate([[0], changes, [values.size]])
    counts = np.diff(edges).tolist()
    # The first run is of the background, however short.
    return {"counts": [0, *counts] if values[0] else counts, "size": [int(side) for side in mask.shape]}


def _bop_box(mask: NDArray[np.bool_], origin: tuple[int, int]) -> list[int]:
    box = mask_box(mask)
    return _UNSEEN if box is None else [box[0] - origin[0], box[1] - origin[1], box[2] - 1, box[3] - 1]


def _whole_box(truth: ObjectTruth) -> list[int]:
    if truth.whole is None:
        return _bop_box(truth.silhouette, truth.origin)
    x, y, width, height = truth.whole[1]
    return [x, y, width - 1, height - 1]


def _list(values: NDArray[np.floating[Any]], shape: tuple[int, ...], name: str) -> list[float]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise DataError(f"{name} has the shape {array.shape} or values that are not finite, not {shape} numbers")
    return [float(value) for value in array.ravel()]


def _filter(name: str) -> list[int]:
    # Older versions of OpenCV do not let one choose.
    return [cv2.IMWRITE_PNG_FILTER, getattr(cv2, name)] if hasattr(cv2, name) else []


def _encoded(suffix: str, pixels: NDArray[Any], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise DataError(f"a picture of {pixels.shape} cannot be written as {suffix}")
    return data.tobytes()
