"""Location prompts: where in an image an object is, or is not, as a person or another program says it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ocdit_core.errors import ImageError, OcditError, UnknownObjectError
from ocdit_core.files import reason
from ocdit_core.masks import Box, decode_mask, tight_box

Point = tuple[float, float]
"""(x, y) in pixels; the centre of the top left pixel is (0, 0)."""

_KEYS = ("object_id", "points", "negative", "scribble", "box", "mask")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """Where one instance of an object is; several prompts of one object are several instances.

    All coordinates are pixels of the image. A prompt of negative points alone says where the object is not.

    Attributes:
        object_id: name of the target object.
        points: points (x, y) on the instance.
        negative: points that are not on it.
        scribble: corners (x, y) of a line that is drawn along the instance.
        box: box (x, y, width, height) around its visible part.
        mask: (H, W) bool mask of its visible part.

    Raises:
        ImageError: a coordinate is not a number, or the prompt says nothing.
    """

    object_id: str
    points: Sequence[Point] = ()
    negative: Sequence[Point] = ()
    scribble: Sequence[Point] = ()
    box: Box | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("points", "negative", "scribble"):
            object.__setattr__(self, name, _points(getattr(self, name), f"prompt for {self.object_id}: {name}"))
        if self.box is None and self.mask is None and not (self.points or self.negative or self.scribble):
            raise ImageError(f"prompt for {self.object_id}: has no points, scribble, box or mask")

    @property
    def places(self) -> bool:
        """Whether it says where the object is, not only where it is not."""
        return self.box is not None or self.mask is not None or bool(self.points or self.scribble)

    def check(self, size: tuple[int, int]) -> None:
        """Check that the prompt lies inside an image of `size` (H, W).

        Raises:
            ImageError: it does not, or the mask is not a bool mask of this size, or is empty.
        """
        where = f"prompt for {self.object_id}"
        for x, y in (*self.points, *self.negative, *self.scribble):
            if not (0 <= round(x) < size[1] and 0 <= round(y) < size[0]):
                raise ImageError(f"{where}: point ({x:g}, {y:g}) is outside the image of {size[1]} x {size[0]} pixels")
        for region in (self.box, self.mask):
            if region is not None:
                checked_box(region, size, where)


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read prompts from a JSON file: a list of objects with the attributes of `Prompt`; masks are COCO run lengths.

    Raises:
        ImageError: the file is missing, is no such list, or holds a malformed prompt; the message names its number.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise ImageError(f"{path}: truncated or damaged JSON ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(content, list) or not content:
        raise ImageError(f'{path}: must be a list of prompts, such as [{{"object_id": "mug", "points": [[320, 240]]}}]')
    prompts = []
    for number, entry in enumerate(content, start=1):
        try:
            prompts.append(_from_json(entry))
        except OcditError as error:
            raise ImageError(f"{path}: prompt {number}: {error}") from error
    return prompts


def _from_json(entry: Any) -> Prompt:
    if not isinstance(entry, dict) or not isinstance(entry.get("object_id"), str):
        raise ImageError(f"{json.dumps(entry)[:80]} has no object_id")
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        raise ImageError(f"unknown key {unknown[0]!r}; use {', '.join(_KEYS)}")
    mask = entry.get("mask")
    return Prompt(**entry | ({} if mask is None else {"mask": decode_mask(mask)}))


def parse_prompt(text: str) -> Prompt:
    """Return the prompt of a text: OBJECT@X,Y or OBJECT@box:X,Y,WIDTH,HEIGHT.

    Raises:
        ImageError: the text is neither.
    """
    name, separator, place = text.rpartition("@")
    box = place.startswith("box:")
    try:
        numbers = [float(number) for number in place.removeprefix("box:").split(",")]
    except ValueError:
        numbers = []
    if not (separator and name and len(numbers) == (4 if box else 2)):
        raise ImageError(f"prompt {text!r:.80} is not OBJECT@X,Y or OBJECT@box:X,Y,WIDTH,HEIGHT")
    if box:
        x, y, width, height = numbers
        return Prompt(object_id=name, box=(x, y, width, height))  # type: ignore[arg-type]  # checked with the image
    return Prompt(object_id=name, points=[(numbers[0], numbers[1])])


def _points(values: Any, what: str) -> tuple[Point, ...]:
    """Return points as pairs of numbers, checked."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = np.empty(1)
    if array.size and (array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all()):
        raise ImageError(f"{what}: {values!r:.80} is not a list of points (x, y)")
    return tuple((float(x), float(y)) for x, y in array.reshape(-1, 2))


def check_prompts(prompts: Sequence[Prompt], names: Sequence[str], size: tuple[int, int]) -> None:
    """Check prompts for an image of `size` (H, W).

    Raises:
        ImageError: see `Prompt.check`.
        UnknownObjectError: a prompt is for an object that is none of the targets.
    """
    unknown = sorted({prompt.object_id for prompt in prompts} - set(names))
    if unknown:
        raise UnknownObjectError(unknown, list(names))
    for prompt in prompts:
        prompt.check(size)


def checked_box(region: Box | np.ndarray, size: tuple[int, int], where: str) -> Box:
    """Return the box of a region; raises ImageError, whose message begins with `where`, if it is not in the image."""
    if isinstance(region, np.ndarray):
        if region.shape != size or region.dtype != bool:
            raise ImageError(
                f"{where}: a mask must be bool and of the image's size {size}, is {region.dtype} {region.shape}"
            )
        if not region.any():
            raise ImageError(f"{where}: the mask is empty")
        return tight_box(region)
    try:
        numbers = np.asarray(region)
    except ValueError:  # lists of different lengths
        numbers = np.empty(0)
    if numbers.shape != (4,) or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise ImageError(f"{where}: {region!r:.80} is neither a box (x, y, width, height) nor a bool mask")
    x, y, width, height = (int(value) for value in numbers)
    if width < 1 or height < 1 or x < 0 or y < 0 or x + width > size[1] or y + height > size[0]:
        raise ImageError(
            f"{where}: box {tuple(region)} (x, y, width, height) is not inside the image of "
            f"{size[1]} x {size[0]} pixels"
        )
    return x, y, width, height
