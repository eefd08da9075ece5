"""Draws meshes off-screen with PyVista (VTK), which brings its own way to OpenGL: for machines without EGL drivers.

The pictures are those of the moderngl renderer: the same cameras, samples and shading (`renderers.py`).
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import RenderingError
from ocdit_core.objects.renderers import (
    EDGE_WIDTH,
    Lighting,
    Views,
    camera_arrays,
    clipping_range,
    open_contexts,
    reduce_samples,
    shading_functions,
)
from ocdit_core.objects.surfaces import Surface, surface_of

if TYPE_CHECKING:
    import trimesh

_OSMESA = ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")

_kept: Any = None  # the window, see _window

_COLOUR = "    gl_FragData[0] = vec4(diffuseColor, 1.0);\n"
# VTK's camera axes are OpenGL's: y up, z backwards.
_SHADED = """
    if (gl_FragData[0].a < 0.5) discard;
    for (int i = 0; i < LIGHTS; ++i) {
        light_direction[i] = vec3(directions[3 * i], directions[3 * i + 1], directions[3 * i + 2]);
        light_colour[i] = vec3(colours[3 * i], colours[3 * i + 1], colours[3 * i + 2]);
    }
    vec3 flipped = vec3(1.0, -1.0, -1.0);
    vec3 shaded = shade(linear_from_srgb(gl_FragData[0].rgb), normalVCVSOutput * flipped, vertexVC.xyz * flipped);
    gl_FragData[0] = vec4(shaded, 1.0);
    //VTK::DepthPeeling::Impl
