"""What the renderer draws and how it is lit: light settings, and a mesh turned into vertex buffers and a texture."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ConfigError, MeshError

if TYPE_CHECKING:
    import trimesh

MAX_LIGHTS = 4
DIELECTRIC = 0.04
"""The share of light that plastics, paints and glass mirror when looked at straight."""
NEUTRAL_GREY = 165
CREASE_ANGLE = 50.0  # degrees: sharper edges stay edges, flatter ones are smoothed over
MAX_CORNER_PAIRS = 20_000_000


@dataclass(frozen=True, kw_only=True)
class Light:
    """A light at infinity."""

    direction: tuple[float, float, float]
    """Points from the object to the light; any length."""
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Linear red, green, blue; intensity included."""


class Gloss(NamedTuple):
    """How a surface shines."""

    specular: float
    roughness: float
    metallic: float

    @property
    def shininess(self) -> float:
        """The exponent of Blinn and Phong's highlights that are as wide as GGX's of this roughness."""
        return 2.0 / self.roughness**4


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """The light of one rendering; the default shows an object's geometry from every side."""

    ambient: tuple[float, float, float] = (0.42, 0.42, 0.42)
    """Linear colour of the light that comes from everywhere, most from above."""
    sky: float = 0.15
    """How much weaker the ambient light is on an upright wall than from above; it is twice as much from below."""
    lights: tuple[Light, ...] = field(
        default=(
            Light(direction=(-0.45, -0.75, -0.6), colour=(0.62, 0.62, 0.62)),
            Light(direction=(0.8, 0.1, -0.5), colour=(0.16, 0.16, 0.16)),
        )
    )
    """At most four."""
    frame: Literal["camera", "world"] = "camera"
    """Axes of the light directions: the camera's (x right, y down, z forward) or the object's."""
    specular: float = 0.0
    """Strength of the highlights: 0 matt, 1 very shiny."""
    roughness: float = 0.5
    """Width of the highlights, in (0, 1]."""
    materials: bool = False
    """Whether a mesh that states how metallic or how rough it is shines accordingly, whatever the two above say."""
    darkest: float = 0.0
    """Linear reflectance that no surface stays below, so that black ones show on black; plastics and paints send back
    some 0.04 of the light however dark their colour."""

    def __post_init__(self) -> None:
        if len(self.lights) > MAX_LIGHTS:
            raise ConfigError(f"lights: {len(self.lights)} given, at most {MAX_LIGHTS} are supported")

    def directions(self) -> NDArray[np.float64]:
        """Returns (L, 3) unit vectors towards the lights."""
        vectors = np.array([light.direction for light in self.lights], dtype=np.float64).reshape(-1, 3)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def shines_on(self, surface: Surface) -> bool:
        """Returns whether there are any highlights."""
        if self.materials and surface.states_material:
            gloss = self.gloss(surface)
            # Below that, highlights of a material that does not conduct add less to a picture than they cost.
            return gloss.metallic > 0 or gloss.roughness < 0.5
        return self.specular > 0

    def gloss(self, surface: Surface) -> Gloss:
        """Returns how a surface shines under this light."""
        if self.materials and surface.states_material:
            rough = 0.5 if surface.roughness is None else surface.roughness
            # Smoother than a quarter: highlights of less than a pixel, and mirrors that would need a room to mirror.
            return Gloss(DIELECTRIC, float(np.clip(rough, 0.25, 1.0)), surface.metallic or 0.0)
        return Gloss(self.specular, max(self.roughness, 0.05), 0.0)


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A mesh ready for the graphics card: every face has its own three corners."""

    corners: NDArray[np.float32]
    """(3 * faces, 12): position, normal, texture coordinate, sRGBA colour in 0..1."""
    texture: NDArray[np.uint8] | None
    """(H, W, 4) sRGBA, first row at the top; None when colours alone are used."""
    alpha_cutoff: float
    """Texels with less alpha than this are holes; 0 keeps all."""
    vertices: NDArray[np.float64]
    """(V, 3) metres, those that some face uses."""
    centre: NDArray[np.float64]
    """(3,) centre of the bounding sphere, metres."""
    radius: float
    """Of the bounding sphere, metres."""
    metallic: float | None = None
    """Share of the surface that is bare metal, 0..1; None: the file does not say."""
    roughness: float | None = None
    """0 polished .. 1 matt; None: the file does not say."""

    @property
    def states_material(self) -> bool:
        """Whether the file says how the surface shines."""
        return self.metallic is not None or self.roughness is not None


def linear_from_srgb(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns sRGB values in 0..1 as linear ones."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).astype(np.float32)


def srgb_from_linear(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns linear values in 0..1 as sRGB ones."""
    return np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055).astype(np.float32)


