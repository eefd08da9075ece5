"""Can these views be believed? Measures that find black, empty, cropped, displaced and mirrored pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ocdit_core.objects.archive import ObjectTemplates

MIN_BRIGHTNESS = 20
"""Of 255: the brightest tenth of an object's pixels is at least so bright, black rubber included."""
MIN_COVERAGE = 0.004
"""Share of the view that the object covers: a wire from corner to corner covers about twice that."""
MAX_DISPLACEMENT = 0.1
"""Of the view's side, between its centre and that of the object's box."""
MIN_EXTENT = 0.5
"""Of the view's side: the longer side of the object's box; a crop is made to fit the object."""
MIN_INSIDE = 0.99
"""Share of the surface points that fall onto the mask in each view."""


def check_views(templates: ObjectTemplates) -> list[str]:
    """Return what is wrong with an object's views, one short line for each kind of problem; empty if all is well.

    Found are views that are empty, black, cropped (the object touches the border), off-centre, or too small, and views
    whose mask does not show where the stored camera sees the stored points, as one that is mirrored or turned.
    Photographs have no known cameras: they are not checked for the latter.
    """
    mask = templates.mask
    area = np.asarray(mask.mean(axis=(1, 2)))
    shown = area > 0
    problems = [_line(~shown, "empty")]
    problems.append(
        _line(shown & (brightness(templates) < MIN_BRIGHTNESS), f"black (brightness below {MIN_BRIGHTNESS})")
    )
    problems.append(_line(shown & (area < MIN_COVERAGE), f"too small (covers under {MIN_COVERAGE:.1%})"))
    border = np.asarray(mask[:, [0, -1]].any(axis=(1, 2)) | mask[:, :, [0, -1]].any(axis=(1, 2)))
    problems.append(_line(border, "cropped (the object touches the border)"))
    low, high = _extents(mask)
    displacement = np.abs((low + high) / 2 - 0.5).max(axis=1)
    problems.append(_line(shown & ~border & (displacement > MAX_DISPLACEMENT), "off-centre"))
    extent = (high - low).max(axis=1)
    problems.append(_line(shown & (extent < MIN_EXTENT), f"too small (under {MIN_EXTENT:.0%} of the view wide)"))
    if templates.origin == "cad":
        inside = points_inside(templates)
        wrong = shown & (inside < MIN_INSIDE)
        worst = f"{inside[wrong].min():.2%}" if wrong.any() else ""
        problems.append(_line(wrong, f"points outside the mask (only {worst} inside)"))
    return [problem for problem in problems if problem]


def brightness(templates: ObjectTemplates) -> NDArray[np.float64]:
    """Return for each view how bright the brightest tenth of the object is at least, (V,), 0 to 255; 0 if empty."""
    # A saturated blue counts as much as a grey: the largest channel.
    red, green, blue = np.moveaxis(templates.rgb, 3, 0)
    value = np.maximum(np.maximum(red, green), blue)
    return np.array(
        [np.percentile(view[mask], 90) if mask.any() else 0.0 for view, mask in zip(value, templates.mask, strict=True)]
    )


def points_inside(templates: ObjectTemplates) -> NDArray[np.float64]:
    """Return for each view the share of the surface points, (V,), that its camera projects onto its mask."""
    camera = templates.points @ templates.pose[:, :3, :3].transpose(0, 2, 1) + templates.pose[:, None, :3, 3]
    pixel = camera @ templates.K.transpose(0, 2, 1)
    height, width = templates.mask.shape[1:]
    depth = pixel[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        column, row = np.floor(pixel[..., 0] / depth), np.floor(pixel[..., 1] / depth)
    seen = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    views = np.arange(len(templates))[:, None]
    column, row = (np.where(seen, index, 0).astype(int) for index in (column, row))
    return (seen & templates.mask[views, row, column]).mean(axis=1)


def _extents(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and upper ends (V, 2), as shares of the view, of the box around each mask."""
    low, high = np.zeros((len(mask), 2)), np.ones((len(mask), 2))
    for axis in (1, 2):
        line = np.asarray(mask.any(axis=3 - axis))
        size = line.shape[1]
        low[:, axis - 1] = line.argmax(axis=1) / size
        high[:, axis - 1] = 1 - line[:, ::-1].argmax(axis=1) / size
    return low, high


def _line(views: NDArray[np.bool_], problem: str) -> str:
    """Return one line that names the views, counted from 1; empty if there are none."""
    numbers = [str(number + 1) for number in np.flatnonzero(views)]
    if not numbers:
        return ""
    named = ", ".join(numbers[:8]) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"view{'s' if len(numbers) > 1 else ''} {named} of {len(views)}: {problem}"
