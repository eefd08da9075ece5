"""A report of evaluations as one web page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.shards import ShardDataset
from ocdit_core.evaluation.ablate import Ablation
from ocdit_core.evaluation.compare import Comparison, compare, comparison_table
from ocdit_core.evaluation.report_ablation import ablation_section
from ocdit_core.evaluation.report_failures import failures_section
from ocdit_core.evaluation.runs import Run, named_apart, require_same_task
from ocdit_core.web_page import page, table

PUBLISHED: dict[str, dict[str, float]] = {
    "ycbv": {
        "CNOS": 59.9, "SAM-6D": 60.5, "NIDS-Net": 65.0, "MUSE": 67.2, "LDSeg": 64.7, "NOCTIS": 68.4,
        "OC-DiT coarse": 68.6, "OC-DiT coarse + refine": 71.7,
    },
    "tudl": {
        "CNOS": 48.0, "SAM-6D": 56.9, "NIDS-Net": 55.6, "MUSE": 56.5, "LDSeg": 58.7, "NOCTIS": 58.3,
        "OC-DiT coarse": 32.5, "OC-DiT coarse + refine": 59.4,
    },
    "lmo": {
        "CNOS": 39.7, "SAM-6D": 46.0, "NIDS-Net": 43.9, "MUSE": 47.8, "LDSeg": 47.8, "NOCTIS": 48.9,
        "OC-DiT coarse": 29.6, "OC-DiT coarse + refine": 40.1,
    },
    "hb": {
        "CNOS": 51.1, "SAM-6D": 59.3, "NIDS-Net": 62.0, "MUSE": 59.7, "LDSeg": 62.2, "NOCTIS": 60.7,
        "OC-DiT coarse": 52.4, "OC-DiT coarse + refine": 61.5,
    },
}  # fmt: skip
"""AP in percent on objects that the methods have not seen, on BOP's test targets, as the OC-DiT paper has them."""

_PARTS = (
    ("by_area", "AP by area in pixels"),
    ("by_share_of_picture", "AP by share of the picture"),
    ("by_visibility", "AP by visible share"),
)


def make_report(
    runs: Sequence[Run],
    ablations: Sequence[Ablation] = (),
    *,
    title: str = "Evaluation",
    dataset: BopFolder | ShardDataset | None = None,
    names: Mapping[int, str] | None = None,
    pictures: int = 6,
    resamples: int = 1000,
) -> str:
    """Return the page.

    Args:
        runs: of the same objects in the same images.
        ablations: grids; each may be of other images.
        title: of the page.
        dataset: of the runs: with it there are pictures, failures and confusions.
        names: of the objects, by obj_id; default: the numbers.
        pictures: of the best images, of the worst, and of each kind of failure.
        resamples: of the bootstrap.

    Raises:
        DataError: the runs are of different images or objects, the dataset is another one, or its images cannot be
            read.
    """
    # BOP's own names say no more than the numbers.
    names = {number: name for number, name in (names or {}).items() if name != f"obj_{number:06d}"}
    sections: list[tuple[str, str]] = []
    if runs:
        require_same_task(runs)
        sections += [
            ("Result", _headline(compare(runs, resamples=resamples), runs)),
            ("By size and visibility", _parts(runs)),
            ("By object", _objects(runs, names)),
        ]
        if dataset is not None:
            for run, name in zip(runs, named_apart(runs), strict=True):
                sections.append((f"Pictures: {name}", failures_section(run, dataset, names, pictures)))
    for ablation in ablations:
        sections.append((ablation.title or ablation.path.name, ablation_section(ablation, resamples)))
    if runs:
        sections += [("Time", _times(runs)), ("Settings and versions", _settings(runs))]
    links = "".join(f'<a href="#s{at}">{html.escape(name)}</a>' for at, (name, _) in enumerate(sections))
    body = f"<h1>{html.escape(title)}</h1>\n<nav>{links}</nav>\n" + "".join(
        f'<h2 id="s{at}">{html.escape(name)}</h2>\n{content}' for at, (name, content) in enumerate(sections)
    )
    return page(title, body)


