"""Average precision of masks and boxes by COCO's and BOP's rules, as in `eval_bop22_coco.py` of the BOP toolkit.

pycocotools matches results and instances. The curves are computed here, from the records, because pycocotools cannot
restrict them to a visibility or weight images (for the bootstrap) without matching anew.

Rules: https://cocodataset.org/#detection-eval and
https://github.com/thodan/bop_toolkit/blob/master/scripts/eval_bop22_coco.py
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from ocdit_core.evaluation.records import MAX_DETECTIONS, ImageRecord, TargetRecord

# Bitwise equal to those of pycocotools.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AT_50, AT_75 = 0, 5
"""Indices of 0.5 and 0.75 in IOU_THRESHOLDS."""

ANY_OVERLAP = np.array([1e-9])
"""IoU threshold that a single common pixel exceeds."""


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """Average precision and recall, 0 to 1; NaN if there are no instances to find.

    Attributes:
        ap: mean over the IoU thresholds 0.5, 0.55 ... 0.95.
        ap50: at IoU 0.5.
        ap75: at IoU 0.75.
        ar: average recall over the same thresholds, of at most 100 results per object and image.
        instances: number of instances to find.
    """

    ap: float
    ap50: float
    ap75: float
    ar: float
    instances: int


Selection = Callable[[ImageRecord, TargetRecord], tuple[NDArray[np.bool_], NDArray[np.bool_]]]
"""Return which instances (G,), and which results without a match (D,), count; others are ignored."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The D results for one object in all I images, by descending score; equal scores in the order of the images.

    Attributes:
        right: (T, D) whether a result matches an instance, at each threshold.
        wrong: (T, D) whether it matches none; ignored results are neither.
        images: (D,) index of each result's record.
        instances: (I,) number of instances to find in each image.
    """

    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    images: NDArray[np.int64]
    instances: NDArray[np.int64]

    def average_precision(self, weights: NDArray[np.int64] | None = None) -> AveragePrecision | None:
        """Return the average precision of this object; None if there are no instances to find.

        Args:
            weights: (I,) weight of each image, default 1: equivalent to that many copies of its record.
        """
        if weights is None:
            weights = np.ones(len(self.instances), np.int64)
        instances = int(weights @ self.instances)
        if not instances:
            return None
        precision, recall = np.zeros((len(self.right), len(RECALLS))), np.zeros(len(self.right))
        if len(self.images):
            often = weights[self.images]
            precision, recall = curves(self.right * often, self.wrong * often, instances)
        return AveragePrecision(
            ap=float(precision.mean()),
            ap50=float(precision[AT_50].mean()),
            ap75=float(precision[AT_75].mean()),
            ar=float(recall.mean()),
            instances=instances,
        )


class Matches:
    """Matches of results and instances in every image.

    Args:
        records: records of the images; results of equal score keep their order.
        thresholds: (T,) IoU thresholds.
        boxes: match boxes instead of masks.
    """

    def __init__(
        self, records: Iterable[ImageRecord], thresholds: NDArray[np.float64] = IOU_THRESHOLDS, *, boxes: bool = False
    ) -> None:
        self.records, self._boxes = tuple(records), boxes
        self._matcher = COCOeval(iouType="segm")
        self._matcher.params.iouThrs = thresholds
        self._known: dict[tuple[int, bytes], NDArray[np.int64]] = {}

    def of(self, target: TargetRecord, ignored: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return (T, D): the index of the instance that each result matches at each threshold; -1 for none.

        Args:
            target: target of one of the records.
            ignored: (G,) instances that match only results without another match.
        """
        # Only the order of ignored instances relative to others matters.
        mixed = ignored if ignored.any() and not ignored.all() else np.zeros_like(ignored)
        key = id(target), mixed.tobytes()
        if key in self._known:
            return self._known[key]
        matcher, place = self._matcher, (0, 0)
        # COCOeval._prepare would overwrite `ignore` by `iscrowd`, which is why the BOP toolkit uses a fork.
        instances = [{"id": n, "area": 1.0, "iscrowd": 0, "ignore": int(flag)} for n, flag in enumerate(mixed, 1)]
        results = [{"id": number, "area": 1.0, "score": score} for number, score in enumerate(target.scores, 1)]
        matcher._gts, matcher._dts = {place: instances}, {place: results}
        overlaps = target.box_overlaps if self._boxes and target.box_overlaps is not None else target.overlaps
        matcher.ious = {place: overlaps if overlaps.size else []}
        found = matcher.evaluateImg(*place, (0.0, 1e10), MAX_DETECTIONS)
        self._known[key] = np.asarray(found["dtMatches"], np.int64) - 1
        return self._known[key]

    def average_precision(
        self, chosen: Selection | None = None
    ) -> tuple[AveragePrecision, dict[int, AveragePrecision]]:
        """Return the mean over the objects that have instances, and the value of each object by obj_id.

        Args:
            chosen: selection of instances and results, see `by_area` and `by_visibility`; default: all.
        """
        pools = self.pools(chosen).items()
        each = {number: value for number, pool in pools if (value := pool.average_precision()) is not None}
        return mean_of_objects(each.values()), each

    def pools(self, chosen: Selection | None = None) -> dict[int, Pool]:
        """Return the pool of each object, by ascending obj_id, of a selection (default: all)."""
        parts: dict[int, list[tuple[NDArray[Any], ...]]] = defaultdict(list)
        instances: dict[int, NDArray[np.int64]] = defaultdict(lambda: np.zeros(len(self.records), np.int64))
        for image, record in enumerate(self.records):
            for target in record.targets:
                ignored, counted = target.ignored, np.ones(len(target.scores), bool)
                if chosen is not None:
                    truths, counted = chosen(record, target)
                    ignored = ignored | ~truths
                instances[target.object_id][image] += np.count_nonzero(~ignored)
                if not len(target.scores):
                    continue
                partners = self.of(target, ignored)
                matched = partners >= 0
                # Index -1, no match, picks the last entry.
                inside = ~np.append(ignored, False)[partners] & (matched | counted)
                parts[target.object_id].append(
                    (target.scores, np.full(len(counted), image), matched & inside, ~matched & inside)
                )
        pools = {}
        for number, counts in sorted(instances.items()):
            nothing = np.zeros((len(self._matcher.params.iouThrs), 0), bool)
            start = (np.zeros(0), np.zeros(0, np.int64), nothing, nothing)
            scores, images, right, wrong = map(np.hstack, zip(start, *parts[number], strict=True))
            order = np.argsort(-scores, kind="stable")
            pools[number] = Pool(right=right[:, order], wrong=wrong[:, order], images=images[order], instances=counts)
        return pools


