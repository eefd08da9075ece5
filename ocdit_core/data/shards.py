"""Datasets in BOP's webdataset shards: tar files of KEY.rgb.jpg, KEY.gt.json ..., read sequentially.

The format: https://github.com/thodan/bop_toolkit/blob/master/bop_toolkit_lib/dataset/bop_webdataset.py
MegaPose-GSO and MegaPose-ShapeNetCore are published in it.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.frame import (
    NO_FRAMES,
    START,
    Annotation,
    Camera,
    Frame,
    ImageKey,
    OnError,
    Position,
    parse_annotations,
    parse_camera,
    parse_json,
)
from ocdit_core.errors import DataError
from ocdit_core.masks import decode_mask

BLOCK = 256
"""Frames of a stream that are shuffled together; their encoded bytes are held in memory."""

_IMAGES = ("rgb.jpg", "rgb.png", "gray.tiff", "gray.tif", "gray.png", "gray.jpg", "rgb.jpeg")
_DEPTHS = ("depth.png", "depth.tif", "depth.tiff")
_KNOWN = {*_IMAGES, *_DEPTHS, "camera.json", "gt.json", "gt_info.json", "mask.json", "mask_visib.json"}
_NUMBERS = re.compile(r"(?:.*/)?(\d+)_(\d+)")
_READ_BYTES = 1 << 18
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class ShardDataset:
    """Shards that belong together: a `Dataset`.

    Args:
        source: a .tar file, a folder of them, or one of these with braces (shard-{000000..000099}.tar).
        path: the dataset's folder; default: the folder that the shards are in.

    Attributes:
        shards: paths of the shards, in order.
        name: the name of the folder that the shards are in.
        path: the dataset's folder.
        count: None: the number of frames is not known before all shards are read.
        title: name and number of shards, for people.

    Raises:
        DataError: there is no such shard.
    """

    count = None

    def __init__(self, source: str | Path, *, path: Path | None = None) -> None:
        self.shards: tuple[str, ...] = tuple(expand_sources(source))
        folder = Path(self.shards[0]).resolve().parent
        self.name = folder.name or "shards"
        self.path = folder if path is None else path
        self.title = f"{self.name}, {len(self.shards)} shard{'s'[: len(self.shards) > 1]}"

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over the frames of all shards, in order; raises DataError for a damaged one."""
        return self.frames()

    def frames(
        self,
        images: Iterable[ImageKey] | None = None,
        *,
        limit: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Frame]:
        """Yield frames as they come in the shards; see `Dataset.frames`."""
        wanted = None if images is None else set(images)
        frames = (frame for shard in self.shards for frame in iterate_shard(shard, on_error=on_error))
        chosen = (frame for frame in frames if wanted is None or (frame.scene_id, frame.image_id) in wanted)
        return itertools.islice(chosen, limit)

    def units(self, images: Iterable[ImageKey]) -> list[str]:
        """Return all shards, if any image is asked for: which of them has it is not known."""
        return list(self.shards) if any(True for _ in images) else []

    def read(self, unit: str) -> Iterator[Frame]:
        """Yield the frames of a shard, without depth and amodal masks."""
        return iterate_shard(unit, everything=False)

    def stream(self, *, seed: Sequence[int], index: int, streams: int, on_error: OnError) -> ShardStream:
        """Return endless frames in random order, without depth and amodal masks; see `Dataset.stream`."""
        return ShardStream(self, on_error=on_error, seed=seed, index=index, streams=streams)

    def __repr__(self) -> str:
        return f"ShardDataset({self.name!r}, {len(self.shards)} shards)"


def iterate_shard(path: str | Path, *, everything: bool = True, on_error: OnError | None = None) -> Iterator[Frame]:
    """Read a shard from its beginning to its end; a frame holds its members undecoded.

    Args:
        path: a .tar file.
        everything: False drops depth maps, which are most of a frame's bytes, and amodal masks.
        on_error: called for each frame that lacks a member, and for a shard that is truncated or cannot be read;
            reading continues with what is complete. None: such an error is raised.

    Raises:
        DataError: see `on_error`; or what that raises.
    """
    dropped = set() if everything else {*_DEPTHS, "mask.json"}
    name = Path(path).resolve().parent.name or "shards"
    for key, members in _groups(Path(path), dropped, on_error):
        missing = _missing(members)
        if missing:
            _report(DataError(f"{path}: {key}: lacks {key}.{missing}", kind=f"missing {missing}"), on_error)
        else:
            yield _ShardFrame(name, key, str(path), members)


