"""Metrics of a run, computed from its records: metrics.json and the table that `ocdit evaluate` prints."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.evaluation.average_precision import (
    ANY_OVERLAP,
    AveragePrecision,
    Matches,
    Selection,
    by_area,
    by_visibility,
)
from ocdit_core.evaluation.records import ImageRecord, TargetRecord

AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Bounds of COCO's areas in pixels."""

AREA_FRACTIONS = {"below_1%": (0.0, 0.01), "1%_to_5%": (0.01, 0.05), "above_5%": (0.05, 1.0)}
"""Bounds of an instance's area as a fraction of the image."""

VISIBILITY = {"10%_to_30%": (0.1, 0.3), "30%_to_60%": (0.3, 0.6), "60%_to_90%": (0.6, 0.9), "above_90%": (0.9, 2.0)}
"""Bounds of an instance's visible fraction."""

RELIABILITY_BINS = 10


@dataclass(kw_only=True)
class Counts:
    """Counts at one score threshold.

    Attributes:
        instances: instances to find.
        right: results with an IoU of at least 0.5 with an instance of their own (true positives).
        wrong: other results, except those that match ignored instances (false positives).
        overlap: sum over the instances of the IoU with the matched result, 0 without one.
        points: instances of which a result shows the point that is drawn for them.
        absent: pairs of an image and a target that the image does not show.
        false_masks: number of these with a result.
    """

    instances: int = 0
    right: int = 0
    wrong: int = 0
    overlap: float = 0.0
    points: int = 0
    absent: int = 0
    false_masks: int = 0

    def add(self, other: Counts) -> None:
        """Add the counts of another image or object."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def rates(self) -> dict[str, float | int | None]:
        """Return the counts and their rates; None if the denominator is 0."""
        counts = asdict(self)
        overlap, found = counts.pop("overlap"), self.right + self.wrong
        return {
            "mean_iou": _ratio(overlap, self.instances),
            "precision": _ratio(self.right, found),
            "recall": _ratio(self.right, self.instances),
            "f1": _ratio(2 * self.right, found + self.instances),
            "points_in_masks": _ratio(self.points, self.instances),
            **counts,
            "false_mask_rate": _ratio(self.false_masks, self.absent),
        }


def summarise(records: Sequence[ImageRecord], *, threshold: float) -> dict[str, Any]:
    """Return all metrics of a run as JSON values; None where a metric is undefined.

    Args:
        records: records of the images, in order.
        threshold: score threshold of all metrics except average precision, average recall and reliability.
    """
    matches = Matches(records)
    overall, each = matches.average_precision()

    def selected(
        bounds: Mapping[str, tuple[float, float]], select: Callable[[float, float], Selection]
    ) -> dict[str, Any]:
        return {name: _plain(matches.average_precision(select(*pair))[0]) for name, pair in bounds.items()}

    total, by_object = Counts(), defaultdict[int, Counts](Counts)
    for _, number, counts in counts_of(records, threshold):
        total.add(counts)
        by_object[number].add(counts)
    images = Counter(target.object_id for record in records for target in record.targets if target.asked)
    return {
        **_plain(overall),
        # BOP's task of 2D detection
        "boxes": _plain(Matches(records, boxes=True).average_precision()[0]),
        "by_area": selected(AREAS, by_area),
        "by_image_fraction": selected(AREA_FRACTIONS, partial(by_area, relative=True)),
        "by_visibility": selected(VISIBILITY, by_visibility),
        "score_threshold": threshold,
        "at_threshold": total.rates(),
        "reliability": reliability(records),
        "time": timing(records),
        "images": len(records),
        "by_object": {
            str(number): {**_plain(each.get(number)), **counts.rates(), "images": images[number]}
            for number, counts in sorted(by_object.items())
        },
    }


def counts_of(records: Sequence[ImageRecord], threshold: float) -> Iterator[tuple[int, int, Counts]]:
    """Yield the counts of each image and object: index of the record, obj_id, counts."""
    for image, target, at_any, at_half in _matched(records):
        kept = target.scores >= threshold
        # Results that match an ignored instance are neither right nor wrong; index -1, no match, picks the last entry.
        counted = kept & ~np.append(target.ignored, False)[at_half]
        points = np.full(len(target.ignored), np.nan) if target.point_scores is None else target.point_scores
        paired = np.flatnonzero(kept & (at_any >= 0))
        paired = paired[~target.ignored[at_any[paired]]]
        counts = Counts(
            instances=int(np.count_nonzero(~target.ignored)),
            right=int(np.count_nonzero(counted & (at_half >= 0))),
            wrong=int(np.count_nonzero(counted & (at_half < 0))),
            overlap=float(target.overlaps[paired, at_any[paired]].sum()),
            points=int(np.count_nonzero(points[~target.ignored] >= threshold)),
            absent=int(target.absent),
            false_masks=int(target.absent and bool(kept.any())),
        )
        yield image, target.object_id, counts


def reliability(records: Sequence[ImageRecord]) -> dict[str, Any] | None:
    """Return the reliability diagram: how often a result of a given score is right (IoU of at least 0.5).

    A calibrated score equals the fraction of right results. The expected calibration error is the mean absolute
    difference of both over the bins, weighted by their results (Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017). Results that match ignored instances are left out.

    Returns:
        {"bins": [{"low", "high", "results", "mean_score", "precision"}], "expected_calibration_error"}; None without
        results, or if scores are not in [0, 1].
    """
    scores, right = [], []
    for _, target, _, at_half in _matched(records):
        counted = ~np.append(target.ignored, False)[at_half]
        scores.append(target.scores[counted])
        right.append(at_half[counted] >= 0)
    score, is_right = np.concatenate([*scores, np.empty(0)]), np.concatenate([*right, np.empty(0, bool)])
    if not score.size or score.min() < 0 or score.max() > 1:
        return None
    index = np.minimum((score * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    bins, error = [], 0.0
    for number in range(RELIABILITY_BINS):
        inside = index == number
        results = int(np.count_nonzero(inside))
        mean_score = float(score[inside].mean()) if results else None
        precision = float(is_right[inside].mean()) if results else None
        if mean_score is not None and precision is not None:
            error += results / score.size * abs(mean_score - precision)
        low, high = number / RELIABILITY_BINS, (number + 1) / RELIABILITY_BINS
        bins.append({"low": low, "high": high, "results": results, "mean_score": mean_score, "precision": precision})
    return {"bins": bins, "expected_calibration_error": error}


def timing(records: Sequence[ImageRecord]) -> dict[str, Any]:
    """Return seconds per image (mean, median, 95th percentile), images per second, and the medians by stage."""
    seconds = np.array([record.time for record in records if record.time >= 0])
    if not seconds.size:
        return {"mean": None, "median": None, "p95": None, "images_per_second": None, "stages": {}}
    stages: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for stage, value in record.timings.items():
            stages[stage].append(value)
    return {
        "mean": float(seconds.mean()),
        "median": float(np.median(seconds)),
        "p95": float(np.percentile(seconds, 95)),
        "images_per_second": float(len(seconds) / seconds.sum()) if seconds.sum() else None,
        "stages": {stage: float(np.median(values)) for stage, values in stages.items()},
    }


def table(metrics: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the printed table: a name and up to five values; precision and recall in percent."""
    at, time, calibration = metrics["at_threshold"], metrics["time"], metrics["reliability"]
    rows = [["", "AP", "AP50", "AP75", "AR", "instances"], _row("all", metrics)]
    rows.append(_row("boxes", metrics["boxes"]))
    for title, key in (("area", "by_area"), ("image", "by_image_fraction"), ("visible", "by_visibility")):
        rows += [_row(f"{title} {name.replace('_', ' ')}", part) for name, part in metrics[key].items()]
    rows += [
        [],
        [f"at score {metrics['score_threshold']:g}", "mean IoU", "precision", "recall", "F1", "false masks"],
        [
            "",
            *(percent(at[name]) for name in ("mean_iou", "precision", "recall", "f1")),
            f"{percent(at['false_mask_rate'])} ({at['false_masks']} of {at['absent']} absent)",
        ],
        ["points in masks", percent(at["points_in_masks"])],
    ]
    if calibration is not None:
        rows += [
            [],
            ["score", "results", "right"],
            *(
                [f"{one['low']:g} to {one['high']:g}", f"{one['results']:,}", percent(one["precision"])]
                for one in calibration["bins"]
                if one["results"]
            ),
            ["calibration error", percent(calibration["expected_calibration_error"])],
        ]
    return [
        *rows,
        [],
        ["seconds per image", "median", "p95", "mean", "images/s", ""],
        ["", *(significant(time[name]) for name in ("median", "p95", "mean", "images_per_second")), ""],
    ]


def percent(value: float | None) -> str:
    """Return a fraction in percent with one decimal, "-" if it is undefined."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def significant(value: float | None) -> str:
    """Return a number with three significant digits, "-" if it is undefined."""
    return "-" if value is None else f"{value:.3g}"


def _matched(
    records: Sequence[ImageRecord],
) -> Iterator[tuple[int, TargetRecord, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each target with the index of its record, and its matches (D,) at any overlap and at IoU 0.5; -1: none."""
    matches = Matches(records, np.concatenate([ANY_OVERLAP, [0.5]]))
    nothing = np.empty(0, np.int64)
    for image, record in enumerate(records):
        for target in record.targets:
            at_any, at_half = matches.of(target, target.ignored) if len(target.scores) else (nothing, nothing)
            yield image, target, at_any, at_half


def _plain(value: AveragePrecision | None) -> dict[str, float | int | None]:
    if value is None:
        return {"ap": None, "ap50": None, "ap75": None, "ar": None}
    return {key: None if math.isnan(number) else number for key, number in asdict(value).items()}


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _row(name: str, part: dict[str, Any]) -> list[str]:
    return [name, *(percent(part[key]) for key in ("ap", "ap50", "ap75", "ar")), str(part["instances"])]
