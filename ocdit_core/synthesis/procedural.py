"""Procedural objects, and mesh files painted if they have no colours."""

from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

from ocdit_core.data.painting import PLAIN_PROBABILITY, Photographs, random_colour, random_paint, random_palette
from ocdit_core.objects.meshes import load_mesh
from ocdit_core.objects.surfaces import surface_of
from ocdit_core.synthesis.shapes import Patch, Solid, random_assembly

HELD_OUT_SEED = 1_000_000_000
"""Seeds from here on are kept for evaluation: nothing is ever trained on their objects."""

SMALLEST, LARGEST = 0.05, 0.35
"""Range of diameters in metres."""
_TEXTURE = 256


def procedural_object(seed: int, photographs: Photographs | None = None) -> trimesh.Trimesh:
    """Build the object of a seed: a household-like body of one to five parts.

    Args:
        seed: not negative; use seeds of HELD_OUT_SEED and above for evaluation only.
        photographs: (H, W, 3) sRGB images that parts are textured with, beside painted patterns.

    Returns:
        A mesh in metres, centred, 0.05 to 0.35 m across, usually with z up; textured, or (one in five) in plain colours
        on its vertices.
    """
    rng = np.random.default_rng([seed, 0x0B1EC7])
    solids = random_assembly(rng)
    if rng.random() < 0.25:  # CAD files do not agree which way is up
        turn = np.roll(np.eye(3), int(rng.integers(1, 3)), axis=0)
        solids = [[Patch(p.points @ turn.T, p.uv, p.slot) for p in solid] for solid in solids]
    vertices, uv, faces, slot = _join(solids)
    vertices -= (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    diameter = 2 * np.linalg.norm(vertices, axis=1).max()
    vertices *= np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))) / diameter

    slots = int(slot.max()) + 1
    palette = random_palette(rng)
    if rng.random() < PLAIN_PROBABILITY:
        shared = random_colour(rng) if rng.random() < 0.5 else None
        chosen = np.array([shared if shared is not None else palette[i % len(palette)] for i in range(slots)])
        colours = np.concatenate([np.clip(chosen, 5, 250)[slot], np.full((len(slot), 1), 255)], axis=1)
        return trimesh.Trimesh(vertices, faces, vertex_colors=colours.astype(np.uint8), process=False)

    texture, placed = _atlas(rng, palette, uv, slot, slots, photographs)
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(texture), metallicFactor=0.0, roughnessFactor=float(rng.uniform(0.3, 0.9))
    )
    visual = trimesh.visual.TextureVisuals(uv=placed, material=material)
    return trimesh.Trimesh(vertices, faces, visual=visual, process=False)


def _join(solids: list[Solid]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return all patches as one mesh: vertices (n, 3), uv (n, 2), faces (m, 3), paint slot of each vertex (n,)."""
    vertices, uvs, faces, slots = [], [], [], []
    count = first_slot = 0
    for solid in solids:
        for patch in solid:
            nu, nv = patch.points.shape[:2]
            index = count + np.arange(nu * nv).reshape(nu, nv)
            a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
            vertices.append(patch.points.reshape(-1, 3))
            uvs.append(patch.uv.reshape(-1, 2))
            faces.append(np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3))
            slots.append(np.full(nu * nv, first_slot + patch.slot))
            count += nu * nv
        first_slot += 1 + max(patch.slot for patch in solid)
    points, triangles = np.concatenate(vertices), np.concatenate(faces)
    corners = points[triangles]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    # Poles of a grid leave triangles without area.
    return points, np.concatenate(uvs), triangles[area > 1e-12], np.concatenate(slots)


def _atlas(
    rng: np.random.Generator,
    palette: NDArray[np.float64],
    uv: NDArray[np.float64],
    slot: NDArray[np.int64],
    slots: int,
    photographs: Photographs | None,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Paint every slot into its cell of one square texture, and move the texture coordinates there."""
    grid = int(np.ceil(slots**0.5))
    cell = _TEXTURE // max(grid, 2)
    texture = np.zeros((grid * cell, grid * cell, 3), np.uint8)
    plain = 0.1 if slots == 1 else 0.35
    row, column = np.divmod(np.arange(slots), grid)
    for index in range(slots):
        if index and rng.random() < 0.2:  # a part in its own colours
            palette = random_palette(rng)
        y, x = row[index] * cell, column[index] * cell
        texture[y : y + cell, x : x + cell] = random_paint(rng, palette, cell, plain=plain, photographs=photographs)
    inset = 1.5 / cell  # keeps neighbouring cells out of the filtered texture
    inside = inset + (1 - 2 * inset) * np.clip(uv, 0, 1)
    placed = np.stack([column[slot] + inside[:, 0], grid - 1 - row[slot] + inside[:, 1]], axis=1) / grid
    return texture, placed


def painted_mesh(path: str | Path, rng: np.random.Generator, photographs: Photographs | None = None) -> trimesh.Trimesh:
    """Read a mesh in metres; one in a single grey gets a random texture, wrapped around its longest axis.

    Args:
        path: mesh file.
        rng: source of randomness.
        photographs: (H, W, 3) sRGB images that grey meshes may be textured with.

    Raises:
        MeshError: the file is missing or damaged.
    """
    mesh = load_mesh(path)
    if not _colourless(mesh):
        return mesh
    vertices = np.asarray(mesh.vertices)
    centred = vertices - mesh.bounds.mean(axis=0)
    axis = int(np.ptp(vertices, axis=0).argmax())
    across = [i for i in range(3) if i != axis]
    turn = np.arctan2(centred[:, across[1]], centred[:, across[0]])
    # Mirrored, not wrapped: a seam would smear the whole paint over one row of faces.
    uv = np.stack([np.abs(turn) / np.pi, centred[:, axis] / np.ptp(centred[:, axis]) + 0.5], axis=1)
    paint = random_paint(rng, random_palette(rng), 192, plain=0.2, photographs=photographs)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(paint))
    visual = trimesh.visual.TextureVisuals(uv=np.clip(uv, 0.01, 0.99), material=material)
    return trimesh.Trimesh(vertices, mesh.faces, visual=visual, process=False)


def _colourless(mesh: trimesh.Trimesh) -> bool:
    """Return whether the mesh has one grey all over, as from a file that holds only a shape."""
    surface = surface_of(mesh)
    colours = surface.corners[:, 8:11]
    if surface.texture is not None:  # some exporters write a texture of a single colour
        texels = surface.texture[..., :3].reshape(-1, 3) / np.float32(255)
        if np.ptp(texels, axis=0).max() >= 0.02:
            return False
        colours = colours * texels[0]
    return bool(np.ptp(colours, axis=0).max() < 0.02 and np.ptp(colours[0]) < 0.04)
