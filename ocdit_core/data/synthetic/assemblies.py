"""Shapes of procedural objects: single solids, and things of several parts such as mugs, hammers and toy cars."""

from __future__ import annotations

import numpy as np

from ocdit_core.data.synthetic.solids import (
    Solid,
    capsule,
    cylinder,
    lathe,
    polar_outline,
    prism,
    random_profile,
    rotation_to,
    rounded_box,
    superquadric,
    torus,
    transformed,
    tube,
)

Rng = np.random.Generator


def random_assembly(rng: Rng) -> list[Solid]:
    """One to five solids that make an object, about 2 units in size, z up."""
    if rng.random() < 0.45:
        return [random_solid(rng)]
    kinds = (
        _mug,
        _mug,
        _hammer,
        _capped_bottle,
        _dumbbell,
        _stack,
        _stack,
        _attached,
        _attached,
        _attached,
        _stool,
        _jug,
        _tool,
        _cross,
        _car,
        _lamp,
        _house,
    )
    return kinds[rng.integers(len(kinds))](rng)


def random_solid(rng: Rng) -> Solid:
    """One solid with half sizes of about 0.3 to 1."""
    kind = rng.integers(9)
    half = tuple(rng.uniform(0.3, 1.0, 3))
    if kind == 0:
        return superquadric(half, rng.uniform(0.25, 1.5), rng.uniform(0.25, 1.5))
    if kind == 1:
        return lathe(random_profile(rng), squash=rng.choice([1.0, rng.uniform(0.5, 1.0)]))
    if kind in (2, 3):
        return rounded_box(half, rng.uniform(0.02, 0.25), paints=int(rng.integers(1, 4)))
    if kind == 4:
        return prism(
            polar_outline(rng),
            rng.uniform(0.25, 1.8),
            taper=rng.choice([1.0, rng.uniform(0.3, 1.0)]),
            twist=rng.choice([0.0, rng.uniform(-1.2, 1.2)]),
        )
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
    parts = [body, transformed(_handle(0.4, 0.6 * height, 0.07), shift=(0.8 * reach, 0, 0))]
    t = np.linspace(0, 1, 10)
    line = np.stack([-0.6 * reach - 0.6 * t, 0 * t, 0.45 * height * t**1.5 - 0.1 * height], axis=1)
    return [*parts, tube(line, np.linspace(0.18, 0.08, 10), around=10)]


def _hammer(rng: Rng) -> list[Solid]:
    length = rng.uniform(1.2, 2.0)
    grip = capsule(rng.uniform(0.07, 0.13), length)
    if rng.random() < 0.5:
        head = rounded_box((rng.uniform(0.3, 0.5), rng.uniform(0.13, 0.22), rng.uniform(0.12, 0.22)), 0.04, paints=1)
    else:
        head = transformed(
            cylinder(rng.uniform(0.15, 0.28), rng.uniform(0.6, 1.0), top=rng.uniform(0.5, 1.0)),
            rotation=rotation_to((1, 0, 0)),
        )
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
