"""Solids as grids of points: what procedural objects are put together from.

Every solid is a list of patches. A patch is a grid (nu, nv, 3) whose first axis runs to the right and whose second runs
upwards when seen from outside, with texture coordinates along; units are those of the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Grid = NDArray[np.float64]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Patch:
    """One grid of a solid."""

    points: Grid
    """(nu, nv, 3)."""
    uv: Grid
    """(nu, nv, 2) in 0..1, v upwards."""
    slot: int = 0
    """Which of the solid's paints covers it."""


Solid = list[Patch]


def slots_of(solid: Solid) -> int:
    """How many paints the solid wants."""
    return 1 + max(patch.slot for patch in solid)


def transformed(solid: Solid, *, rotation: Grid | None = None, scale: ArrayLike = 1.0, shift: ArrayLike = 0.0) -> Solid:
    """The solid scaled, then rotated by (3, 3), then moved."""
    matrix = np.eye(3) if rotation is None else rotation
    return [replace(p, points=(p.points * np.asarray(scale)) @ matrix.T + np.asarray(shift)) for p in solid]


def rotation_to(axis: ArrayLike) -> Grid:
    """A rotation (3, 3) that takes z to the given direction."""
    z = np.asarray(axis, dtype=np.float64)
    z = z / np.linalg.norm(z)
    helper = np.array([1.0, 0.0, 0.0]) if abs(z[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _uv(nu: int, nv: int) -> Grid:
    return np.stack(np.meshgrid(np.linspace(0, 1, nu), np.linspace(0, 1, nv), indexing="ij"), axis=-1)


def superquadric(half: Point, e1: float, e2: float, sections: int = 32, rows: int = 18) -> Solid:
    """A superellipsoid with the given half sizes; exponents near 0 are boxes, 1 is round, 2 is pinched."""
    eta = np.linspace(-np.pi / 2, np.pi / 2, rows)
    omega = np.linspace(-np.pi, np.pi, sections + 1)

    def power(values: Grid, exponent: float) -> Grid:
        return np.sign(values) * np.abs(values) ** exponent

    ring, height = power(np.cos(eta), e1), power(np.sin(eta), e1)
    x = half[0] * np.outer(power(np.cos(omega), e2), ring)
    y = half[1] * np.outer(power(np.sin(omega), e2), ring)
    z = half[2] * np.outer(np.ones(len(omega)), height)
    return [Patch(np.stack([x, y, z], axis=-1), _uv(sections + 1, rows))]


def lathe(profile: ArrayLike, sections: int = 32, squash: float = 1.0) -> Solid:
    """A body of revolution about z.

    Args:
        profile: (n, 2) radius and height, from the bottom's centre along the outside upwards (and back inside a cup).
        sections: around the axis.
        squash: the y radius over the x radius.
    """
    curve = np.asarray(profile, dtype=np.float64)
    angle = np.linspace(0, 2 * np.pi, sections + 1)
    x = np.outer(np.cos(angle), curve[:, 0])
    y = np.outer(np.sin(angle), curve[:, 0]) * squash
    z = np.broadcast_to(curve[:, 1], x.shape)
    uv = _uv(sections + 1, len(curve))
    # Along the curve the texture follows the length, so that stripes keep their width.
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    uv[..., 1] = length / max(length[-1], 1e-9)
    return [Patch(np.stack([x, y, z], axis=-1), uv)]


def capsule(radius: float, length: float, sections: int = 20) -> Solid:
    """A cylinder along z with round ends; `length` is between the ends' centres."""
    angle = np.linspace(-np.pi / 2, 0, 6)
    low = np.stack([radius * np.cos(angle), radius * np.sin(angle) - length / 2], axis=1)
    high = np.stack([low[::-1, 0], -low[::-1, 1]], axis=1)
    return lathe(np.concatenate([low, high]), sections)


def cylinder(radius: float, height: float, sections: int = 28, bevel: float = 0.08, top: float = 1.0) -> Solid:
    """A can or, with `top` below 1, a cone along z, its rims bevelled by a share of the radius."""
    b, h, rt = bevel * radius, height / 2, radius * top
    profile = [
        (0, -h),
        (radius - b, -h),
        (radius, -h + min(b, h / 2)),
        ((radius + rt) / 2, 0),
        (rt, h - min(b, h / 2)),
        (max(rt - b, 0), h),
        (0, h),
    ]
    return lathe(profile, sections)


def rounded_box(half: Point, radius: float, *, paints: int = 3) -> Solid:
    """A box with rounded edges; up to three paints: front and back, the sides, top and bottom."""
    size = np.asarray(half, dtype=np.float64)
    r = float(min(radius, 0.95 * size.min()))
    axes = np.eye(3)
    faces = [
        (1, 2, axes[1], axes[2], axes[0], 0),
        (1, 2, -axes[1], axes[2], -axes[0], 0),
        (0, 2, -axes[0], axes[2], axes[1], 1),
        (0, 2, axes[0], axes[2], -axes[1], 1),
        (0, 1, axes[0], axes[1], axes[2], 2),
        (0, 1, axes[0], -axes[1], -axes[2], 2),
    ]

    def steps(h: float) -> Grid:
        edge = np.array([0.0, 0.3, 1.0]) * r
        return np.concatenate([-h + edge, [0.0], (h - edge)[::-1]])

    solid = []
    for first, second, u, v, normal, slot in faces:
        along, up = steps(size[first]), steps(size[second])
        a, b = np.meshgrid(along, up, indexing="ij")
        raw = a[..., None] * u + b[..., None] * v + normal * (size @ np.abs(normal))
        inner = np.clip(raw, -(size - r), size - r)
        away = raw - inner
        points = inner + r * away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-12)
        uv = np.stack([(a / size[first] + 1) / 2, (b / size[second] + 1) / 2], axis=-1)
        solid.append(Patch(points, uv, min(slot, paints - 1)))
    return solid


def prism(outline: ArrayLike, height: float, *, taper: float = 1.0, twist: float = 0.0, rows: int = 7) -> Solid:
    """An outline (n, 2), star-shaped about the origin and counter-clockwise, drawn upwards; the caps are paint 1.

    Args:
        outline: corners in the xy plane.
        height: along z.
        taper: the top's size over the bottom's.
        twist: turn of the top against the bottom in radians.
        rows: points along the height.
    """
    corners = np.asarray(outline, dtype=np.float64)
    corners = np.concatenate([corners, corners[:1]])
    t = np.linspace(0, 1, rows)
    scale, angle = 1 + (taper - 1) * t, twist * t
    x = np.outer(corners[:, 0], scale * np.cos(angle)) - np.outer(corners[:, 1], scale * np.sin(angle))
    y = np.outer(corners[:, 0], scale * np.sin(angle)) + np.outer(corners[:, 1], scale * np.cos(angle))
    z = np.broadcast_to((t - 0.5) * height, x.shape)
    side = np.stack([x, y, z], axis=-1)
    solid = [Patch(side, _uv(len(corners), rows))]
    extent = 2 * np.abs(corners).max()
    flat = corners / extent
    for rim, mirror, order in ((side[:, -1], 1.0, slice(None)), (side[:, 0], -1.0, slice(None, None, -1))):
        middle = np.zeros_like(rim)
        middle[:, 2] = rim[:, 2]
        around = flat * (mirror, 1.0) + 0.5
        points = np.stack([rim, middle], axis=1)[order]
        uv = np.stack([around, np.full_like(around, 0.5)], axis=1)[order]
        solid.append(Patch(points, uv, 1))
    return solid


def torus(major: float, minor: float, *, flat: float = 1.0, sections: int = 36, around: int = 14) -> Solid:
    """A ring about z; `flat` scales its height."""
    a = np.linspace(0, 2 * np.pi, sections + 1)
    b = np.linspace(0, 2 * np.pi, around + 1)
    ring = major + minor * np.cos(b)
    x, y = np.outer(np.cos(a), ring), np.outer(np.sin(a), ring)
    z = np.broadcast_to(flat * minor * np.sin(b), x.shape)
    return [Patch(np.stack([x, y, z], axis=-1), _uv(sections + 1, around + 1))]


def tube(line: ArrayLike, radius: ArrayLike, *, normal: ArrayLike = (0.0, 1.0, 0.0), around: int = 10) -> Solid:
    """A closed tube along a curve that lies about in the plane of the given normal.

    Args:
        line: (n, 3) points of the centre line.
        radius: one number or (n,).
        normal: (3,) of the plane; never parallel to the curve.
        around: sections.
    """
    centre = np.asarray(line, dtype=np.float64)
    tangent = np.gradient(centre, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-12)
    across = np.cross(tangent, np.asarray(normal, dtype=np.float64))
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    third = np.cross(tangent, across)
    size = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(centre),))
    # The two ends are closed by rings of no size.
    rings = np.concatenate([[0], np.arange(len(centre)), [len(centre) - 1]])
    width = size[rings].copy()
    width[[0, -1]] = 0
    angle = np.linspace(0, 2 * np.pi, around + 1)[:, None, None]
    points = centre[rings] + width[:, None] * (np.cos(angle) * across[rings] + np.sin(angle) * third[rings])
    return [Patch(points, _uv(around + 1, len(rings)))]


