"""Results in BOP's format, and the partial results of an evaluation in progress.

BOP's results file of the segmentation task (https://bop.felk.cvut.cz/challenges/bop-challenge-2024, tasks 2 and 5) is
COCO's, a JSON list with one row per instance, plus `scene_id` and `time`. Rows of equal score keep their order, which
average precision depends on.
"""

import json
import math
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ocdit_core.errors import DataError
from ocdit_core.files import replacing
from ocdit_core.inference.results import Segmentation
from ocdit_core.masks import decode_mask, encode_mask, mask_runs

ImageKey = tuple[int, int]
"""scene_id and image_id."""

_KEYS = ("scene_id", "image_id", "category_id", "score", "segmentation", "time")
_SAME_TIME = 1e-3
"""Tolerance in seconds between the times of an image's rows, as in the BOP toolkit."""

PARTS = "parts"
"""Folder of the partial results."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One detected instance.

    Attributes:
        scene_id: BOP scene_id.
        image_id: BOP im_id.
        category_id: BOP obj_id.
        score: confidence, any finite number.
        box: (x, y, width, height) in pixels; None if the file does not hold it.
        segmentation: COCO RLE {"size": [H, W], "counts": str}.
        time: run time of the whole image in seconds; -1 if unknown.
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
        """scene_id and image_id."""
        return self.scene_id, self.image_id


def rows_of(image: ImageKey, result: Segmentation, numbers: dict[str, int], seconds: float) -> list[ResultRow]:
    """Return the rows of an image.

    Args:
        image: scene_id and image_id.
        result: its segmentation.
        numbers: obj_id by object name in the library.
        seconds: run time of the image.
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


def _as_json(row: ResultRow) -> dict[str, Any]:
    entry = {key: getattr(row, key) for key in _KEYS}
    return entry if row.box is None else entry | {"bbox": list(row.box)}


def write_results(path: str | Path, rows: Iterable[ResultRow]) -> None:
    """Write a results file, atomically.

    Raises:
        DataError: it cannot be written, or a score or time is not finite.
    """
    try:
        with replacing(path) as part, part.open("w", encoding="utf-8") as file:
            separator = "[\n"
            for row in rows:
                file.write(separator + json.dumps(_as_json(row), allow_nan=False))
                separator = ",\n"
            file.write("\n]\n" if separator == ",\n" else "[]\n")
    except ValueError as error:
        raise DataError(f"{path}: a row holds a number that is not finite") from error


def read_results(
    path: str | Path,
    *,
    objects: Collection[int] | None = None,
    size_of: Callable[[ImageKey], tuple[int, int] | None] | None = None,
) -> list[ResultRow]:
    """Read and validate a results file.

    Args:
        path: the file.
        objects: known obj_ids; default: any.
        size_of: return height and width of an image in pixels, or None if unknown; default: the masks of an image must
            only agree in size.

    Returns:
        The rows, in the order of the file.

    Raises:
        DataError: the file is missing, damaged or not a list, or a row is invalid; the message has the row's index and
            the reason.
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
            row = _parse_row(entry, objects)
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


def _parse_row(entry: Any, objects: Collection[int] | None = None) -> ResultRow:
    """Return a row from its JSON object; raises DataError if a key is missing or its value is invalid."""
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
        segmentation=_segmentation(entry["segmentation"]),
        time=time,
    )


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """Results for one image: the instances, and the run time in seconds (-1: unknown), in all and by stage."""

    image: ImageKey
    rows: tuple[ResultRow, ...] = ()
    time: float = -1.0
    timings: dict[str, float] = field(default_factory=dict)


@contextmanager
def open_part(out: Path) -> Iterator[IO[str]]:
    """Open a new file of partial results: JSON lines, one line per image.

    Each process appends to a file of its own, so that any number of processes may share the folder.

    Raises:
        DataError: it cannot be created.
    """
    path = out / PARTS / f"{secrets.token_hex(8)}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("x", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be created ({error.strerror})") from error
    with file:
        yield file


def write_result(file: IO[str], result: ImageResult) -> None:
    """Append the result of one image and flush it."""
    scene, image = result.image
    line = {"scene_id": scene, "image_id": image, "time": result.time, "timings": result.timings}
    file.write(json.dumps(line | {"rows": [_as_json(row) for row in result.rows]}, allow_nan=False) + "\n")
    file.flush()


def read_parts(out: Path) -> dict[ImageKey, ImageResult]:
    """Return all partial results; a line that a killed process left unfinished is skipped.

    Raises:
        DataError: a finished line is invalid.
    """
    results: dict[ImageKey, ImageResult] = {}
    for path in sorted((out / PARTS).glob("*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                entry = json.loads(line)
                result = ImageResult(
                    image=(int(entry["scene_id"]), int(entry["image_id"])),
                    rows=tuple(_parse_row(row) for row in entry["rows"]),
                    time=float(entry["time"]),
                    timings=dict(entry["timings"]),
                )
            except (ValueError, KeyError, TypeError, DataError) as error:
                raise DataError(
                    f"{path}: line {number} is no result ({error}); delete the file", kind="damaged"
                ) from error
            results.setdefault(result.image, result)
    return results


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
    # The BOP toolkit writes an empty list if there is no box.
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(f"bbox is {_shown(value)}, not x, y, width, height")
    x, y, width, height = (_number({"bbox": number}, "bbox") for number in value)
    if width < 0 or height < 0:
        raise DataError(f"bbox is {_shown(value)}: its width or height is negative")
    return x, y, width, height


def _segmentation(value: Any) -> dict[str, Any]:
    """Check run lengths and return them compressed."""
    if not isinstance(value, dict):
        raise DataError(f"segmentation is {_shown(value)}, not run lengths with size and counts")
    try:
        mask_runs(value)
    except DataError as error:
        raise DataError(f"segmentation: {error}") from error
    if isinstance(value["counts"], list):
        return encode_mask(decode_mask(value))
    return {"size": list(value["size"]), "counts": value["counts"]}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + " ..."
