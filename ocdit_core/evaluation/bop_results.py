"""The results file of BOP's segmentation task: a JSON list with a row for each instance that was found.

The format: https://bop.felk.cvut.cz/challenges/bop-challenge-2024 (tasks 2 and 5), COCO's results with `scene_id` and
`time`. Scores of equal height keep the order of the rows, so that it counts for average precision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocdit_core.errors import DataError
from ocdit_core.files import replacing
from ocdit_core.inference.results import Segmentation
from ocdit_core.masks import decode_mask, encode_mask

ImageKey = tuple[int, int]
"""scene_id and image_id."""

_KEYS = ("scene_id", "image_id", "category_id", "score", "segmentation", "time")
_SAME_TIME = 1e-3
"""Seconds by which the times of an image's rows may differ, as in the BOP toolkit."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One instance that was found.

    Attributes:
        scene_id: BOP's number of the scene.
        image_id: BOP's number of the image in its scene.
        category_id: BOP's obj_id.
        score: any finite number; more is surer.
        box: (x, y, width, height) in pixels; None where the file does not say.
        segmentation: COCO run lengths {"size": [H, W], "counts": str}.
        time: seconds that the whole image took; -1 where that is not known.
    """

    scene_id: int
    image_id: int
    category_id: int
    score: float
    box: tuple[float, float, float, float] | None
    segmentation: dict[str, Any]
    time: float

    @property
    def image(self) -> ImageKey:
        """The image that it is in."""
        return self.scene_id, self.image_id


def rows_of(image: ImageKey, result: Segmentation, numbers: dict[str, int], seconds: float) -> list[ResultRow]:
    """Return an image's rows.

    Args:
        image: scene_id and image_id.
        result: what was found.
        numbers: obj_id by the object's name in the library.
        seconds: that the image took.
    """
    return [
        ResultRow(
            scene_id=image[0],
            image_id=image[1],
            category_id=numbers[instance.object_id],
            score=float(instance.score),
            box=instance.box,
            segmentation=encode_mask(instance.mask),
            time=seconds,
        )
        for instance in result.instances
    ]


def row_as_json(row: ResultRow) -> dict[str, Any]:
    """Return a row as the file holds it."""
    return {
        "scene_id": row.scene_id,
        "image_id": row.image_id,
        "category_id": row.category_id,
        "score": row.score,
        **({} if row.box is None else {"bbox": list(row.box)}),
        "segmentation": row.segmentation,
        "time": row.time,
    }


def write_results(path: str | Path, rows: Iterable[ResultRow]) -> None:
    """Write a results file; it appears whole or not at all.

    Raises:
        DataError: it cannot be written, or a score or time is not finite.
    """
    try:
        with replacing(path) as part, part.open("w", encoding="utf-8") as file:
            separator = "[\n"
            for row in rows:
                file.write(separator + json.dumps(row_as_json(row), allow_nan=False))
                separator = ",\n"
            file.write("\n]\n" if separator == ",\n" else "[]\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: a row holds a number that is not finite") from error


def read_results(
    path: str | Path,
    *,
    objects: Collection[int] | None = None,
    size_of: Callable[[ImageKey], tuple[int, int] | None] | None = None,
) -> list[ResultRow]:
    """Read a results file, every row of it checked.

    Args:
        path: of the file, in the order of which the rows are returned.
        objects: the obj_ids that may occur; default: any.
        size_of: gives height and width in pixels of an image, None where it does not know it; default: masks of an
            image need only be of one size.

    Raises:
        DataError: it is missing, damaged or no such list, or a row is not what it should be; the message has the row's
            number, counted from 0, and the reason.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", kind="missing file") from error
    except ValueError as error:
        text = " ".join(str(error).split())[:100]
        raise DataError(f"{path}: truncated or damaged JSON ({text})", kind="damaged JSON") from error
    if not isinstance(content, list):
        raise DataError(f"{path}: is a {type(content).__name__}, not a list of results", kind="damaged JSON")
    times: dict[ImageKey, tuple[float, int]] = {}
    sizes: dict[ImageKey, list[int]] = {}
    rows = []
    for number, entry in enumerate(content):
        try:
            row = parse_row(entry, objects)
            known = size_of(row.image) if size_of is not None else None
            expected = list(known) if known is not None else sizes.setdefault(row.image, row.segmentation["size"])
            if row.segmentation["size"] != expected:
                raise DataError(f"the mask has the size {row.segmentation['size']}, the image {expected} (H, W)")
            first, at = times.setdefault(row.image, (row.time, number))
            if abs(row.time - first) > _SAME_TIME:
                raise DataError(
                    f"time is {row.time:g} s, in row {at} of the same image (scene {row.scene_id}, image "
                    f"{row.image_id}) {first:g} s"
                )
        except DataError as error:
            raise DataError(f"{path}: row {number}: {error}", kind="damaged results") from error
        rows.append(row)
    return rows


