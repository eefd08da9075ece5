"""Recorded bags: their contents, a new one that appears only when it is complete, and messages of rosbags."""

from __future__ import annotations

import os
import sqlite3
import struct
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ocdit_core.errors import BagError, ImageError
from ocdit_ros import converter, share_folder
from ocdit_ros.converter import DEPTH
from ocdit_ros.depth import SLOP
from ocdit_ros.messages import TYPES, MessageMaker

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
DEFINITIONS = "pip_home/vision_msgs/msg"


class RecordedImages:
    """The images of a bag to be read, in a with statement.

    Args:
        path: folder of rosbag2, or one .mcap or .db3 file of it.
        topic: topic of the images; None for the only one.

    Attributes:
        topic: the same.
        count: number of images.

    Raises:
        BagError: the bag is missing or cannot be read, there is no such topic of images, or none was named and there
            are several.
    """

    def __init__(self, path: Path, topic: str | None):
        from rosbags.rosbag2 import Reader

        self._path = path
        if not path.exists():
            raise BagError(f"{path}: no such bag")
        if path.is_dir() and not (path / "metadata.yaml").exists():
            raise BagError(
                f"{path}: no bag, as it holds no metadata.yaml; "
                "after a recording that was killed, `ros2 bag reindex` writes one"
            )
        for file in sorted(path.glob("*.db3")) if path.is_dir() else [path] * (path.suffix == ".db3"):
            _check_database(file)
        try:
            self._reader = Reader(path)
            self._reader.open()
            depths = depth_topics(self._reader)
            images = [one for one in self._reader.connections if one.msgtype in IMAGE_TYPES and one.topic not in depths]
            found = sorted({one.topic for one in images})
        except Exception as error:
            raise self._damaged(error) from error
        if not found and depths:
            raise BagError(f"{path}: holds depth images only, on {', '.join(sorted(depths))}; images are needed, too")
        if not found:
            topics = ", ".join(sorted({one.topic for one in self._reader.connections})) or "none at all"
            raise BagError(f"{path}: no topic of images; the topics are {topics}")
        if topic is None and len(found) > 1:
            raise BagError(f"{path}: has several topics of images, name one: {', '.join(found)}")
        self.topic = topic or found[0]
        if self.topic not in found:
            raise BagError(f"{path}: no topic of images {topic!r}; there are {', '.join(found)}")
        self._connections = [one for one in images if one.topic == self.topic]
        self.count = sum(one.msgcount for one in self._connections)
        if not self.count:
            raise BagError(f"{path}: no image was recorded on {self.topic}")

    def __enter__(self) -> RecordedImages:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # a damaged metadata.yaml breaks the library's clean-up
            self._reader.close()

    def __iter__(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (type of the message, time of its recording in ns, serialised message) by time.

        Raises:
            BagError: the bag is damaged, or holds fewer images than it says.
        """
        count = 0
        try:
            for connection, time, data in self._reader.messages(self._connections):
                count += 1
                yield connection.msgtype, time, data
        except Exception as error:
            raise self._damaged(error) from error
        if count < self.count:
            raise BagError(f"{self._path}: damaged or cut off: {count} of {self.count} messages are there")

    def _damaged(self, error: Exception) -> BagError:
        # The library lets through what its parts raise: apsw.Error, ZstdError, struct.error, TypeError at the end ...
        text = " ".join(str(error).split()) or type(error).__name__
        hint = "; `mcap recover` saves what is left" if self._path.suffix == ".mcap" else ""
        return BagError(f"{self._path}: damaged, cut off, or no bag of ROS 2 ({text}){hint}")


def depth_topics(reader: Any) -> list[str]:
    """Return the topics of an open bag whose first image is a depth image."""
    store = load_typestore()
    found = []
    for connection in reader.connections:
        if connection.msgtype == "sensor_msgs/msg/Image":
            first = next(iter(reader.messages([connection])), None)
            # What cannot be read is found damaged in its turn.
            with suppress(Exception):
                if first is not None and store.deserialize_cdr(first[2], connection.msgtype).encoding in DEPTH:
                    found.append(connection.topic)
    return sorted(set(found))


class RecordedDepth:
    """The depth images of a bag and the calibration of its images, in a with statement.

    Args:
        path: the bag, which `RecordedImages` has checked.
        image_topic: topic of the images.
        store: typestore.
        topic: topic of the depth images; None: the only one, if there is one.

    Attributes:
        topic: the same; "": there is no depth, or no calibration.
        info: first message of the calibration beside the images, or else of the only one.

    Raises:
        BagError: the topic named is not there, or none was named and there are several.
    """

    def __init__(self, path: Path, image_topic: str, store: Any, topic: str | None):
        from rosbags.rosbag2 import Reader

        self._store = store
        self._known: deque[tuple[int, Any]] = deque()
        self._reader = Reader(path)
        self._reader.open()
        found = depth_topics(self._reader)
        if topic is not None and topic not in found:
            raise BagError(f"{path}: no topic of depth images {topic!r}; there are {', '.join(found) or 'none'}")
        if topic is None and len(found) > 1:
            raise BagError(f"{path}: has several topics of depth images, name one: {', '.join(found)}")
        infos = [one for one in self._reader.connections if one.msgtype == "sensor_msgs/msg/CameraInfo"]
        beside = f"{image_topic.removesuffix('/compressed').rpartition('/')[0]}/camera_info"
        infos = [one for one in infos if one.topic == beside] or infos[: len(infos) == 1]
        first = next(iter(self._reader.messages(infos)), None) if infos else None
        self.info = None if first is None else store.deserialize_cdr(first[2], first[0].msgtype)
        if topic is not None and self.info is None:
            raise BagError(f"{path}: depth needs a calibration, and there is none on {beside}")
        self.topic = (topic or (found[0] if found else "")) if self.info is not None else ""
        self._coming = self._reader.messages([one for one in self._reader.connections if one.topic == self.topic])

    def __enter__(self) -> RecordedDepth:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def nearest(self, stamp: int) -> Any:
        """Return the depth image nearest to a stamp (ns), by rising stamps; None: none is within SLOP seconds."""
        known = self._known
        while (not known or known[-1][0] <= stamp) and (message := next(self._coming, None)) is not None:
            depth = self._store.deserialize_cdr(message[2], message[0].msgtype)
            known.append((depth.header.stamp.sec * 10**9 + depth.header.stamp.nanosec, depth))
        while len(known) > 1 and abs(known[1][0] - stamp) <= abs(known[0][0] - stamp):
            known.popleft()
        return known[0][1] if known and abs(known[0][0] - stamp) <= SLOP * 1e9 else None


def _check_database(path: Path) -> None:
    """Refuse a database of which a part is missing; SQLite itself takes such a part for zeros, or for absent."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise BagError(
            f"{path}: the recording did not end in order, messages are left in {log.name}; "
            f"`sqlite3 {path.name} 'PRAGMA wal_checkpoint(TRUNCATE)'` brings them back"
        )
    with path.open("rb") as file:
        header = file.read(32)
    if header.startswith(b"SQLite format 3\0") and len(header) == 32:
        # https://www.sqlite.org/fileformat2.html#the_database_header
        page, pages = struct.unpack_from(">H10xI", header, 16)
        size = pages * (65536 if page == 1 else page)
        if path.stat().st_size < size:
            raise BagError(f"{path}: cut off: {path.stat().st_size} of {size} bytes are there")


