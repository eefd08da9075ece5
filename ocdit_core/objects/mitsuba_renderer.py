"""Path-traces meshes with Mitsuba 3: soft shadows and light from all around, for a share of handsome pictures.

The cameras are those of the other renderers, so masks and boxes agree; only the light is more real, and slow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import RenderingError
from ocdit_core.objects.mitsuba_variants import load_mitsuba
from ocdit_core.objects.renderers import Views, camera_arrays, clipping_range, near_samples
from ocdit_core.objects.shading import DIELECTRIC, Lighting, Surface, linear_from_srgb, srgb_from_linear, surface_of

if TYPE_CHECKING:
    import trimesh

_BOUNCES = 4
# Area lights, in radii of the object: as soft as a window across a room, and always behind the camera's frame.
_LIGHT_DISTANCE, _LIGHT_RADIUS = 6.0, 1.5
_SEED = 0


def pinhole(K: NDArray[np.float64], size: tuple[int, int]) -> dict[str, Any]:
    """Returns the entries of Mitsuba's perspective sensor for K (3, 3) in pixels and a picture of (height, width)."""
    height, width = size
    return {
        "type": "perspective",
        "fov": float(np.degrees(2 * np.arctan(width / (2 * K[0, 0])))),
        "fov_axis": "x",
        "principal_point_offset_x": float(0.5 - K[0, 2] / width),
        "principal_point_offset_y": float(0.5 - K[1, 2] / height),
    }


@dataclass(eq=False)
class TracedMesh:
    """A mesh as Mitsuba keeps it, made by `MitsubaRenderer.upload`."""

    surface: Surface
    shapes: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def release(self) -> None:
        """Frees its memory; it must not be drawn any more."""
        self.shapes.clear()


