"""Objects from mesh files for the bank: as they are, or painted where a file has shapes only."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from ocdit_core.data.painting import Photographs, random_paint, random_palette
from ocdit_core.errors import DataError, MeshError
from ocdit_core.objects.meshes import load_mesh
from ocdit_core.objects.parsing import FORMATS
from ocdit_core.objects.surfaces import surface_of

logger = logging.getLogger(__name__)

LARGEST_FILE = 200_000  # faces: more would slow down the bank for nothing that a sprite shows


def find_meshes(folder: Path) -> list[str]:
    """Lists the readable mesh files under a folder, sorted; the others are named in the log.

    Raises:
        DataError: the folder is missing or holds no readable mesh.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of meshes")
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in FORMATS or not path.is_file():
            continue
        try:
            faces = len(load_mesh(path).faces)
        except MeshError as error:
            logger.warning("left out: %s", error)
            continue
        if faces > LARGEST_FILE:
            logger.warning("left out: %s has %d faces, more than %d", path, faces, LARGEST_FILE)
            continue
        found.append(str(path))
    if not found:
        raise DataError(f"{folder}: no readable mesh in it; known formats are {', '.join(FORMATS)}")
    return found


def scanned_object(path: str, rng: np.random.Generator, photographs: Photographs | None = None) -> trimesh.Trimesh:
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
    """Whether the mesh has one grey all over: its file holds a shape, not a look."""
    surface = surface_of(mesh)
    colours = surface.corners[:, 8:11]
    if surface.texture is not None:  # some exporters write a texture of a single colour
        texels = surface.texture[..., :3].reshape(-1, 3) / np.float32(255)
        if np.ptp(texels, axis=0).max() >= 0.02:
            return False
        colours = colours * texels[0]
    return bool(np.ptp(colours, axis=0).max() < 0.02 and np.ptp(colours[0]) < 0.04)