@contextmanager
def new_bag(path: Path) -> Iterator[Any]:
    """Yield a writer of rosbags; what it has written appears under `path` when the block ends without an error.

    Args:
        path: an .mcap file, or else a folder as `ros2 bag record` writes it, with SQLite, which Humble plays too.

    Raises:
        BagError: `path` exists, or cannot be written to.
    """
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

    single = path.suffix == ".mcap"
    if os.path.lexists(path):
        raise BagError(f"{path}: exists already; remove it, or choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", suffix=".part") as folder:
            made = Path(folder) / (path.stem if single else path.name)
            # Version 8 is read by every living distribution, 9 not by Humble.
            writer = Writer(made, version=8, storage_plugin=StoragePlugin.MCAP if single else StoragePlugin.SQLITE3)
            if single:
                writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            with writer:
                yield writer
            if single:
                made = made / f"{made.name}.mcap"
                _add_checksums(made)
            if os.path.lexists(path):
                raise BagError(f"{path}: appeared meanwhile; choose another name")
            made.rename(path)
    except (OSError, sqlite3.Error) as error:
        raise BagError(f"{path}: cannot be written ({error})") from error


def _add_checksums(path: Path) -> None:
    """Write the CRC of each chunk of an MCAP file (https://mcap.dev/spec#chunk-op0x06), which rosbags leaves out."""
    from rosbags.rosbag2.storage_mcap import decompress

    with path.open("r+b") as file:
        file.seek(8)
        while len(head := file.read(9)) == 9:
            kind, length = struct.unpack("<BQ", head)
            start = file.tell()
            if kind == 0x06:
                size, _, name_size = struct.unpack("<16xQII", file.read(32))
                compression = file.read(name_size).decode()
                (stored,) = struct.unpack("<Q", file.read(8))
                crc = zlib.crc32(decompress(file.read(stored), compression, size, 0))
                file.seek(start + 24)
                file.write(struct.pack("<I", crc))
            file.seek(start + length)


