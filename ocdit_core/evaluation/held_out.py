"""Held-out sets: the split of meshes into training, validation and report, and the targets of each image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import numpy as np

from ocdit_core.data.frame import Frame
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.evaluation.records import MIN_VISIBLE
from ocdit_core.objects.formats import FORMATS

Part = Literal["train", "validation", "report"]

_ABSENT = 0.5  # absent targets per visible one: about 28% of all targets


def part_of(file: str, *, held_out: bool = False) -> Part:
    """Return the part of a mesh file: a fifth is held out, a third of that for validation (choosing settings).

    It depends on the file's path alone, so that a file stays in its part when others are added.

    Args:
        file: path below the folder of meshes, with suffix and forward slashes: kitchen/mug.glb.
        held_out: never use it for training.
    """
    digest = int(hashlib.sha1(file.encode(), usedforsecurity=False).hexdigest(), 16)
    if digest % 5 and not held_out:
        return "train"
    return "report" if digest // 5 % 3 else "validation"


def split_meshes(folder: Path, *, also: Sequence[str] = (), without: Sequence[str] = ()) -> dict[Part, list[str]]:
    """Split the meshes of a folder and its subfolders by the hash of their paths.

    Args:
        folder: folder of mesh files.
        also: patterns (* and ?) of files to hold out whatever their hash, such as look-alikes of a public test set.
        without: patterns of files to leave out.

    Returns:
        Names of each part as `MeshFolder` has them (paths without suffix), sorted.

    Raises:
        DataError: the folder is missing or holds no mesh.
        ConfigError: no file's path matches one of the patterns.
    """
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in FORMATS and path.is_file()
    )
    if not files:
        raise DataError(f"{folder}: holds no meshes; known formats are {', '.join(FORMATS)}")
    for pattern in [*also, *without]:
        if not any(fnmatch(file, pattern) for file in files):
            raise ConfigError(f"{pattern}: matches no mesh in {folder}; {files[0]} is one")
    parts: dict[Part, list[str]] = {"train": [], "validation": [], "report": []}
    for file in files:
        if any(fnmatch(file, pattern) for pattern in without):
            continue
        part = part_of(file, held_out=any(fnmatch(file, pattern) for pattern in also))
        parts[part].append(Path(file).with_suffix("").as_posix())
    return parts


def draw_targets(
    frames: Iterable[Frame], object_ids: Sequence[int], *, seed: int = 0, count: tuple[int, int] = (4, 8)
) -> list[dict[str, int]]:
    """Draw the targets of each image: all objects that it shows, and some that it does not.

    Args:
        frames: the images; the targets of an image depend on its numbers and the seed alone.
        object_ids: all objects of the set, from which absent ones are drawn.
        seed: random seed.
        count: minimum and maximum number of targets of an image, as far as the visible objects allow.

    Returns:
        Rows of a targets file: scene_id, im_id, obj_id and inst_count, the number of instances with a visible fraction
        of at least 0.1; 0 for an absent object. An object that is less visible is no target.

    Raises:
        DataError: an image shows no object.
    """
    least, most = count
    rows = []
    for frame in frames:
        seen = Counter(item.object_id for item in frame.annotations if item.visible_fraction >= MIN_VISIBLE)
        if not seen:
            raise DataError(f"{frame.where}: shows no object; generate the scenes with another seed")
        shown = {item.object_id for item in frame.annotations}
        rng = np.random.default_rng([seed, frame.scene_id, frame.image_id, 0xAB5E])
        wanted = int(_ABSENT * len(seen) + rng.random())
        others = [number for number in object_ids if number not in shown]
        extra = min(max(wanted, least - len(seen)), max(most - len(seen), 0), len(others))
        absent = rng.choice(others, extra, replace=False).tolist() if extra else []
        rows += [
            {"im_id": frame.image_id, "inst_count": seen[number], "obj_id": number, "scene_id": frame.scene_id}
            for number in sorted([*seen, *absent])
        ]
    return rows
