"""Charts, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ocdit_core.errors import DataError
from ocdit_core.evaluation.comparison import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def line_chart(
    labels: Sequence[str], lines: Mapping[str, Sequence[Estimate | None]], *, x_label: str, y_label: str
) -> bytes:
    """Return an SVG chart with one line per entry and error bars for the confidence intervals.

    Args:
        labels: tick labels; ticks are equally spaced, since settings need not be numbers.
        lines: an estimate, or None, for each tick, by name of the line.
        x_label: label of the x axis.
        y_label: label of the y axis.
    """
    figure, (axes,) = _figure()
    for number, (name, estimates) in enumerate(lines.items()):
        # Shifted, so that the error bars of several lines do not cover each other.
        shift = 0.06 * (number - (len(lines) - 1) / 2)
        known = [(at + shift, one) for at, one in enumerate(estimates) if one is not None]
        errors = [[one.value - one.low for _, one in known], [one.high - one.value for _, one in known]]
        axes.errorbar(
            [at for at, _ in known], [one.value for _, one in known], yerr=errors, marker="o", markersize=4, label=name
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", alpha=0.3)
    if len(lines) > 1:
        figure.legend(loc="outside lower center", fontsize="small")
    return _encode(figure, "svg")


def reliability_diagram(runs: Mapping[str, Sequence[Mapping[str, Any]]], file_type: str = "svg") -> bytes:
    """Return a chart of the fraction of right results against their score, with the number of results in each bin.

    Args:
        runs: bins of each run, as in metrics.json, by name of the run.
        file_type: svg, png or pdf.
    """
    figure, (upper, lower) = _figure(2)
    for name, bins in runs.items():
        known = [one for one in bins if one["results"]]
        line = upper.plot(
            [one["mean_score"] for one in known],
            [one["precision"] for one in known],
            marker="o",
            markersize=4,
            label=name,
        )
        edges = [bins[0]["low"], *(one["high"] for one in bins)]
        lower.stairs([one["results"] for one in bins], edges, color=line[0].get_color())
    upper.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    upper.set(ylabel="fraction with IoU >= 0.5", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="score", ylabel="results", xlim=(0, 1), yscale="log")
    upper.grid(alpha=0.3)
    if len(runs) > 1:
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    return _encode(figure, file_type)


def _figure(rows: int = 1) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("charts need the package matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(6, 3.6 if rows == 1 else 5), layout="constrained")
    axes = figure.subplots(rows, squeeze=False, height_ratios=(3, 1)[:rows], sharex=True)
    return figure, list(axes[:, 0])


def _encode(figure: Figure, file_type: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Text stays text; without a date and with a fixed salt, equal data give equal files.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(file_type)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ocdit"}):
        figure.savefig(buffer, format=file_type, dpi=150, metadata=metadata)
    return buffer.getvalue()
