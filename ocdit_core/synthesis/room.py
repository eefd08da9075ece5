"""Rooms: a floor, walls, a table with furniture around it, and the light.

World axes: x and y along the table, z up, metres; the origin is the middle of the surface that objects lie on.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.painting import random_colour
from ocdit_core.synthesis.shaders import MAX_LIGHTS

Vector = NDArray[np.float64]
Place = Literal["on_table", "under_table", "around"]

LIGHTS = (1, MAX_LIGHTS)
"""Smallest and largest number of lamps."""
TABLE_PROBABILITY = 0.75
"""Probability that there is a table; else the objects lie on the floor."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """How a surface reflects light, beside its colour.

    Attributes:
        roughness: 0 is a mirror, 1 is chalk.
        specular: strength of the highlights of a non-metal; 0.5 is plastic.
        metallic: 1 is a metal, whose highlights have its colour and which has no diffuse reflection.
    """

    roughness: float = 0.6
    specular: float = 0.5
    metallic: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RoomSurface:
    """Triangles of one texture and material.

    Attributes:
        corners: (3 * faces, 12) position, normal, texture coordinate and colour, as in `objects.surfaces.Surface`.
        texture: number of an image in the pool; None for the colour alone.
        material: how it reflects light.
        place: what may shade it: objects, the table above it, or nothing.
    """

    corners: NDArray[np.float32]
    texture: int | None
    material: Material
    place: Place


@dataclass(frozen=True, kw_only=True)
class RoomLight:
    """A spherical lamp.

    Attributes:
        position: (3,) metres.
        radius: metres; a larger one casts softer shadows.
        colour: (3,) linear intensity: the irradiance is this over the square of the distance.
    """

    position: Vector
    radius: float
    colour: Vector


@dataclass(frozen=True, kw_only=True)
class Room:
    """The static part of a scene.

    Attributes:
        surfaces: floor, walls, table and furniture.
        lights: lamps.
        half_size: half the extent of the surface that objects lie on, metres.
        table_height: height over the floor in metres; 0: the objects lie on the floor.
        low: (3,) minimum x, y, z of the room in metres (the floor).
        high: (3,) maximum x, y, z of the room in metres (the ceiling).
        zenith: (3,) linear radiance of the ceiling, which lights the room from everywhere.
        horizon: (3,) linear radiance of the walls.
        windows: (n, 6) directions of additional light, and its linear radiance.
        ground: (3,) linear light that the table or floor reflects.
    """

    surfaces: tuple[RoomSurface, ...]
    lights: tuple[RoomLight, ...]
    half_size: tuple[float, float]
    table_height: float
    low: Vector
    high: Vector
    zenith: Vector
    horizon: Vector
    windows: Vector
    ground: Vector


def random_room(rng: np.random.Generator, *, textures: int, objects_reach: float = 0.4) -> Room:
    """Furnish a room.

    Args:
        rng: source of randomness.
        textures: number of images in the pool; 0 for plain colours.
        objects_reach: half the side in metres of the area that the objects need.
    """
    table = rng.random() < TABLE_PROBABILITY
    height = float(rng.uniform(0.4, 0.9)) if table else 0.0
    low = np.array([-rng.uniform(1.8, 3.2), -rng.uniform(1.8, 3.2), -height])
    high = np.array([rng.uniform(1.8, 3.2), rng.uniform(1.8, 3.2), rng.uniform(2.4, 3.2) - height])
    surfaces = [*_shell(rng, low, high, textures, floor="under_table" if table else "on_table")]
    if table:
        half = np.maximum(objects_reach + rng.uniform(0.05, 0.35, 2), 0.3)
        surfaces += _table(rng, half, height, textures)
    else:
        half = np.minimum(-low[:2], high[:2]) - 0.3
    for _ in range(int(rng.integers(1, 6))):
        surfaces += _furniture(rng, low, high, half, textures)
    colour = _lamp_colour(rng)
    sky = rng.uniform(0.35, 1.0)
    zenith = sky * colour * rng.uniform(0.9, 1.3)
    horizon = sky * colour * rng.uniform(0.3, 0.9) * rng.uniform(0.9, 1.1, 3)
    count = int(rng.integers(0, 3))
    turns, heights = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.2, 0.7, count)
    towards = np.stack([np.cos(turns), np.sin(turns), heights], axis=1)
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    strength = sky * rng.uniform(0.5, 2.5, (count, 1)) * np.stack([_lamp_colour(rng) for _ in range(count)] or [colour])
    return Room(
        surfaces=tuple(surfaces),
        lights=tuple(_lamps(rng, low, high, objects_reach)),
        half_size=(float(half[0]), float(half[1])),
        table_height=height,
        low=low,
        high=high,
        zenith=zenith,
        horizon=horizon,
        windows=np.concatenate([towards, np.broadcast_to(strength[:count], (count, 3))], axis=1),
        ground=zenith * rng.uniform(0.15, 0.45),
    )


def _lamp_colour(rng: np.random.Generator) -> Vector:
    """Draw a colour between candle light and blue sky, with a green of 1."""
    warmth = rng.normal(0, 0.16)
    return np.array([np.exp(warmth), 1.0, np.exp(-1.3 * warmth)])


def _lamps(rng: np.random.Generator, low: Vector, high: Vector, reach: float) -> list[RoomLight]:
    lamps = []
    strength = rng.uniform(0.6, 2.2)
    for _ in range(int(rng.integers(LIGHTS[0], LIGHTS[1] + 1))):
        height = rng.uniform(0.9, max(1.0, high[2] - 0.1))
        turn, side = rng.uniform(0, 2 * np.pi), height * rng.uniform(0.1, 1.1)
        at = np.array([side * np.cos(turn), side * np.sin(turn), height])
        at[:2] = np.clip(at[:2], low[:2] + 0.1, high[:2] - 0.1)
        at *= max(1.0, 2.5 * reach / float(np.linalg.norm(at)))  # never among the objects
        colour = strength * float(at @ at) * _lamp_colour(rng)
        radius = float(np.exp(rng.uniform(np.log(0.02), np.log(0.2))))
        lamps.append(RoomLight(position=at, radius=radius, colour=colour))
        strength *= rng.uniform(0.3, 0.8)
    return lamps


def _material(rng: np.random.Generator) -> Material:
    return Material(roughness=float(rng.uniform(0.35, 1.0)), specular=float(rng.uniform(0.1, 0.6)))


def _look(rng: np.random.Generator, textures: int, textured: float) -> tuple[int | None, Vector]:
    """Draw the number of an image and a faint tint, or None and a colour; sRGB in 0..1."""
    if textures and rng.random() < textured:
        return int(rng.integers(textures)), rng.uniform(0.75, 1.0) * rng.uniform(0.92, 1.0, 3)
    colour = random_colour(rng)
    grey = colour.mean()
    return None, np.clip(grey + (colour - grey) * rng.uniform(0.2, 0.8), 25, 235) / 255


def _quad(origin: Vector, across: Vector, up: Vector, tile: float) -> NDArray[np.float64]:
    """Return two triangles (6, 8): position, normal, and coordinates that repeat an image every `tile` metres."""
    normal = np.cross(across, up)
    normal /= np.linalg.norm(normal)
    u, v = float(np.linalg.norm(across)) / tile, float(np.linalg.norm(up)) / tile
    places = ((0, 0), (1, 0), (1, 1), (0, 0), (1, 1), (0, 1))
    return np.stack([np.concatenate([origin + a * across + b * up, normal, [a * u, b * v]]) for a, b in places])


def _box(low: Vector, high: Vector, tile: float, turn: float = 0.0) -> NDArray[np.float64]:
    """Return the six sides of a box (36, 8), rotated by `turn` radians about its vertical axis."""
    x, y, z = (np.eye(3)[i] * (high - low)[i] for i in range(3))
    top, bottom = (low + z, x, y), (low, y, x)
    around = ((low, x, z), (low + x, y, z), (low + x + y, -x, z), (low + y, -y, z))
    corners = np.concatenate([_quad(origin, a, b, tile) for origin, a, b in (top, bottom, *around)])
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    middle = np.array([*(low + high)[:2] / 2, 0])
    corners[:, :3] = (corners[:, :3] - middle) @ rotation.T + middle
    corners[:, 3:6] = corners[:, 3:6] @ rotation.T
    return corners


def _surface(
    rng: np.random.Generator,
    corners: NDArray[np.float64],
    look: tuple[int | None, Vector],
    place: Place,
    material: Material | None = None,
) -> RoomSurface:
    colour = np.broadcast_to(np.append(look[1], 1.0), (len(corners), 4))
    return RoomSurface(
        corners=np.ascontiguousarray(np.concatenate([corners, colour], axis=1), dtype=np.float32),
        texture=look[0],
        material=material or _material(rng),
        place=place,
    )


def _shell(rng: np.random.Generator, low: Vector, high: Vector, textures: int, floor: Place) -> list[RoomSurface]:
    """Return the floor, the ceiling, and four walls with one or two textures."""
    x, y, z = (np.eye(3)[i] * (high - low)[i] for i in range(3))
    shell = [
        _surface(rng, _quad(low, x, y, rng.uniform(0.5, 2.0)), _look(rng, textures, 0.9), floor),
        _surface(rng, _quad(low + z, y, x, 2.0), (None, np.full(3, rng.uniform(0.7, 0.95))), "around"),
    ]
    looks = [_look(rng, textures, 0.6) for _ in range(2)]
    tile = rng.uniform(1.0, 3.0)
    for origin, across in ((low + y, x), (low + x + y, -y), (low + x, -x), (low, y)):
        look = looks[int(rng.random() < 0.3)]
        shell.append(_surface(rng, _quad(origin, across, z, tile), look, "around"))
    return shell


def _table(rng: np.random.Generator, half: Vector, height: float, textures: int) -> list[RoomSurface]:
    thick = rng.uniform(0.015, 0.06)
    look, material = _look(rng, textures, 0.85), _material(rng)
    tile = float(2 * half.max() * rng.uniform(0.4, 1.2))
    slab = _box(np.array([*-half, -thick]), np.array([*half, 0.0]), tile)
    under = look if rng.random() < 0.6 else _look(rng, textures, 0.3)
    table = [
        _surface(rng, slab[:6], look, "on_table", material),
        _surface(rng, slab[6:], under, "under_table", material),
    ]
    if rng.random() < 0.25:  # a chest
        inner = half * rng.uniform(0.85, 0.99)
        legs = [_box(np.array([*-inner, -height]), np.array([*inner, -thick]), tile)]
    else:
        width, inset = rng.uniform(0.03, 0.08), rng.uniform(0.0, 0.06)
        at = half - width / 2 - inset
        legs = []
        for sx, sy in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            foot = np.array([sx * at[0], sy * at[1]])
            legs.append(_box(np.array([*(foot - width / 2), -height]), np.array([*(foot + width / 2), -thick]), tile))
    return [*table, _surface(rng, np.concatenate(legs), under, "under_table", material)]


def _furniture(rng: np.random.Generator, low: Vector, high: Vector, half: Vector, textures: int) -> list[RoomSurface]:
    """Return a cupboard, crate or screen away from the table; none if there is no space."""
    size = np.array([*rng.uniform(0.2, 0.9, 2), rng.uniform(0.2, 1.8)])
    size[2] = min(size[2], high[2] - low[2] - 0.1)
    clear = np.minimum(half, 1.0) + 0.9
    for _ in range(6):
        at = rng.uniform(low[:2] + size[:2] / 2, high[:2] - size[:2] / 2)
        if (np.abs(at) > clear).any():
            corner = np.array([*(at - size[:2] / 2), low[2]])
            box = _box(corner, corner + size, float(size.max()), rng.uniform(0, 2 * np.pi))
            return [_surface(rng, box, _look(rng, textures, 0.6), "around")]
    return []
