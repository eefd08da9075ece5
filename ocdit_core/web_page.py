"""Web pages that are one file: their style, tables and pictures are in it, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #f4f4f2; --card: #fff; --ink: #1d1f21; --dim: #63686c; --line: #dcdcd8;
  --mark: #fdf3d8; --a: #2f6db0; --b: #c4572a; --c: #3d8a4e; --d: #8459a8; --e: #9a7a1c; --f: #6b7075; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --back: #16181a; --card: #202326; --ink: #e8e8e6; --dim: #9aa0a5; --line: #34383c;
    --mark: #3d3520; --a: #7db2ec; --b: #ee9470; --c: #7cc68c; --d: #bd99dd; --e: #d6b755; --f: #a9aeb3; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 84rem; padding: 1rem 1.2rem; font: 15px/1.45 system-ui, sans-serif;
  background: var(--back); color: var(--ink); }}
h1 {{ font-size: 1.3rem; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin: 1.8rem 0 .5rem; }}
h3 {{ font-size: 1rem; margin: 1rem 0 .4rem; overflow-wrap: anywhere; }}
p {{ margin: .2rem 0 .6rem; color: var(--dim); max-width: 60rem; }}
nav {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; }}
a {{ color: var(--a); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; background: var(--card); border: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding: .3rem 0; }}
th, td {{ padding: .15rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child, .text {{ text-align: left; }}
thead th {{ vertical-align: bottom; }}
tr.dim td {{ color: var(--dim); }}
tr.mark td {{ background: var(--mark); }}
.columns {{ display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }}
.columns > * {{ min-width: 0; }}
.pictures {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 38rem), 1fr)); }}
.crops {{ display: grid; gap: .7rem; grid-template-columns: repeat(auto-fill, minmax(min(48%, 11rem), 1fr)); }}
figure {{ margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }}
figure img {{ display: block; width: 100%; }}
figure svg {{ display: block; width: 100%; height: auto; }}
figcaption {{ padding: .3rem .6rem; color: var(--dim); overflow-wrap: anywhere; font-size: 13px; }}
</style>
</head>
<body>
{body}</body>
</html>
"""


def page(title: str, body: str) -> str:
    """Return a whole page.

    Args:
        title: plain text.
        body: HTML.
    """
    return _PAGE.format(title=html.escape(title), body=body)


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", classes: Sequence[str] = ()
) -> str:
    """Return a table that scrolls by itself where the screen is narrow.

    Args:
        header: plain text, a cell for each column.
        rows: plain text likewise.
        caption: plain text above it.
        classes: of the rows: "dim", "mark" or "".
    """
    texts = [not any(row[at][:1].isdigit() or row[at][:1] in ("+", "-") for row in rows) for at in range(len(header))]
    kinds = [' class="text"' if text else "" for text in texts]
    head = "".join(f"<th{kind}>{html.escape(cell)}</th>" for cell, kind in zip(header, kinds, strict=True))
    lines = []
    for at, row in enumerate(rows):
        mark = f' class="{classes[at]}"' if classes and classes[at] else ""
        cells = (f"<td{kind}>{html.escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>\n")
    title = f"<caption>{html.escape(caption)}</caption>\n" if caption else ""
    return (
        f'<div class="wide"><table>\n{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(lines)}</tbody></table>'
        "</div>\n"
    )


def figure(content: str, caption: str) -> str:
    """Return a figure: HTML with a caption in plain text."""
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>\n"


def picture(pixels: np.ndarray, caption: str) -> str:
    """Return a figure of a (H, W, 3) uint8 RGB picture, which is stored in the page as WebP."""
    height, width = pixels.shape[:2]
    text = html.escape(caption)
    size = f'style="height:auto" width="{width}" height="{height}"'
    source = f'<img loading="lazy" {size} alt="{text}" src="{data_uri(pixels)}">'
    return figure(source, caption)


def data_uri(pixels: np.ndarray) -> str:
    """Return a (H, W, 3) uint8 RGB picture as an address that holds it, as WebP."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=82, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
