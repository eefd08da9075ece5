"""Shapes of procedural objects: solids as grids of points, and things of several parts such as mugs and toy cars.

Every solid is a list of patches. A patch is a grid (nu, nv, 3) whose first axis runs to the right and whose second runs
upwards when seen from outside, with texture coordinates along; units are those of the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rng = np.random.Generator
Grid = NDArray[np.float64]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Patch:
    """One grid of a solid.

    Attributes:
        points: (nu, nv, 3).
        uv: (nu, nv, 2) in 0..1, v upwards.
        slot: which of the solid's paints covers it.
    """

    points: Grid
    uv: Grid
    slot: int = 0


Solid = list[Patch]


def transformed(solid: Solid, *, rotation: Grid | None = None, scale: ArrayLike = 1.0, shift: ArrayLike = 0.0) -> Solid:
    """Return the solid scaled, then rotated by (3, 3), then shifted."""
    matrix = np.eye(3) if rotation is None else rotation
    return [replace(p, points=(p.points * np.asarray(scale)) @ matrix.T + np.asarray(shift)) for p in solid]


def rotation_to(axis: ArrayLike) -> Grid:
    """Return a rotation (3, 3) that takes z to the given direction."""
    z = np.asarray(axis, dtype=np.float64)
    z = z / np.linalg.norm(z)
    helper = np.array([1.0, 0.0, 0.0]) if abs(z[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
    x = np.cross(helper, z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _uv(nu: int, nv: int) -> Grid:
    return np.stack(np.meshgrid(np.linspace(0, 1, nu), np.linspace(0, 1, nv), indexing="ij"), axis=-1)


def superquadric(half: Point, e1: float, e2: float, sections: int = 32, rows: int = 18) -> Solid:
    """Return a superellipsoid with the given half sizes; exponents near 0 are boxes, 1 is round, 2 is pinched."""
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
    """Return a body of revolution about z.

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
    """Return a cylinder along z with round ends; `length` is between the ends' centres."""
    angle = np.linspace(-np.pi / 2, 0, 6)
    low = np.stack([radius * np.cos(angle), radius * np.sin(angle) - length / 2], axis=1)
    high = np.stack([low[::-1, 0], -low[::-1, 1]], axis=1)
    return lathe(np.concatenate([low, high]), sections)


def cylinder(radius: float, height: float, sections: int = 28, bevel: float = 0.08, top: float = 1.0) -> Solid:
    """Return a can or, with `top` below 1, a cone along z, its rims bevelled by a fraction of the radius."""
    b, h, rt = bevel * radius, height / 2, radius * top
    below = [(0, -h), (radius - b, -h), (radius, -h + min(b, h / 2)), ((radius + rt) / 2, 0)]
    above = [(rt, h - min(b, h / 2)), (max(rt - b, 0), h), (0, h)]
    return lathe(below + above, sections)


def rounded_box(half: Point, radius: float, *, paints: int = 3) -> Solid:
    """Return a box with rounded edges; up to three paints: front and back, the sides, top and bottom."""
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
    """Return an extruded outline (n, 2), star-shaped about the origin and counter-clockwise; the caps have paint 1.

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
    """Return a ring about z; `flat` scales its height."""
    a = np.linspace(0, 2 * np.pi, sections + 1)
    b = np.linspace(0, 2 * np.pi, around + 1)
    ring = major + minor * np.cos(b)
    x, y = np.outer(np.cos(a), ring), np.outer(np.sin(a), ring)
    z = np.broadcast_to(flat * minor * np.sin(b), x.shape)
    return [Patch(np.stack([x, y, z], axis=-1), _uv(sections + 1, around + 1))]


def tube(line: ArrayLike, radius: ArrayLike, *, normal: ArrayLike = (0.0, 1.0, 0.0), around: int = 10) -> Solid:
    """Return a closed tube along a curve that lies about in the plane of the given normal.

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
    """Draw an outline (n, 2) of size about 1: polygon, star, gear, flower or a stretched one of these."""
    kind = rng.integers(5)
    if kind == 0:  # regular polygon
        radius = np.ones(int(rng.integers(3, 9)))
    elif kind == 1:  # star
        corners = np.arange(2 * int(rng.integers(4, 8)))
        radius = np.where(corners % 2, rng.uniform(0.4, 0.7), 1.0)
    elif kind == 2:  # gear
        radius = np.tile([1.0, 1.0, 0.78, 0.78], int(rng.integers(6, 13)))
    elif kind == 3:  # flower or blob
        turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radius = 1 + rng.uniform(0.1, 0.35) * np.cos(rng.integers(2, 7) * turn + rng.uniform(0, 6))
    else:  # irregular polygon
        radius = rng.uniform(0.6, 1.0, int(rng.integers(4, 8)))
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return outline * (1.0, rng.uniform(0.5, 1.0))


