"""metrics.json and the table: everything that is said of a run, computed from its records alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.evaluation.average_precision import (
    ANY_OVERLAP,
    AveragePrecision,
    Matches,
    by_area,
    by_visibility,
)
from ocdit_core.evaluation.records import ImageRecord, TargetRecord

_EVERYTHING = 1e10

AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, _EVERYTHING)}
"""COCO's bounds, in pixels."""

SHARES = {"below_1%": (0.0, 0.01), "1%_to_5%": (0.01, 0.05), "above_5%": (0.05, 1.0)}
"""Of the picture's area."""

VISIBILITY = {"10%_to_30%": (0.1, 0.3), "30%_to_60%": (0.3, 0.6), "60%_to_90%": (0.6, 0.9), "above_90%": (0.9, 2.0)}
"""Of an instance, what is seen."""


@dataclass(kw_only=True)
class Counts:
    """Counts at one score threshold; overlaps are those with the truth that a result is matched with.

    Attributes:
        instances: that were to be found.
        right: results with an IoU of 0.5 or more.
        wrong: other results, but for those that match ignored instances.
        overlap: sum over the instances of the IoU with the result for it, 0 without one.
        absent: pairs of an image and an object that was looked for in it in vain.
        false_masks: how many of these got a mask.
    """

    instances: int = 0
    right: int = 0
    wrong: int = 0
    overlap: float = 0.0
    absent: int = 0
    false_masks: int = 0

    def add(self, other: Counts) -> None:
        """Add those of another image or object."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def figures(self) -> dict[str, float | int | None]:
        """Return means and shares, None where there is nothing to count."""
        found = self.right + self.wrong
        return {
            "mean_iou": _share(self.overlap, self.instances),
            "precision": _share(self.right, found),
            "recall": _share(self.right, self.instances),
            "f1": _share(2 * self.right, found + self.instances),
            "instances": self.instances,
            "right": self.right,
            "wrong": self.wrong,
            "absent": self.absent,
            "false_masks": self.false_masks,
            "false_mask_rate": _share(self.false_masks, self.absent),
        }


def count(target: TargetRecord, threshold: float, at_half: NDArray[np.int64], at_any: NDArray[np.int64]) -> Counts:
    """Return one target's counts.

    Args:
        target: an object in an image.
        threshold: of the scores.
        at_half: (D,) the instance that each result is matched with at IoU 0.5, -1 for none.
        at_any: the same where any overlap is enough.
    """
    sure = target.scores >= threshold
    ignored = target.ignored
    # Results that match an ignored instance are neither right nor wrong; the last entry is for those without a match.
    counted = sure & ~np.append(ignored, False)[at_half]
    paired = np.flatnonzero(sure & (at_any >= 0))
    paired = paired[~ignored[at_any[paired]]]
    return Counts(
        instances=int(np.count_nonzero(~ignored)),
        right=int(np.count_nonzero(counted & (at_half >= 0))),
        wrong=int(np.count_nonzero(counted & (at_half < 0))),
        overlap=float(target.overlaps[paired, at_any[paired]].sum()),
        absent=int(target.absent),
        false_masks=int(target.absent and bool(sure.any())),
    )


def summarise(records: Sequence[ImageRecord], *, threshold: float) -> dict[str, Any]:
    """Return all metrics of a run as plain values for JSON; None stands for what cannot be told.

    Args:
        records: of its images, in order.
        threshold: of the scores, for everything but average precision and recall.
    """
    matches = Matches(records)
    overall, each = matches.average_precision()
    total, by_object = _counts(records, threshold)
    images: Counter[int] = Counter()
    for record in records:
        for target in record.targets:
            images[target.object_id] += target.asked
    return {
        **_plain(overall),
        "by_area": {name: _plain(matches.average_precision(by_area(*bounds))[0]) for name, bounds in AREAS.items()},
        "by_share_of_picture": {
            name: _plain(matches.average_precision(by_area(*bounds, relative=True))[0])
            for name, bounds in SHARES.items()
        },
        "by_visibility": {
            name: _plain(matches.average_precision(by_visibility(*bounds))[0]) for name, bounds in VISIBILITY.items()
        },
        "score_threshold": threshold,
        "at_threshold": total.figures(),
        "time": timing(records),
        "images": len(records),
        "by_object": {
            str(number): {
                **_plain(each.get(number)),
                **counts.figures(),
                "images": images[number],
            }
            for number, counts in sorted(by_object.items())
        },
    }


def timing(records: Sequence[ImageRecord]) -> dict[str, Any]:
    """Return seconds for an image: mean, median and 95th percentile, images a second, and the medians by stage."""
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
    """Return the rows of the table for people: name, value, further values; precisions in percent."""
    at, time = metrics["at_threshold"], metrics["time"]
    rows = [["", "AP", "AP50", "AP75", "AR", "instances"], _row("all", metrics)]
    for title, key in (("area", "by_area"), ("picture", "by_share_of_picture"), ("visible", "by_visibility")):
        rows += [_row(f"{title} {name.replace('_', ' ')}", part) for name, part in metrics[key].items()]
    return [
        *rows,
        [],
        [f"at score {metrics['score_threshold']:g}", "mean IoU", "precision", "recall", "F1", "false masks"],
        [
            "",
            *(_percent(at[name]) for name in ("mean_iou", "precision", "recall", "f1")),
            f"{_percent(at['false_mask_rate'])} ({at['false_masks']} of {at['absent']} absent)",
        ],
        [],
        ["seconds an image", "median", "p95", "mean", "images/s", ""],
        ["", *(_seconds(time[name]) for name in ("median", "p95", "mean", "images_per_second")), ""],
    ]


def counts_of(records: Sequence[ImageRecord], threshold: float) -> Iterator[tuple[int, int, Counts]]:
    """Yield the counts of each image and object: place of the image in the records, obj_id, counts."""
    matches = Matches(records, np.concatenate([ANY_OVERLAP, [0.5]]))
    for image, record in enumerate(records):
        for target in record.targets:
            if len(target.scores):
                at_any, at_half = matches.of(target, target.ignored)
            else:
                at_any = at_half = np.empty(0, np.int64)
            yield image, target.object_id, count(target, threshold, at_half, at_any)


def _counts(records: Sequence[ImageRecord], threshold: float) -> tuple[Counts, dict[int, Counts]]:
    total = Counts()
    by_object: dict[int, Counts] = defaultdict(Counts)
    for _, number, counts in counts_of(records, threshold):
        total.add(counts)
        by_object[number].add(counts)
    return total, by_object


def _plain(value: AveragePrecision | None) -> dict[str, float | int | None]:
    if value is None:
        return {"ap": None, "ap50": None, "ap75": None, "ar": None}
    return {key: None if math.isnan(number) else number for key, number in asdict(value).items()}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _row(name: str, part: dict[str, Any]) -> list[str]:
    return [name, *(_percent(part[key]) for key in ("ap", "ap50", "ap75", "ar")), str(part["instances"])]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
