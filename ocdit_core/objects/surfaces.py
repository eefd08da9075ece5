"""Convert a mesh to the vertex buffers and the texture that a renderer uploads, and sample points on its surface."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import MeshError

if TYPE_CHECKING:
    import trimesh

NEUTRAL_GREY = 165
CREASE_ANGLE = 50.0  # degrees: sharper edges stay edges, flatter ones are smoothed over
MAX_CORNER_PAIRS = 20_000_000
_ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A mesh ready for the graphics card: every face has its own three corners.

    Attributes:
        corners: (3 * faces, 12): position, normal, texture coordinate, sRGBA colour in 0..1.
        texture: (H, W, 4) sRGBA, first row at the top; None when colours alone are used.
        alpha_cutoff: texels with less alpha than this are holes; 0 keeps all.
        vertices: (V, 3) metres, those that some face uses.
        centre: (3,) centre of the bounding sphere, metres.
        radius: radius of the bounding sphere, metres.
        metallic, roughness: fraction of bare metal; 0 polished .. 1 matt; None: the file does not say.
    """

    corners: NDArray[np.float32]
    texture: NDArray[np.uint8] | None
    alpha_cutoff: float
    vertices: NDArray[np.float64]
    centre: NDArray[np.float64]
    radius: float
    metallic: float | None = None
    roughness: float | None = None


