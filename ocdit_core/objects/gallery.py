"""A library as one web page that needs nothing else: every view of every object, to be looked through and filtered."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ocdit_core.files import replacing
from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.objects.library import ObjectEntry
from ocdit_core.web_page import data_uri

_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #f4f4f2; --card: #fff; --ink: #1d1f21; --dim: #6a6f73; --line: #dcdcd8; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --back: #16181a; --card: #202326; --ink: #e8e8e6; --dim: #9aa0a5; --line: #34383c; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; font: 15px/1.45 system-ui, sans-serif; background: var(--back); color: var(--ink); }}
header {{ position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; align-items: center;
  padding: .7rem 1.2rem; background: var(--card); border-bottom: 1px solid var(--line); }}
h1 {{ font-size: 1.1rem; margin: 0; }}
header span {{ color: var(--dim); }}
input[type=search] {{ font: inherit; padding: .3rem .6rem; min-width: 20rem; color: inherit; background: var(--back);
  border: 1px solid var(--line); border-radius: 6px; }}
main {{ padding: 1rem 1.2rem; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 36rem), 1fr)); }}
article {{ background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  content-visibility: auto; contain-intrinsic-size: auto 20rem; min-width: 0; }}
article[hidden] {{ display: none; }}
h2 {{ font-size: 1rem; margin: 0 0 .2rem; display: flex; align-items: center; gap: .5rem; overflow-wrap: anywhere; }}
h2 i {{ flex: none; width: .9rem; height: .9rem; border-radius: 3px; border: 1px solid #0003; }}
h2 small {{ margin-left: auto; flex: none; font-weight: normal; color: var(--dim); }}
p {{ margin: 0 0 .5rem; color: var(--dim); overflow-wrap: anywhere; }}
p.problem {{ color: #c62828; margin-bottom: .2rem; }}
@media (prefers-color-scheme: dark) {{ p.problem {{ color: #ff8a80; }} }}
.views {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); gap: 3px; }}
.views img {{ width: 100%; aspect-ratio: 1; background: #000; border-radius: 3px; display: block; }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<input type="search" id="filter" placeholder="filter by name, source or problem" aria-label="filter">
<label><input type="checkbox" id="bad"> with problems only</label>
<span id="count"></span>
</header>
<main>
"""

_TAIL = """\
</main>
<script>
const cards = [...document.querySelectorAll("article")];
const box = document.getElementById("filter"), bad = document.getElementById("bad");
function show() {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const card of cards) {
    const text = card.dataset.text;
    card.hidden = !words.every(word => text.includes(word)) || (bad.checked && !("problem" in card.dataset));
    shown += !card.hidden;
  }
  document.getElementById("count").textContent = shown + " of " + cards.length + " objects";
}
box.addEventListener("input", show);
bad.addEventListener("change", show);
show();
</script>
</body>
</html>
"""


class Gallery:
    """A page under construction; `writing_gallery` opens one."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, templates: ObjectTemplates, entry: ObjectEntry | None = None, problems: Sequence[str] = ()) -> None:
        """Write one object with all its views.

        Args:
            templates: the object.
            entry: its number and colour in the library.
            problems: what is wrong with it, one line each.
        """
        name = html.escape(templates.name)
        swatch, number = "", ""
        if entry is not None:
            swatch = f'<i style="background:rgb{entry.colour}" title="rgb{entry.colour}"></i>'
            number = f"<small>id {entry.id}</small>"
        facts = html.escape(" · ".join(describe(templates)))
        searched = html.escape(" ".join([templates.name, *templates.sources, *problems]).lower())
        flag = " data-problem" if problems else ""
        self._file.write(f'<article data-text="{searched}"{flag}>\n<h2>{swatch}{name}{number}</h2>\n<p>{facts}</p>\n')
        for problem in problems:
            self._file.write(f'<p class="problem">{html.escape(problem)}</p>\n')
        self._file.write('<div class="views">\n')
        for index, view in enumerate(templates.rgb, 1):
            label = f"{name}, view {index}"
            self._file.write(
                f'<img loading="lazy" decoding="async" alt="{label}" title="{label}" src="{data_uri(view)}">\n'
            )
        self._file.write("</div>\n</article>\n")

    def add_damaged(self, name: str, problem: str) -> None:
        """Write an object that could not be read, with the reason."""
        searched = html.escape(f"{name} {problem}".lower())
        self._file.write(
            f'<article data-text="{searched}" data-problem>\n<h2>{html.escape(name)}</h2>\n'
            f'<p class="problem">{html.escape(problem)}</p>\n</article>\n'
        )


@contextmanager
def writing_gallery(path: str | Path, title: str) -> Iterator[Gallery]:
    """Yield a page to add objects to, one by one; the file is there, whole, when the block ends without an error.

    The page holds its pictures (WebP) and loads nothing from elsewhere.

    Args:
        path: of the HTML file.
        title: shown at the top.

    Raises:
        LibraryError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(_HEAD.format(title=html.escape(title)))
        yield Gallery(file)
        file.write(_TAIL)


def describe(templates: ObjectTemplates) -> list[str]:
    """Return what is known of an object in a few words each: size, views, unit, source, symmetries."""
    facts = [length(templates.diameter), f"{len(templates)} views"]
    if templates.origin == "photos":
        facts.append("from photographs")
    if templates.unit:
        facts.append(f"unit {templates.unit}")
    if templates.sources:
        more = f" and {len(templates.sources) - 1} more" if len(templates.sources) > 1 else ""
        facts.append(f"source {templates.sources[0]}{more}")
    symmetries = symmetry_text(templates)
    return [*facts, f"symmetric: {symmetries}"] if symmetries else facts


def symmetry_text(templates: ObjectTemplates) -> str:
    """Return how an object is symmetric, in a few words; empty if it is not known to be."""
    axes, discrete = len(templates.symmetries_continuous), len(templates.symmetries_discrete)
    parts = [f"{axes} {'axis' if axes == 1 else 'axes'}"] if axes else []
    return ", ".join([*parts, f"{discrete} discrete"] if discrete else parts)


def length(metres: float) -> str:
    """Return a length as a person says it: "8.5 cm", "1.20 m", or "size unknown"."""
    if not math.isfinite(metres):
        return "size unknown"
    return f"{metres * 100:.1f} cm" if metres < 1 else f"{metres:.2f} m"
