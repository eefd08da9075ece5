"""Average precision by COCO's rules with BOP's: what `eval_bop22_coco.py` of the BOP toolkit computes for masks.

Matching is pycocotools'; curves and means are computed here, from records of images that are at hand anyway, for any
selection of them (sizes, visibility, resampled images) without matching anew.

The rules: https://cocodataset.org/#detection-eval and
https://github.com/thodan/bop_toolkit/blob/master/scripts/eval_bop22_coco.py
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from ocdit_core.evaluation.records import MAX_DETECTIONS, ImageRecord, TargetRecord

# As pycocotools has them, to the last bit.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AT_50, AT_75 = 0, 5
"""Places of 0.5 and 0.75 in IOU_THRESHOLDS."""

ANY_OVERLAP = np.array([1e-9])
"""A threshold that a single shared pixel passes."""


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """Means over IoU thresholds 0.5, 0.55 ... 0.95, each 0 to 1; NaN where no instance was to be found.

    Attributes:
        ap: average precision over all thresholds.
        ap50: at IoU 0.5.
        ap75: at IoU 0.75.
        ar: average recall: of the instances, how many were found by the best 100 results of an image.
        instances: how many instances were to be found.
    """

    ap: float
    ap50: float
    ap75: float
    ar: float
    instances: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Which instances and results count; the others are ignored, and results that match ignored instances are, too."""

    truths: Callable[[ImageRecord, TargetRecord], NDArray[np.bool_]]
    results: Callable[[ImageRecord, TargetRecord], NDArray[np.bool_]]


@dataclass(kw_only=True)
class _Pool:
    """The results for one object over all images, in the order of the images."""

    scores: list[NDArray[np.float64]] = field(default_factory=list)
    matched: list[NDArray[np.bool_]] = field(default_factory=list)
    ignored: list[NDArray[np.bool_]] = field(default_factory=list)
    instances: int = 0


