"""Datasets in BOP's folders: DATASET/SPLIT/SCENE/{rgb,depth,mask,mask_visib}/ and JSON files beside them.

The format: https://github.com/thodan/bop_toolkit/blob/master/docs/bop_datasets_format.md
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.frame import (
    Annotation,
    Camera,
    Frame,
    ImageKey,
    OnError,
    RandomOrder,
    decode_mask_image,
    parse_annotations,
    parse_camera,
    parse_json,
    read_bytes,
    read_json,
)
from ocdit_core.errors import DataError

logger = logging.getLogger(__name__)

Targets = Mapping[ImageKey, Mapping[int, int]]

_IMAGES = (".jpg", ".png", ".tif", ".tiff", ".jpeg")
_DEPTHS = (".png", ".tif", ".tiff")
_MODEL = re.compile(r"obj_(\d+)\.ply")
# BOP's scene files are one object whose keys are image numbers, and no key within an entry is a number.
_KEY = re.compile(rb'"(\d+)"\s*:')


class BopFolder:
    """A split of a dataset in BOP's folders: a `Dataset`, and a sequence of frames.

    Opening it reads the lists of cameras only. The annotations of a frame are parsed on demand, without
    the rest of the scene's file: a million images take some seconds to open, and about 70 bytes of memory each.

    Args:
        path: the dataset's folder.
        split: its subfolder: "train_pbr", "test", "test_primesense" ...

    Attributes:
        name: the name of the dataset's folder.
        path: the dataset's folder.
        title: name and split, for people.
        damaged: an error for each scene that had to be left out; they are logged.

    Raises:
        DataError: the folder or the split is missing, there is no scene, or all scenes are damaged.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.path = Path(path)
        self.split = split
        self.name = self.path.resolve().name
        self.title = f"{self.name} {split}"
        self.damaged: list[DataError] = []
        self._scenes: list[_Scene] = []
        self._images: list[NDArray[np.int64]] = []
        for folder in self._scene_folders():
            try:
                scene = _Scene(folder)
                self._images.append(scene.cameras.numbers)
                self._scenes.append(scene)
            except DataError as error:
                logger.warning("scene left out: %s", error)
                self.damaged.append(error)
        if not self._scenes:
            raise self.damaged[0]
        self._ends = np.cumsum([len(images) for images in self._images])
        self._order = RandomOrder(self.count)

    @property
    def count(self) -> int:
        """Number of frames."""
        return int(self._ends[-1])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Frame:
        """Return a frame without reading anything; scenes and their images are in ascending order.

        Raises:
            IndexError: outside 0 .. len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: frame {index} of {len(self)}")
        at = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[at - 1]) if at else 0
        return _FolderFrame(self.name, self._scenes[at], int(self._images[at][index - first]))

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def frames(
        self, images: Iterable[ImageKey] | None = None, *, limit: int | None = None, on_error: OnError | None = None
    ) -> Iterator[Frame]:
        """Yield frames in ascending order; see `Dataset.frames`. With a limit they are spread evenly over the scenes.

        Raises:
            DataError: one of `images` is not there.
        """
        if on_error is not None:
            for error in self.damaged:
                on_error(error)
        indices = spread(len(self), None) if images is None else sorted(self.index(*image) for image in images)
        yield from (self[indices[i]] for i in spread(len(indices), limit))

    def units(self, images: Iterable[ImageKey]) -> list[str]:
        """Return a unit for each image."""
        return [f"{scene:06d}/{image:06d}" for scene, image in images]

    def read(self, unit: str) -> Iterator[Frame]:
        """Yield the frame of a unit."""
        scene, image = map(int, unit.split("/"))
        yield self[self.index(scene, image)]

    def draw(self, seed: Sequence[int], number: int) -> Frame:
        """Return a frame of an endless random order; see `Dataset.draw`."""
        return self[self._order(seed, number)]

    def index(self, scene_id: int, image_id: int) -> int:
        """Return the position of an image.

        Raises:
            DataError: there is no such image.
        """
        for at, scene in enumerate(self._scenes):
            if scene.number == scene_id:
                position = int(np.searchsorted(self._images[at], image_id))
                if position < len(self._images[at]) and self._images[at][position] == image_id:
                    return (int(self._ends[at - 1]) if at else 0) + position
        raise DataError(f"{self.path / self.split}: has no image {scene_id:06d}/{image_id:06d}", kind="missing entry")

    def _scene_folders(self) -> list[Path]:
        folder = self.path / self.split
        if not folder.is_dir():
            known = ", ".join(splits_of(self.path))
            raise DataError(f"{folder}: no such split; {self.path} has {known or 'none'}", kind="missing file")
        scenes = [path for path in _listed(folder) if path.name.isdecimal() and path.is_dir()]
        if not scenes:
            raise DataError(f"{folder}: holds no scene (000000, 000001 ...)", kind="missing file")
        return sorted(scenes, key=lambda path: int(path.name))


def spread(count: int, limit: int | None) -> list[int]:
    """Return at most `limit` of the numbers from 0 to count - 1, evenly spread, ascending."""
    if limit is None or count <= limit:
        return list(range(count))
    return [int(index) for index in (np.arange(limit) + 0.5) * count / limit]


def splits_of(path: str | Path) -> list[str]:
    """Return the names of the splits in a dataset's folder: its subfolders that hold scenes.

    Raises:
        DataError: the folder is missing or cannot be listed.
    """
    return sorted(
        folder.name
        for folder in _listed(Path(path))
        if folder.is_dir() and any(scene.name.isdecimal() for scene in _listed(folder))
    )


def model_paths(folder: str | Path) -> dict[int, Path]:
    """Return the mesh (PLY, millimetres) of each obj_id in a folder of models.

    Raises:
        DataError: there is no such folder, or no obj_NNNNNN.ply in it.
    """
    models = {int(match[1]): path for path in _listed(Path(folder)) if (match := _MODEL.fullmatch(path.name))}
    if not models:
        raise DataError(f"{folder}: holds no models (obj_000001.ply ...)", kind="missing file")
    return dict(sorted(models.items()))


def read_targets(path: Path) -> Targets:
    """Return {(scene_id, image_id): {obj_id: instances}} of a targets file.

    Files of the localisation task (test_targets_bop19.json) list objects; those of the detection task
    (test_targets_bop24.json) only images: then the inner dictionaries are empty.

    Raises:
        DataError: missing, damaged, or without a number that belongs there.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: is not a list of targets", kind="damaged JSON")
    targets: dict[ImageKey, dict[int, int]] = {}
    for number, entry in enumerate(entries):
        try:
            objects = targets.setdefault((int(entry["scene_id"]), int(entry["im_id"])), {})
            if "obj_id" in entry:
                objects[int(entry["obj_id"])] = int(entry.get("inst_count", 1))
        except (KeyError, TypeError, ValueError) as error:
            reason = "not a target; it needs the numbers scene_id and im_id, and may have obj_id and inst_count"
            raise DataError(f"{path}[{number}]: {reason}", kind="damaged JSON") from error
    return targets


