"""The plan of a synthesised dataset: settings and seed say which scenes there are, whoever makes them; and its card."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ocdit_core.errors import ConfigError, DataError
from ocdit_core.files import write_text
from ocdit_core.synthesis.sources import PARTS

PLAN = "plan.json"
SCHEMA_VERSION = 1
FORMATS = ("bop", "shards", "both")
QUALITIES = ("fast", "good")


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """What a dataset is to hold. Equal settings give equal datasets on one machine.

    Attributes:
        images: pictures in all.
        seed: of everything random; another one gives other scenes.
        objects: procedural objects.
        first_object: number of the first of them; HELD_OUT_SEED and above are for evaluation.
        meshes: a folder of meshes, or None.
        split: a split file, of which only `part` is used; or None.
        part: "train" or "test".
        textures: folder of photographs for rooms and for procedural and grey objects, beside painted ones; or None.
        size: height and width in pixels.
        targets: least and greatest number of labelled objects in a scene.
        repeats: chance for each target to be one more instance of an object that is there already.
        distractors: least and greatest number of objects without a label.
        views: least and greatest number of pictures of a scene; the last scene may have fewer.
        format: "bop" (folders), "shards" (webdataset), or "both".
        depth: whether depth maps are written.
        quality: "fast", or "good": four samples a pixel.
        path_traced: share of the pictures whose colours Mitsuba draws.
        scenes_a_shard: how many scenes share a shard.
        bop_split: folder of the scenes in BOP's folders; that of the shards has "_web" after it, as MegaPose's data.
    """

    images: int = 2000
    seed: int = 0
    objects: int = 0
    first_object: int = 0
    meshes: str | None = None
    split: str | None = None
    part: str = "train"
    textures: str | None = None
    size: tuple[int, int] = (480, 640)
    targets: tuple[int, int] = (2, 16)
    repeats: float = 0.0
    distractors: tuple[int, int] = (0, 4)
    views: tuple[int, int] = (5, 20)
    format: str = "bop"
    depth: bool = True
    quality: str = "fast"
    path_traced: float = 0.0
    scenes_a_shard: int = 20
    bop_split: str = "train_pbr"

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("seed", 0), ("objects", 0), ("first_object", 0), ("scenes_a_shard", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)} has to be at least {least}")
        for name, known in (("part", PARTS), ("format", FORMATS), ("quality", QUALITIES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: {getattr(self, name)!r} is unknown; use {', '.join(known)}")
        for name, least in (("targets", 1), ("distractors", 0), ("views", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ConfigError(f"{name}: {low} {high} has to be two rising numbers from {least} on")
        for name in ("path_traced", "repeats"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not within 0 to 1")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.bop_split):
            raise ConfigError(f"bop_split: {self.bop_split!r} is no name of a split; train_pbr, val and test are")
        if not self.objects and self.meshes is None:
            raise ConfigError(
                "objects: none; give a number of procedural ones (--objects), a folder (--meshes), or both"
            )
        if self.part != "train" and self.split is None:
            raise ConfigError(f"part: {self.part!r} needs a split file")

    @property
    def shards_folder(self) -> str:
        """Folder of the shards."""
        return f"{self.bop_split}_web"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process makes at a time: a scene, or all scenes of a shard.

    Attributes:
        number: its own, and the shard's.
        scenes: numbers of its scenes.
        views: how many pictures each of them has.
    """

    number: int
    scenes: tuple[int, ...]
    views: tuple[int, ...]

    @property
    def images(self) -> int:
        """How many pictures it makes."""
        return sum(self.views)


def views_of_scenes(settings: SynthesisSettings) -> tuple[int, ...]:
    """Return how many pictures each scene has; the sum is `settings.images`."""
    low, high = settings.views
    rng = np.random.default_rng([settings.seed, 0x71E35])
    drawn = rng.integers(low, high + 1, -(-settings.images // low))
    ends = np.cumsum(drawn)
    count = int(np.searchsorted(ends, settings.images)) + 1
    drawn[count - 1] -= ends[count - 1] - settings.images
    return tuple(drawn[:count].tolist())


def tasks_of(settings: SynthesisSettings) -> list[Task]:
    """Return all the work, in the order of the scenes; it is the same however many share it."""
    views = views_of_scenes(settings)
    step = 1 if settings.format == "bop" else settings.scenes_a_shard
    return [
        Task(
            number=number, scenes=tuple(range(first, min(first + step, len(views)))), views=views[first : first + step]
        )
        for number, first in enumerate(range(0, len(views), step))
    ]


def keep_plan(out: Path, settings: SynthesisSettings, names: Sequence[str]) -> None:
    """Write plan.json into a new dataset's folder; of one that was begun, make sure that it has the same plan.

    Args:
        out: the dataset's folder.
        settings: what it is to hold.
        names: of all objects there are, readable or not: an object's number is its place among them, from 1 on.

    Raises:
        DataError: the folder holds something else, or a dataset of other settings or objects; the message names the
            first difference.
    """
    path = out / PLAN
    if not path.exists():
        others = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(".")) if out.exists() else []
        if others:
            raise DataError(f"{out}: holds {', '.join(others[:3])} but no {PLAN}; choose a new or an empty folder")
        plan = {"schema_version": SCHEMA_VERSION, "settings": asdict(settings), "objects": list(names)}
        write_text(path, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
        return
    known, before = _read(path)
    for field in fields(SynthesisSettings):
        old, new = getattr(known, field.name), getattr(settings, field.name)
        if old != new:
            raise DataError(
                f"{out}: was begun with {field.name} {_shown(old)}, not {_shown(new)}; "
                "give the settings of its plan.json, or choose another folder"
            )
    if before != list(names):
        changed = sorted(set(before) ^ set(names)) or [next(a for a, b in zip(before, names, strict=True) if a != b)]
        raise DataError(
            f"{out}: was begun with {len(before)} objects, now there are {len(names)} (the first that differs: "
            f"{changed[0]}); give the meshes of its plan.json, or choose another folder"
        )


def _read(path: Path) -> tuple[SynthesisSettings, list[str]]:
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if plan["schema_version"] != SCHEMA_VERSION:
            raise DataError(f"{path}: has schema version {plan['schema_version']}, not {SCHEMA_VERSION}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in plan["settings"].items()
        }
        return SynthesisSettings(**values), list(plan["objects"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"{path}: damaged ({' '.join(str(error).split())}); choose another folder") from error


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else "nothing" if value is None else str(value)
