#!/usr/bin/env python3
"""Write the tables and the chart of the training ablations from the results of run.py.

    python benchmarks/ablations/table.py                              # into docs/ablations.md and docs/ablations.png
    python benchmarks/ablations/table.py --results DIR --page PAGE.md --chart ""

The tables replace the text between the page's two marks. The chart needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cells import FEW, LEVEL_ROWS, LOSS_ROWS, POSITION_ROWS, Row, Task

from ocdit_core.errors import DataError, OcditError
from ocdit_core.files import replacing, write_text

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
BASE = Row("base", "base")
MEAN, HEUN = "posterior mean", "Heun"

Results = dict[str, dict[int, Any]]
Figure = Callable[[dict[str, Any]], float]
Values = dict[int, float]


def main() -> int:
    """Write the page and the chart and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("runs/ablations"), help="folder of run.py's results")
    parser.add_argument("--page", type=Path, default=Path("docs/ablations.md"), help="default docs/ablations.md")
    parser.add_argument("--chart", default="docs/ablations.png", help="default docs/ablations.png; empty for none")
    options = parser.parse_args()
    try:
        results = read_results(options.results)
        page = options.page.read_text(encoding="utf-8")
        if BEGIN not in page or END not in page:
            raise DataError(f"{options.page}: holds no lines {BEGIN!r} and {END!r} to put the tables between")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        write_text(options.page, "\n".join([f"{before}{BEGIN}", "", *tables(results), f"{END}{after}"]), guard=False)
        if options.chart:
            with replacing(options.chart, guard=False) as temporary:
                draw(results, temporary)
    except (OcditError, OSError) as error:
        print(f"table.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def read_results(folder: Path) -> Results:
    """Return the results by cell and seed; raises DataError without the cell base."""
    results: Results = {}
    for path in sorted(folder.glob("*_[0-9]*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault(record["cell"], {})[record["seed"]] = record
    if "base" not in results:
        raise DataError(f"{folder}: holds no result of the cell base; run benchmarks/ablations/run.py first")
    return results


def values(results: Results, row: Row, figure: Figure) -> Values:
    """Return a row's metric by seed."""
    runs = results.get(row.cell, {})
    return {seed: figure(run["figures"][row.weights]) for seed, run in runs.items() if row.weights in run["figures"]}


def of(task: Task, sampler: str, name: str) -> Figure:
    """Return a function that selects one metric of the masks."""
    return lambda figures: float(figures[str(task)][sampler][name])


def error(figures: dict[str, Any]) -> float:
    """Return the weighted error, mean over the noise levels."""
    return fmean(figures["error"])


def error_at(level: int) -> Figure:
    """Return a function that selects the weighted error at one noise level."""
    return lambda figures: float(figures["error"][level])


def tables(results: Results) -> list[str]:
    """Return the lines of all tables."""
    example = next(iter(results["base"].values()))
    steps, scenes = example["settings"]["loop"]["steps"], example["settings"]["data"]["sample"]["crops"]
    runs = sum(map(len, results.values()))
    title = ["", "error", "change", "IoU, posterior mean", "change", "IoU, Heun", "change", "false masks", "change"]
    lines = [
        f"{runs} runs of {steps} steps, each measured on {scenes * example['groups']} images of unseen objects.",
        "",
        "### Losses, noise, weights: 4 targets",
        "",
        *_header(title),
    ]
    columns = [error, of(FEW, MEAN, "iou"), of(FEW, HEUN, "iou"), of(FEW, MEAN, "false_masks")]
    for row in LOSS_ROWS:
        cells = [cell for figure in columns for cell in _pair(results, (row, figure), (BASE, figure))]
        lines.append(_line([row.title, *cells]))
    lines += ["", "### Error by noise level", "", *_header(["sigma", *(f"{level:g}" for level in example["levels"])])]
    for row in (BASE, *LEVEL_ROWS):
        each = [values(results, row, error_at(i)) for i in range(len(example["levels"]))]
        lines.append(_line([row.title, *map(_spread, each)]))
    title = ["", "IoU at 4", "IoU at 8", "change", "Heun, IoU at 8", "change", "false masks at 8", "change"]
    lines += ["", "### Positions: trained on 4 targets, asked for 8", "", *_header(title)]
    (reference, task), *_ = POSITION_ROWS
    for row, asked in POSITION_ROWS:
        cells = [_spread(values(results, row, of(FEW, MEAN, "iou")))]
        for sampler, name in ((MEAN, "iou"), (HEUN, "iou"), (MEAN, "false_masks")):
            cells += _pair(results, (row, of(asked, sampler, name)), (reference, of(task, sampler, name)))
        lines.append(_line([row.title, *cells]))
    return [*lines, ""]


def _header(titles: list[str]) -> list[str]:
    return [_line(titles), "|---|" + "---|" * (len(titles) - 1)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pair(results: Results, ours: tuple[Row, Figure], reference: tuple[Row, Figure]) -> list[str]:
    """Return a metric and its paired difference to the reference: the same seed has the same data."""
    found = values(results, *ours)
    if ours[0] == reference[0]:
        return [_spread(found), ""]
    changes = differences(found, values(results, *reference))
    text = _spread(changes, sign="+")
    return [_spread(found), f"**{text}**" if is_clear(changes) else text]


def differences(found: Values, reference: Values) -> Values:
    """Return found - reference for the seeds that both have."""
    return {seed: value - reference[seed] for seed, value in found.items() if seed in reference}


def is_clear(changes: Values) -> bool:
    """Return whether p < 0.05 in a paired t-test over the seeds."""
    if len(changes) < 2 or len(set(changes.values())) == 1:
        return False
    from scipy.stats import ttest_1samp

    return bool(ttest_1samp(list(changes.values()), 0.0).pvalue < 0.05)


def _spread(found: Values, sign: str = "") -> str:
    """Return mean and standard deviation over the seeds as text."""
    if not found:
        return "-"
    spread = f" ± {stdev(found.values()):.3f}" if len(found) > 1 else ""
    return f"{fmean(found.values()):{sign}.3f}{spread}"


def draw(results: Results, path: Path) -> None:
    """Draw the change of the IoU for each seed, and the error by noise level, to a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (reference, task), *others = POSITION_ROWS
    lines = [(row, FEW, BASE, FEW) for row in LOSS_ROWS[1:]] + [(r, t, reference, task) for r, t in others]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5), width_ratios=(3, 2), layout="constrained")
    for sampler, marker, shift in ((MEAN, "o", -0.15), (HEUN, "x", 0.15)):
        points = [
            (change, number + shift)
            for number, (row, asked, against, most) in enumerate(lines)
            for change in differences(
                values(results, row, of(asked, sampler, "iou")), values(results, against, of(most, sampler, "iou"))
            ).values()
        ]
        if points:
            left.scatter(*zip(*points, strict=True), marker=marker, s=22, label=sampler)
    left.axvline(0, color="grey", linewidth=0.8)
    left.axhline(len(LOSS_ROWS) - 1.5, color="grey", linewidth=0.8, linestyle=":")
    left.set_yticks(range(len(lines)), [row.title for row, *_ in lines])
    left.set_ylim(len(lines) - 0.5, -0.5)
    left.set_xlabel("change of the IoU, each seed (below: 8 targets, against (iv))")
    left.legend(loc="best")

    levels = next(iter(results["base"].values()))["levels"]
    base = _by_level(results, BASE, levels)
    for row in LEVEL_ROWS:
        if row.cell in results:
            ratios = [own / other for own, other in zip(_by_level(results, row, levels), base, strict=True)]
            right.plot(levels, ratios, marker=".", label=row.title)
    right.axhline(1, color="grey", linewidth=0.8)
    right.set_xscale("log")
    right.set_yscale("log")
    for axis in (right.yaxis.set_major_formatter, right.yaxis.set_minor_formatter):
        axis("{x:g}")
    right.set_xlabel("noise level sigma")
    right.set_ylabel("error over that of base")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _by_level(results: Results, row: Row, levels: list[float]) -> list[float]:
    """Return the error at each level, mean over the seeds."""
    return [fmean(values(results, row, error_at(i)).values()) for i in range(len(levels))]


if __name__ == "__main__":
    sys.exit(main())
