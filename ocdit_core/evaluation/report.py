"""Evaluation report: runs and grids of settings as one HTML page (template `report.html`)."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocdit_core.data.dataset import Dataset
from ocdit_core.data.frame import Frame
from ocdit_core.errors import DataError
from ocdit_core.evaluation.ablate import Ablation, Cell
from ocdit_core.evaluation.bop_results import ImageKey
from ocdit_core.evaluation.charts import line_chart, reliability_diagram
from ocdit_core.evaluation.comparison import Compared, Comparison, Estimate, compare, comparison_table
from ocdit_core.evaluation.failures import KINDS, Failure, draw_comparison, draw_failure, find_failures, rank_images
from ocdit_core.evaluation.metrics import percent, significant
from ocdit_core.evaluation.run import Run, require_same_task, unique_names
from ocdit_core.evaluation.targets import image_key
from ocdit_core.web_page import Table, data_uri, encode_uri, write_page

# AP in percent on BOP's test targets (test_targets_bop19.json), model-based 2D segmentation of unseen objects. Source:
# OC-DiT, arXiv:2508.04122, table 1, which took the values of the other methods from the BOP leaderboard on 2025-02-27.
PUBLISHED_METHODS = ("CNOS", "SAM-6D", "NIDS-Net", "MUSE", "LDSeg", "OC-DiT coarse", "OC-DiT coarse + refine")
PUBLISHED = {
    "ycbv": (59.9, 60.5, 65.0, 67.2, 64.7, 68.6, 71.7),
    "tudl": (48.0, 56.9, 55.6, 56.5, 58.7, 32.5, 59.4),
    "lmo": (39.7, 46.0, 43.9, 47.8, 47.8, 29.6, 40.1),
    "hb": (51.1, 59.3, 62.0, 59.7, 62.2, 52.4, 61.5),
}
MAX_CONFUSED_PAIRS = 20
MAX_LINES = 6
"""Lines in one chart; more cannot be told apart."""

_BREAKDOWNS = {
    "by_area": "AP by area in pixels",
    "by_image_fraction": "AP by fraction of the image area",
    "by_visibility": "AP by visible fraction",
}
_AT_THRESHOLD = {"mean_iou": "mean IoU", "precision": "precision", "recall": "recall", "f1": "F1"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part of a section: heading, images, notes and tables, in this order.

    Attributes:
        heading: shown above the part; may be empty.
        notes: paragraphs.
        tables: shown side by side if there are several.
        images: data URI and caption of each.
        image_width: minimum width of an image, in CSS units.
    """

    heading: str = ""
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    images: Sequence[tuple[str, str]] = ()
    image_width: str = "30rem"


Section = tuple[str, Sequence[Part]]
"""Title and parts."""


def write_report(
    path: str | Path,
    runs: Sequence[Run],
    ablations: Sequence[Ablation] = (),
    *,
    title: str = "Evaluation",
    dataset: Dataset | None = None,
    names: Mapping[int, str] | None = None,
    images: int = 6,
    resamples: int = 1000,
) -> int:
    """Write the page, atomically.

    Args:
        path: HTML file to write.
        runs: runs with the same targets in the same images.
        ablations: grids; each may be on other images.
        title: title of the page.
        dataset: dataset of the runs; with it the page shows images, failures and confusions.
        names: object names by obj_id; default: the numbers.
        images: number of the best images, of the worst, and of each kind of failure.
        resamples: number of bootstrap resamples.

    Returns:
        The size of the page in characters.

    Raises:
        DataError: the runs differ in images or targets, `dataset` is another one, its images cannot be read, or the
            page cannot be written.
    """
    # BOP's default names add nothing to the numbers.
    names = {number: name for number, name in (names or {}).items() if name != f"obj_{number:06d}"}
    sections: list[Section] = []
    if runs:
        require_same_task(runs)
        sections += [
            ("Results", _headline(compare(runs, resamples=resamples), runs)),
            ("Reliability of scores", _reliability(runs)),
            ("By size and visibility", [_breakdowns(runs)]),
            ("By object", [_objects(runs, names)]),
        ]
        if dataset is not None:
            for run, name in zip(runs, unique_names(runs), strict=True):
                sections.append((f"Images: {name}", _failures(run, dataset, names, images)))
    sections += [(one.title or one.path.name, _ablation(one, resamples)) for one in ablations]
    if runs:
        sections += [("Time", [_times(runs)]), ("Settings and versions", [_settings(runs)])]
    return write_page(path, "report.html", title=title, sections=sections)


