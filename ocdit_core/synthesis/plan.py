"""Settings of a generated dataset, and its division into tasks."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ocdit_core.errors import ConfigError
from ocdit_core.synthesis.scenes import SceneSettings
from ocdit_core.synthesis.sources import PARTS

Format = Literal["bop", "shards", "both"]


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings(SceneSettings):
    """Settings of a dataset and its scenes. Equal settings give equal datasets on one machine.

    Attributes:
        images: number of images.
        seed: random seed.
        objects: number of procedural objects.
        first_object: seed of the first of them; HELD_OUT_SEED and above are for evaluation.
        meshes: folder of meshes, or None.
        split: split file, of which only `part` is used; or None.
        part: "train" or "test".
        textures: folder of images for rooms and for parts of objects, beside painted textures; or None.
        views: smallest and largest number of images of a scene; the last scene may have fewer.
        format: "bop" (folders), "shards" (webdataset), or "both".
        scenes_a_shard: number of scenes in a shard.
        bop_split: subfolder of the scenes; that of the shards has "_web" appended, as MegaPose's data.
    """

    images: int = 2000
    seed: int = 0
    objects: int = 0
    first_object: int = 0
    meshes: str | None = None
    split: str | None = None
    part: str = "train"
    textures: str | None = None
    views: tuple[int, int] = (5, 20)
    format: Format = "bop"
    scenes_a_shard: int = 20
    bop_split: str = "train_pbr"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("images", 1), ("seed", 0), ("objects", 0), ("first_object", 0), ("scenes_a_shard", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least {least}")
        for name, known in (("part", PARTS), ("format", get_args(Format))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: {getattr(self, name)!r} is unknown; use {', '.join(known)}")
        if not 1 <= self.views[0] <= self.views[1]:
            raise ConfigError(f"views: {self.views[0]} {self.views[1]} must be two ascending numbers from 1 on")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.bop_split):
            raise ConfigError(f"bop_split: {self.bop_split!r} is not a name such as train_pbr, val or test")
        if not self.objects and self.meshes is None:
            raise ConfigError(
                "objects: none; give a number of procedural ones (--objects), a folder (--meshes), or both"
            )
        if self.part != "train" and self.split is None:
            raise ConfigError(f"part: {self.part!r} needs a split file")

    @property
    def shards_folder(self) -> str:
        """Subfolder of the shards."""
        return f"{self.bop_split}_web"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Unit of work of a process: a scene, or all scenes of a shard.

    Attributes:
        number: number of the task, and of the shard.
        scenes: numbers of its scenes.
        views: number of images of each of them.
    """

    number: int
    scenes: tuple[int, ...]
    views: tuple[int, ...]

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.views)


def views_of_scenes(settings: SynthesisSettings) -> tuple[int, ...]:
    """Return the number of images of each scene; the sum is `settings.images`."""
    low, high = settings.views
    rng = np.random.default_rng([settings.seed, 0x71E35])
    drawn = rng.integers(low, high + 1, -(-settings.images // low))
    ends = np.cumsum(drawn)
    count = int(np.searchsorted(ends, settings.images)) + 1
    drawn[count - 1] -= ends[count - 1] - settings.images
    return tuple(drawn[:count].tolist())


def tasks_of(settings: SynthesisSettings) -> list[Task]:
    """Return all tasks, in the order of the scenes."""
    views = views_of_scenes(settings)
    step = 1 if settings.format == "bop" else settings.scenes_a_shard
    scenes = tuple(range(len(views)))
    parts = [slice(first, first + step) for first in range(0, len(views), step)]
    return [Task(number=number, scenes=scenes[part], views=views[part]) for number, part in enumerate(parts)]
