"""Records of an evaluation: scores, areas, visibility and overlaps of each image and object, without masks.

All metrics are computed from records alone. In a file they are JSON lines, one line per image.
"""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from ocdit_core.data.frame import Frame
from ocdit_core.errors import DataError
from ocdit_core.evaluation.bop_results import ResultRow
from ocdit_core.evaluation.drawn_prompts import drawn_point
from ocdit_core.files import replacing
from ocdit_core.masks import decode_mask, encode_mask

MAX_DETECTIONS = 100
"""Results of one object in one image that count, by descending score (COCO's rule)."""

MIN_VISIBLE = 0.1
"""Visible fraction below which an instance is ignored: results for it are neither right nor wrong (BOP's rule)."""

_ARRAYS = ("scores", "areas", "truth_areas", "visibility", "overlaps", "box_overlaps", "point_scores")
_Truth = tuple[dict[str, Any], float, Sequence[float], tuple[int, int]]
_LATER = ("box_overlaps", "point_scores")


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetRecord:
    """One object in one image: D results for it, and G instances that the image shows.

    Attributes:
        object_id: BOP obj_id.
        asked: whether it is a target. Instances of other objects are ignored; results for other objects count.
        scores: (D,) float64, in descending order.
        areas: (D,) float64 pixels: area of each result's box, as in the BOP toolkit; of its mask if it has no box.
        truth_areas: (G,) float64 pixels: visible area of each instance, above 0.
        visibility: (G,) float64: visible fraction of each instance; NaN if the dataset does not state it.
        overlaps: (D, G) float64: IoU of the masks.
        box_overlaps: (D, G) float64: IoU of the boxes. An instance's box is that of its whole silhouette, where the
            dataset states it (BOP's rule), else of its mask. None in records of older versions.
        point_scores: (G,) float64: highest score of a result whose mask shows the point that is drawn for the instance
            (see `drawn_point`), NaN without one. None in records of older versions.
    """

    object_id: int
    asked: bool
    scores: NDArray[np.float64]
    areas: NDArray[np.float64]
    truth_areas: NDArray[np.float64]
    visibility: NDArray[np.float64]
    overlaps: NDArray[np.float64]
    box_overlaps: NDArray[np.float64] | None = None
    point_scores: NDArray[np.float64] | None = None

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """(G,) whether each instance is ignored."""
        return np.full(len(self.visibility), not self.asked) | (self.visibility < MIN_VISIBLE)

    @property
    def absent(self) -> bool:
        """Whether it is a target that the image does not show."""
        return self.asked and not len(self.truth_areas)


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image.

    Attributes:
        scene_id: BOP scene_id.
        image_id: BOP im_id.
        size: height and width in pixels.
        time: run time of the method in seconds; -1 if unknown.
        timings: run time in seconds by stage.
        targets: objects that are targets, that are visible, or that have results.
    """

    scene_id: int
    image_id: int
    size: tuple[int, int]
    time: float
    timings: dict[str, float] = field(default_factory=dict)
    targets: tuple[TargetRecord, ...]


def record_image(
    frame: Frame,
    asked: Collection[int],
    rows: Sequence[ResultRow],
    *,
    time: float = -1.0,
    timings: Mapping[str, float] | None = None,
) -> ImageRecord:
    """Compare the results for an image with its ground truth.

    Args:
        frame: the image.
        asked: target obj_ids.
        rows: all results for the image.
        time: run time in seconds; -1 if unknown.
        timings: run time in seconds by stage.

    Raises:
        DataError: the image's annotations or masks are missing or damaged.
    """
    found: dict[int, list[ResultRow]] = defaultdict(list)
    for row in rows:
        found[row.category_id].append(row)
    seen: dict[int, list[_Truth]] = defaultdict(list)
    for index, annotation in enumerate(frame.annotations):
        # Masks are needed even if the object has no results: the breakdown by size needs their areas.
        pixels = frame.mask(index)
        mask = encode_mask(pixels)
        if coco.area(mask):
            box = annotation.box_object or coco.toBbox(mask).tolist()
            point = drawn_point(frame, index, pixels)
            seen[annotation.object_id].append((mask, annotation.visible_fraction, box, point))
    return ImageRecord(
        scene_id=frame.scene_id,
        image_id=frame.image_id,
        size=frame.size,
        time=time,
        timings=dict(timings or {}),
        targets=tuple(
            _record(number, number in asked, found[number], seen[number]) for number in sorted({*asked, *found, *seen})
        ),
    )


def _record(number: int, asked: bool, rows: list[ResultRow], truths: list[_Truth]) -> TargetRecord:
    # A stable sort, as COCO's.
    rows = sorted(rows, key=lambda row: -row.score)[:MAX_DETECTIONS]
    masks = [row.segmentation for row in rows]
    truth_masks = [mask for mask, *_ in truths]
    boxes = [coco.toBbox(row.segmentation).tolist() if row.box is None else list(row.box) for row in rows]
    overlaps, box_overlaps = (
        coco.iou(ours, theirs, [0] * len(truths)) if rows and truths else ()
        for ours, theirs in ((masks, truth_masks), (boxes, [list(map(float, box)) for _, _, box, _ in truths]))
    )
    shown = [decode_mask(row.segmentation) for row in rows] if truths else []
    points = [
        next((row.score for row, mask in zip(rows, shown, strict=True) if mask[y, x]), math.nan)
        for *_, (x, y) in truths
    ]
    areas = [float(coco.area(row.segmentation)) if row.box is None else row.box[2] * row.box[3] for row in rows]
    return TargetRecord(
        object_id=number,
        asked=asked,
        scores=np.array([row.score for row in rows], np.float64),
        areas=np.array(areas, np.float64),
        truth_areas=np.array([coco.area(mask) for mask in truth_masks], np.float64),
        visibility=np.array([fraction for _, fraction, *_ in truths], np.float64),
        overlaps=np.array(overlaps, np.float64).reshape(len(rows), len(truths)),
        box_overlaps=np.array(box_overlaps, np.float64).reshape(len(rows), len(truths)),
        point_scores=np.array(points, np.float64),
    )


def write_records(path: str | Path, records: Iterable[ImageRecord]) -> None:
    """Write records as JSON lines, atomically.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for record in records:
            targets = [
                {"obj_id": target.object_id, "asked": target.asked}
                | {key: _without_nan(value) for key in _ARRAYS if (value := getattr(target, key)) is not None}
                for target in record.targets
            ]
            file.write(json.dumps(vars(record) | {"targets": targets}) + "\n")


