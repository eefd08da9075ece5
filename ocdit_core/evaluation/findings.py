"""What went wrong, mask by mask: which object's mask lies on which true object, and each failure by its kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco

from ocdit_core.data.frame import Frame
from ocdit_core.evaluation.bop_results import ImageKey, ResultRow
from ocdit_core.evaluation.records import MIN_VISIBLE
from ocdit_core.evaluation.targets import image_key
from ocdit_core.masks import encode_mask

Kind = Literal["missed", "false mask", "wrong object", "bad mask", "wrong place", "twice"]
KINDS: dict[Kind, str] = {
    "missed": "the object is there, and no mask for it overlaps it by more than 0.1",
    "false mask": "the object is not in the picture",
    "wrong object": "the mask lies on another object",
    "bad mask": "the mask overlaps its object by 0.1 to 0.5",
    "wrong place": "the object is there, and its mask is elsewhere, on no object",
    "twice": "the mask lies on its object, as one with a higher score does",
}
RIGHT, TOUCHES = 0.5, 0.1
"""Overlap from which on a mask lies on an object, and from which on it has anything to do with it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """One thing that went wrong.

    Attributes:
        kind: what.
        image: where.
        object_id: that was looked for.
        score: of the mask; None for a missed object.
        overlap: of the mask with what it should, or does, lie on.
        lies_on: the other object's obj_id; None where there is none.
        found: run lengths of the mask; None for a missed object.
        truth: run lengths of what it should, or does, lie on; None where there is nothing.
    """

    kind: Kind
    image: ImageKey
    object_id: int
    score: float | None = None
    overlap: float = 0.0
    lies_on: int | None = None
    found: dict[str, Any] | None = None
    truth: dict[str, Any] | None = None


@dataclass(kw_only=True)
class Findings:
    """Of all images.

    Attributes:
        failures: each, by falling score; missed ones by falling area.
        confusion: how many masks of an object (second) lie on a true object (first), None for no object.
    """

    failures: list[Failure] = field(default_factory=list)
    confusion: Counter[tuple[int | None, int]] = field(default_factory=Counter)

    def of(self, kind: Kind) -> list[Failure]:
        """Return the failures of a kind."""
        return [failure for failure in self.failures if failure.kind == kind]


def find_failures(
    frames: Iterable[Frame],
    asked: Mapping[ImageKey, Collection[int]],
    rows: Mapping[ImageKey, Sequence[ResultRow]],
    threshold: float,
) -> Findings:
    """Look at every mask with a score of `threshold` or more.

    Args:
        frames: the images.
        asked: the obj_ids that were looked for in each.
        rows: what was found in each.
        threshold: of the scores.

    Raises:
        DataError: masks of the dataset are missing or damaged.
    """
    findings = Findings()
    for frame in frames:
        image = image_key(frame)
        sure = sorted((row for row in rows[image] if row.score >= threshold), key=lambda row: -row.score)
        _look(findings, frame, asked[image], sure)
    missed = {id(one): float(coco.area(one.truth)) for one in findings.failures if one.kind == "missed"}
    findings.failures.sort(key=lambda one: -missed[id(one)] if one.score is None else -one.score)
    return findings


def _look(findings: Findings, frame: Frame, asked: Collection[int], rows: list[ResultRow]) -> None:
    image = image_key(frame)
    truths = []
    for index, annotation in enumerate(frame.annotations):
        mask = encode_mask(frame.mask(index))
        if coco.area(mask):
            truths.append((annotation.object_id, mask, annotation.visible_fraction))
    numbers = np.array([number for number, _, _ in truths], np.int64)
    masks = [mask for _, mask, _ in truths]
    overlaps = np.zeros((len(rows), len(truths)))
    if rows and truths:
        overlaps = np.asarray(coco.iou([row.segmentation for row in rows], masks, [0] * len(truths)))
    taken: set[int] = set()
    for row, line in zip(rows, overlaps, strict=True):
        own = np.where(numbers == row.category_id, line, -1.0)
        # Of several instances the one that no better mask has yet.
        free = np.where([at in taken for at in range(len(truths))], -1.0, own)
        best = int(line.argmax()) if len(truths) else -1
        on = int(numbers[best]) if best >= 0 and line[best] >= RIGHT else None
        findings.confusion[on, row.category_id] += 1
        if len(truths) and free.max() >= RIGHT:
            taken.add(int(free.argmax()))
            continue
        at = int(own.argmax()) if len(truths) and own.max() >= TOUCHES else -1
        kind: Kind
        if on is not None and on != row.category_id:
            kind, at = "wrong object", best
        elif len(truths) and own.max() >= RIGHT:
            kind = "twice"
        elif row.category_id not in numbers:
            kind = "false mask"
        else:
            kind = "bad mask" if at >= 0 else "wrong place"
        findings.failures.append(
            Failure(
                kind=kind,
                image=image,
                object_id=row.category_id,
                score=row.score,
                overlap=float(line[at]) if at >= 0 else 0.0,
                lies_on=on if kind == "wrong object" else None,
                found=row.segmentation,
                truth=masks[at] if at >= 0 else None,
            )
        )
    for at, (number, mask, visible) in enumerate(truths):
        own_rows = [k for k, row in enumerate(rows) if row.category_id == number]
        # Where the dataset does not say how much is seen (NaN), all of it counts.
        if number in asked and not visible < MIN_VISIBLE and not any(overlaps[k, at] > TOUCHES for k in own_rows):
            findings.failures.append(Failure(kind="missed", image=image, object_id=number, truth=mask))
