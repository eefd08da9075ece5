"""Objects and textures of scenes: made from seeds, or read from folders; splits into training and test objects."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.painting import Photographs, random_background
from ocdit_core.errors import ConfigError, DataError, MeshError
from ocdit_core.files import write_text
from ocdit_core.images import SUFFIXES, read_image
from ocdit_core.objects.formats import FORMATS
from ocdit_core.synthesis.procedural import LARGEST, SMALLEST, procedural_object, scanned_object

if TYPE_CHECKING:
    import trimesh


class TexturePool:
    """Pictures by number; the same seed or folder gives the same ones.

    Args:
        seed: of the painted pictures.
        painted: how many of these there are.
        folder: its pictures, and those in folders below, come after the painted ones.
        size: side in pixels; pictures of a folder are cropped to a square from their middle.

    Raises:
        ConfigError: fewer than none, or a size under 16 pixels.
        DataError: the folder is missing or holds no picture.
    """

    def __init__(self, seed: int = 0, *, painted: int = 96, folder: str | Path | None = None, size: int = 512) -> None:
        if painted < 0 or size < 16:
            raise ConfigError(f"textures: {painted} painted, {size} pixels; at least 0, and at least 16 pixels")
        self._seed, self._painted, self._size = seed, painted, size
        self._files: list[Path] = []
        if folder is not None:
            if not Path(folder).is_dir():
                raise DataError(f"{folder}: no such folder of pictures")
            self._files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not self._files:
                raise DataError(f"{folder}: no picture in it; known are {', '.join(SUFFIXES)}")

    def __len__(self) -> int:
        return self._painted + len(self._files)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Returns picture `index` as (size, size, 3) uint8 sRGB.

        Raises:
            ImageError: a file of the folder is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"texture {index} of {len(self)}")
        if index < self._painted:
            rng = np.random.default_rng([self._seed, index, 0x7E87])
            return random_background(rng, (self._size, self._size), clutter=0.25).astype(np.uint8)
        picture = read_image(self._files[index - self._painted])
        side = min(picture.shape[:2])
        top, left = ((length - side) // 2 for length in picture.shape[:2])
        square = picture[top : top + side, left : left + side]
        resized = cv2.resize(square, (self._size, self._size), interpolation=cv2.INTER_AREA)
        return np.asarray(resized, dtype=np.uint8)


PARTS = ("train", "test")


class ObjectSource(Protocol):
    """Objects by name; the same name always means the same mesh."""

    @property
    def names(self) -> Sequence[str]:
        """What there is, in a fixed order."""
        ...

    def mesh(self, name: str) -> trimesh.Trimesh:
        """Returns an object in metres, the middle of its box at the origin.

        Raises:
            DataError: the source has no such object.
            MeshError: its file is missing or damaged.
        """
        ...


class ProceduralObjects:
    """Objects made from numbers, named procedural_000000017 and so on.

    Args:
        count: how many.
        first_seed: of the first; HELD_OUT_SEED and above are for evaluation only.
        photographs: (H, W, 3) sRGB images that parts are textured with, beside painted patterns.

    Raises:
        ConfigError: fewer than one, or a negative seed.
    """

    def __init__(self, count: int, *, first_seed: int = 0, photographs: Photographs | None = None) -> None:
        if count < 1 or first_seed < 0:
            raise ConfigError(f"procedural objects: {count} from seed {first_seed}; at least 1, from 0 on")
        self._seeds = range(first_seed, first_seed + count)
        self._photographs = photographs

    @property
    def names(self) -> Sequence[str]:
        """What there is, by seed."""
        return [f"procedural_{seed:09d}" for seed in self._seeds]

    def mesh(self, name: str) -> trimesh.Trimesh:
        """Returns an object in metres, as `procedural_object` makes it."""
        prefix, _, number = name.rpartition("_")
        if prefix != "procedural" or not number.isdigit() or int(number) not in self._seeds:
            raise DataError(f"{name}: no such procedural object; there are seeds {self._seeds[0]}..{self._seeds[-1]}")
        return procedural_object(int(number), self._photographs)


class MeshFolder:
    """The mesh files under a folder, named by their path in it without suffix.

    Files state sizes in all sorts of units, if at all: what is not of a table's size is scaled to one, drawn from its
    name. Shapes without colours are painted.

    Args:
        folder: searched with all that is below it.
        seed: random seed of textures and sizes.
        photographs: (H, W, 3) sRGB images that grey meshes may be textured with.

    Raises:
        DataError: the folder is missing or holds no mesh, or two files have one name.
    """

    def __init__(self, folder: str | Path, *, seed: int = 0, photographs: Photographs | None = None) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of meshes")
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
        self._files: dict[str, Path] = {}
        for path in files:
            name = path.relative_to(root).with_suffix("").as_posix()
            if name in self._files:
                raise DataError(f"{path}: is named {name}, as {self._files[name]} is; rename one of them")
            self._files[name] = path
        if not self._files:
            raise DataError(f"{root}: no mesh in it; known formats are {', '.join(FORMATS)}")
        self._root, self._seed, self._photographs = root, seed, photographs

    @property
    def names(self) -> Sequence[str]:
        """What there is, by path."""
        return list(self._files)

    def mesh(self, name: str) -> trimesh.Trimesh:
        """Returns an object in metres, 0.05 to 0.35 m across, the middle of its box at the origin."""
        if name not in self._files:
            raise DataError(f"{name}: no such mesh under {self._root}")
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode()), 0x0F01D])
        mesh = scanned_object(str(self._files[name]), rng, self._photographs)
        low, high = mesh.bounds
        mesh.apply_translation(-(low + high) / 2)
        diameter = 2 * float(np.linalg.norm(mesh.vertices, axis=1).max())
        if not SMALLEST <= diameter <= LARGEST:
            mesh.apply_scale(float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))) / diameter)
        return mesh


class MixedObjects:
    """Several sources as one.

    Args:
        sources: whose names must all differ.

    Raises:
        DataError: there is none, or two sources have an object of one name.
    """

    def __init__(self, *sources: ObjectSource) -> None:
        self._owner: dict[str, ObjectSource] = {}
        for source in sources:
            for name in source.names:
                if name in self._owner:
                    raise DataError(f"{name}: two sources have an object of this name")
                self._owner[name] = source
        if not self._owner:
            raise DataError("objects: no source was given; use procedural ones or a folder of meshes")

    @property
    def names(self) -> Sequence[str]:
        """What there is, source by source."""
        return list(self._owner)

    def mesh(self, name: str) -> trimesh.Trimesh:
        """Returns the mesh that the owning source makes."""
        if name not in self._owner:
            raise DataError(f"{name}: no source has such an object")
        return self._owner[name].mesh(name)


class OnlyObjects:
    """Some of a source's objects: one part of a split, or what could be read.

    Args:
        source: where they come from.
        names: which; their order is the source's.

    Raises:
        DataError: a name is not in the source, or none was given.
    """

    def __init__(self, source: ObjectSource, names: Iterable[str]) -> None:
        wanted = set(names)
        self._source = source
        self._names = [name for name in source.names if name in wanted]
        missing = sorted(wanted.difference(self._names))
        if missing:
            raise DataError(f"objects: {', '.join(missing[:5])} ({len(missing)} in all) are not in the source")
        if not self._names:
            raise DataError("objects: none is left; a source needs at least one")

    @property
    def names(self) -> Sequence[str]:
        """What was chosen."""
        return self._names

    def mesh(self, name: str) -> trimesh.Trimesh:
        """Returns the source's mesh of a chosen object."""
        if name not in self._names:
            raise DataError(f"{name}: is not among the {len(self._names)} chosen objects")
        return self._source.mesh(name)