def parse_row(entry: Any, objects: Collection[int] | None = None) -> ResultRow:
    """Return a row from its JSON object.

    Args:
        entry: of the file.
        objects: the obj_ids that may occur; default: any.

    Raises:
        DataError: a key is missing or its value is not what it should be.
    """
    if not isinstance(entry, dict):
        raise DataError(f"is a {type(entry).__name__}, not an object")
    missing = [key for key in _KEYS if key not in entry]
    if missing:
        raise DataError(f"lacks {', '.join(missing)}")
    scene, image, category = (_whole(entry, key) for key in ("scene_id", "image_id", "category_id"))
    if objects is not None and category not in objects:
        known = ", ".join(map(str, sorted(objects)[:10])) + (" ..." if len(objects) > 10 else "")
        raise DataError(f"category_id is {category}, an object that the dataset does not have ({known})")
    time = _number(entry, "time")
    if time < 0 and time != -1:
        raise DataError(f"time is {time:g} s; where it is not known it has to be -1")
    return ResultRow(
        scene_id=scene,
        image_id=image,
        category_id=category,
        score=_number(entry, "score"),
        box=_box(entry.get("bbox")),
        segmentation=_run_lengths(entry["segmentation"]),
        time=time,
    )


def _whole(entry: dict[str, Any], key: str) -> int:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{key} is {_shown(value)}, not a whole number of 0 or more")
    return value


def _number(entry: dict[str, Any], key: str) -> float:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{key} is {_shown(value)}, not a finite number")
    return float(value)


def _box(value: Any) -> tuple[float, float, float, float] | None:
    # The BOP toolkit writes an empty list where there is none.
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(f"bbox is {_shown(value)}, not x, y, width, height")
    x, y, width, height = (_number({"bbox": number}, "bbox") for number in value)
    if width < 0 or height < 0:
        raise DataError(f"bbox is {_shown(value)}: its width or height is negative")
    return x, y, width, height


def _run_lengths(value: Any) -> dict[str, Any]:
    """Check run lengths, and return them compressed; the mask is not decoded for it."""
    if not isinstance(value, dict) or "size" not in value or "counts" not in value:
        raise DataError(f"segmentation is {_shown(value)}, not run lengths with size and counts")
    size, counts = value["size"], value["counts"]
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise DataError(f"segmentation.size is {_shown(size)}, not [height, width]")
    if isinstance(counts, list):
        return encode_mask(decode_mask(value))
    if not isinstance(counts, str):
        raise DataError(f"segmentation.counts is {_shown(counts)}, neither a text nor a list of runs")
    runs = _runs(counts)
    if runs is None or sum(runs) != size[0] * size[1]:
        total = "cannot be read" if runs is None else f"are of {sum(runs)} pixels"
        raise DataError(f"segmentation.counts: the runs {total}, the size {size} has {size[0] * size[1]}")
    return {"size": size, "counts": counts}


def _runs(counts: str) -> list[int] | None:
    """Return the runs of COCO's compressed run lengths; None where they are damaged.

    pycocotools reads past the end of damaged ones. Five bits a character, lowest first; bit 5 says that more follow;
    from the third run on, the difference to the one before the last is stored.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts.encode("utf-8"):
        bits = character - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return None
        runs.append(value)
        value, shift = 0, 0
    return runs if shift == 0 else None


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + " ..."
