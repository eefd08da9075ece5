"""Pictures of one object for cut-and-paste scenes: any view, any light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ocdit_core.objects.opengl_renderer import MeshHandle, Renderer
from ocdit_core.objects.renderers import Light, Lighting
from ocdit_core.objects.templates import zoom_cameras
from ocdit_core.objects.viewpoints import TUDL_K, fitting_distance, look_at_poses, sample_directions

SPRITE_MARGIN = 0.02


def render_sprites(
    renderer: Renderer, handle: MeshHandle, rng: np.random.Generator, count: int, size: int
) -> NDArray[np.uint8]:
    """Draws an object for cut-and-paste scenes: any direction, any roll, random light and perspective.

    Returns:
        (count, size, size, 4) RGBA, colours multiplied by coverage, the object filling the picture.
    """
    surface = handle.surface
    directions = sample_directions(rng, count)
    upright = rng.random(count) < 0.5
    roll = np.where(upright, rng.normal(0, 0.25, count), rng.uniform(-np.pi, np.pi, count))
    distance = fitting_distance(surface.radius) * rng.uniform(1.2, 3.5, count)
    poses = look_at_poses(directions, distance, roll, centre=surface.centre)
    _, K = zoom_cameras(surface.vertices, poses, TUDL_K, size=size, margin=SPRITE_MARGIN)
    drawn = [
        renderer.render(handle, poses[i], K[i], (size, size), random_lighting(rng)).rgba[0] for i in range(count)
    ]  # each under its own light
    return np.stack(drawn)


def random_lighting(rng: np.random.Generator) -> Lighting:
    """One to three lights, most from above, with ambient light so that nothing is lost in the dark."""
    warmth = rng.uniform(-0.12, 0.12)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    lights = []
    strength = rng.uniform(0.4, 1.0)
    for _ in range(int(rng.integers(1, 4))):
        direction = rng.normal(size=3) * (1.0, 0.8, 0.6) + (0.0, -0.6, -0.7)  # camera axes: up is -y, towards us is -z
        x, y, z = (float(v) for v in direction)
        r, g, b = (float(v) for v in strength * tint * rng.uniform(0.9, 1.1, 3))
        lights.append(Light(direction=(x, y, z), colour=(r, g, b)))
        strength *= rng.uniform(0.3, 0.8)
    r, g, b = (float(v) for v in rng.uniform(0.22, 0.55) * rng.uniform(0.9, 1.1, 3))
    shiny = rng.random() < 0.5
    return Lighting(
        ambient=(r, g, b),
        lights=tuple(lights),
        specular=float(rng.uniform(0.05, 0.5)) if shiny else 0.0,
        roughness=float(rng.uniform(0.25, 0.7)),
    )