class Matches:
    """Which result stands for which instance, in every image: the basis of all metrics.

    Args:
        records: of the images; equal scores of different images keep this order.
        thresholds: (T,) of the IoU.
    """

    def __init__(self, records: Iterable[ImageRecord], thresholds: NDArray[np.float64] = IOU_THRESHOLDS) -> None:
        self.thresholds = thresholds
        self.records = tuple(records)
        self._matcher = _Matcher(thresholds)
        self._known: dict[tuple[int, bytes], NDArray[np.int64]] = {}

    def of(self, target: TargetRecord, ignored: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return (T, D): the instance that each result is matched with at each threshold, -1 for none.

        Args:
            target: of one of the records.
            ignored: (G,) instances that are only matched where no other one is.
        """
        # The order matters between instances that are ignored and others, not among either.
        mixed = ignored if ignored.any() and not ignored.all() else np.zeros_like(ignored)
        key = id(target), mixed.tobytes()
        if key not in self._known:
            self._known[key] = self._matcher(target, mixed)
        return self._known[key]

    def average_precision(
        self, chosen: Selection | None = None
    ) -> tuple[AveragePrecision, dict[int, AveragePrecision]]:
        """Return the mean over the objects that have instances, and the values of each object.

        Args:
            chosen: a part of instances and results, see `by_area` and `by_visibility`; default: all.
        """
        pools: dict[int, _Pool] = defaultdict(_Pool)
        for record in self.records:
            for target in record.targets:
                self._add(pools[target.object_id], record, target, chosen)
        each = {number: self._summary(pool) for number, pool in sorted(pools.items()) if pool.instances}
        return _mean(each.values()), each

    def _add(self, pool: _Pool, record: ImageRecord, target: TargetRecord, chosen: Selection | None) -> None:
        ignored = target.ignored
        if chosen is not None:
            ignored = ignored | ~chosen.truths(record, target)
        pool.instances += int(np.count_nonzero(~ignored))
        if not len(target.scores):
            return
        partners = self.of(target, ignored)
        matched = partners >= 0
        # The last entry, which -1 picks, is for results without a partner.
        outside = np.append(ignored, False)[partners]
        if chosen is not None:
            outside |= ~matched & ~chosen.results(record, target)
        pool.scores.append(target.scores)
        pool.matched.append(matched)
        pool.ignored.append(outside)

    def _summary(self, pool: _Pool) -> AveragePrecision:
        precision = np.zeros((len(self.thresholds), len(RECALLS)))
        recall = np.zeros(len(self.thresholds))
        if pool.scores:
            matched, counted = np.hstack(pool.matched), ~np.hstack(pool.ignored)
            order = np.argsort(-np.concatenate(pool.scores), kind="stable")
            precision, recall = curves((matched & counted)[:, order], (~matched & counted)[:, order], pool.instances)
        return AveragePrecision(
            ap=float(precision.mean()),
            ap50=float(precision[AT_50].mean()),
            ap75=float(precision[AT_75].mean()),
            ar=float(recall.mean()),
            instances=pool.instances,
        )


def curves(
    right: NDArray[np.bool_], wrong: NDArray[np.bool_], instances: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (T, 101) precision at the recalls 0, 0.01 ... 1, and (T,) the recall that is reached.

    Args:
        right: (T, D) results that match an instance, by falling score.
        wrong: (T, D) those that match none; ignored ones are neither.
        instances: how many there were to be found, above 0.
    """
    true, false = np.cumsum(right, axis=1, dtype=np.float64), np.cumsum(wrong, axis=1, dtype=np.float64)
    recall = true / instances
    precision = true / (true + false + np.spacing(1))
    # The best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # A column of zeros for recalls that are never reached.
    precision = np.pad(precision, ((0, 0), (0, 1)))
    places = np.stack([np.searchsorted(row, RECALLS, side="left") for row in recall])
    return np.take_along_axis(precision, places, axis=1), recall[:, -1]


def by_area(low: float, high: float, *, relative: bool = False) -> Selection:
    """Select instances, and results without a partner, by area: from `low` to `high`, both included.

    Args:
        low: in pixels.
        high: in pixels.
        relative: the areas are shares of the picture instead, 0 to 1.
    """

    def inside(record: ImageRecord, areas: NDArray[np.float64]) -> NDArray[np.bool_]:
        size = areas / (record.size[0] * record.size[1]) if relative else areas
        return np.asarray((size >= low) & (size <= high))

    return Selection(
        truths=lambda record, target: inside(record, target.truth_areas),
        results=lambda record, target: inside(record, target.areas),
    )


def by_visibility(low: float, high: float) -> Selection:
    """Select instances by the share of them that is seen, from `low` to below `high`.

    Results without a partner count: how much would be seen of what is not there, nobody knows.
    """
    return Selection(
        truths=lambda _, target: (target.visibility >= low) & (target.visibility < high),
        results=lambda _, target: np.ones(len(target.scores), bool),
    )


class _Matcher:
    """pycocotools' matching of one object in one image, with given overlaps."""

    def __init__(self, thresholds: NDArray[np.float64]) -> None:
        self._eval = COCOeval(iouType="segm")
        self._eval.params.iouThrs = thresholds

    def __call__(self, target: TargetRecord, ignored: NDArray[np.bool_]) -> NDArray[np.int64]:
        # Its own `_prepare` would set `ignore` to `iscrowd`: the reason why the BOP toolkit takes a fork of it.
        self._eval._gts = {
            (0, 0): [
                {"id": number, "area": 1.0, "iscrowd": 0, "ignore": int(flag)}
                for number, flag in enumerate(ignored, start=1)
            ]
        }
        self._eval._dts = {
            (0, 0): [{"id": number, "area": 1.0, "score": score} for number, score in enumerate(target.scores, start=1)]
        }
        self._eval.ious = {(0, 0): target.overlaps if target.overlaps.size else []}
        result = self._eval.evaluateImg(0, 0, (0.0, 1e10), MAX_DETECTIONS)
        return np.asarray(result["dtMatches"], np.int64) - 1


def _mean(values: Iterable[AveragePrecision]) -> AveragePrecision:
    """Every object counts the same, however many instances it has."""
    values = list(values)
    means = {
        name: float(np.mean([getattr(value, name) for value in values])) if values else float("nan")
        for name in ("ap", "ap50", "ap75", "ar")
    }
    return AveragePrecision(**means, instances=sum(value.instances for value in values))