class ShardStream:
    """Endless frames of shards: shards in random order, each read sequentially, shuffled in blocks; a `FrameStream`.

    Blocks are read whole and emptied before the next, unlike a buffer that is topped up, so that a few numbers say what
    is left. Stream `index` of `streams` takes every `streams`-th shard; where there are more streams than shards,
    several streams divide the frames of one.

    Args:
        dataset: the shards.
        on_error: called for each damaged frame or shard, once.
        seed: random seed of the order.
        index: number of this stream.
        streams: number of streams.
    """

    def __init__(
        self, dataset: ShardDataset, *, on_error: OnError, seed: Sequence[int], index: int, streams: int
    ) -> None:
        self._dataset, self._on_error = dataset, on_error
        self._seed, self._index, self._streams = tuple(seed), index, streams
        # Each shard in so many parts that there is work for all streams.
        self._parts = -(-streams // len(dataset.shards))
        self._order: tuple[int, list[tuple[str, int]]] | None = None
        self.position = START

    @property
    def position(self) -> Position:
        """Epoch, unit (a shard's part) and frame in it where the block begins, and the frames taken from the block."""
        return self._position

    @position.setter
    def position(self, value: Position) -> None:
        self._position = value
        self._block: list[Frame] = []
        self._next: tuple[int, int, int] = value[:3]
        self._open: Iterator[Frame] | None = None

    def take(self) -> Frame:
        """Return the next frame; raises DataError, of the kind NO_FRAMES, when no shard holds one."""
        if not self._block:
            self._fill()
        epoch, unit, record, taken = self._position
        frame = self._block[taken]
        if taken + 1 < len(self._block):
            self._position = (epoch, unit, record, taken + 1)
        else:
            self._block = []
            self._position = (*self._next, 0)
        return frame

    def _fill(self) -> None:
        """Read the block that begins at the position."""
        begin, taken = self._position[:3], self._position[3]
        # Damage in a block that is read again, to continue in its middle, was reported the first time.
        report = self._on_error if taken == 0 else _ignore
        block: list[Frame] = []
        empty_units = 0
        while len(block) < BLOCK:
            epoch, unit, record = self._next
            units = self._units(epoch)
            if self._open is None:
                self._open = self._continued(*units[unit], record, report)
            frame = next(self._open, None)
            if frame is not None:
                block.append(frame)
                empty_units = 0
                self._next = (epoch, unit, record + 1)
                continue
            self._open = None
            empty_units += record == 0
            # Two epochs, since shards come in another order in the next.
            if empty_units >= 2 * len(units):
                raise DataError(f"{self._dataset}: none of the shards holds a complete frame", kind=NO_FRAMES)
            self._next = (epoch, unit + 1, 0) if unit + 1 < len(units) else (epoch + 1, 0, 0)
        rng = np.random.default_rng([*self._seed, self._index, *begin])
        self._block = [block[i] for i in rng.permutation(len(block))]

    def _continued(self, shard: str, part: int, record: int, report: OnError) -> Iterator[Frame]:
        """Yield the frames of a part of a shard after its first `record`, up to which nothing is reported again."""
        reporters = [_ignore if record else report]
        frames = iterate_shard(shard, everything=False, on_error=lambda error: reporters[-1](error))
        for number, frame in enumerate(itertools.islice(frames, part, None, self._parts), start=1):
            if number > record:
                yield frame
            elif number == record:
                reporters.append(report)

    def _units(self, epoch: int) -> list[tuple[str, int]]:
        """Return this stream's parts of the shards in an epoch, in the order in which they are read."""
        if self._order is None or self._order[0] != epoch:
            rng, shards = np.random.default_rng([*self._seed, epoch]), self._dataset.shards
            units = [(shards[i], part) for part in range(self._parts) for i in rng.permutation(len(shards))]
            self._order = (epoch, units[self._index :: self._streams])
        return self._order[1]


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
    """Expand the braces of a pattern: {000..012} counts, with leading zeros, {a,b} lists.

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


def _report(error: DataError, on_error: OnError | None) -> None:
    if on_error is None:
        raise error
    on_error(error)


def _ignore(error: DataError) -> None:
    pass


def _missing(members: dict[str, bytes]) -> str | None:
    if not any(image in members for image in _IMAGES):
        return "rgb.jpg"
    return next((member for member in ("camera.json", "gt.json", "mask_visib.json") if member not in members), None)


class _Header(tarfile.TarInfo):
    """A member's header; tarfile itself takes a damaged or missing one for the end of the file."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return cast(_Header, super().fromtarfile(tarfile_))
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark at the end of a complete file
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end mark: {error}") from error


def _groups(path: Path, dropped: set[str], on_error: OnError | None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the members of each key, {"rgb.jpg": bytes ...}; the last key of a truncated shard is left out."""
    key: str | None = None
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r|", bufsize=_READ_BYTES, tarinfo=_Header) as tar:
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
        self._masks: dict[str, dict[str, Any]] = {}

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
        kind = next(kind for kind in _IMAGES if kind in self._members)
        return self._members[kind], self._named(kind)

    def _depth_data(self) -> tuple[bytes, str] | None:
        kind = next((kind for kind in _DEPTHS if kind in self._members), None)
        return None if kind is None else (self._members[kind], self._named(kind))

    def _read_mask(self, index: int, visible: bool) -> tuple[NDArray[Any], str]:
        kind = "mask_visib.json" if visible else "mask.json"
        where = self._named(kind)
        if kind not in self._members:
            raise DataError(f"{where}: is missing", kind=f"missing {kind}")
        if kind not in self._masks:
            masks = self._json(kind)
            if not isinstance(masks, dict):
                raise DataError(f"{where}: is a {type(masks).__name__}, not an object", kind="damaged JSON")
            self._masks[kind] = masks
        if str(index) not in self._masks[kind]:
            raise DataError(f"{where}: the mask of object {index} is missing", kind="missing mask")
        try:
            return decode_mask(self._masks[kind][str(index)]), f"{where}: {index}"
        except DataError as error:
            raise DataError(f"{where}: {index}: {error}", kind="damaged mask") from error