class JsonIndex:
    """Index of the entries in a file {"0": ..., "1": ...}; entries are read on demand.

    It takes 24 bytes for each entry, whatever the size of the file.

    Args:
        path: scene_camera.json, scene_gt.json or scene_gt_info.json.

    Attributes:
        numbers: (N,) int64, the keys in ascending order.

    Raises:
        DataError: missing, unreadable, empty, truncated, not a JSON object, or with a number twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = read_bytes(path)
        text = data.strip()
        if not text.startswith(b"{") or not text.endswith(b"}"):
            raise DataError(f"{path}: truncated or damaged JSON (not an object in braces)", kind="damaged JSON")
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
            DataError: there is none, or it is damaged; the message names file and key.
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


class _Scene:
    """Files of one scene; their indices are not pickled: other processes read them again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name)
        self._suffixes: dict[str, str] = {}

    @cached_property
    def cameras(self) -> JsonIndex:
        return JsonIndex(self.path / "scene_camera.json")

    @cached_property
    def annotations(self) -> JsonIndex:
        return JsonIndex(self.path / "scene_gt.json")

    @cached_property
    def info(self) -> JsonIndex | None:
        path = self.path / "scene_gt_info.json"
        return JsonIndex(path) if path.is_file() else None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "number": self.number, "_suffixes": {}}

    def find(self, folders: tuple[str, ...], stem: str, suffixes: tuple[str, ...]) -> tuple[bytes, Path] | None:
        """Return the contents and path of the first file that exists; next time its folder and suffix come first."""
        key = folders[0]
        known = [self._suffixes[key]] if key in self._suffixes else []
        for tail in (*known, *(f"{folder}/{{}}{suffix}" for folder in folders for suffix in suffixes)):
            path = self.path / tail.format(stem)
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})", kind="missing file") from error
            self._suffixes[key] = tail
            return data, path
        return None


class _FolderFrame(Frame):
    """A frame of a BOP folder."""

    def __init__(self, dataset: str, scene: _Scene, image: int) -> None:
        key, where = f"{scene.number:06d}/{image:06d}", f"{scene.path}: {image}"
        super().__init__(dataset=dataset, key=key, scene_id=scene.number, image_id=image, where=where)
        self._scene = scene

    def _read_camera(self) -> Camera:
        cameras = self._scene.cameras
        return parse_camera(cameras.read(self.image_id), f"{cameras.path}: {self.image_id}")

    def _read_annotations(self) -> tuple[Annotation, ...]:
        entries, info = self._scene.annotations, self._scene.info
        return parse_annotations(
            entries.read(self.image_id),
            None if info is None else info.read(self.image_id),
            f"{entries.path}: {self.image_id}",
            f"{self._scene.path / 'scene_gt_info.json'}: {self.image_id}",
        )

    def _image_data(self) -> tuple[bytes, str]:
        found = self._scene.find(("rgb", "gray"), f"{self.image_id:06d}", _IMAGES)
        if found is None:
            raise DataError(f"{self.where}: has no image in rgb/ or gray/", kind="missing image")
        return found[0], str(found[1])

    def _depth_data(self) -> tuple[bytes, str] | None:
        found = self._scene.find(("depth",), f"{self.image_id:06d}", _DEPTHS)
        return None if found is None else (found[0], str(found[1]))

    def _read_mask(self, index: int, visible: bool) -> tuple[NDArray[np.bool_], str]:
        folder = "mask_visib" if visible else "mask"
        path = self._scene.path / folder / f"{self.image_id:06d}_{index:06d}.png"
        try:
            data = path.read_bytes()
        except OSError:
            raise DataError(f"{path}: the mask of object {index} is missing", kind="missing mask") from None
        return decode_mask_image(data, str(path)), str(path)


def _listed(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder", kind="missing file") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})", kind="missing file") from error
