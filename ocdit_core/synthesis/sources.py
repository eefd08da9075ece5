"""Objects and textures of scenes, procedural or from folders; split files of training and test objects."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.frame import read_json
from ocdit_core.data.painting import Photographs, random_background
from ocdit_core.errors import DataError
from ocdit_core.files import write_text
from ocdit_core.images import SUFFIXES, read_image
from ocdit_core.objects.formats import FORMATS
from ocdit_core.synthesis.procedural import LARGEST, SMALLEST, painted_mesh, procedural_object

if TYPE_CHECKING:
    import trimesh

PARTS = ("train", "test")


Objects = Mapping[str, Callable[[], "trimesh.Trimesh"]]
"""Objects by name: functions that return a mesh in metres, the middle of its box at the origin, always the same."""


def procedural_objects(count: int, *, first_seed: int = 0, photographs: Photographs | None = None) -> Objects:
    """Return objects made from seeds, named procedural_000000017 and so on.

    Args:
        count: number of objects.
        first_seed: seed of the first; HELD_OUT_SEED and above are for evaluation only.
        photographs: (H, W, 3) sRGB images that parts are textured with, beside painted patterns.
    """
    seeds = range(first_seed, first_seed + count)
    return {f"procedural_{seed:09d}": partial(procedural_object, seed, photographs) for seed in seeds}


def mesh_folder(folder: str | Path, *, seed: int = 0, photographs: Photographs | None = None) -> Objects:
    """Return the mesh files in a folder and its subfolders, named by their path without suffix.

    Files state sizes in all sorts of units, if at all: an object that is not SMALLEST to LARGEST across is scaled to a
    size drawn from its name. Shapes without colours are painted.

    Args:
        folder: searched recursively.
        seed: random seed of textures and sizes.
        photographs: (H, W, 3) sRGB images that grey meshes may be textured with.

    Raises:
        DataError: the folder is missing or holds no mesh, or two files have one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of meshes")
    files: dict[str, Path] = {}
    for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in FORMATS and path.is_file()):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in files:
            raise DataError(f"{path}: is named {name}, as {files[name]} is; rename one of them")
        files[name] = path
    if not files:
        raise DataError(f"{root}: holds no mesh; known formats are {', '.join(FORMATS)}")
    return {name: partial(_read_mesh, path, name, seed, photographs) for name, path in files.items()}


def _read_mesh(path: Path, name: str, seed: int, photographs: Photographs | None) -> trimesh.Trimesh:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), 0x0F01D])
    mesh = painted_mesh(path, rng, photographs)
    low, high = mesh.bounds
    mesh.apply_translation(-(low + high) / 2)
    diameter = 2 * float(np.linalg.norm(mesh.vertices, axis=1).max())
    if not SMALLEST <= diameter <= LARGEST:
        mesh.apply_scale(float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))) / diameter)
    return mesh


class TexturePool:
    """Textures for floors, walls and tables by number: painted ones, then the images of a folder.

    Args:
        seed: random seed of the painted textures.
        painted: number of painted textures.
        folder: images, searched recursively; they are cropped to the square in their middle.
        size: side in pixels.

    Raises:
        DataError: the folder is missing or holds no image.
    """

    def __init__(self, seed: int = 0, *, painted: int = 96, folder: str | Path | None = None, size: int = 512) -> None:
        self._seed, self._painted, self._size = seed, painted, size
        self._files: list[Path] = []
        if folder is not None:
            self._files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not self._files:
                raise DataError(f"{folder}: no such folder, or it holds no image ({', '.join(SUFFIXES)})")

    def __len__(self) -> int:
        return self._painted + len(self._files)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return a texture (size, size, 3) uint8 sRGB; raises ImageError for a damaged file."""
        if not 0 <= index < len(self):
            raise IndexError(f"texture {index} of {len(self)}")
        if index < self._painted:
            rng = np.random.default_rng([self._seed, index, 0x7E87])
            return random_background(rng, (self._size, self._size), clutter=0.25).astype(np.uint8)
        image = read_image(self._files[index - self._painted])
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = image[top : top + side, left : left + side]
        return np.asarray(cv2.resize(square, (self._size, self._size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def write_split(path: str | Path, parts: dict[str, list[str]]) -> None:
    """Write a split file: JSON, {"train": [names], "test": [names]}."""
    write_text(path, json.dumps({part: parts[part] for part in PARTS}, indent=1) + "\n")


def read_split(path: str | Path) -> dict[str, list[str]]:
    """Read a split file.

    Raises:
        DataError: missing, damaged, or an object is in both parts.
    """
    parts = read_json(Path(path))
    if not (
        isinstance(parts, dict)
        and set(parts) == set(PARTS)
        and all(isinstance(n, list) and all(isinstance(name, str) for name in n) for n in parts.values())
    ):
        raise DataError(f'{path}: not a split file; it must hold {{"train": [names], "test": [names]}}')
    both = sorted(set(parts["train"]) & set(parts["test"]))
    if both:
        raise DataError(f"{path}: {', '.join(both[:5])} ({len(both)} in all) are in both parts, train and test")
    return parts
