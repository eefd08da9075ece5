"""Failure analysis: classify the failures of a run, and draw them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from pycocotools import mask as coco

from ocdit_core.data.frame import Frame
from ocdit_core.evaluation.bop_results import ImageKey, ResultRow
from ocdit_core.evaluation.metrics import counts_of
from ocdit_core.evaluation.records import MIN_VISIBLE, ImageRecord
from ocdit_core.evaluation.targets import image_key
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import decode_mask, encode_mask, tight_box
from ocdit_core.visualization import overlay

Kind = Literal["missed", "false mask", "wrong object", "poor mask", "background", "duplicate"]
KINDS: dict[Kind, str] = {
    "missed": "the object is visible, but no mask for it has an IoU above 0.1 with it",
    "false mask": "the object is not in the image",
    "wrong object": "the mask lies on another object (IoU 0.5 or more)",
    "poor mask": "the mask has an IoU of 0.1 to 0.5 with its object",
    "background": "the object is visible, but the mask lies elsewhere, on no object",
    "duplicate": "the mask lies on its object, as does a mask with a higher score",
}
MATCH_IOU, TOUCH_IOU = 0.5, 0.1
_TRUTH_COLOUR, _PREDICTION_COLOUR = (60, 220, 90), (255, 70, 60)


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """One missed instance or one wrong mask.

    Attributes:
        kind: a key of KINDS.
        image: scene_id and image_id.
        object_id: obj_id of the target object.
        score: score of the mask; None for a missed object.
        iou: IoU of the mask with `ground_truth`; 0 without one.
        lies_on: obj_id of the object that a "wrong object" mask lies on; else None.
        predicted: RLE of the mask; None for a missed object.
        ground_truth: RLE of the instance that was missed or that the mask lies on; None if there is none.
    """

    kind: Kind
    image: ImageKey
    object_id: int
    score: float | None = None
    iou: float = 0.0
    lies_on: int | None = None
    predicted: dict[str, Any] | None = None
    ground_truth: dict[str, Any] | None = None


def find_failures(
    frames: Iterable[Frame],
    asked: Mapping[ImageKey, Collection[int]],
    rows: Mapping[ImageKey, Sequence[ResultRow]],
    threshold: float,
) -> list[Failure]:
    """Classify every wrong mask with a score of at least `threshold`, and every instance without a mask.

    Args:
        frames: the images.
        asked: target obj_ids of each image.
        rows: results of each image.
        threshold: score threshold.

    Returns:
        The failures by descending score, after the missed instances by descending area.

    Raises:
        DataError: masks of the dataset are missing or damaged.
    """
    failures = []
    for frame in frames:
        image = image_key(frame)
        kept = sorted((row for row in rows[image] if row.score >= threshold), key=lambda row: -row.score)
        failures += _classify(frame, asked[image], kept)
    return sorted(
        failures, key=lambda one: -float(coco.area(one.ground_truth)) if one.score is None else 1.0 - one.score
    )


def _classify(frame: Frame, asked: Collection[int], rows: list[ResultRow]) -> list[Failure]:
    failures = []
    image = image_key(frame)
    truths = [
        (annotation.object_id, mask, annotation.visible_fraction)
        for index, annotation in enumerate(frame.annotations)
        if coco.area(mask := encode_mask(frame.mask(index)))
    ]
    numbers = np.array([number for number, _, _ in truths], np.int64)
    masks = [mask for _, mask, _ in truths]
    ious = np.zeros((len(rows), len(truths)))
    if rows and truths:
        ious = np.asarray(coco.iou([row.segmentation for row in rows], masks, [0] * len(truths)))
    matched: set[int] = set()
    for row, line in zip(rows, ious, strict=True):
        own = np.where(numbers == row.category_id, line, -1.0)
        # Of several instances, the one that no mask with a higher score has matched.
        free = np.where([at in matched for at in range(len(truths))], -1.0, own)
        best = int(line.argmax()) if len(truths) else -1
        lies_on = int(numbers[best]) if best >= 0 and line[best] >= MATCH_IOU else None
        if len(truths) and free.max() >= MATCH_IOU:
            matched.add(int(free.argmax()))
            continue
        at = int(own.argmax()) if len(truths) and own.max() >= TOUCH_IOU else -1
        kind: Kind
        if lies_on is not None and lies_on != row.category_id:
            kind, at = "wrong object", best
        elif len(truths) and own.max() >= MATCH_IOU:
            kind = "duplicate"
        elif row.category_id not in numbers:
            kind = "false mask"
        else:
            kind = "poor mask" if at >= 0 else "background"
        failures.append(
            Failure(
                kind=kind,
                image=image,
                object_id=row.category_id,
                score=row.score,
                iou=float(line[at]) if at >= 0 else 0.0,
                lies_on=lies_on if kind == "wrong object" else None,
                predicted=row.segmentation,
                ground_truth=masks[at] if at >= 0 else None,
            )
        )
    for at, (number, mask, visible) in enumerate(truths):
        own_rows = [k for k, row in enumerate(rows) if row.category_id == number]
        # A visibility that the dataset does not state (NaN) counts as fully visible.
        if number in asked and not visible < MIN_VISIBLE and not any(ious[k, at] > TOUCH_IOU for k in own_rows):
            failures.append(Failure(kind="missed", image=image, object_id=number, ground_truth=mask))
    return failures


def rank_images(records: Sequence[ImageRecord], threshold: float) -> list[tuple[ImageKey, float]]:
    """Return the images that have instances to find with their mean IoU, in descending order."""
    sums: dict[int, np.ndarray] = {}
    for image, _, counts in counts_of(records, threshold):
        sums.setdefault(image, np.zeros(2))[:] += (counts.overlap, counts.instances)
    known = [
        ((records[image].scene_id, records[image].image_id), float(overlap / instances))
        for image, (overlap, instances) in sums.items()
        if instances
    ]
    return sorted(known, key=lambda entry: -entry[1])


def draw_comparison(
    frame: Frame,
    asked: Collection[int],
    rows: Sequence[ResultRow],
    names: Mapping[int, str],
    threshold: float,
    *,
    width: int = 420,
) -> np.ndarray:
    """Draw the ground truth (left) beside the results (right).

    Args:
        frame: the image.
        asked: target obj_ids; the ground truth of other objects is not drawn.
        rows: results for the image.
        names: object names by obj_id.
        threshold: score threshold.
        width: width of each half in pixels.

    Returns:
        (H, 2 * width + 4, 3) uint8 RGB.

    Raises:
        DataError: the image or a mask is missing or damaged.
    """
    truths = [
        (annotation.object_id, annotation.visible_fraction, frame.mask(index))
        for index, annotation in enumerate(frame.annotations)
        if annotation.object_id in asked
    ]
    results = [(row.category_id, row.score, decode_mask(row.segmentation)) for row in rows if row.score >= threshold]
    labels = {number: names.get(number, str(number)) for number, _, _ in [*truths, *results]}
    left, right = (
        draw_masks(
            frame.image(), [(labels[number], score, mask) for number, score, mask in masks], width, labels.values()
        )
        for masks in (truths, results)
    )
    return np.concatenate([left, np.full((len(left), 4, 3), 255, np.uint8), right], axis=1)


def draw_masks(
    image: np.ndarray, masks: Sequence[tuple[str, float, np.ndarray]], width: int, names: Iterable[str] = ()
) -> np.ndarray:
    """Draw labelled masks over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: label, score and (H, W) bool mask of each; a score of NaN is shown as 1.
        width: width of the drawing in pixels.
        names: all labels, to give them the same colours in several drawings; default: those of the masks.

    Returns:
        (h, width, 3) uint8 RGB.
    """
    size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
    interpolation = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_LINEAR
    instances = []
    for label, score, mask in sorted(masks, key=lambda one: -one[1]):
        small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
        if small.any():
            score = 1.0 if np.isnan(score) else score
            instances.append(Instance(object_id=label, score=score, box=tight_box(small), mask=small))
    ids = tuple(dict.fromkeys(names))
    segmentation = Segmentation(instances=tuple(instances), image_size=(size[1], size[0]), target_ids=ids)
    return overlay(np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8), segmentation)


def draw_failure(image: np.ndarray, failure: Failure, *, side: int = 224) -> np.ndarray:
    """Draw a crop around a failure: ground truth outlined in green, the predicted mask in red.

    Args:
        image: (H, W, 3) uint8 RGB.
        failure: a failure in this image.
        side: size of the crop in pixels.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    outlines = [
        (decode_mask(mask), colour)
        for mask, colour in ((failure.ground_truth, _TRUTH_COLOUR), (failure.predicted, _PREDICTION_COLOUR))
        if mask
    ]
    x, y, w, h = tight_box(np.logical_or.reduce([mask for mask, _ in outlines]))
    half = 0.8 * max(w, h, 32)
    scale = side / (2 * half)
    affine = np.array([[scale, 0, side / 2 - scale * (x + w / 2)], [0, scale, side / 2 - scale * (y + h / 2)]])
    crop = cv2.warpAffine(image, affine, (side, side), flags=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for mask, colour in outlines:
        warped = cv2.warpAffine(mask.astype(np.uint8), affine, (side, side), flags=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(warped, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(crop, contours, -1, (0, 0, 0), 4, cv2.LINE_AA)
        cv2.drawContours(crop, contours, -1, colour, 2, cv2.LINE_AA)
    return np.asarray(crop, np.uint8)
