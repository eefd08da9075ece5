"""Draws meshes off-screen with OpenGL (moderngl on EGL): on a graphics card or, just as well, on the CPU alone.

Image coordinates are continuous: the first pixel covers [0, 1) in both directions, so a point that projects to (u, v)
lies in pixel (floor(u), floor(v)), and resizing a picture scales its intrinsics and nothing else.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import ConfigError, RenderingError
from ocdit_core.objects.renderers import (
    EDGE_WIDTH,
    RENDERERS,
    Lighting,
    TemplateRenderer,
    Views,
    camera_arrays,
    clipping_range,
    open_contexts,
    reduce_samples,
    shaders,
)
from ocdit_core.objects.surfaces import Surface, surface_of

if TYPE_CHECKING:
    import trimesh

logger = logging.getLogger(__name__)

_ATLAS_ROWS = 2048  # views are drawn below one another and read back together


class _Kind(NamedTuple):
    """What a shader program is made for."""

    textured: bool
    holes: bool
    glossy: bool
    lights: int
    depth: bool


@dataclass(eq=False)
class MeshHandle:
    """A mesh on the graphics card, made by `Renderer.upload`; give it back with `release`."""

    surface: Surface
    context: Any
    buffer: Any
    texture: Any | None
    arrays: dict[_Kind, Any] = field(default_factory=dict)
    """How the buffer is read, for each program that has drawn it."""

    def release(self) -> None:
        """Frees the card's memory; the handle must not be drawn any more."""
        with self.context:
            for item in (*self.arrays.values(), self.buffer, self.texture):
                if item is not None:
                    item.release()
        self.arrays.clear()