class MitsubaRenderer:
    """Mitsuba 3 on the processor; use it as a context manager, from one thread.

    Args:
        samples: light paths a pixel.

    Raises:
        RenderingError: Mitsuba is missing or does not start.
    """

    name = "mitsuba"

    def __init__(self, samples: int = 64) -> None:
        self._mi: Any = load_mitsuba()
        self._samples = samples
        self._open = True

    def __enter__(self) -> MitsubaRenderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the use of this renderer; a second call does nothing."""
        self._open = False

    def upload(self, mesh: trimesh.Trimesh) -> TracedMesh:
        """Prepares a mesh in metres; raises MeshError when it has no faces, or a vertex is not finite."""
        return TracedMesh(surface_of(mesh))

    def render(
        self,
        mesh: trimesh.Trimesh | TracedMesh,
        poses: ArrayLike,
        K: ArrayLike,
        size: tuple[int, int],
        lighting: Lighting | None = None,
        *,
        supersample: int = 2,
        depth: bool = False,
        edges: bool = False,
    ) -> Views:
        """Draws one mesh, or a handle from `upload`, from several poses; see `TemplateRenderer.render`.

        Raises:
            RenderingError: also for pixels that are not square, which Mitsuba's cameras do not know.
        """
        if not self._open:
            raise RenderingError("the renderer is closed; make a new one")
        all_poses, cameras = camera_arrays(poses, K, size, supersample)
        if (np.abs(cameras[:, 1, 1] / cameras[:, 0, 0] - 1) > 1e-4).any() or (cameras[:, 0, 1] != 0).any():
            raise RenderingError("Mitsuba draws square pixels only: K needs the same focal length in x and y, no skew")
        handle = mesh if isinstance(mesh, TracedMesh) else self.upload(mesh)
        lighting = lighting or Lighting()
        rgba = np.empty((len(all_poses), *size, 4), np.uint8)
        near = np.empty((len(all_poses), *size), bool)
        metres = np.empty((len(all_poses), *size), np.float32) if depth else None
        middle = supersample // 2
        for index, (pose, camera) in enumerate(zip(all_poses, cameras, strict=True)):
            parts = {"object": self._shape(handle, lighting)}
            if edges:
                # As thick as the lines of the other renderers: two samples.
                distance = float(pose[2, :3] @ handle.surface.centre + pose[2, 3])
                thickness = 2 * distance / (float(camera[0, 0]) * supersample)
                parts["edges"] = self._shape(handle, lighting, thickness)
            traced = self._trace(handle.surface, parts, pose, camera, size, supersample, lighting)
            # A sample is covered or not, as in the other renderers: the masks are to be the same.
            covered = traced[..., 3] >= 0.5
            rgba[index] = _developed(traced[..., :4], covered, supersample)
            near[index] = near_samples(np.where(covered, np.uint8(255), np.uint8(0)), supersample)
            if metres is not None:
                # The mean position over all paths of a sample, those that missed counting as 0.
                at = traced[..., 4:7] / np.maximum(traced[..., 3:4], 1e-6)
                z = at @ pose[2, :3] + pose[2, 3]
                metres[index] = np.where(covered, z, 0)[middle::supersample, middle::supersample]
        if handle is not mesh:
            handle.release()
        rgb, alpha = np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
        return Views(rgb=rgb, alpha=alpha, near=near, depth=metres)

    def _trace(
        self,
        surface: Surface,
        parts: dict[str, Any],
        pose: NDArray[np.float64],
        K: NDArray[np.float64],
        size: tuple[int, int],
        supersample: int,
        lighting: Lighting,
    ) -> NDArray[np.float32]:
        """One view at full sampling (h, w, 7): linear RGB multiplied by coverage, coverage, position; or the albedo."""
        mi = self._mi
        height, width = size
        near, far = clipping_range(surface, pose)
        # Mitsuba's camera axes: x left, y up, z forward.
        seen_from = np.linalg.inv(pose) @ np.diag([-1.0, -1.0, 1.0, 1.0])
        flat = not lighting.lights and lighting.sky == 0  # colours without shading
        film = {
            "type": "hdrfilm",
            "width": width * supersample,
            "height": height * supersample,
            "pixel_format": "rgba",
            "component_format": "float32",
            "rfilter": {"type": "box"},
        }
        sensor = {
            **pinhole(K, size),
            "near_clip": near,
            "far_clip": far,
            "to_world": mi.ScalarTransform4f(seen_from),
            "film": film,
            "sampler": {"type": "multijitter", "sample_count": max(1, round(self._samples / supersample**2))},
        }
        lights = {} if flat else _emitters(mi, surface, pose, lighting)
        integrator = {
            "type": "aov",
            "aovs": "at:position,base:albedo" if flat else "at:position",
            # Of paths that end where they begin, the scalar variant says that nothing is there: two parts for flat too.
            "shading": {"type": "path", "max_depth": 2 if flat else _BOUNCES, "hide_emitters": True},
        }
        scene = mi.load_dict({"type": "scene", "integrator": integrator, "sensor": sensor, **lights, **parts})
        traced = np.array(mi.render(scene, seed=_SEED), dtype=np.float32)
        if flat:
            traced[..., :3] = traced[..., 7:10]
        return traced

    def _shape(self, handle: TracedMesh, lighting: Lighting, thickness: float = 0.0) -> Any:
        """The object, or prisms of this thickness in metres around the edges of its triangles."""
        surface = handle.surface
        gloss = lighting.gloss(surface) if lighting.shines_on(surface) else None
        key = (gloss, lighting.darkest, round(thickness, 9))
        if key not in handle.shapes:
            if len(handle.shapes) >= 4:
                handle.shapes.clear()
            corners = _prisms(surface.corners, thickness / 2) if thickness > 0 else surface.corners
            properties = self._mi.Properties()
            properties["material"] = self._mi.load_dict(self._material(surface, lighting))
            handle.shapes[key] = traced_mesh(self._mi, corners, properties, lighting.darkest, smooth=thickness == 0)
        return handle.shapes[key]

    def _material(self, surface: Surface, lighting: Lighting) -> dict[str, Any]:
        colour: dict[str, Any] = {"type": "mesh_attribute", "name": "vertex_color"}
        if surface.texture is not None:
            # A texture comes with one factor for all corners.
            texels = linear_from_srgb(surface.texture[..., :3] / np.float32(255))
            texels = _lifted(texels * linear_from_srgb(surface.corners[0, 8:11]), lighting.darkest)
            colour = {"type": "bitmap", "bitmap": self._mi.Bitmap(np.ascontiguousarray(texels)), "raw": True}
        gloss = lighting.gloss(surface) if lighting.shines_on(surface) else None
        material: dict[str, Any] = {
            "type": "principled",
            "base_color": colour,
            "roughness": gloss.roughness if gloss else 0.8,
            "metallic": gloss.metallic if gloss else 0.0,
            # Its scale: 0.5 stands for a reflectance of 0.04.
            "specular": min(1.0, gloss.specular / DIELECTRIC * 0.5) if gloss else 0.3,
        }
        material = {"type": "twosided", "bsdf": material}
        if surface.texture is not None and surface.alpha_cutoff > 0:
            solid = (surface.texture[..., 3:] >= 255 * surface.alpha_cutoff).astype(np.float32)
            opacity = {"type": "bitmap", "bitmap": self._mi.Bitmap(solid), "raw": True, "filter_type": "nearest"}
            material = {"type": "mask", "opacity": opacity, "bsdf": material}
        return material


def traced_mesh(mi: Any, corners: NDArray[np.float32], properties: Any, darkest: float, *, smooth: bool) -> Any:
    """Returns a mesh of Mitsuba's.

    Args:
        mi: the module mitsuba.
        corners: (3 * faces, 12), as `Surface.corners`.
        properties: with its material.
        darkest: linear reflectance that no corner's colour stays below.
        smooth: whether the corners' normals count; else faces are flat.
    """
    mesh = mi.Mesh(
        "object",
        vertex_count=len(corners),
        face_count=len(corners) // 3,
        has_vertex_normals=smooth,
        has_vertex_texcoords=True,
        props=properties,
    )
    colours = _lifted(linear_from_srgb(corners[:, 8:11]), darkest)
    mesh.add_attribute("vertex_color", 3, np.ascontiguousarray(colours, dtype=np.float32).ravel())
    values = mi.traverse(mesh)
    values["vertex_positions"] = np.ascontiguousarray(corners[:, :3]).ravel()
    if smooth:
        values["vertex_normals"] = np.ascontiguousarray(corners[:, 3:6]).ravel()
    # Mitsuba counts the rows of a picture from the top.
    values["vertex_texcoords"] = np.stack([corners[:, 6], 1 - corners[:, 7]], axis=1).ravel()
    values["faces"] = np.arange(len(corners), dtype=np.uint32)
    values.update()
    return mesh


def _lifted(colours: NDArray[np.floating], darkest: float) -> NDArray[np.float32]:
    """Linear colours (..., 3), none below the reflectance `darkest`."""
    luminance = colours @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    return np.asarray(colours + np.maximum(darkest - luminance, 0)[..., None], dtype=np.float32)


def _emitters(mi: Any, surface: Surface, pose: NDArray[np.float64], lighting: Lighting) -> dict[str, Any]:
    """Light from all around, and a disc for each light."""
    level = [float(value * (1 - lighting.sky)) for value in lighting.ambient]
    emitters: dict[str, Any] = {"around": {"type": "constant", "radiance": {"type": "rgb", "value": level}}}
    directions = lighting.directions()
    if lighting.frame == "camera":
        directions = directions @ pose[:3, :3]
    spread = _LIGHT_RADIUS**2 / (_LIGHT_DISTANCE**2 + _LIGHT_RADIUS**2)
    for number, (light, direction) in enumerate(zip(lighting.lights, directions, strict=True)):
        at = surface.centre + _LIGHT_DISTANCE * surface.radius * direction
        up = [0.0, 0.0, 1.0] if abs(direction[2]) < 0.9 else [1.0, 0.0, 0.0]
        to_world = mi.ScalarTransform4f().look_at(origin=at.tolist(), target=surface.centre.tolist(), up=up)
        radiance = {"type": "rgb", "value": [float(value / spread) for value in light.colour]}
        emitters[f"light_{number}"] = {
            "type": "disk",
            "to_world": to_world @ mi.ScalarTransform4f().scale(_LIGHT_RADIUS * surface.radius),
            "emitter": {"type": "area", "radiance": radiance},
        }
    return emitters


def _developed(traced: NDArray[np.float32], covered: NDArray[np.bool_], factor: int) -> NDArray[np.uint8]:
    """Linear samples (h * factor, w * factor, 4) and which of them count, to RGBA: sRGB multiplied by coverage."""
    height, width = traced.shape[0] // factor, traced.shape[1] // factor
    mean = traced.reshape(height, factor, width, factor, 4).mean(axis=(1, 3))
    shown = np.rint(255 * covered.reshape(height, factor, width, factor).mean(axis=(1, 3)))[..., None]
    srgb = srgb_from_linear(np.clip(mean[..., :3] / np.maximum(mean[..., 3:], 1e-6), 0, 1))
    return np.concatenate([np.rint(srgb * shown), shown], axis=2).astype(np.uint8)


def _prisms(corners: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Corners (18 * edges, 12) of three-sided tubes around all the edges of triangles (3 * faces, 12)."""
    start = corners
    end = corners.reshape(-1, 3, 12)[:, [1, 2, 0]].reshape(-1, 12)
    along = (end - start)[:, :3]
    along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    other = np.where(np.abs(along[:, :1]) < 0.6, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    across = np.cross(along, other)
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    third = np.cross(along, across)
    ring = []
    for angle in 2 * np.pi * np.arange(3) / 3:
        offset = radius * (np.cos(angle) * across + np.sin(angle) * third)
        ends = []
        for corner in (start, end):
            moved = corner.copy()
            moved[:, :3] += offset
            ends.append(moved)
        ring.append(ends)
    triangles = []
    for side in range(3):
        (a, b), (c, d) = ring[side], ring[(side + 1) % 3]
        triangles += [a, b, c, c, b, d]
    return np.ascontiguousarray(np.stack(triangles, axis=1).reshape(-1, 12), dtype=np.float32)
