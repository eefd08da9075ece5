"""Draw meshes off-screen with PyVista (VTK), which brings its own way to OpenGL: for machines without EGL drivers.

The images are those of the moderngl renderer: the same cameras, samples and shading (`renderers.py`).
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
    open_contexts,
    projection,
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
    """A mesh as VTK keeps it, made by `PyVistaRenderer.upload`.

    Attributes:
        surface: what was uploaded.
        data: its triangles.
        texture: None where colours alone are used.
        actors: by the style that they are drawn in.
    """

    surface: Surface
    data: Any
    texture: Any | None
    actors: dict[str, Any] = field(default_factory=dict)

    def release(self) -> None:
        """Free its memory; it must not be drawn any more."""
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
        """End the use of this renderer; a second call does nothing."""
        self._plotter = None

    def upload(self, mesh: trimesh.Trimesh) -> VtkMesh:
        """Prepare a mesh in metres; see `TemplateRenderer.upload`."""
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
        edges: bool = False,
    ) -> Views:
        """Draw one mesh, or a handle from `upload`, from several poses; see `TemplateRenderer.render`."""
        if self._plotter is None:
            raise RenderingError("the renderer is closed; make a new one")
        all_poses, cameras = camera_arrays(poses, K, size, supersample)
        self._size = (size[0] * supersample, size[1] * supersample)
        self._plotter.render_window.SetSize(*self._size[::-1])
        handle = mesh if isinstance(mesh, VtkMesh) else self.upload(mesh)
        actors = [self._actor(handle, style) for style in ("surface", *(["wireframe"] if edges else []))]
        scene = self._plotter.renderer
        lighting = lighting or Lighting()
        for actor in actors:
            _light(actor, handle.surface, lighting)
            scene.AddActor(actor)
        try:
            drawn = [
                self._draw(handle.surface, pose, camera, size) for pose, camera in zip(all_poses, cameras, strict=True)
            ]
        finally:
            for actor in actors:
                scene.RemoveActor(actor)
            if handle is not mesh:
                handle.release()
        images, near = zip(*(reduce_samples(samples, supersample) for samples in drawn), strict=True)
        return Views(rgba=np.stack(images), near=np.stack(near))

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
        self, surface: Surface, pose: NDArray[np.float64], K: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Draw one view at full sampling: RGBA, first row at the top."""
        matrix, near, far = projection(K, size, pose, surface)
        # VTK's axes are OpenGL's, y up and z backwards, and so are its rows.
        matrix = np.diag([1.0, -1, 1, 1]) @ matrix @ np.diag([1.0, -1, -1, 1])
        camera = self._plotter.renderer.GetActiveCamera()
        at = -pose[:3, :3].T @ pose[:3, 3]
        camera.SetPosition(at)
        camera.SetFocalPoint(at + pose[2, :3])
        camera.SetViewUp(-pose[1, :3])
        camera.SetUseExplicitProjectionTransformMatrix(True)
        camera.SetExplicitProjectionTransformMatrix(self._pv.vtkmatrix_from_array(matrix))
        camera.SetClippingRange(near, far)
        window = self._plotter.render_window
        window.Render()
        height, width = self._size
        rgb, z = self._pv._vtk.vtkUnsignedCharArray(), self._pv._vtk.vtkFloatArray()
        window.GetPixelData(0, 0, width - 1, height - 1, 0, rgb, 0)
        window.GetZbufferData(0, 0, width - 1, height - 1, z)
        samples = np.empty((height, width, 4), np.uint8)
        samples[..., :3] = self._pv.convert_array(rgb).reshape(height, width, 3)[::-1]
        samples[..., 3] = np.where(self._pv.convert_array(z).reshape(height, width)[::-1] < 1, 255, 0)
        return samples


def _window(pv: Any) -> Any:
    """Open the off-screen window, or returns the one that is open; VTK draws by what it finds: EGL, OSMesa, a display.

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
    """Raise RenderingError where VTK has only OSMesa left and that is missing: it would end the process."""
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
    """Give an actor our shading and light."""
    values = lighting.uniforms(surface)
    lights = max(len(lighting.lights), 1)  # an array of no elements is no GLSL; a black light changes nothing
    shader = actor.GetShaderProperty()
    shader.ClearAllFragmentShaderReplacements()
    arrays = f"vec3 light_direction[{lights}];\nvec3 light_colour[{lights}];\n"
    functions = arrays + shading_functions(glossy="shininess" in values, lights=lights)
    # The functions come after VTK's declarations of the uniforms that we set below.
    shader.AddFragmentShaderReplacement("//VTK::Light::Dec", True, functions, False)
    shader.AddFragmentShaderReplacement("//VTK::Light::Impl", True, _COLOUR, False)
    shader.AddFragmentShaderReplacement("//VTK::DepthPeeling::Impl", True, _SHADED, False)
    uniforms = shader.GetFragmentCustomUniforms()
    uniforms.SetUniform3f("ambient", [float(value) for value in values.pop("ambient")])
    for name, inner in (("directions", "light_direction"), ("colours", "light_colour")):
        # As plain numbers: VTK sets no arrays of vectors.
        array = values.pop(inner, np.zeros((1, 3)))
        uniforms.SetUniform1fv(name, array.size, array.reshape(-1).tolist())
    for name, value in values.items():
        uniforms.SetUniformf(name, float(value))
