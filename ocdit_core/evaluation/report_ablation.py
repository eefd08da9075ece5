"""The part of a report that shows a grid of settings: a table, and curves along each setting."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from ocdit_core.evaluation.ablate import Ablation, Cell
from ocdit_core.evaluation.bootstrap import Estimate
from ocdit_core.evaluation.charts import Point, Series, line_chart
from ocdit_core.evaluation.compare import Compared, compare, comparison_table
from ocdit_core.web_page import figure, table

MOST_LINES = 6
"""In one chart; more cannot be told apart."""


def ablation_section(ablation: Ablation, resamples: int) -> str:
    """Return the HTML of a grid.

    Raises:
        DataError: its cells are of different images.
    """
    missing = f"<p>{ablation.unfinished} cells are not finished.</p>\n" if ablation.unfinished else ""
    if not ablation.cells:
        return missing
    comparison = compare([run for _, run in ablation.cells], resamples=resamples)
    results = list(zip([cell for cell, _ in ablation.cells], comparison.runs, strict=True))
    charts = "".join(
        figure(svg, caption) for key in _axes([cell for cell, _ in results]) for caption, svg in _charts(key, results)
    )
    note = (
        f"{comparison.dataset}: {comparison.images:,} images. In percent, with 95% confidence intervals by "
        f"{comparison.resamples} resamples of {comparison.unit}s; differences are to the first cell."
    )
    return f'{missing}<div class="columns">\n{charts}</div>\n<p>{html.escape(note)}</p>\n' + table(
        *comparison_table(comparison)
    )


def _axes(cells: Sequence[Cell]) -> list[str]:
    """The keys that have more than one value."""
    keys = dict.fromkeys(key for cell in cells for key in cell)
    return [key for key in keys if len({_text(cell[key]) for cell in cells if key in cell}) > 1]


def _charts(key: str, results: Sequence[tuple[Cell, Compared]]) -> list[tuple[str, str]]:
    """Caption and SVG of AP, and of the time for an image, along one setting: a line for each choice of the others."""
    shown = [(cell, run) for cell, run in results if key in cell]
    places = sorted({_text(cell[key]): cell[key] for cell, _ in shown}.items(), key=lambda entry: _order(entry[1]))
    lines: dict[str, dict[str, Compared]] = {}
    for cell, run in shown:
        others = ", ".join(f"{name} {_text(value)}" for name, value in cell.items() if name != key)
        lines.setdefault(others, {})[_text(cell[key])] = run
    # A line has two points at least; grids beside each other may touch an axis in one only.
    lines = {name: line for name, line in lines.items() if len(line) > 1}
    charts = []
    for title, point in (("AP in percent", _ap), ("seconds for an image", _time)):
        series = [
            Series(name=name, points=tuple(point(line[place]) if place in line else None for place, _ in places))
            for name, line in list(lines.items())[:MOST_LINES]
        ]
        if any(value is not None for one in series for value in one.points):
            more = f" (the first {MOST_LINES} of {len(lines)} lines)" if len(lines) > MOST_LINES else ""
            svg = line_chart([place for place, _ in places], series, x_title=key, y_title=title)
            charts.append((f"{title} against {key}{more}", svg))
    return charts


def _ap(run: Compared) -> Point:
    value: Estimate = run.figures["ap"]
    return Point(value=100 * value.value, low=100 * value.low, high=100 * value.high)


def _time(run: Compared) -> Point | None:
    seconds = run.median_time
    return None if seconds is None else Point(value=seconds, low=seconds, high=seconds)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(_text(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers, and lists of them, by size; anything else after them as a text."""
    first = value[0] if isinstance(value, list) and value else value
    number = isinstance(first, (int, float))
    return not number, float(first) if number else 0.0, _text(value)
