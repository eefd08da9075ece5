"""A run's log: one line of JSON for each time that figures were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOG_FILE = "log.jsonl"


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return what a run logged, line by line; a last line that was cut off by a crash is left out."""
    lines = []
    path = run / LOG_FILE
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
