"""The page and the sheet that `ocdit inspect` writes: annotated samples, and the tables as bars."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ocdit_core.files import write_text
from ocdit_core.web_page import data_uri

if TYPE_CHECKING:
    from ocdit_core.data.frame import Frame
    from ocdit_core.data.statistics import DatasetStatistics

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #f4f4f2; --card: #fff; --ink: #1d1f21; --dim: #6a6f73; --line: #dcdcd8;
  --bar: #4a7fb5; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --back: #16181a; --card: #202326; --ink: #e8e8e6; --dim: #9aa0a5; --line: #34383c; --bar: #6fa3d8; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 110rem; padding: 1rem 1.2rem; font: 15px/1.45 system-ui, sans-serif;
  background: var(--back); color: var(--ink); }}
h1 {{ font-size: 1.2rem; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1rem; margin: 1.2rem 0 .5rem; }}
p {{ margin: .2rem 0; color: var(--dim); }}
.tables {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }}
table {{ width: 100%; border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }}
caption {{ text-align: left; font-weight: 600; padding: .3rem 0; }}
td {{ padding: .1rem .5rem; white-space: nowrap; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
td.bar {{ width: 60%; }}
td.bar i {{ display: block; height: .8em; background: var(--bar); border-radius: 2px; }}
.samples {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }}
figure {{ margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }}
figure img {{ display: block; width: 100%; }}
figcaption {{ padding: .3rem .6rem; color: var(--dim); overflow-wrap: anywhere; }}
li {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
<p>Labels are object numbers and the share of each object that is seen.</p>
{problems}<h2>Instances</h2>
<div class="tables">
{tables}</div>
<h2>Samples</h2>
<div class="samples">
{samples}</div>
</body>
</html>
"""


def draw_frame(frame: Frame, width: int) -> np.ndarray:
    """Draw a frame's visible masks over its picture, labelled with object number and visible fraction.

    Args:
        frame: one that is sound.
        width: of the drawing in pixels.

    Returns:
        (H, width, 3) uint8 RGB.

    Raises:
        DataError: the picture or a mask is missing or damaged.
    """
    from ocdit_core.inference.results import Instance, Segmentation
    from ocdit_core.visualization import overlay

    image = frame.image()
    size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
    instances = []
    for index, annotation in enumerate(frame.annotations):
        mask = cv2.resize(frame.mask(index).astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
        box = frame.visible_box(index)
        if box is None:
            continue
        scale = width / image.shape[1]
        x, y, w, h = (round(value * scale) for value in box)
        known = annotation.visible_fraction == annotation.visible_fraction
        score = annotation.visible_fraction if known else 1.0
        instances.append(Instance(object_id=str(annotation.object_id), score=score, box=(x, y, w, h), mask=mask))
    # Large ones first, under the small ones, which would be hard to see.
    instances.sort(key=lambda instance: int(instance.mask.sum()))
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA if size[0] < image.shape[1] else cv2.INTER_LINEAR)
    result = Segmentation(instances=tuple(instances), image_size=(size[1], size[0]), target_ids=())
    return overlay(np.asarray(shrunk, dtype=np.uint8), result)


def sheet(drawings: Sequence[np.ndarray], *, columns: int = 5) -> np.ndarray:
    """Put drawings of one width side by side, row by row.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rows = [drawings[at : at + columns] for at in range(0, len(drawings), columns)]
    width = max(drawing.shape[1] for drawing in drawings)
    strips = []
    for row in rows:
        strip = np.full((max(d.shape[0] for d in row) + 4, min(columns, len(drawings)) * (width + 4), 3), 32, np.uint8)
        for column, drawing in enumerate(row):
            strip[: drawing.shape[0], column * (width + 4) : column * (width + 4) + drawing.shape[1]] = drawing
        strips.append(strip)
    return np.concatenate(strips)


def write_page(
    path: Path, title: str, summary: str, survey: DatasetStatistics, samples: Sequence[tuple[str, np.ndarray]]
) -> None:
    """Write the page, atomically; it holds its pictures and loads nothing from elsewhere.

    Args:
        path: of the HTML file.
        title: the dataset.
        summary: a line of numbers.
        survey: for the tables and what is damaged.
        samples: caption and drawing of each.

    Raises:
        DataError: it cannot be written.
    """
    figures = "".join(
        f'<figure><img loading="lazy" alt="{html.escape(caption)}" src="{data_uri(drawing)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
        for caption, drawing in samples
    )
    problems = ""
    if survey.problems:
        items = "".join(f"<li>{html.escape(problem)}</li>\n" for problem in survey.problems)
        kinds = ", ".join(f"{html.escape(kind)}: {count}" for kind, count in survey.damaged.most_common())
        problems = f"<h2>Damaged ({kinds})</h2>\n<ul>\n{items}</ul>\n"
    tables = "".join(_table(name, rows) for name, rows in survey.histograms().items())
    tables += _table("most frequent objects", [(str(number), n) for number, n in survey.objects.most_common(20)])
    tables += _table("instances in a picture", [(str(number), n) for number, n in sorted(survey.per_frame.items())])
    page = _PAGE.format(
        title=html.escape(title), summary=html.escape(summary), problems=problems, tables=tables, samples=figures
    )
    write_text(path, page)


def _table(name: str, rows: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in rows), default=0) or 1
    lines = "".join(
        f'<tr><td>{html.escape(label)}</td><td class="number">{count:,}</td>'
        f'<td class="bar"><i style="width:{100 * count / most:.1f}%"></i></td></tr>\n'
        for label, count in rows
    )
    return f"<table>\n<caption>{html.escape(name)}</caption>\n{lines}</table>\n"
