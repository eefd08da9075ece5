"""What held-out sets of scenes in BOP's layout need beside the scenes: which meshes are whose, and what to look for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import numpy as np

from ocdit_core.data.frame import Frame
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.objects.formats import FORMATS

Part = Literal["train", "validation", "report"]

SEEN = 0.1
"""Visible share of an object from which on it has to be found, as in BOP's targets."""


def part_of(file: str, *, held_out: bool = False) -> Part:
    """Return what a mesh file is for: a fifth is held out, a third of that for choosing settings.

    The rule knows nothing but the file's name, so that a file stays in its part whatever is added later.

    Args:
        file: its path below the folder of meshes, with suffix and forward slashes: kitchen/mug.glb.
        held_out: whether it is known that nothing may be trained on it.
    """
    digest = int(hashlib.sha1(file.encode(), usedforsecurity=False).hexdigest(), 16)
    if digest % 5 and not held_out:
        return "train"
    return "report" if digest // 5 % 3 else "validation"


def split_meshes(folder: Path, *, also: Sequence[str] = (), without: Sequence[str] = ()) -> dict[Part, list[str]]:
    """Divide the meshes of a folder, and those in the folders below, by the hash of their paths.

    Args:
        folder: of mesh files.
        also: patterns (* and ?) of files that are held out whatever their hash: what looks like an object of a public
            test set, say.
        without: patterns of files that belong nowhere.

    Returns:
        Names as `MeshFolder` has them (paths without suffix), sorted, for each part.

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
        raise DataError(f"{folder}: no folder with meshes; known formats are {', '.join(FORMATS)}")
    for pattern in [*also, *without]:
        if not any(fnmatch(file, pattern) for file in files):
            raise ConfigError(f"{pattern}: no mesh in {folder} is called that; {files[0]} is one")
    parts: dict[Part, list[str]] = {"train": [], "validation": [], "report": []}
    for file in files:
        if any(fnmatch(file, pattern) for pattern in without):
            continue
        part = part_of(file, held_out=any(fnmatch(file, pattern) for pattern in also))
        parts[part].append(Path(file).with_suffix("").as_posix())
    return parts


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """What is looked for in each picture.

    Attributes:
        absent: objects that are not there, for each one that is: 0.5 makes them about 28% of all targets.
        targets: least and greatest number of targets of a picture, as far as what is there allows.
        seed: of the choice.
    """

    absent: float = 0.5
    targets: tuple[int, int] = (4, 8)
    seed: int = 0


def draw_targets(
    frames: Iterable[Frame], object_ids: Sequence[int], settings: TargetSettings | None = None
) -> list[dict[str, int]]:
    """Choose what is looked for in each picture: all that is seen of its objects, and some that are not there.

    Args:
        frames: the pictures; each one's choice depends on its numbers alone.
        object_ids: all objects of the set, of which absent ones are drawn.
        settings: how many.

    Returns:
        Rows of a targets file: scene_id, im_id, obj_id and inst_count, the number of instances that are visible to a
        tenth or more; 0 where the object is absent. An object of which less is visible is no target at all.

    Raises:
        DataError: nothing is seen in a picture.
    """
    settings = settings or TargetSettings()
    least, most = settings.targets
    rows = []
    for frame in frames:
        annotations = frame.annotations
        seen = Counter(item.object_id for item in annotations if item.visible_fraction >= SEEN)
        if not seen:
            raise DataError(f"{frame.where}: nothing is seen in it; make the scenes with another seed")
        there = {item.object_id for item in annotations}
        rng = np.random.default_rng([settings.seed, frame.scene_id, frame.image_id, 0xAB5E])
        wanted = int(settings.absent * len(seen) + rng.random())
        others = [number for number in object_ids if number not in there]
        count = min(max(wanted, least - len(seen)), max(most - len(seen), 0), len(others))
        absent = rng.choice(others, count, replace=False).tolist() if count else []
        rows += [
            {"im_id": frame.image_id, "inst_count": seen[number], "obj_id": number, "scene_id": frame.scene_id}
            for number in sorted([*seen, *absent])
        ]
    return rows