def polar_outline(rng: np.random.Generator) -> Grid:
    """A random outline (n, 2) of size about 1: polygon, star, gear, flower or a stretched one of these."""
    kind = rng.integers(5)
    if kind == 0:  # regular polygon
        n = int(rng.integers(3, 9))
        radius = np.ones(n)
    elif kind == 1:  # star
        n = 2 * int(rng.integers(4, 8))
        radius = np.where(np.arange(n) % 2, rng.uniform(0.4, 0.7), 1.0)
    elif kind == 2:  # gear
        teeth = int(rng.integers(6, 13))
        radius = np.tile([1.0, 1.0, 0.78, 0.78], teeth)
        n = 4 * teeth
    elif kind == 3:  # flower or blob
        n = 48
        turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
        radius = 1 + rng.uniform(0.1, 0.35) * np.cos(rng.integers(2, 7) * turn + rng.uniform(0, 6))
    else:  # irregular polygon
        n = int(rng.integers(4, 8))
        radius = rng.uniform(0.6, 1.0, n)
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return outline * (1.0, rng.uniform(0.5, 1.0))


def random_profile(rng: np.random.Generator, points: int = 18) -> Grid:
    """A random closed lathe profile (n, 2), height about 2: vases, bottles, pawns, bulbs."""
    knots = int(rng.integers(3, 7))
    radii = rng.uniform(0.15, 0.9, knots)
    t = np.linspace(0, 1, points)
    at = np.linspace(0, 1, knots)
    smooth: Callable[..., Grid] = np.interp
    radius = smooth(t, at, radii)
    for _ in range(2):  # round the kinks
        radius = np.convolve(np.pad(radius, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    height = (t - 0.5) * rng.uniform(1.0, 2.6)
    body = np.stack([radius, height], axis=1)
    return np.concatenate([[(0, height[0])], body, [(0, height[-1])]])
