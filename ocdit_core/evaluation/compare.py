"""Runs side by side: their figures, and their differences to the first, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ocdit_core.errors import ConfigError, DataError
from ocdit_core.evaluation.bootstrap import FIGURES, Estimate, Resampling, Unit, draw_weights, estimate, unit_of
from ocdit_core.evaluation.runs import Run, named_apart, require_same_task

TITLES = {"ap": "AP", "ap50": "AP50", "mean_iou": "mean IoU", "false_mask_rate": "false masks"}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One run.

    Attributes:
        name: of the run.
        figures: each of FIGURES, 0 to 1.
        differences: to the first run, image by image; empty for the first run itself.
        median_time: seconds for an image; None where that is not known.
    """

    name: str
    figures: dict[str, Estimate]
    differences: dict[str, Estimate]
    median_time: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All runs, in the order given.

    Attributes:
        dataset: its name.
        images: how many.
        unit: what was drawn.
        resamples: how often.
        runs: each one.
    """

    dataset: str
    images: int
    unit: Unit
    resamples: int
    runs: tuple[Compared, ...]


def compare(runs: Sequence[Run], *, resamples: int = 1000, unit: Unit | None = None, seed: int = 0) -> Comparison:
    """Compare runs on the same images.

    The same resampled sets are taken for all runs. What is hard about an image is hard for all of them, so that the
    interval of a difference is mostly much narrower than the two intervals suggest.

    Args:
        runs: of the same objects in the same images.
        resamples: how many sets of images are drawn.
        unit: what is drawn; default: see `unit_of`.
        seed: of the drawing.

    Raises:
        ConfigError: no run, or no resamples.
        DataError: the runs are not of the same images and objects.
    """
    if not runs:
        raise ConfigError("no run was named")
    if resamples < 1:
        raise ConfigError(f"resamples: {resamples} is not above 0")
    require_same_task(runs)
    records = runs[0].records
    order = [(record.scene_id, record.image_id) for record in records]
    for run in runs:
        if [(record.scene_id, record.image_id) for record in run.records] != order:
            raise DataError(f"{run.path}: its records are of other images than those of {runs[0].path}")
    unit = unit or unit_of(records)
    weights = draw_weights(records, resamples, unit=unit, seed=seed)
    compared: list[Compared] = []
    first_value, first_samples = np.empty(0), np.empty(0)
    for run, name in zip(runs, named_apart(runs), strict=True):
        resampling = Resampling(run.records, float(run.metrics["score_threshold"]))
        value = resampling.figures(np.ones(len(records), np.int64))
        samples = np.stack([resampling.figures(row) for row in weights])
        if not compared:
            first_value, first_samples, differences = value, samples, {}
        else:
            differences = _estimates(value - first_value, samples - first_samples)
        compared.append(
            Compared(
                name=name,
                figures=_estimates(value, samples),
                differences=differences,
                median_time=run.metrics["time"]["median"],
            )
        )
    return Comparison(
        dataset=runs[0].plan["dataset"], images=len(records), unit=unit, resamples=resamples, runs=tuple(compared)
    )


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows for people, in percent; a star marks differences whose interval excludes 0."""
    rows = [
        [run.name, *(_interval(run.figures[name]) for name in FIGURES), _seconds(run.median_time)]
        for run in comparison.runs
    ]
    first = comparison.runs[0].name
    rows += [
        [f"{run.name} - {first}", *(_interval(run.differences[name], signed=True) for name in FIGURES), ""]
        for run in comparison.runs[1:]
    ]
    return ["", *(TITLES[name] for name in FIGURES), "s/image"], rows


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return plain values for JSON; None stands for what cannot be told."""
    return dict(_plain(asdict(comparison)))


def _estimates(values: np.ndarray, samples: np.ndarray) -> dict[str, Estimate]:
    return {name: estimate(float(values[at]), samples[:, at]) for at, name in enumerate(FIGURES)}


def _interval(value: Estimate, *, signed: bool = False) -> str:
    if math.isnan(value.value):
        return "-"
    sign = "+" if signed else ""
    text = f"{100 * value.value:{sign}.1f} [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]"
    return text + " *" if signed and value.excludes_zero else text


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