def _without_nan(values: NDArray[np.float64]) -> Any:
    """Return an array as lists with None for NaN, which JSON does not have."""
    known: NDArray[Any] = values.astype(object)
    known[np.isnan(values)] = None
    return known.tolist()


def read_records(path: str | Path) -> list[ImageRecord]:
    """Read what `write_records` wrote.

    Raises:
        DataError: missing or damaged; the message names the line.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", kind="missing file") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_from_json(json.loads(line)))
        except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
            reason = " ".join(str(error).split())[:100]
            raise DataError(f"{path}: line {number} is no record ({reason})", kind="damaged JSON") from error
    return records


def _from_json(entry: dict[str, Any]) -> ImageRecord:
    targets = []
    for target in entry["targets"]:
        # None becomes NaN.
        arrays = {key: np.array(target[key], np.float64) for key in _ARRAYS if key in target or key not in _LATER}
        results, instances = len(arrays["scores"]), len(arrays["truth_areas"])
        for key in set(_ARRAYS[4:6]) & set(arrays):
            arrays[key] = arrays[key].reshape(results, instances)
        columns = {"scores": results, "areas": results} | dict.fromkeys(
            ("truth_areas", "visibility", "point_scores"), instances
        )
        if any(arrays[key].shape != (length,) for key, length in columns.items() if key in arrays):
            raise ValueError("columns of different lengths")
        targets.append(TargetRecord(object_id=int(target["obj_id"]), asked=bool(target["asked"]), **arrays))
    height, width = entry["size"]
    return ImageRecord(
        scene_id=int(entry["scene_id"]),
        image_id=int(entry["image_id"]),
        size=(int(height), int(width)),
        time=float(entry["time"]),
        timings=dict(entry["timings"]),
        targets=tuple(targets),
    )
