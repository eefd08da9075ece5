"""Points spread evenly over an object's surface, none of them in a hole of its texture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ocdit_core.objects.shading import Surface, appearance_of

if TYPE_CHECKING:
    import trimesh

_ROUNDS = 8


def sample_surface_points(mesh: trimesh.Trimesh, count: int = 2048, seed: int = 0) -> NDArray[np.float64]:
    """Draws points from a mesh's surface, each area equally likely; texels below the alpha cut-off are no surface.

    Args:
        mesh: any unit.
        count: how many points.
        seed: the same seed gives the same points.

    Returns:
        (count, 3) points in the mesh's unit. A mesh that is all hole is taken for solid.
    """
    import trimesh

    uv, _, texture, cutoff = appearance_of(mesh)
    if texture is None or cutoff <= 0:
        return np.asarray(trimesh.sample.sample_surface(mesh, count, seed=seed)[0])
    return _solid(mesh, uv, texture, cutoff, count, seed)


def points_of(surface: Surface, count: int = 2048, seed: int = 0) -> NDArray[np.float64]:
    """Draws (count, 3) points in metres from a surface that is ready to be drawn, as `sample_surface_points` does."""
    import trimesh

    faces = np.arange(len(surface.corners)).reshape(-1, 3)
    mesh = trimesh.Trimesh(surface.corners[:, :3], faces, process=False, validate=False)
    if surface.texture is None or surface.alpha_cutoff <= 0:
        return np.asarray(trimesh.sample.sample_surface(mesh, count, seed=seed)[0])
    return _solid(mesh, surface.corners[:, 6:8], surface.texture, surface.alpha_cutoff, count, seed)


def _solid(
    mesh: trimesh.Trimesh, uv: NDArray[np.float32], texture: NDArray[np.uint8], cutoff: float, count: int, seed: int
) -> NDArray[np.float64]:
    """Draws again and again until enough points are beside the holes; uv (3 * faces, 2)."""
    import trimesh

    kept: list[NDArray[np.float64]] = []
    for attempt in range(_ROUNDS):
        points, face = trimesh.sample.sample_surface(mesh, count, seed=seed + attempt * 1_000_003)
        weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
        at = (weights[:, :, None] * uv.reshape(-1, 3, 2)[face]).sum(axis=1)
        height, width = texture.shape[:2]
        column = np.floor((at[:, 0] % 1) * width).astype(int).clip(0, width - 1)
        row = np.floor((1 - at[:, 1] % 1) * height).astype(int).clip(0, height - 1)
        kept.append(points[texture[row, column, 3] >= 255 * cutoff])
        if sum(map(len, kept)) >= count:
            return np.concatenate(kept)[:count]
    found = np.concatenate(kept)
    if not len(found):
        return np.asarray(trimesh.sample.sample_surface(mesh, count, seed=seed)[0])
    # A surface that is nearly all hole: the same few points again, rather than none.
    return np.resize(found, (count, 3))
