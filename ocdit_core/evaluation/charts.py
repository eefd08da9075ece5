"""Line charts as SVG, for pages that are one file."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 42
_COLOURS = ("--a", "--b", "--c", "--d", "--e", "--f")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value with the interval that it lies in, which may be as short as nothing."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line: a point, or None, for each place on the axis."""

    name: str
    points: tuple[Point | None, ...]


def line_chart(places: Sequence[str], series: Sequence[Series], *, x_title: str, y_title: str) -> str:
    """Return an SVG picture: one line a series, with whiskers for the intervals.

    Args:
        places: labels along the axis, equally far apart whatever their values: settings need not be numbers.
        series: the lines; each has a point for each place.
        x_title: of the axis.
        y_title: likewise.
    """
    known = [point for one in series for point in one.points if point is not None]
    low = min((point.low for point in known), default=0.0)
    high = max((point.high for point in known), default=1.0)
    ticks = _ticks(low, high)
    low, high = ticks[0], ticks[-1]
    legend = 16 * len(series) if len(series) > 1 else 0
    bottom = _HEIGHT - _BOTTOM

    def x(at: float) -> float:
        return _LEFT + (at + 0.5) * (_WIDTH - _LEFT - _RIGHT) / len(places)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    parts = []
    for tick in ticks:
        parts.append(
            f'<path d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>'
            f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for at, label in enumerate(places):
        parts.append(f'<text x="{x(at):.1f}" y="{bottom + 16}" text-anchor="middle">{html.escape(label)}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{bottom + 34}" text-anchor="middle">{html.escape(x_title)}</text>'
        f'<text transform="translate(12 {(bottom + _TOP) / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_title)}</text>"
    )
    for number, one in enumerate(series):
        # Whiskers of several lines beside each other, not on top.
        shift = 0.06 * (number - (len(series) - 1) / 2)
        shown = [(x(at + shift), point) for at, point in enumerate(one.points) if point is not None]
        colour = f"var({_COLOURS[number % len(_COLOURS)]})"
        line = " ".join(f"{left:.1f},{y(point.value):.1f}" for left, point in shown)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for left, point in shown:
            parts.append(
                f'<path d="M{left:.1f} {y(point.low):.1f}V{y(point.high):.1f}" stroke="{colour}"/>'
                f'<circle cx="{left:.1f}" cy="{y(point.value):.1f}" r="3.5" fill="{colour}">'
                f"<title>{point.value:.3g} [{point.low:.3g}, {point.high:.3g}]</title></circle>"
            )
        if legend:
            top = _HEIGHT + 16 * number
            parts.append(
                f'<rect x="{_LEFT}" y="{top}" width="14" height="4" fill="{colour}"/>'
                f'<text x="{_LEFT + 20}" y="{top + 6}">{html.escape(one.name)}</text>'
            )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + legend}" role="img" font-size="12" fill="currentColor" '
        f'aria-label="{html.escape(y_title)} against {html.escape(x_title)}">{"".join(parts)}</svg>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """About five round values, the first not above `low` and the last not below `high`."""
    span = max(high - low, 1e-9, 0.02 * abs(high))
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]
