"""Write the tables of docs/ros.md: the node's topics, services and parameters, as the code declares them.

python tools/ros_topics.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "ros.md"
sys.path.insert(0, str(ROOT))

from ocdit_ros import parameters, topics  # noqa: E402  (needs the path)

WHEN = {"always": "at any time", "start": "at the start only"}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [" | ".join(row) for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def entries(what: str, found: Mapping[str, topics.Entry], prefix: str = "") -> str:
    """Return the table of some topics or services."""
    rows = [
        [f"`{prefix}{name}`", f"{entry.kind.__module__.split('.')[0]}/{entry.kind.__name__}", entry.description]
        for name, entry in found.items()
    ]
    return table([what, "type", "what it is"], rows)


def parameter_table() -> str:
    """Return the table of the parameters."""
    rows = []
    for name, spec in parameters.SPECS.items():
        bounds = "" if spec.bounds is None else f" ({spec.bounds[0]:g} to {spec.bounds[1]:g})"
        changes = WHEN.get(spec.when, f"while {spec.when}")
        rows.append([f"`{name}`", f"`{json.dumps(spec.default)}`", f"{spec.description}{bounds}", changes])
    return table(["parameter", "default", "what it does (range)", "can change"], rows)


TABLES = {
    "subscribed": entries("topic", topics.SUBSCRIBED),
    "of a frame": entries("topic", topics.PER_FRAME, "~/"),
    "of regions": entries("topic", topics.PER_REGIONS, "~/"),
    "clicked": entries("topic", topics.CLICKED, "~/"),
    "latched": entries(
        "topic",
        {**{f"~/{name}": entry for name, entry in topics.LATCHED.items()}, **topics.DIAGNOSTICS, **topics.TRANSFORMS},
    ),
    "services": entries("service", topics.SERVICES, "~/"),
    "parameters": parameter_table(),
}


def fill(page: str) -> str:
    """Return a page with its tables made anew; each stands between the comments <!-- NAME --> and <!-- end -->."""
    for name, text in TABLES.items():
        page, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, text=text: f"{found[1]}{text}\n{found[2]}",
            page,
            flags=re.S,
        )
        if count != 1:
            raise SystemExit(f"the table {name!r} has {count} places, not one")
    return page


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
