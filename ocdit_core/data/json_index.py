"""Single entries out of BOP's large JSON files, without parsing the rest: a scene's annotations are megabytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.frame import parse_json
from ocdit_core.errors import DataError

# BOP's scene files are one object whose keys are image numbers, and no key within an entry is a number.
_KEY = re.compile(rb'"(\d+)"\s*:')


class JsonIndex:
    """Where in a file {"0": ..., "1": ...} the entry of each number stands; the entries are read when asked for.

    It holds 24 bytes for each entry, whatever the size of the file.

    Args:
        path: the file: scene_camera.json, scene_gt.json or scene_gt_info.json.

    Attributes:
        numbers: (N,) int64, the keys in ascending order.

    Raises:
        DataError: missing, unreadable, empty, truncated, no object, or with a number twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = read_bytes(path)
        text = data.strip()
        if not text.startswith(b"{") or not text.endswith(b"}"):
            raise DataError(f"{path}: truncated or damaged JSON (it is no object in braces)", kind="damaged JSON")
        found = [(int(match[1]), match.start(), match.end()) for match in _KEY.finditer(data)]
        table = np.array(found, dtype=np.int64).reshape(-1, 3)
        ends = np.append(table[1:, 1], data.rindex(b"}"))
        order = np.argsort(table[:, 0], kind="stable")
        self.numbers: NDArray[np.int64] = table[order, 0].copy()
        self._starts = table[order, 2].copy()
        self._ends = ends[order]
        twice = np.flatnonzero(self.numbers[1:] == self.numbers[:-1])
        if twice.size:
            raise DataError(f"{path}: has the key {self.numbers[twice[0]]} twice", kind="damaged JSON")

    def __contains__(self, number: int) -> bool:
        return self._position(number) is not None

    def read(self, number: int) -> Any:
        """Return the entry of a number.

        Raises:
            DataError: it has none, or it is damaged; the message names file and key.
        """
        at = self._position(number)
        if at is None:
            raise DataError(f"{self.path}: has no entry for image {number}", kind="missing entry")
        start, end = int(self._starts[at]), int(self._ends[at])
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})", kind="missing file") from error
        return parse_json(data.rstrip().removesuffix(b","), f"{self.path}: {number}")

    def _position(self, number: int) -> int | None:
        at = int(np.searchsorted(self.numbers, number))
        return at if at < len(self.numbers) and self.numbers[at] == number else None


def read_bytes(path: Path) -> bytes:
    """Return a file's contents.

    Raises:
        DataError: missing or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", kind="missing file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", kind="missing file") from error