class Renderer:
    """An off-screen OpenGL context and its shaders; use it as a context manager, from one thread.

    Raises:
        RenderingError: there is no EGL driver on this machine.
    """

    name = "moderngl"

    def __init__(self) -> None:
        try:
            import moderngl

            options: dict[str, Any] = {"standalone": True, "backend": "egl"}
            self._gl: Any = moderngl.create_context(**options)
            self._programs: dict[_Kind, Any] = {}
            self._program(_Kind(textured=False, holes=False, glossy=False, lights=2, depth=False))
        except ImportError as error:
            raise RenderingError("rendering needs the package moderngl: pip install moderngl") from error
        except Exception as error:  # moderngl and its loader raise plain Exception for a missing driver
            reason = " ".join(str(error).split())
            raise RenderingError(
                f"no off-screen OpenGL ({reason}); on Ubuntu and Debian: apt-get install libegl1 libgl1-mesa-dri"
            ) from error
        self._depth_test, self._linear_mipmap = moderngl.DEPTH_TEST, moderngl.LINEAR_MIPMAP_NEAREST
        self._linear = moderngl.LINEAR
        open_contexts.add(self)
        self._targets: dict[tuple[int, int, bool], tuple[Any, ...]] = {}

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the context and all that was drawn in it; a second call does nothing."""
        if self._gl is None:
            return
        with self._gl:
            self._drop_targets()
            for program in self._programs.values():
                program.release()
        self._gl.release()
        self._gl = None
        open_contexts.discard(self)

    def upload(self, mesh: trimesh.Trimesh) -> MeshHandle:
        """Puts a mesh in metres on the card, with its texture, vertex or face colours, or a neutral grey.

        Raises:
            MeshError: the mesh has no faces, or a vertex is not finite.
        """
        surface = surface_of(mesh)
        with self._gl:
            return self._upload(surface)

    def _upload(self, surface: Surface) -> MeshHandle:
        texture = None
        if surface.texture is not None:
            image = surface.texture
            limit = int(self._gl.info["GL_MAX_TEXTURE_SIZE"])
            if max(image.shape[:2]) > limit:
                factor = limit / max(image.shape[:2])
                image = np.asarray(cv2.resize(image, None, fx=factor, fy=factor), dtype=np.uint8)
            # OpenGL counts rows from the bottom.
            texture = self._gl.texture(image.shape[1::-1], 4, np.ascontiguousarray(image[::-1]).tobytes())
            texture.build_mipmaps()
            texture.filter = (self._linear_mipmap, self._linear)
        buffer = self._gl.buffer(surface.corners.tobytes())
        return MeshHandle(surface, self._gl, buffer, texture)

    def render(
        self,
        mesh: trimesh.Trimesh | MeshHandle,
        poses: ArrayLike,
        K: ArrayLike,
        size: tuple[int, int],
        lighting: Lighting | None = None,
        *,
        supersample: int = 2,
        depth: bool = False,
        edges: bool = False,
    ) -> Views:
        """Draws one mesh, or a handle from `upload`, from several poses; see `TemplateRenderer.render`."""
        if self._gl is None:
            raise RenderingError("the renderer is closed; make a new one")
        all_poses, cameras = camera_arrays(poses, K, size, supersample)
        handle = mesh if isinstance(mesh, MeshHandle) else self.upload(mesh)
        lighting = lighting or Lighting()
        try:
            kind = _Kind(
                textured=handle.texture is not None,
                holes=handle.texture is not None and handle.surface.alpha_cutoff > 0,
                glossy=lighting.shines_on(handle.surface),
                lights=len(lighting.lights),
                depth=depth,
            )
            # Another renderer may have been at work since: its context would be drawn into.
            with self._gl:
                self._light(kind, handle, lighting)
                return self._draw(kind, handle, all_poses, cameras, size, supersample, lighting, edges)
        finally:
            if handle is not mesh:
                handle.release()

    def _program(self, kind: _Kind) -> Any:
        if kind not in self._programs:
            vertex, fragment = shaders(**kind._asdict())
            self._programs[kind] = self._gl.program(vertex_shader=vertex, fragment_shader=fragment)
        return self._programs[kind]

    def _array(self, kind: _Kind, handle: MeshHandle) -> Any:
        """The mesh's buffer as a program of this kind reads it."""
        if kind not in handle.arrays:
            names = ["position", "normal", *(["uv"] if kind.textured else []), "colour"]
            layout = "3f 3f 2f 4f" if kind.textured else "3f 3f 2x4 4f"
            handle.arrays[kind] = self._gl.vertex_array(self._program(kind), [(handle.buffer, layout, *names)])
        return handle.arrays[kind]

    def _light(self, kind: _Kind, handle: MeshHandle, lighting: Lighting) -> None:
        """Sets all that is the same for every view."""
        program, surface = self._program(kind), handle.surface
        program["ambient"] = lighting.ambient
        program["sky"] = lighting.sky
        program["darkest"] = lighting.darkest
        if lighting.lights:
            colours = np.array([light.colour for light in lighting.lights], dtype=np.float32)
            program["light_colour"].write(colours.tobytes())
            program["light_direction"].write(lighting.directions().astype(np.float32).tobytes())
        if kind.glossy:
            gloss = lighting.gloss(surface)
            program["specular"] = gloss.specular
            program["shininess"] = gloss.shininess
            program["metallic"] = gloss.metallic
        if kind.holes:
            program["cutoff"] = surface.alpha_cutoff
        if handle.texture is not None:
            handle.texture.use(0)

    def _draw(
        self,
        kind: _Kind,
        handle: MeshHandle,
        poses: NDArray[np.float64],
        cameras: NDArray[np.float64],
        size: tuple[int, int],
        supersample: int,
        lighting: Lighting,
        edges: bool,
    ) -> Views:
        """Draws all views, below one another as far as one buffer reaches."""
        n, height, width = len(poses), size[0] * supersample, size[1] * supersample
        rows = max(1, min(n, _ATLAS_ROWS // height))
        frame = self._target(width, rows * height, kind.depth)
        program, array = self._program(kind), self._array(kind, handle)
        turning = lighting.directions() if lighting.frame == "world" and lighting.lights else None
        self._gl.enable(self._depth_test)
        self._gl.line_width = EDGE_WIDTH

        rgba = np.empty((n, *size, 4), np.uint8)
        near = np.empty((n, *size), bool)
        metres = np.empty((n, *size), np.float32) if kind.depth else None
        samples = np.empty((rows * height, width, 4), np.uint8)
        middle = supersample // 2
        for begin in range(0, n, rows):
            end = min(begin + rows, n)
            frame.use()
            frame.viewport = (0, 0, width, rows * height)
            frame.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)
            for index in range(begin, end):
                frame.viewport = (0, (index - begin) * height, width, height)
                pose = poses[index]
                if turning is not None:
                    program["light_direction"].write((turning @ pose[:3, :3].T).astype(np.float32).tobytes())
                program["pose"].write(pose.T.astype(np.float32).tobytes())
                matrix = _projection(cameras[index], size, pose, handle.surface)
                program["projection"].write(matrix.T.astype(np.float32).tobytes())
                array.render()
                if edges:
                    self._gl.wireframe = True
                    array.render()
                    self._gl.wireframe = False
            drawn = (0, 0, width, (end - begin) * height)
            taken = samples[: drawn[3]]
            frame.read_into(taken, viewport=drawn, components=4)
            for index in range(begin, end):
                top = (index - begin) * height
                rgba[index], near[index] = reduce_samples(taken[top : top + height], supersample)
            if metres is not None:
                read = np.frombuffer(frame.read(viewport=drawn, components=1, attachment=1, dtype="f4"), np.float32)
                metres[begin:end] = read.reshape(-1, height, width)[:, middle::supersample, middle::supersample]
        rgb, alpha = np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
        return Views(rgb=rgb, alpha=alpha, near=near, depth=metres)

    def _target(self, width: int, height: int, depth: bool) -> Any:
        """A framebuffer for colours and, if wanted, depth in metres; the last few sizes are kept."""
        key = (width, height, depth)
        if key not in self._targets:
            if len(self._targets) >= 4:
                self._drop_targets()
            textures = [self._gl.texture((width, height), 4)]
            if depth:
                textures.append(self._gl.texture((width, height), 1, dtype="f4"))
            buffer = self._gl.depth_renderbuffer((width, height))
            self._targets[key] = (self._gl.framebuffer(textures, buffer), buffer, *textures)
        return self._targets[key][0]

    def _drop_targets(self) -> None:
        for target in self._targets.values():
            for item in target:
                item.release()
        self._targets.clear()


def _projection(
    K: NDArray[np.float64], size: tuple[int, int], pose: NDArray[np.float64], surface: Surface
) -> NDArray[np.float64]:
    """OpenGL's clip matrix (4, 4) for K; the picture's first row is the buffer's first row: nothing needs flipping."""
    height, width = size
    near, far = clipping_range(surface, pose)
    matrix = np.zeros((4, 4))
    matrix[0, :3] = 2 * K[0] / width
    matrix[1, :3] = 2 * K[1] / height
    matrix[0, 2] -= 1
    matrix[1, 2] -= 1
    matrix[2, 2] = (far + near) / (far - near)
    matrix[2, 3] = -2 * far * near / (far - near)
    matrix[3, 2] = 1
    return matrix


def open_renderer(name: str = "moderngl") -> TemplateRenderer:
    """Opens a renderer, to be used as a context manager.

    Args:
        name: one of RENDERERS; or "auto": moderngl, and where there is no EGL, PyVista, which is then logged.

    Raises:
        ConfigError: an unknown name.
        RenderingError: its package or a driver is missing; the message names what to install.
    """
    if name == "auto":
        try:
            return open_renderer("moderngl")
        except RenderingError as error:
            logger.warning("%s; drawing with PyVista instead", error)
            return open_renderer("pyvista")
    if name == "moderngl":
        return Renderer()
    if name == "pyvista":
        from ocdit_core.objects.pyvista_renderer import PyVistaRenderer

        return PyVistaRenderer()
    raise ConfigError(f"renderer: {name!r} is unknown; use auto, {', '.join(RENDERERS)}")
