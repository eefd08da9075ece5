"""Draw meshes off-screen with OpenGL (moderngl on EGL), on a graphics card or on the CPU; and choose a renderer."""

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
    open_contexts,
    projection,
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


@dataclass(eq=False)
class MeshHandle:
    """A mesh on the graphics card, made by `Renderer.upload`; give it back with `release`.

    Attributes:
        surface: what was uploaded.
        context: of the renderer.
        buffer: vertices.
        texture: None where colours alone are used.
        arrays: how the buffer is read, for each program that has drawn it.
    """

    surface: Surface
    context: Any
    buffer: Any
    texture: Any | None
    arrays: dict[_Kind, Any] = field(default_factory=dict)

    def release(self) -> None:
        """Free the card's memory; the handle must not be drawn any more."""
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
            self._program(_Kind(textured=False, holes=False, glossy=False, lights=2))
        except ImportError as error:
            raise RenderingError("rendering needs the package moderngl: pip install moderngl") from error
        except Exception as error:  # moderngl and its loader raise plain Exception for a missing driver
            reason = " ".join(str(error).split())
            raise RenderingError(
                f"no off-screen OpenGL ({reason}); on Ubuntu and Debian: apt-get install libegl1 libgl1-mesa-dri"
            ) from error
        self._module = moderngl
        open_contexts.add(self)
        self._targets: dict[tuple[int, int], tuple[Any, ...]] = {}

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and all that was drawn in it; a second call does nothing."""
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
        """Put a mesh in metres on the card, with its texture, vertex or face colours, or a neutral grey.

        Raises:
            MeshError: the mesh has no faces, or a vertex is not finite.
        """
        surface = surface_of(mesh)
        with self._gl:
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
                texture.filter = (self._module.LINEAR_MIPMAP_NEAREST, self._module.LINEAR)
            return MeshHandle(surface, self._gl, self._gl.buffer(surface.corners.tobytes()), texture)

    def render(
        self,
        mesh: trimesh.Trimesh | MeshHandle,
        poses: ArrayLike,
        K: ArrayLike,
        size: tuple[int, int],
        lighting: Lighting | None = None,
        *,
        supersample: int = 2,
        edges: bool = False,
    ) -> Views:
        """Draw one mesh, or a handle from `upload`, from several poses; see `TemplateRenderer.render`."""
        if self._gl is None:
            raise RenderingError("the renderer is closed; make a new one")
        all_poses, cameras = camera_arrays(poses, K, size, supersample)
        handle = mesh if isinstance(mesh, MeshHandle) else self.upload(mesh)
        lighting = lighting or Lighting()
        uniforms = lighting.uniforms(handle.surface)
        textured = handle.texture is not None
        kind = _Kind(
            textured=textured,
            holes=textured and handle.surface.alpha_cutoff > 0,
            glossy="shininess" in uniforms,
            lights=len(lighting.lights),
        )
        if kind.holes:
            uniforms["cutoff"] = handle.surface.alpha_cutoff
        try:
            # Another renderer may have been at work since: its context would be drawn into.
            with self._gl:
                program = self._program(kind)
                for name, value in uniforms.items():
                    if isinstance(value, np.ndarray):
                        program[name].write(value.tobytes())
                    else:
                        program[name] = value
                if handle.texture is not None:
                    handle.texture.use(0)
                return self._draw(kind, handle, all_poses, cameras, size, supersample, edges)
        finally:
            if handle is not mesh:
                handle.release()

    def _program(self, kind: _Kind) -> Any:
        if kind not in self._programs:
            vertex, fragment = shaders(**kind._asdict())
            self._programs[kind] = self._gl.program(vertex_shader=vertex, fragment_shader=fragment)
        return self._programs[kind]

    def _array(self, kind: _Kind, handle: MeshHandle) -> Any:
        """Return the mesh's buffer as a program of this kind reads it."""
        if kind not in handle.arrays:
            names = ["position", "normal", *(["uv"] if kind.textured else []), "colour"]
            layout = "3f 3f 2f 4f" if kind.textured else "3f 3f 2x4 4f"
            handle.arrays[kind] = self._gl.vertex_array(self._program(kind), [(handle.buffer, layout, *names)])
        return handle.arrays[kind]

    def _draw(
        self,
        kind: _Kind,
        handle: MeshHandle,
        poses: NDArray[np.float64],
        cameras: NDArray[np.float64],
        size: tuple[int, int],
        supersample: int,
        edges: bool,
    ) -> Views:
        """Draw all views, below one another as far as one buffer reaches."""
        n, height, width = len(poses), size[0] * supersample, size[1] * supersample
        rows = max(1, min(n, _ATLAS_ROWS // height))
        frame = self._target(width, rows * height)
        program, array = self._program(kind), self._array(kind, handle)
        self._gl.enable(self._module.DEPTH_TEST)
        self._gl.line_width = EDGE_WIDTH

        rgba = np.empty((n, *size, 4), np.uint8)
        near = np.empty((n, *size), bool)
        samples = np.empty((rows * height, width, 4), np.uint8)
        for begin in range(0, n, rows):
            end = min(begin + rows, n)
            frame.use()
            frame.viewport = (0, 0, width, rows * height)
            frame.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)
            for index in range(begin, end):
                frame.viewport = (0, (index - begin) * height, width, height)
                program["pose"].write(poses[index].T.astype(np.float32).tobytes())
                matrix, _, _ = projection(cameras[index], size, poses[index], handle.surface)
                program["projection"].write(matrix.T.astype(np.float32).tobytes())
                array.render()
                if edges:
                    self._gl.wireframe = True
                    array.render()
                    self._gl.wireframe = False
            taken = samples[: (end - begin) * height]
            frame.read_into(taken, viewport=(0, 0, width, len(taken)), components=4)
            for index in range(begin, end):
                top = (index - begin) * height
                rgba[index], near[index] = reduce_samples(taken[top : top + height], supersample)
        return Views(rgba=rgba, near=near)

    def _target(self, width: int, height: int) -> Any:
        """Return a framebuffer; the last few sizes are kept."""
        key = (width, height)
        if key not in self._targets:
            if len(self._targets) >= 4:
                self._drop_targets()
            colours, depth = self._gl.texture(key, 4), self._gl.depth_renderbuffer(key)
            self._targets[key] = (self._gl.framebuffer([colours], depth), depth, colours)
        return self._targets[key][0]

    def _drop_targets(self) -> None:
        for target in self._targets.values():
            for item in target:
                item.release()
        self._targets.clear()


def open_renderer(name: str = "moderngl") -> TemplateRenderer:
    """Open a renderer, to be used as a context manager.

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
