"""Comparison of runs: metrics and paired differences with bootstrap confidence intervals.

Bootstrap over images or scenes: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993. Images are matched
once: a resampled set is a weight for each image, and average precision with weights equals that with copied records (a
copy of a right result only adds a point to the curve below its envelope).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ConfigError, DataError
from ocdit_core.evaluation.average_precision import Matches, Pool, mean_of_objects
from ocdit_core.evaluation.metrics import counts_of, significant
from ocdit_core.evaluation.records import ImageRecord
from ocdit_core.evaluation.run import Run, require_same_task, unique_names

Unit = Literal["image", "scene"]
COMPARED = {"ap": "AP", "ap50": "AP50", "mean_iou": "mean IoU", "false_mask_rate": "false masks"}
"""Titles of the compared metrics."""

MIN_SCENES = 20
"""With at least this many scenes, scenes are resampled instead of images: images of one scene are not independent."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric with its 95% confidence interval.

    Attributes:
        value: value on all images; NaN if it is undefined.
        low: 2.5th percentile over the resampled sets.
        high: 97.5th percentile.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of a difference excludes 0."""
        return self.low > 0 or self.high < 0


class Resampling:
    """Metrics of a run for any weights of its images.

    Args:
        records: records of the images.
        threshold: score threshold of mean IoU and the false mask rate.
    """

    def __init__(self, records: Sequence[ImageRecord], threshold: float) -> None:
        self._pools: list[Pool] = list(Matches(records).pools().values())
        columns = ("overlap", "instances", "false_masks", "absent")
        self._counts = np.zeros((len(records), len(columns)))
        for image, _, counts in counts_of(records, threshold):
            self._counts[image] += [getattr(counts, name) for name in columns]

    def metrics(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the COMPARED metrics (M,), 0 to 1, NaN if undefined, for weights (I,) of the images."""
        each = [value for pool in self._pools if (value := pool.average_precision(weights)) is not None]
        mean = mean_of_objects(each)
        overlap, instances, false_masks, absent = weights @ self._counts
        mean_iou = overlap / instances if instances else np.nan
        return np.array([mean.ap, mean.ap50, mean_iou, false_masks / absent if absent else np.nan])


def unit_of(records: Sequence[ImageRecord]) -> Unit:
    """Return what to resample: scenes if there are enough of them, else images."""
    return "scene" if len({record.scene_id for record in records}) >= MIN_SCENES else "image"


def draw_weights(records: Sequence[ImageRecord], resamples: int, *, unit: Unit, seed: int = 0) -> NDArray[np.int64]:
    """Return the weights (R, I) of the images in R resampled sets.

    As many images, or scenes with all their images, as there are, are drawn with replacement.
    """
    drawn_from = [(record.scene_id, record.image_id if unit == "image" else 0) for record in records]
    number = {item: index for index, item in enumerate(dict.fromkeys(drawn_from))}
    count = len(number)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.asarray(drawn[:, [number[item] for item in drawn_from]], np.int64)


def estimate(value: float, samples: NDArray[np.float64]) -> Estimate:
    """Return a metric with the percentile interval of its resampled values (R,); NaN is left out."""
    known = samples[~np.isnan(samples)]
    low, high = np.percentile(known, [2.5, 97.5]) if known.size and not np.isnan(value) else (np.nan, np.nan)
    return Estimate(value=value, low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One run of a comparison.

    Attributes:
        name: name of the run.
        metrics: COMPARED metrics by name, 0 to 1.
        differences: paired differences to the first run; empty for the first run itself.
        median_time: median seconds per image; None if unknown.
    """

    name: str
    metrics: dict[str, Estimate]
    differences: dict[str, Estimate]
    median_time: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compared runs, in the given order, and what the confidence intervals are based on."""

    note: str
    runs: tuple[Compared, ...]


def compare(runs: Sequence[Run], *, resamples: int = 1000) -> Comparison:
    """Compare runs on the same images.

    All runs are resampled alike: images that are difficult are so for all of them, and the interval of a paired
    difference is usually much narrower than the two intervals suggest.

    Args:
        runs: runs with the same targets in the same images.
        resamples: number of resampled sets, of scenes or images (see `unit_of`).

    Raises:
        ConfigError: no run, or no resamples.
        DataError: the runs are not of the same images and objects.
    """
    if not runs:
        raise ConfigError("no runs were named")
    if resamples < 1:
        raise ConfigError(f"resamples: {resamples} must be at least 1")
    require_same_task(runs)
    records = runs[0].records
    order = [(record.scene_id, record.image_id) for record in records]
    for run in runs:
        if [(record.scene_id, record.image_id) for record in run.records] != order:
            raise DataError(f"{run.path}: its records are of other images than those of {runs[0].path}")
    unit = unit_of(records)
    weights = draw_weights(records, resamples, unit=unit)
    compared: list[Compared] = []
    first_value, first_samples = np.empty(0), np.empty(0)
    for run, name in zip(runs, unique_names(runs), strict=True):
        resampling = Resampling(run.records, float(run.metrics["score_threshold"]))
        value = resampling.metrics(np.ones(len(records), np.int64))
        samples = np.stack([resampling.metrics(row) for row in weights])
        if not compared:
            first_value, first_samples, differences = value, samples, {}
        else:
            differences = _estimates(value - first_value, samples - first_samples)
        median = run.metrics["time"]["median"]
        metrics = _estimates(value, samples)
        compared.append(Compared(name=name, metrics=metrics, differences=differences, median_time=median))
    return Comparison(
        note=f"{runs[0].plan['dataset']}: {len(records):,} images, in percent, with 95% bootstrap confidence intervals "
        f"({resamples} resamples of {unit}s)",
        runs=tuple(compared),
    )


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows in percent; an asterisk marks differences whose interval excludes 0."""
    first = comparison.runs[0].name
    rows = [
        [run.name, *(_interval(run.metrics[name]) for name in COMPARED), significant(run.median_time)]
        for run in comparison.runs
    ]
    rows += [
        [f"{run.name} - {first}", *(_interval(run.differences[name], signed=True) for name in COMPARED), ""]
        for run in comparison.runs[1:]
    ]
    return ["", *COMPARED.values(), "s/image"], rows


def _estimates(values: np.ndarray, samples: np.ndarray) -> dict[str, Estimate]:
    return {name: estimate(float(values[at]), samples[:, at]) for at, name in enumerate(COMPARED)}


def _interval(value: Estimate, *, signed: bool = False) -> str:
    if math.isnan(value.value):
        return "-"
    sign = "+" if signed else ""
    text = f"{100 * value.value:{sign}.1f} [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]"
    return text + " *" if signed and value.excludes_zero else text
