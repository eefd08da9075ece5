"""Binary masks and boxes: COCO run lengths and polygons, intersection over union, tight boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from ocdit_core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[int, int, int, int]
"""(x, y, width, height) in pixels: x and y are the left column and the top row that belong to the box, and its last
column is x + width - 1. COCO uses the same convention; BOP stores width - 1 and height - 1."""


def encode_mask(mask: np.ndarray, *, compressed: bool = True) -> dict[str, Any]:
    """Return the run lengths of a mask, ready for JSON.

    Args:
        mask: (H, W) bool.
        compressed: write the counts as COCO's compressed string; False writes the list of numbers that the BOP toolkit
            uses.

    Returns:
        {"size": [H, W], "counts": str or list of int}, column by column, starting with the background.
    """
    counts = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")
    rle = {"size": [int(side) for side in mask.shape], "counts": counts}
    return rle if compressed else rle | {"counts": mask_runs(rle).tolist()}


def mask_runs(rle: dict[str, Any]) -> npt.NDArray[np.int64]:
    """Return the length of each run of COCO run lengths, compressed (a string) or plain (a list of numbers).

    Raises:
        DataError: the run lengths are damaged or do not add up to the size.
    """
    try:
        height, width = rle["size"]
        counts = rle["counts"]
        runs = np.array(counts, np.int64) if isinstance(counts, list) else _decompress(counts.encode("ascii"))
        if runs.sum() != height * width or runs.min(initial=0) < 0:
            raise ValueError(f"the counts add up to {runs.sum()} pixels, the size is {height} x {width}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"run lengths of a mask are damaged: {' '.join(str(error).split())}") from error
    return runs


def _decompress(counts: bytes) -> npt.NDArray[np.int64]:
    """Return the runs of COCO's compressed run lengths; pycocotools would read past the end of damaged ones.

    Five bits a character, lowest first; bit 5 says that more follow; from the fourth run on, the difference to the one
    before the last is stored.
    """
    data = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((data & 32) == 0)
    lengths = np.diff(ends, prepend=-1)
    if not ends.size or ends[-1] + 1 < data.size or data.min() < 0 or data.max() > 63 or lengths.max() > 7:
        raise ValueError("the compressed counts cannot be read")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(data.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((data & 31) << shifts, starts) - np.where(data[ends] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return np.asarray(runs)


def decode_mask(rle: dict[str, Any]) -> np.ndarray:
    """Return the (H, W) bool mask of COCO run lengths; see `mask_runs`, also for errors."""
    runs = mask_runs(rle)
    height, width = rle["size"]
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T.copy()


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of a segmentation as COCO and YouTube-VIS write it.

    Args:
        segmentation: run lengths (see `decode_mask`), a list of polygons x, y, x, y ..., whose union counts, or None:
            nothing.
        size: H, W in pixels, for polygons and None.

    Returns:
        (H, W) bool; run lengths have their own size.

    Raises:
        DataError: the run lengths are damaged, or a polygon is not a list of the x, y of three points or more.
    """
    if isinstance(segmentation, dict):
        return decode_mask(segmentation)
    mask = np.zeros(size, bool)
    try:
        for polygon in segmentation or ():
            points = np.array(polygon, np.float64)
            if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
                raise ValueError(f"{len(polygon)} values are not the finite x, y of three points or more")
            mask |= coco.decode(coco.frPyObjects([points.tolist()], *size))[..., 0] > 0
    except (TypeError, ValueError) as error:
        raise DataError(f"a polygon of a mask is damaged: {error}") from error
    return mask


@overload
def mask_iou(first: np.ndarray, second: np.ndarray) -> npt.NDArray[np.float64]: ...
@overload
def mask_iou(first: Tensor, second: Tensor) -> Tensor: ...
def mask_iou(first: Any, second: Any) -> Any:
    """Return the intersection over union of each pair of masks; 1 where both are empty.

    Args:
        first: (..., H, W) bool array or tensor.
        second: (..., H, W) bool array or tensor; leading dimensions broadcast.

    Returns:
        (...) floats in [0, 1], of the kind (array or tensor) that was given.

    Raises:
        ValueError: the masks have different sizes.
    """
    if first.shape[-2:] != second.shape[-2:]:
        raise ValueError(f"masks of {tuple(first.shape[-2:])} and {tuple(second.shape[-2:])} pixels do not compare")
    intersection, union = (first & second).sum((-2, -1)), (first | second).sum((-2, -1))
    return (intersection + (union == 0)) / union.clip(min=1)


def box_iou(first: Box, second: Box) -> float:
    """Return the intersection over union of two boxes; 0 where both are empty."""
    wide = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    high = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    intersection = max(wide, 0) * max(high, 0)
    return intersection / max(first[2] * first[3] + second[2] * second[3] - intersection, 1)


def tight_box(mask: np.ndarray) -> Box:
    """Return the tight bounding box of a (H, W) bool mask.

    Raises:
        ValueError: the mask is empty.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        raise ValueError("an empty mask has no box")
    top, bottom = int(rows[0]), int(rows[-1])
    columns = np.flatnonzero(mask[top : bottom + 1].any(axis=0))
    return int(columns[0]), top, int(columns[-1] - columns[0] + 1), bottom - top + 1