def random_profile(rng: np.random.Generator, points: int = 18) -> Grid:
    """Draw a closed lathe profile (n, 2), height about 2: vases, bottles, pawns, bulbs."""
    knots = int(rng.integers(3, 7))
    radii = rng.uniform(0.15, 0.9, knots)
    t = np.linspace(0, 1, points)
    radius = np.interp(t, np.linspace(0, 1, knots), radii)
    for _ in range(2):  # round the kinks
        radius = np.convolve(np.pad(radius, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    height = (t - 0.5) * rng.uniform(1.0, 2.6)
    body = np.stack([radius, height], axis=1)
    return np.concatenate([[(0, height[0])], body, [(0, height[-1])]])


def random_assembly(rng: Rng) -> list[Solid]:
    """Draw one to five solids that make an object, about 2 units in size, z up."""
    if rng.random() < 0.45:
        return [random_solid(rng)]
    kinds = (*[_mug] * 2, _hammer, _capped_bottle, _dumbbell, *[_stack] * 2, *[_attached] * 3, _stool, _jug)
    kinds += (_tool, _cross, _car, _lamp, _house)
    return kinds[rng.integers(len(kinds))](rng)


def random_solid(rng: Rng) -> Solid:
    """Draw a solid with half sizes of about 0.3 to 1."""
    kind = rng.integers(9)
    half = tuple(rng.uniform(0.3, 1.0, 3))
    if kind == 0:
        return superquadric(half, rng.uniform(0.25, 1.5), rng.uniform(0.25, 1.5))
    if kind == 1:
        return lathe(random_profile(rng), squash=rng.choice([1.0, rng.uniform(0.5, 1.0)]))
    if kind in (2, 3):
        return rounded_box(half, rng.uniform(0.02, 0.25), paints=int(rng.integers(1, 4)))
    if kind == 4:
        outline, height = polar_outline(rng), rng.uniform(0.25, 1.8)
        taper = rng.choice([1.0, rng.uniform(0.3, 1.0)])
        return prism(outline, height, taper=taper, twist=rng.choice([0.0, rng.uniform(-1.2, 1.2)]))
    if kind == 5:
        return capsule(rng.uniform(0.2, 0.6), rng.uniform(0.3, 1.5), sections=28)
    if kind == 6:
        major = rng.uniform(0.6, 0.9)
        return torus(major, rng.uniform(0.15, 0.9) * major * 0.6, flat=rng.uniform(0.5, 1.8))
    if kind == 7:
        return cylinder(rng.uniform(0.4, 0.8), rng.uniform(0.2, 2.0), top=rng.choice([1.0, rng.uniform(0.0, 1.0)]))
    return _bend(rng)


def _bend(rng: Rng) -> Solid:
    """A curved thing: banana, hook, handle, spring."""
    if rng.random() < 0.3:
        t = np.linspace(0, 2 * np.pi * rng.uniform(2, 4), 70)
        line = np.stack([0.5 * np.cos(t), 0.5 * np.sin(t), t / t[-1] * 1.6 - 0.8], axis=1)
        return tube(line, rng.uniform(0.06, 0.13), normal=(0, 0, 1), around=8)
    t = np.linspace(0, rng.uniform(1.2, 4.5), 28)
    line = np.stack([np.cos(t), np.zeros_like(t), np.sin(t) * rng.uniform(0.6, 1.3)], axis=1)
    if rng.random() < 0.5:
        radius = 0.05 + rng.uniform(0.12, 0.25) * np.sin(np.linspace(0.15, np.pi - 0.15, 28))
        return tube(line, radius, around=14)
    return tube(line, rng.uniform(0.08, 0.25), around=14)


def _cup(rng: Rng, radius: float, height: float, *, flare: float, wall: float) -> Solid:
    outer = np.linspace(1.0, flare, 6) * radius
    if rng.random() < 0.4:
        outer += radius * rng.uniform(0.05, 0.25) * np.sin(np.linspace(0, np.pi, 6))
    z = np.linspace(-height / 2, height / 2, 6)
    outside = np.stack([outer, z], axis=1)
    inside = np.stack([outer[::-1] - wall, np.linspace(height / 2, -height / 2 + wall, 6)], axis=1)
    profile = np.concatenate([[(0, -height / 2)], outside, inside, [(0, -height / 2 + wall)]])
    return lathe(profile, sections=30)


def _handle(reach: float, height: float, thick: float) -> Solid:
    t = np.linspace(-np.pi / 2, np.pi / 2, 14)
    return tube(np.stack([reach * np.cos(t), np.zeros(14), height / 2 * np.sin(t)], axis=1), thick)


def _mug(rng: Rng) -> list[Solid]:
    radius, height = rng.uniform(0.45, 0.8), rng.uniform(0.7, 1.6)
    cup = _cup(rng, radius, height, flare=rng.uniform(0.85, 1.4), wall=0.06)
    if rng.random() < 0.3:  # bowl or beaker
        return [cup]
    grip = _handle(rng.uniform(0.3, 0.5), height * rng.uniform(0.45, 0.75), rng.uniform(0.05, 0.1))
    return [cup, transformed(grip, shift=(radius * 0.97, 0, 0))]


def _jug(rng: Rng) -> list[Solid]:
    body = lathe(random_profile(rng), sections=28)
    points = body[0].points
    reach = float(points[..., 0].max())
    height = float(np.ptp(points[..., 2]))
    grip = transformed(_handle(0.4, 0.6 * height, 0.07), shift=(0.8 * reach, 0, 0))
    t = np.linspace(0, 1, 10)
    line = np.stack([-0.6 * reach - 0.6 * t, 0 * t, 0.45 * height * t**1.5 - 0.1 * height], axis=1)
    return [body, grip, tube(line, np.linspace(0.18, 0.08, 10), around=10)]


def _hammer(rng: Rng) -> list[Solid]:
    length = rng.uniform(1.2, 2.0)
    grip = capsule(rng.uniform(0.07, 0.13), length)
    if rng.random() < 0.5:
        head = rounded_box((rng.uniform(0.3, 0.5), rng.uniform(0.13, 0.22), rng.uniform(0.12, 0.22)), 0.04, paints=1)
    else:
        block = cylinder(rng.uniform(0.15, 0.28), rng.uniform(0.6, 1.0), top=rng.uniform(0.5, 1.0))
        head = transformed(block, rotation=rotation_to((1, 0, 0)))
    return [grip, transformed(head, shift=(0, 0, length / 2))]


def _capped_bottle(rng: Rng) -> list[Solid]:
    radius, height, neck = rng.uniform(0.3, 0.55), rng.uniform(0.8, 1.6), rng.uniform(0.1, 0.22)
    shoulder = rng.uniform(0.1, 0.5)
    t = np.linspace(0, np.pi / 2, 6)
    curve = np.stack([neck + (radius - neck) * np.cos(t), height / 2 + shoulder * np.sin(t)], axis=1)
    top = height / 2 + shoulder
    profile = [(0, -height / 2), (radius * 0.92, -height / 2), (radius, -height / 2 + 0.06)]
    body = lathe(np.concatenate([profile, curve, [(neck, top + 0.12), (0, top + 0.12)]]), sections=30)
    cap = cylinder(neck * rng.uniform(1.1, 1.6), rng.uniform(0.12, 0.3), sections=20)
    return [body, transformed(cap, shift=(0, 0, top + 0.12))]


def _dumbbell(rng: Rng) -> list[Solid]:
    end = random_solid(rng)
    bar = cylinder(rng.uniform(0.1, 0.2), 2.0, sections=16)
    return [bar] + [transformed(end, scale=0.55, shift=(0, 0, z)) for z in (-0.9, 0.9)]


def _stack(rng: Rng) -> list[Solid]:
    parts: list[Solid] = []
    top = 0.0
    for _ in range(int(rng.integers(2, 4))):
        part = transformed(random_solid(rng), scale=rng.uniform(0.45, 1.0))
        z = np.concatenate([p.points[..., 2].ravel() for p in part])
        parts.append(transformed(part, shift=(0, 0, top - z.min())))
        top += 0.96 * float(np.ptp(z))
    return parts


def _attached(rng: Rng) -> list[Solid]:
    base = random_solid(rng)
    surface = np.concatenate([p.points.reshape(-1, 3) for p in base])
    parts = [base]
    for _ in range(int(rng.integers(1, 4))):
        at = surface[rng.integers(len(surface))]
        part = transformed(random_solid(rng), rotation=rotation_to(at + 1e-3), scale=rng.uniform(0.25, 0.6))
        parts.append(transformed(part, shift=at))
    return parts


def _stool(rng: Rng) -> list[Solid]:
    half = (rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.8), rng.uniform(0.05, 0.15))
    parts = [rounded_box(half, 0.04, paints=1)]
    length, thick = rng.uniform(0.4, 1.1), rng.uniform(0.05, 0.12)
    leg = [p for x in (-1, 1) for y in (-1, 1) for p in transformed(
        cylinder(thick, length, sections=10), shift=(0.85 * x * half[0], 0.85 * y * half[1], -length / 2)
    )]  # fmt: skip
    parts.append(leg)
    if rng.random() < 0.4:
        back = rounded_box((0.06, half[1], rng.uniform(0.3, 0.6)), 0.04, paints=1)
        parts.append(transformed(back, shift=(-half[0], 0, 0.5)))
    return parts


def _tool(rng: Rng) -> list[Solid]:
    """Screwdriver, brush, spoon: a grip, a shaft, an end."""
    grip = transformed(lathe(random_profile(rng), sections=20), scale=(0.3, 0.3, 0.35), shift=(0, 0, -0.6))
    shaft = transformed(cylinder(rng.uniform(0.04, 0.09), 1.3, sections=12), shift=(0, 0, 0.2))
    end = transformed(random_solid(rng), scale=rng.uniform(0.15, 0.4), shift=(0, 0, 0.95))
    return [grip, shaft, end]


def _cross(rng: Rng) -> list[Solid]:
    angle = rng.uniform(0.3, 0.8)
    bars = []
    for sign in (-1, 1):
        bar = capsule(rng.uniform(0.07, 0.15), 1.8, sections=16)
        bars.append(transformed(bar, rotation=rotation_to((sign * np.sin(angle), 0, np.cos(angle)))))
    return [*bars, transformed(cylinder(0.12, 0.4, sections=16), rotation=rotation_to((0, 1, 0)))]


def _car(rng: Rng) -> list[Solid]:
    length, width, height = rng.uniform(0.7, 1.0), rng.uniform(0.3, 0.5), rng.uniform(0.15, 0.3)
    body = rounded_box((length, width, height), rng.uniform(0.05, 0.15), paints=2)
    cabin = transformed(
        rounded_box((length * rng.uniform(0.35, 0.6), width * 0.85, height * rng.uniform(0.6, 1.0)), 0.1, paints=1),
        shift=(rng.uniform(-0.2, 0.2), 0, 1.6 * height),
    )
    radius = rng.uniform(0.15, 0.28)
    wheel = transformed(cylinder(radius, 0.14, sections=18, bevel=0.2), rotation=rotation_to((0, 1, 0)))
    places = [(x * 0.6 * length, y * width, -height) for x in (-1, 1) for y in (-1, 1)]
    return [body, cabin, [p for place in places for p in transformed(wheel, shift=place)]]


def _lamp(rng: Rng) -> list[Solid]:
    foot = cylinder(rng.uniform(0.3, 0.6), rng.uniform(0.08, 0.2))
    pole = transformed(cylinder(0.06, 1.2, sections=12), shift=(0, 0, 0.6))
    shade = _cup(rng, rng.uniform(0.4, 0.7), rng.uniform(0.4, 0.7), flare=rng.uniform(0.4, 0.9), wall=0.03)
    return [foot, pole, transformed(shade, shift=(0, 0, 1.1))]


def _house(rng: Rng) -> list[Solid]:
    """A box with a roof, a block with a knob: straight edges in several directions."""
    half = (rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.7))
    box = rounded_box(half, 0.03)
    corners = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * (half[0] * 1.1, half[1] * 1.1)
    roof = prism(corners, rng.uniform(0.3, 0.8), taper=rng.uniform(0.05, 0.5))
    z = np.concatenate([p.points[..., 2].ravel() for p in roof])
    return [box, transformed(roof, shift=(0, 0, half[2] - z.min()))]