def readable(source: ObjectSource) -> tuple[OnlyObjects, dict[str, str]]:
    """Reads every object once; returns those that can be read, and why the others cannot, by name.

    Raises:
        DataError: none can be read.
    """
    good, bad = [], {}
    for name in source.names:
        try:
            source.mesh(name)
            good.append(name)
        except MeshError as error:
            bad[name] = str(error)
    return OnlyObjects(source, good), bad


def split_names(names: Iterable[str], *, test_share: float, seed: int = 0) -> dict[str, list[str]]:
    """Divides names into "train" and "test" by their hash: a name stays in its part whatever is added later.

    Raises:
        ConfigError: the share is outside 0..1.
    """
    if not 0 <= test_share <= 1:
        raise ConfigError(f"test_share: {test_share} has to be in 0..1")
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in names:
        share = zlib.crc32(f"{seed} {name}".encode()) / 2**32
        parts["test" if share < test_share else "train"].append(name)
    return parts


def write_split(path: str | Path, parts: dict[str, list[str]]) -> None:
    """Writes a split file: JSON, {"train": [names], "test": [names]}."""
    write_text(path, json.dumps({part: parts[part] for part in PARTS}, indent=1) + "\n")


def read_split(path: str | Path) -> dict[str, list[str]]:
    """Reads a split file.

    Raises:
        DataError: missing, damaged, or an object is in both parts.
    """
    try:
        parts = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: no such split file ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not a split file ({error})") from error
    if not (
        isinstance(parts, dict)
        and set(parts) == set(PARTS)
        and all(isinstance(n, list) and all(isinstance(name, str) for name in n) for n in parts.values())
    ):
        raise DataError(f'{path}: not a split file; it has to hold {{"train": [names], "test": [names]}}')
    both = sorted(set(parts["train"]) & set(parts["test"]))
    if both:
        raise DataError(f"{path}: {', '.join(both[:5])} ({len(both)} in all) are in both parts, train and test")
    return parts
