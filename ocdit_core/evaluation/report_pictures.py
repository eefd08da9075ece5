"""Pictures of a report: whole images with the truth beside what was found, and close-ups of failures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import cv2
import numpy as np

from ocdit_core.data.frame import Frame
from ocdit_core.evaluation.bop_results import ImageKey, ResultRow
from ocdit_core.evaluation.findings import Failure
from ocdit_core.evaluation.records import ImageRecord
from ocdit_core.evaluation.summary import counts_of
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import decode_mask, tight_box
from ocdit_core.visualization import overlay

_TRUE, _FOUND = (60, 220, 90), (255, 70, 60)


def ranked_images(records: Sequence[ImageRecord], threshold: float) -> list[tuple[ImageKey, float]]:
    """Return the images that have instances to find, with the mean IoU over these, the best first."""
    sums: dict[int, np.ndarray] = {}
    for image, _, counts in counts_of(records, threshold):
        sums.setdefault(image, np.zeros(2))[:] += (counts.overlap, counts.instances)
    known = [
        ((records[image].scene_id, records[image].image_id), float(overlap / instances))
        for image, (overlap, instances) in sums.items()
        if instances
    ]
    return sorted(known, key=lambda entry: -entry[1])


def side_by_side(
    frame: Frame,
    asked: Collection[int],
    rows: Sequence[ResultRow],
    names: Mapping[int, str],
    threshold: float,
    *,
    width: int = 420,
) -> np.ndarray:
    """Draw the truth on the left and what was found on the right.

    Args:
        frame: the image.
        asked: obj_ids that were looked for: the truth of others is not drawn.
        rows: what was found in it.
        names: of the objects, by obj_id.
        threshold: of the scores.
        width: of each of the two in pixels.

    Returns:
        (H, 2 * width + 4, 3) uint8 RGB.

    Raises:
        DataError: the picture or a mask is missing or damaged.
    """
    image = frame.image()
    size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
    truths = [
        (annotation.object_id, annotation.visible_fraction, frame.mask(index))
        for index, annotation in enumerate(frame.annotations)
        if annotation.object_id in asked
    ]
    found = [(row.category_id, row.score, decode_mask(row.segmentation)) for row in rows if row.score >= threshold]
    targets = tuple(dict.fromkeys(_name(names, number) for number, _, _ in [*truths, *found]))
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    halves = []
    for masks in (truths, found):
        instances = []
        for number, score, mask in sorted(masks, key=lambda one: -one[1]):
            small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
            if small.any():
                name = _name(names, number)
                instances.append(Instance(object_id=name, score=score, box=tight_box(small), mask=small))
        result = Segmentation(instances=tuple(instances), image_size=(size[1], size[0]), target_ids=targets)
        halves.append(overlay(np.asarray(shrunk, np.uint8), result))
    return np.concatenate([halves[0], np.full((size[1], 4, 3), 255, np.uint8), halves[1]], axis=1)


def close_up(image: np.ndarray, failure: Failure, *, side: int = 224) -> np.ndarray:
    """Draw the surroundings of a failure: the truth outlined in green, what was found in red.

    Args:
        image: (H, W, 3) uint8 RGB.
        failure: in it.
        side: of the square in pixels.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    outlines = [
        (decode_mask(mask), colour) for mask, colour in ((failure.truth, _TRUE), (failure.found, _FOUND)) if mask
    ]
    x, y, w, h = tight_box(np.logical_or.reduce([mask for mask, _ in outlines]))
    half = 0.8 * max(w, h, 32)
    scale = side / (2 * half)
    place = np.array([[scale, 0, side / 2 - scale * (x + w / 2)], [0, scale, side / 2 - scale * (y + h / 2)]])
    drawn = cv2.warpAffine(image, place, (side, side), flags=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for mask, colour in outlines:
        shown = cv2.warpAffine(mask.astype(np.uint8), place, (side, side), flags=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(shown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, (0, 0, 0), 4, cv2.LINE_AA)
        cv2.drawContours(drawn, contours, -1, colour, 2, cv2.LINE_AA)
    return np.asarray(drawn, np.uint8)


def _name(names: Mapping[int, str], number: int) -> str:
    return names.get(number, str(number))
