"""Datasets in BOP's webdataset shards: tar files of KEY.rgb.jpg, KEY.gt.json ..., read sequentially.

The format: https://github.com/thodan/bop_toolkit/blob/master/bop_toolkit_lib/dataset/bop_webdataset.py
MegaPose-GSO and MegaPose-ShapeNetCore are published in it.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from ocdit_core.data.frame import Annotation, Camera, Frame, parse_annotations, parse_camera, parse_json
from ocdit_core.errors import DataError
from ocdit_core.masks import decode_mask

_PICTURES = ("rgb.jpg", "rgb.png", "gray.tiff", "gray.tif", "gray.png", "gray.jpg", "rgb.jpeg")
_DEPTHS = ("depth.png", "depth.tif", "depth.tiff")
_KNOWN = {*_PICTURES, *_DEPTHS, "camera.json", "gt.json", "gt_info.json", "mask.json", "mask_visib.json"}
_NUMBERS = re.compile(r"(?:.*/)?(\d+)_(\d+)")
_BUFFER = 1 << 18

OnError = Callable[[DataError], None]


class ShardDataset:
    """Shards that belong together.

    Args:
        source: a .tar file, a folder of them, or one of these with braces (shard-{000000..000099}.tar).
        name: of the dataset; default: that of the folder that the shards are in.

    Attributes:
        shards: where they are, in order; each can be given to `iterate_shard`.
        name: of the dataset.

    Raises:
        DataError: there is no such shard.
    """

    def __init__(self, source: str | Path, *, name: str | None = None) -> None:
        self.shards: tuple[str, ...] = tuple(expand_sources(source))
        self.name = name if name is not None else dataset_name(self.shards[0])

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over the frames of all shards; anything wrong with a shard raises, see `frames`."""
        return self.frames()

    def frames(self, *, on_error: OnError | None = None) -> Iterator[Frame]:
        """Iterate over the frames of all shards, in order; the arguments are those of `iterate_shard`."""
        for shard in self.shards:
            yield from iterate_shard(shard, dataset=self.name, on_error=on_error)

    def __repr__(self) -> str:
        return f"ShardDataset({self.name!r}, {len(self.shards)} shards)"


def iterate_shard(
    source: str | Path,
    *,
    dataset: str | None = None,
    depth: bool = True,
    amodal: bool = True,
    need_masks: bool = True,
    on_error: OnError | None = None,
) -> Iterator[Frame]:
    """Read a shard from its beginning to its end; a frame holds its members undecoded.

    Args:
        source: a .tar file.
        dataset: its name; default: that of the folder that the shard is in.
        depth: False drops depth maps, which are most of a frame's bytes.
        amodal: False drops masks of whole silhouettes.
        need_masks: whether a frame without masks of what is visible is an error.
        on_error: called for each frame that lacks a member, and for a shard that is truncated or cannot be read; then
            it goes on with what is whole. None: such an error is raised.

    Raises:
        DataError: see `on_error`; or what that raises.
    """
    name = dataset if dataset is not None else dataset_name(str(source))
    dropped = {*(() if depth else _DEPTHS), *(() if amodal else ("mask.json",))}
    for key, members in _groups(Path(source), dropped, on_error):
        lacks = _lacks(members, need_masks)
        if lacks:
            _report(DataError(f"{source}: {key}: lacks {key}.{lacks}", kind=f"missing {lacks}"), on_error)
        else:
            yield _ShardFrame(name, key, str(source), members)


def dataset_name(shard: str) -> str:
    """Return the name of the folder that a shard is in."""
    return Path(shard).resolve().parent.name or "shards"


def _report(error: DataError, on_error: OnError | None) -> None:
    if on_error is None:
        raise error
    on_error(error)


def _lacks(members: dict[str, bytes], need_masks: bool) -> str | None:
    if not any(picture in members for picture in _PICTURES):
        return "rgb.jpg"
    needed = ("camera.json", "gt.json", *(("mask_visib.json",) if need_masks else ()))
    return next((member for member in needed if member not in members), None)