def reliability_bins(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return the bins of the reliability diagram of each run by name, without runs whose scores are not in [0, 1]."""
    known = zip(unique_names(runs), (run.metrics.get("reliability") for run in runs), strict=True)
    return {name: one["bins"] for name, one in known if one is not None}


def _headline(comparison: Comparison, runs: Sequence[Run]) -> list[Part]:
    header, rows = comparison_table(comparison)
    published = PUBLISHED.get(runs[0].plan["dataset"], ())
    row_classes = [""] * len(rows) + ["dim"] * len(published)
    blank = [""] * (len(header) - 2)
    rows += [
        [f"{name} (published)", f"{ap:.1f}", *blank] for name, ap in zip(PUBLISHED_METHODS, published, strict=False)
    ]
    notes = [comparison.note + ". An asterisk marks a difference whose interval excludes 0."]
    if published:
        notes.append(
            "Published: AP on BOP's test targets (test_targets_bop19.json), from table 1 of the OC-DiT paper "
            "(arXiv:2508.04122; other methods: BOP leaderboard, 2025-02-27). Compare only runs on these targets."
        )
    at = [run.metrics["at_threshold"] for run in runs]
    metrics = [
        *([name.upper(), *(percent(run.metrics[name]) for run in runs)] for name in ("ap", "ap50", "ap75", "ar")),
        ["score threshold", *(f"{run.metrics['score_threshold']:g}" for run in runs)],
        *([title, *(percent(one[key]) for one in at)] for key, title in _AT_THRESHOLD.items()),
        ["false masks", *(f"{percent(o['false_mask_rate'])} ({o['false_masks']} of {o['absent']})" for o in at)],
        ["instances", *(f"{one['instances']:,}" for one in at)],
    ]
    return [
        Part(tables=[Table(header=header, rows=rows, row_classes=row_classes)]),
        Part(notes=notes, tables=[Table(header=["", *unique_names(runs)], rows=metrics)]),
    ]


def _reliability(runs: Sequence[Run]) -> list[Part]:
    bins = reliability_bins(runs)
    if not bins:
        return [Part(notes=["No scores between 0 and 1."])]
    rows = [
        [name, percent(run.metrics["reliability"]["expected_calibration_error"])]
        for name, run in zip(unique_names(runs), runs, strict=True)
        if name in bins
    ]
    return [
        Part(
            images=[(encode_uri(reliability_diagram(bins), "image/svg+xml"), "Reliability diagram")],
            notes=[
                "Fraction of the results of a given score that have an IoU of 0.5 or more with an instance of their "
                "object. On the dotted line, the score is the probability that a result is right."
            ],
            tables=[Table(header=["", "expected calibration error in percent"], rows=rows)],
        )
    ]


def _breakdowns(runs: Sequence[Run]) -> Part:
    tables = []
    for key, caption in _BREAKDOWNS.items():
        rows = [
            [name.replace("_", " "), str(value["instances"]), *(percent(run.metrics[key][name]["ap"]) for run in runs)]
            for name, value in runs[0].metrics[key].items()
        ]
        tables.append(Table(header=["", "instances", *unique_names(runs)], rows=rows, caption=caption))
    return Part(tables=tables)


def _objects(runs: Sequence[Run], names: Mapping[int, str]) -> Part:
    """Return one row per object, by descending AP of the first run."""
    numbers = sorted({number for run in runs for number in run.metrics["by_object"]}, key=int)
    each = {number: [run.metrics["by_object"].get(number, {}) for run in runs] for number in numbers}
    numbers.sort(key=lambda number: -(each[number][0].get("ap") or 0.0))
    header = ["object", "instances"]
    for name in unique_names(runs):
        header += [f"{name}: AP", "mean IoU", "false masks"]
    rows = []
    for number in numbers:
        row = [f"{number} {names.get(int(number), '')}".strip(), str(each[number][0].get("instances", ""))]
        for one in each[number]:
            row += [percent(one.get("ap")), percent(one.get("mean_iou")), str(one.get("false_masks", "-"))]
        rows.append(row)
    return Part(tables=[Table(header=header, rows=rows)])


def _failures(run: Run, dataset: Dataset, names: Mapping[int, str], images: int) -> list[Part]:
    """Return the best and worst images, the failures by kind, and the confusions of a run."""
    if dataset.name != run.plan["dataset"]:
        raise DataError(f"{run.path}: is an evaluation of {run.plan['dataset']}, not of {dataset.name}")
    threshold = float(run.metrics["score_threshold"])
    rows, asked = run.rows(), run.asked
    found = find_failures(dataset.frames(asked), asked, rows, threshold)
    ranked = rank_images(run.records, threshold)
    count = min(images, len(ranked) // 2)
    chosen = {"Best images": ranked[:count], "Worst images": ranked[::-1][:count]}
    shown = {kind: [failure for failure in found if failure.kind == kind][:images] for kind in KINDS}
    wanted = {image for some in chosen.values() for image, _ in some}
    wanted |= {failure.image for some in shown.values() for failure in some}
    frames: dict[ImageKey, Frame] = {image_key(frame): frame for frame in dataset.frames(wanted)}
    note = (
        f"Masks with a score of at least {threshold:g}. Left: ground truth, labelled with the visible fraction; right: "
        "results."
    )
    parts = [Part(notes=[note])]
    for heading, some in chosen.items():
        drawn = [
            (
                data_uri(draw_comparison(frames[image], asked[image], rows[image], names, threshold)),
                f"scene {image[0]}, image {image[1]}: mean IoU {100 * iou:.1f}",
            )
            for image, iou in some
        ]
        parts.append(Part(heading=heading, images=drawn, image_width="38rem"))
    counts = Counter(failure.kind for failure in found)
    kinds = [[kind, str(counts[kind]), text] for kind, text in KINDS.items()]
    table = Table(header=["failure", "count", "definition"], rows=kinds, text_columns=[2])
    parts.append(Part(heading="Failures", notes=["Green: ground truth; red: predicted mask."], tables=[table]))
    for kind, failures in shown.items():
        if failures:
            order = "largest" if kind == "missed" else "highest-scoring"
            heading = f"{kind.capitalize()} ({order} {len(failures)} of {counts[kind]})"
            drawn = [(data_uri(draw_failure(frames[one.image].image(), one)), _caption(one, names)) for one in failures]
            parts.append(Part(heading=heading, images=drawn, image_width="11rem"))
    return [*parts, _confusions(found, names)]


def _caption(failure: Failure, names: Mapping[int, str]) -> str:
    words = [_name(names, failure.object_id)]
    if failure.score is not None:
        words.append(f"score {failure.score:.2f}")
    if failure.lies_on is not None:
        words.append(f"on {_name(names, failure.lies_on)}")
    if failure.iou:
        words.append(f"IoU {failure.iou:.2f}")
    return ", ".join([*words, f"image {failure.image[0]}/{failure.image[1]}"])


def _confusions(failures: Sequence[Failure], names: Mapping[int, str]) -> Part:
    pairs = Counter((failure.lies_on, failure.object_id) for failure in failures if failure.lies_on is not None)
    rows = [
        [_name(names, true), _name(names, predicted), str(count)]
        for (true, predicted), count in pairs.most_common(MAX_CONFUSED_PAIRS)
    ]
    table = Table(header=["true object", "predicted as", "count"], rows=rows, text_columns=[1])
    return Part(heading="Confused objects", tables=[table] if rows else [], notes=[] if rows else ["None."])


def _ablation(ablation: Ablation, resamples: int) -> list[Part]:
    """Return charts along each setting of a grid, and the table of its cells."""
    missing = [f"{ablation.unfinished} cells are not finished."] if ablation.unfinished else []
    if not ablation.cells:
        return [Part(notes=missing)]
    comparison = compare([run for _, run in ablation.cells], resamples=resamples)
    results = list(zip([cell for cell, _ in ablation.cells], comparison.runs, strict=True))
    keys = dict.fromkeys(key for cell, _ in results for key in cell)
    varied = [key for key in keys if len({_text(cell[key]) for cell, _ in results if key in cell}) > 1]
    header, rows = comparison_table(comparison)
    charts = [chart for key in varied for chart in _charts(key, results)]
    notes = [*missing, comparison.note + ". Differences are to the first cell."]
    return [Part(images=charts, notes=notes, tables=[Table(header=header, rows=rows)])]


def _charts(key: str, results: Sequence[tuple[Cell, Compared]]) -> list[tuple[str, str]]:
    """Return charts of AP and time along one setting, with one line for each combination of the others."""
    used = [(cell, run) for cell, run in results if key in cell]
    ticks = [text for text, _ in sorted({_text(cell[key]): cell[key] for cell, _ in used}.items(), key=_tick_order)]
    lines: dict[str, dict[str, Compared]] = {}
    for cell, run in used:
        others = ", ".join(f"{name} {_text(value)}" for name, value in cell.items() if name != key)
        lines.setdefault(others, {})[_text(cell[key])] = run
    # Of several grids, some may have a single value on this axis: no line.
    lines = {name: line for name, line in lines.items() if len(line) > 1}
    more = f" (the first {MAX_LINES} of {len(lines)} lines)" if len(lines) > MAX_LINES else ""
    shown = dict(list(lines.items())[:MAX_LINES])
    charts = []
    for title, estimate in (("AP in percent", _ap), ("seconds per image", _time)):
        values = {
            name: [estimate(line[tick]) if tick in line else None for tick in ticks] for name, line in shown.items()
        }
        if any(one is not None for line in values.values() for one in line):
            chart = line_chart(ticks, values, x_label=key, y_label=title)
            charts.append((encode_uri(chart, "image/svg+xml"), f"{title} against {key}{more}"))
    return charts


def _ap(run: Compared) -> Estimate:
    ap = run.metrics["ap"]
    return Estimate(value=100 * ap.value, low=100 * ap.low, high=100 * ap.high)


def _time(run: Compared) -> Estimate | None:
    seconds = run.median_time
    return None if seconds is None else Estimate(value=seconds, low=seconds, high=seconds)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(_text(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)


def _tick_order(tick: tuple[str, Any]) -> tuple[bool, float, str]:
    """Sort numbers, and lists by their first number, by size; anything else after them by its text."""
    text, value = tick
    first = value[0] if isinstance(value, list) and value else value
    number = isinstance(first, (int, float))
    return not number, float(first) if number else 0.0, text


def _times(runs: Sequence[Run]) -> Part:
    times = [run.metrics["time"] for run in runs]
    stages = dict.fromkeys(stage for time in times for stage in time["stages"])
    rows = [[name, *(significant(time[name]) for time in times)] for name in ("median", "mean", "p95")]
    rows.append(["images per second", *(significant(time["images_per_second"]) for time in times)])
    rows += [[f"stage {name} (median)", *(significant(time["stages"].get(name)) for time in times)] for name in stages]
    return Part(tables=[Table(header=["seconds per image", *unique_names(runs)], rows=rows)])


def _settings(runs: Sequence[Run]) -> Part:
    """Return all settings; those that differ between runs come first, marked."""
    flat = [_flatten(run.plan) for run in runs]
    rows = [[key, *(one.get(key, "-") for one in flat)] for key in dict.fromkeys(key for one in flat for key in one)]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    row_classes = ["mark" if len(set(row[1:])) > 1 else "" for row in rows]
    return Part(tables=[Table(header=["", *unique_names(runs)], rows=rows, row_classes=row_classes)])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = "-" if value is None else str(value)
    return flat


def _name(names: Mapping[int, str], number: int) -> str:
    return names.get(number, f"object {number}")