def _headline(comparison: Comparison, runs: Sequence[Run]) -> str:
    header, rows = comparison_table(comparison)
    names = [run.name for run in comparison.runs]
    known = PUBLISHED.get(comparison.dataset, {})
    classes = ["" for _ in rows] + ["dim"] * len(known)
    empty = [""] * (len(header) - 2)
    rows += [[f"{name} (published)", f"{value:.1f}", *empty] for name, value in known.items()]
    note = (
        f"{comparison.dataset}: {comparison.images:,} images. In percent, with 95% confidence intervals by "
        f"{comparison.resamples} resamples of {comparison.unit}s. A star marks a difference that is more than chance."
    )
    if known:
        note += " Published values are AP on BOP's test targets (test_targets_bop19.json): compare runs on these only."
    more = _columns(
        runs,
        names,
        {
            "AP": lambda m: _percent(m["ap"]),
            "AP50": lambda m: _percent(m["ap50"]),
            "AP75": lambda m: _percent(m["ap75"]),
            "AR": lambda m: _percent(m["ar"]),
            "score threshold": lambda m: f"{m['score_threshold']:g}",
            "mean IoU": lambda m: _percent(m["at_threshold"]["mean_iou"]),
            "precision": lambda m: _percent(m["at_threshold"]["precision"]),
            "recall": lambda m: _percent(m["at_threshold"]["recall"]),
            "F1": lambda m: _percent(m["at_threshold"]["f1"]),
            "false masks": lambda m: (
                f"{_percent(m['at_threshold']['false_mask_rate'])} "
                f"({m['at_threshold']['false_masks']} of {m['at_threshold']['absent']})"
            ),
            "instances": lambda m: f"{m['at_threshold']['instances']:,}",
        },
    )
    return table(header, rows, classes=classes) + f"<p>{html.escape(note)}</p>\n" + more


def _columns(runs: Sequence[Run], names: Sequence[str], figures: dict[str, Callable[[dict[str, Any]], str]]) -> str:
    """A table with a row for each figure and a column for each run."""
    rows = [[name, *(figure(run.metrics) for run in runs)] for name, figure in figures.items()]
    return table(["", *names], rows)


def _parts(runs: Sequence[Run]) -> str:
    names = named_apart(runs)
    tables = []
    for key, caption in _PARTS:
        rows = [
            [part.replace("_", " "), str(value["instances"]), *(_percent(run.metrics[key][part]["ap"]) for run in runs)]
            for part, value in runs[0].metrics[key].items()
        ]
        tables.append(table(["", "instances", *names], rows, caption=caption))
    return f'<div class="columns">\n{"".join(tables)}</div>\n'


def _objects(runs: Sequence[Run], names: Mapping[int, str]) -> str:
    """A row for each object, by falling AP of the first run."""
    numbers = sorted({number for run in runs for number in run.metrics["by_object"]}, key=int)
    each = {number: [run.metrics["by_object"].get(number, {}) for run in runs] for number in numbers}
    numbers.sort(key=lambda number: -(each[number][0].get("ap") or 0.0))
    titles = named_apart(runs)
    header = ["object", "instances"]
    for title in titles:
        header += [f"{title}: AP", "mean IoU", "false masks"]
    rows = []
    for number in numbers:
        row = [_label(names, number), str(each[number][0].get("instances", ""))]
        for one in each[number]:
            row += [_percent(one.get("ap")), _percent(one.get("mean_iou")), str(one.get("false_masks", "-"))]
        rows.append(row)
    return table(header, rows)


def _times(runs: Sequence[Run]) -> str:
    times = [run.metrics["time"] for run in runs]
    stages = list(dict.fromkeys(stage for time in times for stage in time["stages"]))
    rows = [[name, *(_seconds(time[name]) for time in times)] for name in ("median", "mean", "p95")]
    rows.append(["images per second", *(_seconds(time["images_per_second"]) for time in times)])
    rows += [[f"stage {stage} (median)", *(_seconds(time["stages"].get(stage)) for time in times)] for stage in stages]
    return table(["seconds for an image", *named_apart(runs)], rows)


def _settings(runs: Sequence[Run]) -> str:
    """All settings; those that differ come first, marked."""
    flat = [_flattened(run.plan) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [[key, *(one.get(key, "-") for one in flat)] for key in keys]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    return table(["", *named_apart(runs)], rows, classes=["mark" if len(set(row[1:])) > 1 else "" for row in rows])


def _flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = "-" if value is None else str(value)
    return flat


def _label(names: Mapping[int, str], number: str) -> str:
    name = names.get(int(number))
    return f"{number} {name}" if name else number


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