class _Header(tarfile.TarInfo):
    """A member's header; tarfile itself takes a damaged or missing one for the end of the file."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return cast(_Header, super().fromtarfile(tarfile_))
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark at the end of a whole file
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end mark: {error}") from error


def _groups(path: Path, dropped: set[str], on_error: OnError | None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the members of each key, {"rgb.jpg": bytes ...}; the last key of a truncated shard is left out."""
    key: str | None = None
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r|", bufsize=_BUFFER, tarinfo=_Header) as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                stem, _, kind = file.partition(".")
                if not member.isfile() or kind not in _KNOWN:
                    continue
                this = f"{folder}/{stem}" if folder else stem
                if key is not None and this != key:
                    yield key, members
                    members = {}
                key = this
                content = tar.extractfile(member)
                if content is not None and kind not in dropped:
                    members[kind] = content.read()
    except OSError as error:
        reason = "no such shard" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        _report(DataError(f"{path}: {reason}", kind="missing file"), on_error)
        return
    except (tarfile.TarError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        after = f" after {key}" if key is not None else ""
        _report(DataError(f"{path}: truncated or damaged shard{after} ({reason})", kind="damaged shard"), on_error)
        return
    if key is None:
        _report(DataError(f"{path}: holds no frame", kind="damaged shard"), on_error)
        return
    yield key, members


class _ShardFrame(Frame):
    """A frame of a shard: the bytes of its members."""

    def __init__(self, dataset: str, key: str, shard: str, members: dict[str, bytes]) -> None:
        numbers = _NUMBERS.fullmatch(key)
        super().__init__(
            dataset=dataset,
            key=key,
            scene_id=int(numbers[1]) if numbers else -1,
            image_id=int(numbers[2]) if numbers else -1,
            where=f"{shard}: {key}",
        )
        self._members = members

    def _json(self, kind: str) -> Any:
        return parse_json(self._members[kind], self._named(kind))

    def _named(self, kind: str) -> str:
        return f"{self.where}.{kind}"

    def _read_camera(self) -> Camera:
        return parse_camera(self._json("camera.json"), self._named("camera.json"))

    def _read_annotations(self) -> tuple[Annotation, ...]:
        info = self._json("gt_info.json") if "gt_info.json" in self._members else None
        return parse_annotations(self._json("gt.json"), info, self._named("gt.json"), self._named("gt_info.json"))

    def _image_data(self) -> tuple[bytes, str]:
        kind = next(kind for kind in _PICTURES if kind in self._members)
        return self._members[kind], self._named(kind)

    def _depth_data(self) -> tuple[bytes, str] | None:
        kind = next((kind for kind in _DEPTHS if kind in self._members), None)
        return None if kind is None else (self._members[kind], self._named(kind))

    @cached_property
    def _run_lengths(self) -> dict[str, dict[str, Any]]:
        """The parsed mask files, each by its member's name."""
        return {}

    def _read_mask(self, index: int, visible: bool) -> tuple[NDArray[Any], str]:
        kind = "mask_visib.json" if visible else "mask.json"
        where = self._named(kind)
        if kind not in self._members:
            raise DataError(f"{where}: is missing", kind=f"missing {kind}")
        if kind not in self._run_lengths:
            masks = self._json(kind)
            if not isinstance(masks, dict):
                raise DataError(f"{where}: is a {type(masks).__name__}, not an object", kind="damaged JSON")
            self._run_lengths[kind] = masks
        masks = self._run_lengths[kind]
        if str(index) not in masks:
            raise DataError(f"{where}: the mask of object {index} is missing", kind="missing mask")
        try:
            return decode_mask(masks[str(index)]), f"{where}: {index}"
        except DataError as error:
            raise DataError(f"{where}: {index}: {error}", kind="damaged mask") from error


_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_sources(source: str | Path) -> list[str]:
    """Return the shards meant, in order.

    Args:
        source: a .tar file, a folder of them, or one of these with braces: shard-{000000..000099}.tar,
            {a,b}/shard.tar.

    Raises:
        DataError: a pattern that cannot be read, a folder without shards, or no such file.
    """
    found: list[str] = []
    for name in expand_braces(str(source)):
        path = Path(name)
        if path.is_dir():
            shards = sorted(str(entry) for entry in path.glob("*.tar") if not entry.name.startswith("."))
            if not shards:
                raise DataError(f"{path}: holds no shard (*.tar)", kind="missing file")
            found += shards
        elif path.is_file():
            found.append(name)
        else:
            raise DataError(f"{name}: no such shard", kind="missing file")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Return what a pattern with braces stands for: {000..012} counts, with leading zeros, {a,b} lists.

    Raises:
        DataError: braces that are neither.
    """
    parts: list[list[str]] = []
    at = 0
    for match in _BRACES.finditer(pattern):
        inner = match[1]
        numbers = _RANGE.fullmatch(inner)
        if numbers is not None and int(numbers[1]) <= int(numbers[2]):
            width = len(numbers[1])
            choices = [f"{n:0{width}d}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
        elif "," in inner:
            choices = inner.split(",")
        else:
            raise DataError(f"{pattern}: {match[0]} is neither a rising range {{000000..000099}} nor a list {{a,b}}")
        parts += [[pattern[at : match.start()]], choices]
        at = match.end()
    parts.append([pattern[at:]])
    return ["".join(choice) for choice in itertools.product(*parts)]
