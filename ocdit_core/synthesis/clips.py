"""Clips: a camera on an orbit, and two equal objects that slide past each other on the table.

World axes as in `room`: x and y along the table, z up, metres.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import DataError
from ocdit_core.synthesis.renderer import Placed
from ocdit_core.synthesis.room import Room

Array = NDArray[np.float64]
Rng = np.random.Generator

ORBIT = 12.0
"""Largest turn of the camera about the vertical, from the middle of the clip to an end, in degrees."""
DOLLY = 0.1
"""Largest way of the camera along its line of sight, from the middle to an end, as a fraction of its distance."""
REACH = (1.5, 2.6)
"""Way of a crossing object from the middle of the clip to an end, relative to its half length along the path."""
GAP = (0.02, 0.2)
"""Gap between the lanes of two crossing objects, relative to their half width across the path."""


def orbit(rng: Rng, room: Room, pose: Array, middle: Array, count: int) -> list[Array]:
    """Return the poses (4, 4) camera-from-world of a smooth path around `middle` (3,), with `pose` in the middle."""
    turn = np.radians(rng.uniform(0.3, 1) * ORBIT * rng.choice((-1, 1)))
    dolly = float(pose[2, :3] @ middle + pose[2, 3]) * rng.uniform(-DOLLY, DOLLY)
    poses: list[Array] = []
    for share in (1.0, 0.5, 0.0):  # less where there is a wall in the way
        poses = []
        for time in np.linspace(-share, share, count):
            moved = pose @ _about(middle, turn * time)
            moved[2, 3] += dolly * time
            poses.append(moved)
        if all(is_inside(room, moved) for moved in poses):
            break
    return poses


def is_inside(room: Room, pose: Array) -> bool:
    """Return whether a camera (4, 4) is inside the room, clear of its walls."""
    place = -pose[:3, :3].T @ pose[:3, 3]
    return bool((place > room.low + 0.05).all() and (place < room.high - 0.05).all())


def equal_pair(objects: Sequence[Placed]) -> tuple[int, int] | None:
    """Return the indices of the first two labelled objects of one name; None: all differ."""
    first: dict[str, int] = {}
    for index, item in enumerate(objects):
        if item.label and first.setdefault(item.name, index) != index:
            return first[item.name], index
    return None


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Two objects on parallel lanes in opposite directions.

    Attributes:
        pair: their indices.
        objects: all objects without those that would be in the way, the pair beside the middle of their lanes.
        along: (3,) unit vector of the lanes in the world.
        middle: (3,) the point between both when they pass each other.
        ways: (2,) signed metres of each from the middle of the clip to its end.
        passing: time at which each is in the middle of its lane, in [-1, 1].
    """

    pair: tuple[int, int]
    objects: tuple[Placed, ...]
    along: Array
    middle: Array
    ways: tuple[float, float]
    passing: float

    @classmethod
    def draw(cls, rng: Rng, room: Room, objects: Sequence[Placed], pair: tuple[int, int], rest: Array) -> "Crossing":
        """Lay the lanes on the table.

        Args:
            rng: source of randomness.
            room: room of the objects.
            objects: objects at rest.
            pair: indices of two equal ones.
            rest: (4, 4) pose in which that object rests on the table alone.

        Raises:
            DataError: the table is too small for the lanes.
        """
        angle = rng.uniform(0, 2 * np.pi)
        along, across = np.array([np.cos(angle), np.sin(angle), 0]), np.array([-np.sin(angle), np.cos(angle), 0])
        centre = np.append(rng.uniform(-0.25, 0.25, 2) * room.half_size, 0.0)
        turned = [replace(objects[i], pose=_about(rest[:3, 3], rng.uniform(0, 2 * np.pi)) @ rest) for i in pair]
        boxes = [[(item.points @ axis).min() for axis in (along, across)] for item in turned]
        sizes = [[np.ptp(item.points @ axis) / 2 for axis in (along, across)] for item in turned]
        length, width = max(size[0] for size in sizes), sizes[0][1] + sizes[1][1]
        lanes = width * (1 + rng.uniform(*GAP) / 2)
        ways = rng.uniform(*REACH, 2) * length
        reach = ways.max() + length
        corners = [centre + u * along + v * across for u in (-reach, reach) for v in (-width, width)]
        if (np.abs(np.array(corners)[:, :2]) > np.array(room.half_size)).any():
            raise DataError("the table is too small for two objects that cross")
        placed: dict[int, Placed] = {}
        for side, index, item, low, size in zip((-0.5, 0.5), pair, turned, boxes, sizes, strict=True):
            pose = item.pose.copy()
            goal = centre + side * lanes * across
            for axis, start, half in zip((along, across), low, size, strict=True):
                pose[:3, 3] += (goal @ axis - start - half) * axis
            placed[index] = replace(item, pose=pose)
        kept: list[Placed] = []
        new: list[int] = []
        for index, item in enumerate(objects):
            points = item.points - centre
            inside = (np.abs(points @ along) < reach + 0.01) & (np.abs(points @ across) < (lanes + width) / 2 + 0.01)
            if index in placed:
                new.append(len(kept))
            elif inside.any() or item.points[:, 2].min() > 0.01:  # what lies on others might lie on one that goes
                continue
            kept.append(placed.get(index, item))
        middle = np.mean([item.points.mean(axis=0) for item in placed.values()], axis=0)
        return cls(
            pair=(new[0], new[1]),
            objects=tuple(kept),
            along=along,
            middle=middle,
            ways=(float(ways[0]), -float(ways[1])),
            passing=float(rng.uniform(-0.2, 0.2)),
        )

    def at(self, time: float) -> list[Placed]:
        """Return all objects at a time in [-1, 1]."""
        moved = list(self.objects)
        for index, way in zip(self.pair, self.ways, strict=True):
            pose = moved[index].pose.copy()
            pose[:3, 3] += (time - self.passing) * way * self.along
            moved[index] = replace(moved[index], pose=pose)
        return moved

    def from_the_side(self, rng: Rng, pose: Array) -> Array:
        """Turn a camera (4, 4) about the middle, so that it sees the lanes nearly from the side."""
        angle = np.arctan2(self.along[1], self.along[0]) + rng.choice((0, np.pi)) + np.radians(rng.uniform(-20, 20))
        return np.asarray(pose @ _about(self.middle, np.arctan2(pose[0, 1], pose[0, 0]) - angle))


def _about(centre: Array, angle: float) -> Array:
    """Return the rotation (4, 4) about the vertical axis through `centre` (3,), by `angle` radians."""
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned[:3, 3] = centre - turned[:3, :3] @ centre
    return turned