def linear_from_srgb(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return sRGB values in 0..1 as linear ones."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


def srgb_from_linear(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return linear values in 0..1 as sRGB ones."""
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055).astype(np.float32)


def scaled_colours(colours: ArrayLike) -> NDArray[np.float64]:
    """Return float colours in 0..1; files that store 0..255 are told by a value above 1."""
    values = np.asarray(colours, dtype=np.float64)
    return values / 255 if values.max(initial=0) > 1 else values


def surface_of(mesh: trimesh.Trimesh) -> Surface:
    """Turn a mesh in metres into drawable buffers; raises MeshError without faces or with a vertex not finite."""
    faces = np.asarray(mesh.faces)
    if len(faces) == 0:
        raise MeshError("the mesh has no faces; a surface mesh is needed")
    positions = np.asarray(mesh.vertices, dtype=np.float64)
    used = positions[np.unique(faces)]
    if not np.isfinite(used).all():
        raise MeshError("the mesh has vertices that are not finite numbers")
    centre = (used.min(axis=0) + used.max(axis=0)) / 2
    radius = float(np.linalg.norm(used - centre, axis=1).max())
    corner = faces.reshape(-1)
    uv, colours, texture, cutoff = appearance_of(mesh)
    corners = np.concatenate([positions[corner], corner_normals(positions, faces), uv, colours], axis=1)
    return Surface(
        corners=np.ascontiguousarray(corners, dtype=np.float32),
        texture=texture,
        alpha_cutoff=cutoff,
        vertices=used,
        centre=centre,
        radius=max(radius, 1e-9),
        metallic=mesh.metadata.get("metallic"),
        roughness=mesh.metadata.get("roughness"),
    )


def corner_normals(positions: NDArray[Any], faces: NDArray[Any]) -> NDArray[np.float64]:
    """Return the unit normals (3 F, 3) of the corners of faces (F, 3) between positions (V, 3).

    They are means over the faces around a point that bend less than a crease. Points at the same place count as one
    even if the file lists them twice, as it does along texture seams.
    """
    triangles = positions[faces]
    weighted = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    length = np.linalg.norm(weighted, axis=1, keepdims=True)
    unit = weighted / np.maximum(length, 1e-30)

    scale = max(float(np.ptp(positions, axis=0).max()), 1e-12)
    cells = np.round((positions - positions.min(axis=0)) / (scale * 1e-6)).astype(np.int64)
    keys = (cells[:, 0] * 1_000_003 + cells[:, 1]) * 1_000_003 + cells[:, 2]
    _, place = np.unique(keys, return_inverse=True)
    at = place[faces.reshape(-1)]  # (3F,) the point that each corner sits on
    face = np.repeat(np.arange(len(faces)), 3)

    order = np.argsort(at, kind="stable")
    counts = np.bincount(at)
    own = counts[at[order]]
    if int(own.sum()) > MAX_CORNER_PAIRS:
        return np.repeat(unit, 3, axis=0)
    # All pairs (corner, other face at the same point), without a loop over points.
    begin = np.concatenate([[0], np.cumsum(counts)[:-1]])[at[order]]
    left = np.repeat(np.arange(len(order)), own)
    step = np.arange(len(left)) - np.repeat(np.cumsum(own) - own, own)
    right = np.repeat(begin, own) + step
    ordered_face = face[order]
    left_face, right_face = ordered_face[left], ordered_face[right]
    smooth = np.einsum("ij,ij->i", unit[left_face], unit[right_face]) > np.cos(np.radians(CREASE_ANGLE))
    corner = order[left[smooth]]
    weight = weighted[right_face[smooth]]
    normals = np.stack([np.bincount(corner, weight[:, axis], minlength=len(order)) for axis in range(3)], axis=1)
    size = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(size > 1e-30, normals / np.maximum(size, 1e-30), unit[face])


def appearance_of(
    mesh: trimesh.Trimesh,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8] | None, float]:
    """Return what each face corner looks like.

    Returns:
        Texture coordinates (3 F, 2), sRGBA colours (3 F, 4) in 0..1, the texture (H, W, 4) if there is one, its first
        row at the top, and the alpha in 0..1 below which a texel is a hole, 0 when there are none.
    """
    corner = np.asarray(mesh.faces).reshape(-1)
    uv, colours = np.zeros((len(corner), 2), np.float32), np.ones((len(corner), 4), np.float32)
    visual: Any = mesh.visual
    image = texture_of(visual)
    if image is not None and visual.uv is not None and len(visual.uv) == len(mesh.vertices):
        uv = np.nan_to_num(np.asarray(visual.uv, dtype=np.float32))[corner, :2]
        # Large repeats cost float precision; the integer part says nothing.
        uv -= np.floor(uv.min(axis=0))
        if (stored := mesh.vertex_attributes.get("colour")) is not None:
            colours = np.asarray(stored)[corner] / np.float32(255)
        texels = np.asarray(image.convert("RGBA"))
        if getattr(visual.material, "alphaMode", None) not in ("MASK", "BLEND") or texels[..., 3].min() == 255:
            return uv, colours, texels, 0.0
        cutoff = visual.material.alphaCutoff
        return uv, colours, texels, 0.5 if cutoff is None else float(cutoff)
    if visual.kind in ("vertex", "face"):
        by_vertex = visual.kind == "vertex"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = visual.vertex_colors[corner] if by_vertex else np.repeat(visual.face_colors, 3, axis=0)
        return uv, (np.asarray(stored)[:, :4] / np.float32(255)).astype(np.float32), None, 0.0
    colours[:, :3] = NEUTRAL_GREY / 255
    return uv, colours, None, 0.0


def texture_of(visual: Any) -> Any:
    """Return the colour texture (a Pillow image) of a trimesh visual, or None."""
    material = getattr(visual, "material", None)
    image = getattr(material, "baseColorTexture", None)
    return image if image is not None else getattr(material, "image", None)


def surface_points(surface: Surface, count: int = 2048, seed: int = 0) -> NDArray[np.float64]:
    """Draw (count, 3) points in metres from a surface, each area equally likely; holes of its texture are no surface.

    The same seed gives the same points. A surface that is all hole is taken for solid.
    """
    import trimesh

    faces = np.arange(len(surface.corners)).reshape(-1, 3)
    mesh = trimesh.Trimesh(surface.corners[:, :3], faces, process=False, validate=False)
    if surface.texture is None or surface.alpha_cutoff <= 0:
        return np.asarray(trimesh.sample.sample_surface(mesh, count, seed=seed)[0])
    uv = surface.corners[:, 6:8].reshape(-1, 3, 2)
    height, width = surface.texture.shape[:2]
    kept: list[NDArray[np.float64]] = []
    for attempt in range(_ROUNDS):
        points, face = trimesh.sample.sample_surface(mesh, count, seed=seed + attempt * 1_000_003)
        weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
        at = (weights[:, :, None] * uv[face]).sum(axis=1)
        column = np.floor((at[:, 0] % 1) * width).astype(int).clip(0, width - 1)
        row = np.floor((1 - at[:, 1] % 1) * height).astype(int).clip(0, height - 1)
        kept.append(points[surface.texture[row, column, 3] >= 255 * surface.alpha_cutoff])
        if sum(map(len, kept)) >= count:
            break
    found = np.concatenate(kept)
    # A surface that is nearly all hole: the same few points again, rather than none.
    return np.resize(found, (count, 3)) if len(found) else np.asarray(points)