"""


@dataclass(eq=False)
class VtkMesh:
    """A mesh as VTK keeps it, made by `PyVistaRenderer.upload`."""

    surface: Surface
    data: Any
    texture: Any | None
    actors: dict[str, Any] = field(default_factory=dict)

    def release(self) -> None:
        """Frees its memory; it must not be drawn any more."""
        self.actors.clear()
        self.data = self.texture = None


class PyVistaRenderer:
    """An off-screen VTK window; use it as a context manager, from one thread.

    Raises:
        RenderingError: PyVista is missing, or VTK finds no OpenGL of any kind.
    """

    name = "pyvista"

    def __init__(self) -> None:
        try:
            import pyvista
        except ImportError as error:
            raise RenderingError("this renderer needs the package pyvista: pip install pyvista") from error
        self._pv: Any = pyvista
        self._size = (256, 256)
        self._plotter: Any = _window(pyvista)

    def __enter__(self) -> PyVistaRenderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the use of this renderer; a second call does nothing."""
        self._plotter = None

    def upload(self, mesh: trimesh.Trimesh) -> VtkMesh:
        """Prepares a mesh in metres; raises MeshError when it has no faces, or a vertex is not finite."""
        surface = surface_of(mesh)
        corners = surface.corners
        faces = np.arange(len(corners)).reshape(-1, 3)
        data = self._pv.PolyData.from_regular_faces(np.ascontiguousarray(corners[:, :3]), faces)
        data.point_data.active_normals = np.ascontiguousarray(corners[:, 3:6])
        data.point_data["colour"] = np.rint(255 * corners[:, 8:11]).clip(0, 255).astype(np.uint8)
        texture = None
        if surface.texture is not None:
            data.active_texture_coordinates = np.ascontiguousarray(corners[:, 6:8])
            texels = surface.texture.copy()
            texels[..., 3] = np.where(texels[..., 3] >= 255 * surface.alpha_cutoff, 255, 0)
            texture = self._pv.Texture(texels)
            texture.repeat = True
            texture.mipmap = True
            texture.interpolate = True
        return VtkMesh(surface, data, texture)

    def render(
        self,
        mesh: trimesh.Trimesh | VtkMesh,
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
        if self._plotter is None:
            raise RenderingError("the renderer is closed; make a new one")
        all_poses, cameras = camera_arrays(poses, K, size, supersample)
        sampled = (size[0] * supersample, size[1] * supersample)
        self._size = sampled
        self._plotter.render_window.SetSize(*sampled[::-1])
        handle = mesh if isinstance(mesh, VtkMesh) else self.upload(mesh)
        actors = [self._actor(handle, style) for style in ("surface", *(["wireframe"] if edges else []))]
        scene = self._plotter.renderer
        lighting = lighting or Lighting()
        for actor in actors:
            _light(actor, handle.surface, lighting)
            scene.AddActor(actor)
        try:
            views = [
                self._draw(handle.surface, pose, camera, size, lighting, actors)
                for pose, camera in zip(all_poses, cameras, strict=True)
            ]
        finally:
            for actor in actors:
                scene.RemoveActor(actor)
            if handle is not mesh:
                handle.release()
        pictures, near = zip(*(reduce_samples(samples, supersample) for samples, _ in views), strict=True)
        rgba = np.stack(pictures)
        middle = supersample // 2
        metres = np.stack([z[middle::supersample, middle::supersample] for _, z in views]) if depth else None
        rgb, alpha = np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
        return Views(rgb=rgb, alpha=alpha, near=np.stack(near), depth=metres)

    def _actor(self, handle: VtkMesh, style: str) -> Any:
        if style not in handle.actors:
            mapper = self._pv.DataSetMapper(handle.data)
            mapper.SetColorModeToDirectScalars()
            mapper.SetScalarModeToUsePointFieldData()
            mapper.SelectColorArray("colour")
            actor = self._pv.Actor(mapper=mapper)
            actor.ForceOpaqueOn()  # holes are cut by the shader, nothing is half transparent
            if handle.texture is not None:
                actor.SetTexture(handle.texture)
            actor.prop.style = style
            actor.prop.line_width = EDGE_WIDTH
            actor.prop.interpolation = "phong"
            handle.actors[style] = actor
        return handle.actors[style]

    def _draw(
        self,
        surface: Surface,
        pose: NDArray[np.float64],
        K: NDArray[np.float64],
        size: tuple[int, int],
        lighting: Lighting,
        actors: list[Any],
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Draws one view at full sampling: RGBA and metres, first row at the top."""
        near, far = clipping_range(surface, pose)
        camera = self._plotter.renderer.GetActiveCamera()
        at = -pose[:3, :3].T @ pose[:3, 3]
        camera.SetPosition(at)
        camera.SetFocalPoint(at + pose[2, :3])
        camera.SetViewUp(-pose[1, :3])
        camera.SetUseExplicitProjectionTransformMatrix(True)
        camera.SetExplicitProjectionTransformMatrix(_matrix(self._pv, _projection(K, size, near, far)))
        camera.SetClippingRange(near, far)
        if lighting.frame == "world" and lighting.lights:
            turned = lighting.directions() @ pose[:3, :3].T
            for actor in actors:
                _set_directions(actor, turned)
        window = self._plotter.render_window
        window.Render()
        height, width = self._size
        rgb = self._pv._vtk.vtkUnsignedCharArray()
        window.GetPixelData(0, 0, width - 1, height - 1, 0, rgb, 0)
        z = self._pv._vtk.vtkFloatArray()
        window.GetZbufferData(0, 0, width - 1, height - 1, z)
        convert = self._pv.convert_array
        samples = np.empty((height, width, 4), np.uint8)
        samples[..., :3] = convert(rgb).reshape(height, width, 3)[::-1]
        buffer = convert(z).reshape(height, width)[::-1]
        covered = buffer < 1
        samples[..., 3] = np.where(covered, 255, 0)
        metres = np.where(covered, near * far / (far - buffer * (far - near)), 0).astype(np.float32)
        return samples, metres


def _window(pv: Any) -> Any:
    """Opens the off-screen window, or returns the one that is open; VTK draws by what it finds: EGL, OSMesa, a display.

    VTK ends EGL for the whole process, and with it other renderers' contexts, when it looks for a driver and when its
    window closes. So the window stays open, and has to be opened first.

    Raises:
        RenderingError: there is no OpenGL, or a moderngl renderer is open already.
    """
    global _kept
    if _kept is not None:
        return _kept
    if open_contexts:
        raise RenderingError(
            "a moderngl renderer is open, and VTK would break it: close it, or open PyVista's renderer before it"
        )
    logger = pv._vtk.vtkLogger
    verbosity = logger.GetCurrentVerbosityCutoff()
    # VTK asks for an X server first and warns that there is none, which is the ordinary case here.
    logger.SetStderrVerbosity(logger.ConvertToVerbosity("OFF"))
    try:
        _refuse_without_opengl(pv)
        plotter = pv.Plotter(off_screen=True, window_size=(256, 256), lighting="none")
        plotter.disable_anti_aliasing()
        plotter.render_window.SetMultiSamples(0)
        plotter.set_background("black")
        # VTK interpolates normals only where there is a light; what the light does is ours.
        plotter.add_light(pv.Light(light_type="headlight"))
        plotter.show(auto_close=False)
    except RenderingError:
        raise
    except Exception as error:  # VTK raises plain RuntimeError, and PyVista several kinds
        reason = " ".join(str(error).split())
        raise RenderingError(
            f"VTK has no off-screen OpenGL ({reason}); on Ubuntu and Debian: apt-get install libosmesa6"
        ) from error
    finally:
        logger.SetStderrVerbosity(verbosity)
    _kept = plotter
    return plotter


def _refuse_without_opengl(pv: Any) -> None:
    """Raises RenderingError where VTK has only OSMesa left and that is missing: it would end the process."""
    importlib.import_module("vtkmodules.vtkRenderingOpenGL2")  # before it is there, VTK knows no kind of window
    if pv._vtk.vtkRenderWindow().GetClassName() != "vtkOSOpenGLRenderWindow":
        return
    for name in _OSMESA:
        try:
            ctypes.CDLL(name)
            return
        except OSError:
            continue
    raise RenderingError("VTK finds neither EGL nor OSMesa; on Ubuntu and Debian: apt-get install libosmesa6")


def _light(actor: Any, surface: Surface, lighting: Lighting) -> None:
    """Gives an actor our shading, and all that is the same for every view."""
    glossy = lighting.shines_on(surface)
    lights = max(len(lighting.lights), 1)  # an array of no elements is no GLSL; a black light changes nothing
    shader = actor.GetShaderProperty()
    shader.ClearAllFragmentShaderReplacements()
    arrays = f"vec3 light_direction[{lights}];\nvec3 light_colour[{lights}];\n"
    functions = arrays + shading_functions(glossy=glossy, lights=lights)
    # The functions come after VTK's declarations of the uniforms that we set below.
    shader.AddFragmentShaderReplacement("//VTK::Light::Dec", True, functions, False)
    shader.AddFragmentShaderReplacement("//VTK::Light::Impl", True, _COLOUR, False)
    shader.AddFragmentShaderReplacement("//VTK::DepthPeeling::Impl", True, _SHADED, False)
    uniforms = shader.GetFragmentCustomUniforms()
    uniforms.SetUniform3f("ambient", [float(value) for value in lighting.ambient])
    uniforms.SetUniformf("sky", lighting.sky)
    uniforms.SetUniformf("darkest", lighting.darkest)
    colours = np.zeros((lights, 3))
    directions = np.zeros((lights, 3))
    if lighting.lights:
        colours[:] = [light.colour for light in lighting.lights]
        directions[:] = lighting.directions()
    uniforms.SetUniform1fv("colours", 3 * lights, colours.reshape(-1).tolist())
    _set_directions(actor, directions)
    if glossy:
        gloss = lighting.gloss(surface)
        uniforms.SetUniformf("specular", gloss.specular)
        uniforms.SetUniformf("shininess", gloss.shininess)
        uniforms.SetUniformf("metallic", gloss.metallic)


def _set_directions(actor: Any, directions: NDArray[np.float64]) -> None:
    uniforms = actor.GetShaderProperty().GetFragmentCustomUniforms()
    uniforms.SetUniform1fv("directions", directions.size, directions.reshape(-1).tolist())


def _projection(K: NDArray[np.float64], size: tuple[int, int], near: float, far: float) -> NDArray[np.float64]:
    """OpenGL's clip matrix (4, 4) for K, camera axes x right, y up, z backwards."""
    height, width = size
    matrix = np.zeros((4, 4))
    matrix[0, :3] = 2 * K[0, 0] / width, -2 * K[0, 1] / width, 1 - 2 * K[0, 2] / width
    matrix[1, 1:3] = 2 * K[1, 1] / height, 2 * K[1, 2] / height - 1
    matrix[2, 2] = -(far + near) / (far - near)
    matrix[2, 3] = -2 * far * near / (far - near)
    matrix[3, 2] = -1
    return matrix


def _matrix(pv: Any, values: NDArray[np.float64]) -> Any:
    return pv.vtkmatrix_from_array(values)
