"""What lies where in a scene: objects chosen, settled, and given materials; no picture is drawn here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.rooms.cameras import CameraSettings
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.synthesis.room import Material, Room, random_room
from ocdit_core.synthesis.settling import SettleSettings, settle
from ocdit_core.synthesis.sources import ObjectSource

if TYPE_CHECKING:
    import trimesh

Array = NDArray[np.float64]
_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """What scenes hold, and how they are photographed."""

    targets: tuple[int, int] = (2, 16)
    """Least and greatest number of labelled objects."""
    repeats: float = 0.0
    """Chance for each of them, after the first, to be one more instance of one before it."""
    distractors: tuple[int, int] = (0, 4)
    """Least and greatest number of objects without a label."""
    cameras: tuple[int, int] = (5, 20)
    """Least and greatest number of pictures of a scene."""
    lights: tuple[int, int] = (1, 3)
    """Least and greatest number of lamps."""
    table_share: float = 0.75
    """Chance that there is a table; else the objects lie on the floor."""
    metal_share: float = 0.08
    """Chance that an object is of metal, whatever its file says."""
    effects: tuple[float, float] = (0.2, 1.0)
    """Strength of exposure, white balance, blur, noise and JPEG; see `photograph`."""
    samples: int = 1
    """Samples of a pixel's colour along each side of it."""
    path_traced: float = 0.0
    """Chance that Mitsuba draws a picture's colours."""
    camera: CameraSettings = field(default_factory=CameraSettings)
    """Where cameras stand."""
    settle: SettleSettings = field(default_factory=SettleSettings)
    """How objects come to rest."""

    def __post_init__(self) -> None:
        for name, least in (("targets", 1), ("distractors", 0), ("cameras", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ConfigError(f"{name}: {(low, high)} has to be two rising numbers from {least} on")
        if not 1 <= self.samples <= 4:
            raise ConfigError(f"samples: {self.samples} has to be in 1..4")
        if self.targets[1] > 64:
            raise ConfigError(f"targets: {self.targets[1]} are more than 64")
        if not 0 <= self.effects[0] <= self.effects[1]:
            raise ConfigError(f"effects: {self.effects} has to be two rising numbers from 0 on")
        for name in ("repeats", "table_share", "metal_share", "path_traced"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} has to be in 0..1")


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object at rest."""

    name: str
    """In its source."""
    pose: Array
    """(4, 4) world-from-object, metres."""
    material: Material
    label: int
    """1, 2, ... for targets, 0 for distractors."""


@dataclass(frozen=True, kw_only=True)
class SceneLayout:
    """A scene before the first picture."""

    room: Room
    objects: tuple[SceneObject, ...]
    depth: float
    """Deepest overlap of two objects, or of one with the table, metres."""


Bodies = Callable[[ObjectSource, str], Sequence[Array]]
Meshes = Callable[[ObjectSource, str], "trimesh.Trimesh"]


def make_layout(
    rng: np.random.Generator,
    settings: SceneSettings,
    targets: ObjectSource,
    distractors: ObjectSource,
    *,
    textures: int,
    meshes: Meshes,
    bodies: Bodies,
) -> SceneLayout:
    """Furnishes a room and lets objects settle in it.

    Args:
        rng: source of randomness.
        settings: how many objects, and the rest.
        targets: the labelled objects are from here, no two of them alike unless the settings ask for repeats.
        distractors: the others are from here; an object is never both.
        textures: pictures in the pool.
        meshes: the mesh of an object.
        bodies: its convex bodies, as from `collision_hulls`.

    Raises:
        DataError: the sources have too few objects, or too few come to rest.
    """
    for _ in range(_TRIES):
        wanted = int(rng.integers(settings.targets[0], settings.targets[1] + 1))
        chosen = _draw(rng, targets, wanted, ())
        if settings.repeats:
            for place in range(1, wanted):
                if rng.random() < settings.repeats:
                    chosen[place] = chosen[int(rng.integers(place))]
        others = int(rng.integers(settings.distractors[0], settings.distractors[1] + 1))
        extra = _draw(rng, distractors, others, chosen) if others else []
        sources = [targets] * len(chosen) + [distractors] * len(extra)
        named = list(zip(sources, [*chosen, *extra], strict=True))
        hulls = [bodies(*item) for item in named]
        radii = np.array([max(float(np.linalg.norm(hull, axis=1).max()) for hull in body) for body in hulls])
        reach = float(np.clip(1.3 * np.sqrt((radii**2).sum()), radii.max() + 0.05, 0.9))
        room = random_room(
            rng, textures=textures, objects_reach=reach, lights=settings.lights, table_share=settings.table_share
        )
        settled = settle(hulls, room.half_size, rng, settings.settle)
        materials = [_material(rng, meshes(*item), settings.metal_share) for item in named]
        if settled.kept[: len(chosen)].sum() < settings.targets[0]:
            continue
        objects: list[SceneObject] = []
        for index in np.flatnonzero(settled.kept):
            label = 1 + sum(item.label > 0 for item in objects) if index < len(chosen) else 0
            name, pose = named[index][1], settled.poses[index]
            objects.append(SceneObject(name=name, pose=pose, material=materials[index], label=label))
        return SceneLayout(room=room, objects=tuple(objects), depth=settled.depth)
    raise DataError(f"fewer than {settings.targets[0]} objects came to rest in {_TRIES} tries; ask for fewer at once")


def _draw(rng: np.random.Generator, source: ObjectSource, count: int, taken: Sequence[str]) -> list[str]:
    names = [name for name in source.names if name not in set(taken)]
    if len(names) < count:
        raise DataError(f"a scene needs {count} objects, and there are {len(names)}; give more or ask for fewer")
    return [names[i] for i in rng.choice(len(names), count, replace=False)]


def _material(rng: np.random.Generator, mesh: trimesh.Trimesh, metal_share: float) -> Material:
    """What the file states, roughly; else anything from glossy plastic to chalk, now and then a metal."""
    stated = mesh.metadata.get("roughness"), mesh.metadata.get("metallic")
    roughness, metallic = rng.uniform(0.2, 0.95), 0.0
    if stated[0] is not None:
        roughness = float(np.clip(stated[0] + rng.normal(0, 0.12), 0.12, 1.0))
    if stated[1] is not None and stated[1] > 0.5:
        metallic = float(stated[1])
    if rng.random() < metal_share:
        roughness, metallic = rng.uniform(0.2, 0.55), 1.0
    return Material(roughness=float(roughness), specular=float(rng.uniform(0.2, 0.8)), metallic=metallic)