def quality_of_service(*, latched: bool) -> Any:
    """Return the quality of service to note for a topic of results: reliable, and latched or not."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    unspecified = QosTime(0, 0)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1 if latched else 5,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=unspecified,
        lifespan=unspecified,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=unspecified,
        avoid_ros_namespace_conventions=False,
    )


@cache
def load_typestore() -> Any:
    """Return a typestore of rosbags that knows ROS's common messages and vision_msgs.

    Raises:
        BagError: rosbags is not installed, or our definitions of vision_msgs are missing.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError:
        raise BagError("recorded bags need the package rosbags: pip install rosbags") from None
    store = get_typestore(Stores.LATEST)
    try:
        files = sorted((share_folder() / DEFINITIONS).glob("*.msg"))
    except FileNotFoundError as error:
        raise BagError(str(error)) from error
    types: dict[str, Any] = {}
    for file in files:
        types |= get_types_from_msg(file.read_text(), f"vision_msgs/msg/{file.stem}")
    store.register(types)
    return store


def message_maker(store: Any) -> MessageMaker:
    """Return what makes messages of a typestore from results."""
    types = {name: partial(make, store, f"{package}/msg/{name}") for package in TYPES for name in TYPES[package]}
    return MessageMaker(SimpleNamespace(**types), lambda pixels: pixels.reshape(-1).view(np.uint8))


def read_image(store: Any, kind: str, data: bytes, warn: Callable[[str], None]) -> tuple[Any, np.ndarray]:
    """Return the header and the (H, W, 3) uint8 RGB image of the CDR bytes of a message of the type `kind`.

    `warn` is called with one line about a suspicious image.

    Raises:
        EncodingError: an encoding that is not supported.
        ImageError: damaged bytes.
    """
    try:
        message = store.deserialize_cdr(data, kind)
    except Exception as error:
        raise ImageError(f"the message is damaged: {error}") from error
    return message.header, converter.to_rgb(message, warn=warn)


def make(store: Any, name: str, /, **fields: Any) -> Any:
    """Return a message of a type, such as "std_msgs/msg/Header"; fields that are not given have ROS's default."""
    for field, description in store.fielddefs[name][1]:
        if field not in fields:
            fields[field] = _default(store, *description)
    if name == "geometry_msgs/msg/Quaternion":
        # The one definition used here with a default of its own, which rosbags does not keep.
        fields["w"] = 1.0
    return store.types[name](**fields)


def _default(store: Any, kind: Any, of: Any) -> Any:
    from rosbags.interfaces import Nodetype

    if kind == Nodetype.NAME:
        return make(store, of)
    if kind == Nodetype.BASE:
        return "" if of[0] == "string" else np.zeros((), of[0]).item()
    (item_kind, item), length = of
    if item_kind == Nodetype.NAME or item[0] == "string":
        return [_default(store, item_kind, item) for _ in range(length if kind == Nodetype.ARRAY else 0)]
    return np.zeros(length if kind == Nodetype.ARRAY else 0, item[0])