def curves(
    right: NDArray[np.int64], wrong: NDArray[np.int64], instances: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the precision (T, 101) at the recalls 0, 0.01 ... 1, and the final recall (T,).

    Args:
        right: (T, D) weights of results that match an instance, by descending score.
        wrong: (T, D) weights of results that match none; ignored results have neither.
        instances: number of instances to find, above 0.
    """
    true, false = np.cumsum(right, axis=1, dtype=np.float64), np.cumsum(wrong, axis=1, dtype=np.float64)
    recall = true / instances
    precision = true / (true + false + np.spacing(1))
    # Interpolated: the maximum precision at this or a higher recall.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Precision 0 at recalls that are not reached.
    precision = np.pad(precision, ((0, 0), (0, 1)))
    places = np.stack([np.searchsorted(row, RECALLS, side="left") for row in recall])
    return np.take_along_axis(precision, places, axis=1), recall[:, -1]


def by_area(low: float, high: float, *, relative: bool = False) -> Selection:
    """Select instances, and results without a match, with an area from `low` to `high`, both inclusive.

    Args:
        low: minimum area in pixels.
        high: maximum area in pixels.
        relative: areas are fractions of the image instead, 0 to 1.
    """

    def inside(record: ImageRecord, areas: NDArray[np.float64]) -> NDArray[np.bool_]:
        size = areas / (record.size[0] * record.size[1]) if relative else areas
        return np.asarray((size >= low) & (size <= high))

    return lambda record, target: (inside(record, target.truth_areas), inside(record, target.areas))


def by_visibility(low: float, high: float) -> Selection:
    """Select instances with a visible fraction from `low` to below `high`; results without a match always count."""
    return lambda _, target: (
        (target.visibility >= low) & (target.visibility < high),
        np.ones(len(target.scores), bool),
    )


def mean_of_objects(values: Iterable[AveragePrecision]) -> AveragePrecision:
    """Return the mean over objects, unweighted."""
    values = list(values)
    means = {
        name: float(np.mean([getattr(value, name) for value in values])) if values else float("nan")
        for name in ("ap", "ap50", "ap75", "ar")
    }
    return AveragePrecision(**means, instances=sum(value.instances for value in values))
