"""Datasets in BOP's webdataset shards: tar files of KEY.rgb.jpg, KEY.gt.json ...

The format: https://github.com/thodan/bop_toolkit/blob/master/bop_toolkit_lib/dataset/bop_webdataset.py
MegaPose-GSO and MegaPose-ShapeNetCore are published in it.
"""

from __future__ import annotations

import itertools
import logging
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.frame import (
    Annotation,
    Camera,
    Frame,
    ImageKey,
    OnError,
    RandomOrder,
    parse_annotations,
    parse_camera,
    parse_json,
)
from ocdit_core.errors import DataError
from ocdit_core.masks import decode_mask

logger = logging.getLogger(__name__)

_IMAGES = ("rgb.jpg", "rgb.png", "gray.tiff", "gray.tif", "gray.png", "gray.jpg", "rgb.jpeg")
_DEPTHS = ("depth.png", "depth.tif", "depth.tiff")
_KNOWN = {*_IMAGES, *_DEPTHS, "camera.json", "gt.json", "gt_info.json", "mask.json", "mask_visib.json"}
_NUMBERS = re.compile(r"(?:.*/)?(\d+)_(\d+)")


class ShardDataset:
    """A `Dataset` of shards.

    Args:
        source: a .tar file, or a folder of them.
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
        self.shards: tuple[str, ...] = tuple(_shards_of(Path(source)))
        folder = Path(self.shards[0]).resolve().parent
        self.name = folder.name or "shards"
        self.path = folder if path is None else path
        self._order = RandomOrder(len(self.shards))
        self._starts: dict[str, NDArray[np.int64]] = {}  # offset of each frame in the shards drawn from so far
        self.title = f"{self.name}, {len(self.shards)} shard{'s'[: len(self.shards) > 1]}"

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over the frames of all shards, in order; raises DataError for a damaged one."""
        return self.frames()

    def frames(
        self, images: Iterable[ImageKey] | None = None, *, limit: int | None = None, on_error: OnError | None = None
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

    def draw(self, seed: Sequence[int], number: int) -> Frame:
        """Return a frame of an endless random order, without depth and amodal masks; see `Dataset.draw`.

        Each shard comes once per epoch, and a frame is drawn from it at random: frames of short shards come more often.
        """
        shard = self.shards[self._order(seed, number)]
        if shard not in self._starts:
            # What is damaged is logged, the rest is used.
            groups = _groups(Path(shard), on_error=lambda error: logger.warning("%s", error), content=False)
            self._starts[shard] = np.array([start for start, _, _ in groups], np.int64)
        starts = self._starts[shard]
        if not len(starts):
            raise DataError(f"{shard}: holds no complete frame", kind="damaged shard")
        start = int(np.random.default_rng([*seed, number]).choice(starts))
        return next(iterate_shard(shard, everything=False, start=start))


def iterate_shard(
    path: str | Path, *, everything: bool = True, start: int = 0, on_error: OnError | None = None
) -> Iterator[Frame]:
    """Read a shard to its end; a frame holds its members undecoded.

    Args:
        path: a .tar file.
        everything: False drops depth maps, which are most of a frame's bytes, and amodal masks.
        start: offset in bytes of the first frame.
        on_error: called for each frame that lacks a member, and for a shard that is truncated or cannot be read;
            reading continues with what is complete. None: such an error is raised.

    Raises:
        DataError: see `on_error`; or what that raises.
    """
    dropped = set() if everything else {*_DEPTHS, "mask.json"}
    name = Path(path).resolve().parent.name or "shards"
    for _, key, members in _groups(Path(path), start, dropped, on_error):
        missing = _missing(members)
        if missing:
            _report(DataError(f"{path}: {key}: lacks {key}.{missing}", kind=f"missing {missing}"), on_error)
        else:
            yield _ShardFrame(name, key, str(path), members)


def _shards_of(source: Path) -> list[str]:
    if source.is_file():
        return [str(source)]
    shards = sorted(str(path) for path in source.glob("*.tar") if not path.name.startswith("."))
    if not shards:
        raise DataError(f"{source}: no such shard, or no folder of shards (*.tar)", kind="missing file")
    return shards


def _report(error: DataError, on_error: OnError | None) -> None:
    if on_error is None:
        raise error
    on_error(error)


def _missing(members: dict[str, bytes]) -> str | None:
    if not any(image in members for image in _IMAGES):
        return "rgb.jpg"
    return next((member for member in ("camera.json", "gt.json", "mask_visib.json") if member not in members), None)


class _Header(tarfile.TarInfo):
    """Header of a member; tarfile itself takes a damaged or missing one for the end of the file."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return cast(_Header, super().fromtarfile(tarfile_))
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark at the end of a complete file
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end mark: {error}") from error


def _groups(
    path: Path, start: int = 0, dropped: Collection[str] = (), on_error: OnError | None = None, *, content: bool = True
) -> Iterator[tuple[int, str, dict[str, bytes]]]:
    """Yield the offset, key and members {"rgb.jpg": bytes ...} of each frame; members are empty without `content`.

    The last frame of a truncated shard is left out.
    """
    key, offset = None, start
    members: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, kind = name.partition(".")
                    if not member.isfile() or kind not in _KNOWN:
                        continue
                    this = f"{folder}/{stem}" if folder else stem
                    if this != key:
                        if key is not None:
                            yield offset, key, members
                        key, offset, members = this, member.offset, {}
                    part = tar.extractfile(member) if content and kind not in dropped else None
                    if part is not None:
                        members[kind] = part.read()
    except OSError as error:
        reason = "no such shard" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        _report(DataError(f"{path}: {reason}", kind="missing file"), on_error)
    except (tarfile.TarError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        after = f" after {key}" if key is not None else ""
        _report(DataError(f"{path}: truncated or damaged shard{after} ({reason})", kind="damaged shard"), on_error)
    else:
        if key is None:
            _report(DataError(f"{path}: holds no frame", kind="damaged shard"), on_error)
        else:
            yield offset, key, members


class _ShardFrame(Frame):
    """A frame of a shard: the bytes of its members."""

    def __init__(self, dataset: str, key: str, shard: str, members: dict[str, bytes]) -> None:
        numbers = _NUMBERS.fullmatch(key)
        scene, image = map(int, numbers.groups()) if numbers else (-1, -1)
        super().__init__(dataset=dataset, key=key, scene_id=scene, image_id=image, where=f"{shard}: {key}")
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
