"""What a run has found so far: files of JSON lines, one line an image, that only ever grow.

Each process writes a file of its own, so that any number of them, on any machines, may share a folder. A line that a
killed process left unfinished is not counted, and nothing is written after it.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ocdit_core.errors import DataError
from ocdit_core.evaluation.bop_results import ImageKey, ResultRow, parse_row, row_as_json

logger = logging.getLogger(__name__)

FOLDER = "parts"


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """What was found in one image.

    Attributes:
        image: scene_id and image_id.
        rows: the instances.
        time: seconds that it took.
        timings: the same by stage.
    """

    image: ImageKey
    rows: tuple[ResultRow, ...]
    time: float
    timings: dict[str, float]


@contextmanager
def open_part(out: Path) -> Iterator[IO[str]]:
    """Open a new file for this process's results.

    Raises:
        DataError: it cannot be made.
    """
    path = out / FOLDER / f"{secrets.token_hex(8)}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("x", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be made ({error.strerror})") from error
    with file:
        yield file


def write_result(file: IO[str], result: ImageResult) -> None:
    """Append one image's result; it is on its way to the disk when this returns."""
    line = {
        "scene_id": result.image[0],
        "image_id": result.image[1],
        "time": result.time,
        "timings": result.timings,
        "rows": [row_as_json(row) for row in result.rows],
    }
    file.write(json.dumps(line, allow_nan=False) + "\n")
    file.flush()


def read_parts(out: Path) -> dict[ImageKey, ImageResult]:
    """Return all results that there are; of two for one image the first is taken.

    Raises:
        DataError: a whole line is no result.
    """
    results: dict[ImageKey, ImageResult] = {}
    for path in sorted((out / FOLDER).glob("*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                result = _parse(json.loads(line))
            except (ValueError, KeyError, TypeError, DataError) as error:
                raise DataError(
                    f"{path}: line {number} is no result ({error}); delete the file", kind="damaged"
                ) from error
            results.setdefault(result.image, result)
    return results


def _parse(entry: dict[str, object]) -> ImageResult:
    return ImageResult(
        image=(int(str(entry["scene_id"])), int(str(entry["image_id"]))),
        rows=tuple(parse_row(row) for row in entry["rows"]),  # type: ignore[attr-defined]
        time=float(str(entry["time"])),
        timings=dict(entry["timings"]),  # type: ignore[call-overload]
    )