def surface_of(mesh: trimesh.Trimesh) -> Surface:
    """Turns a mesh in metres into drawable buffers.

    Raises:
        MeshError: there are no faces, or a vertex is not finite.
    """
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
    """Normals of every face corner: the mean over the faces around that point that bend less than a crease.

    Points at the same place count as one even if the file lists them twice, as it does along texture seams.

    Args:
        positions: (V, 3).
        faces: (F, 3) indices.

    Returns:
        (3 F, 3) unit vectors.
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
    share = weighted[right_face[smooth]]
    normals = np.stack([np.bincount(corner, share[:, axis], minlength=len(order)) for axis in range(3)], axis=1)
    size = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(size > 1e-30, normals / np.maximum(size, 1e-30), unit[face])


def appearance_of(
    mesh: trimesh.Trimesh,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8] | None, float]:
    """Returns what each face corner looks like.

    Returns:
        texture coordinates (3 F, 2), sRGBA colours (3 F, 4) in 0..1, the texture (H, W, 4) if there is one, its first
        row at the top, and the alpha in 0..1 below which a texel is a hole, 0 when there are none.
    """
    corner = np.asarray(mesh.faces).reshape(-1)
    n = len(corner)
    uv = np.zeros((n, 2), np.float32)
    white = np.ones((n, 4), np.float32)
    visual: Any = mesh.visual
    if visual.kind == "texture":
        material = visual.material
        image = getattr(material, "baseColorTexture", None)
        image = image if image is not None else getattr(material, "image", None)
        if image is not None and visual.uv is not None and len(visual.uv) == len(mesh.vertices):
            uv = np.nan_to_num(np.asarray(visual.uv, dtype=np.float32))[corner, :2]
            # Large repeats cost float precision; the integer part says nothing.
            uv -= np.floor(uv.min(axis=0))
            factor = getattr(material, "baseColorFactor", None)
            if factor is not None:
                white = np.broadcast_to(_linear_factor_as_srgb(factor), (n, 4)).astype(np.float32)
            masked = getattr(material, "alphaMode", None) in ("MASK", "BLEND")
            cutoff = getattr(material, "alphaCutoff", None)
            texels = np.asarray(image.convert("RGBA"))
            if not masked or texels[..., 3].min() == 255:
                return uv, white, texels, 0.0
            return uv, white, texels, float(cutoff or 0.5)
        return uv, np.broadcast_to(_plain_colour(material), (n, 4)).astype(np.float32), None, 0.0
    if visual.kind in ("vertex", "face"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = (
                np.asarray(visual.vertex_colors)[corner]
                if visual.kind == "vertex"
                else np.repeat(np.asarray(visual.face_colors), 3, axis=0)
            )
        return uv, (stored[:, :4] / np.float32(255)).astype(np.float32), None, 0.0
    return uv, np.full((n, 4), NEUTRAL_GREY / 255, np.float32), None, 0.0


def _plain_colour(material: Any) -> NDArray[np.float64]:
    """A material without texture as one sRGBA colour in 0..1."""
    factor = getattr(material, "baseColorFactor", None)
    if factor is not None:
        return _linear_factor_as_srgb(factor)
    diffuse = getattr(material, "diffuse", None)
    if diffuse is not None:
        return np.resize(np.asarray(diffuse, dtype=np.float64) / 255, 4)
    return np.full(4, NEUTRAL_GREY / 255)


def _linear_factor_as_srgb(factor: Any) -> NDArray[np.float64]:
    """Colour factors are linear in glTF, and trimesh keeps them so, in 0..255."""
    values = np.ones(4)
    given = np.asarray(factor, dtype=np.float64).reshape(-1)[:4] / 255
    values[: len(given)] = given
    values[:3] = np.clip(values[:3], 0, 1) ** (1 / 2.2)
    return values
