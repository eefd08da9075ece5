"""Render meshes off-screen with OpenGL (moderngl on EGL), on a graphics card or, through Mesa, on the CPU.

On a CPU the fragment shader takes most of the rendering time. So there is one program for each kind of surface and
light, selected by macros (software OpenGL computes both sides of a branch), and sRGB is converted to linear and back by
polynomials instead of `pow`; a round trip is within one step of 255.

Image coordinates are continuous: the first pixel covers [0, 1) in both directions, so a point that projects to (u, v)
lies in pixel (floor(u), floor(v)), and resizing an image scales its intrinsics and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import RenderingError
from ocdit_core.images import shrunk
from ocdit_core.objects.surfaces import Surface, surface_of

if TYPE_CHECKING:
    import trimesh

MAX_SIDE = 8192  # longest side of an image in samples
EDGE_WIDTH = 2.0  # samples: such a line covers the sample next to every point that it passes, whatever its slope
DIELECTRIC = 0.04  # Fresnel reflectance at normal incidence of plastics, paints and glass
Array = NDArray[np.float64]
_ATLAS_ROWS = 2048  # views are drawn below one another and read back together


@dataclass(frozen=True, kw_only=True)
class Light:
    """A light at infinity: its direction from the object in camera axes, of any length, and linear RGB colour."""

    direction: tuple[float, float, float]
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """The light of one rendering; the default shows an object's geometry from every side.

    Attributes:
        ambient: linear colour of the ambient light, brightest from above.
        sky: how much weaker the ambient light is on an upright wall than from above; twice as much from below.
        lights: any number.
        materials: whether a mesh shines by the metalness and roughness that its file states.
        darkest: lower limit of the linear reflectance, so that black surfaces show on black.
    """

    ambient: tuple[float, float, float] = (0.42, 0.42, 0.42)
    sky: float = 0.15
    lights: tuple[Light, ...] = (
        Light(direction=(-0.45, -0.75, -0.6), colour=(0.62, 0.62, 0.62)),
        Light(direction=(0.8, 0.1, -0.5), colour=(0.16, 0.16, 0.16)),
    )
    materials: bool = False
    darkest: float = 0.0

    def uniforms(self, surface: Surface) -> dict[str, Any]:
        """Return the shader's uniforms for a surface; "shininess" is among them if there are highlights."""
        vectors = np.array([light.direction for light in self.lights], dtype=np.float64).reshape(-1, 3)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        values: dict[str, Any] = {"ambient": self.ambient, "sky": self.sky, "darkest": self.darkest}
        if self.lights:
            values["light_direction"] = vectors.astype(np.float32)
            values["light_colour"] = np.array([light.colour for light in self.lights], dtype=np.float32)
        # Smoother than a quarter: highlights of less than a pixel, and mirrors that would need a room to mirror.
        roughness = float(np.clip(0.5 if surface.roughness is None else surface.roughness, 0.25, 1.0))
        metallic = surface.metallic or 0.0
        # Rougher than a half, highlights of a material that does not conduct add less to an image than they cost.
        if self.materials and (metallic > 0 or roughness < 0.5):
            # The exponent of Blinn and Phong's highlights that are as wide as GGX's of this roughness.
            values |= {"specular": DIELECTRIC, "shininess": 2.0 / roughness**4, "metallic": metallic}
        return values


@dataclass(frozen=True, kw_only=True)
class Views:
    """Images of one object on black.

    Attributes:
        rgba: (n, h, w, 4) uint8: sRGB, multiplied by the coverage in the last channel.
        near: (n, h, w) pixels with a covered sample in or right beside them: all that a solid object touches.
    """

    rgba: NDArray[np.uint8]
    near: NDArray[np.bool_]

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """(n, h, w, 3) exact black where the object is not."""
        return self.rgba[..., :3]

    @property
    def alpha(self) -> NDArray[np.uint8]:
        """(n, h, w) how much of the pixel the object covers, 0 to 255."""
        return self.rgba[..., 3]


def _reduce_samples(samples: NDArray[np.uint8], factor: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Average factor x factor RGBA samples (h * factor, w * factor, 4) into an image (h, w, 4); and `Views.near`."""
    height, width = samples.shape[0] // factor, samples.shape[1] // factor
    image = samples if factor == 1 else cv2.resize(samples, (width, height), interpolation=cv2.INTER_AREA)
    # From one sample before each pixel's first to one behind its last.
    reach = np.ones((factor + 2, factor + 2), np.uint8)
    near = cv2.dilate(cv2.extractChannel(samples, 3), reach, anchor=(1, 1))[::factor, ::factor] > 0
    return np.asarray(image, dtype=np.uint8), np.asarray(near)


def open_context() -> Any:
    """Return a new off-screen moderngl context; raises RenderingError if moderngl or an EGL driver is missing."""
    try:
        import moderngl

        options: dict[str, Any] = {"standalone": True, "backend": "egl"}
        return moderngl.create_context(**options)
    except ImportError as error:
        raise RenderingError("rendering needs the package moderngl: pip install moderngl") from error
    except Exception as error:  # moderngl and its loader raise plain Exception for a missing driver
        reason = " ".join(str(error).split())
        raise RenderingError(
            f"no off-screen OpenGL ({reason}); on Ubuntu and Debian: apt-get install libegl1 libgl1-mesa-dri"
        ) from error


def make_texture(gl: Any, rgba: NDArray[np.uint8], *, trilinear: bool = False) -> Any:
    """Upload an image (H, W, 4), first row at the top, with its mipmaps; `trilinear` blends neighbouring mipmaps."""
    import moderngl

    rgba = shrunk(rgba, int(gl.info["GL_MAX_TEXTURE_SIZE"]))
    # OpenGL counts rows from the bottom.
    texture = gl.texture(rgba.shape[1::-1], 4, np.ascontiguousarray(rgba[::-1]).tobytes())
    texture.build_mipmaps()
    reduced = moderngl.LINEAR_MIPMAP_LINEAR if trilinear else moderngl.LINEAR_MIPMAP_NEAREST
    texture.filter = (reduced, moderngl.LINEAR)
    return texture


def clip_matrix(K: NDArray[np.float64], size: tuple[int, int], near: float, far: float) -> NDArray[np.float64]:
    """Return OpenGL's clip matrix (4, 4) for camera axes x right, y down, z forward.

    The image's first row is the buffer's first row: nothing needs flipping. K (3, 3) and the size (height, width) are
    in pixels, the distances of the near and the far plane in metres.
    """
    height, width = size
    matrix = np.zeros((4, 4))
    matrix[0, :3] = 2 * K[0] / width
    matrix[1, :3] = 2 * K[1] / height
    matrix[0, 2] -= 1
    matrix[1, 2] -= 1
    matrix[2, 2:] = (far + near) / (far - near), -2 * far * near / (far - near)
    matrix[3, 2] = 1
    return matrix


class _Kind(NamedTuple):
    """What a shader program is made for: holes (alpha below a cut-off), highlights, the number of lights."""

    textured: bool
    holes: bool
    glossy: bool
    lights: int


@dataclass(eq=False)
class MeshHandle:
    """A mesh on the graphics card, made by `Renderer.upload`; give it back with `release`."""

    surface: Surface
    context: Any
    buffer: Any
    texture: Any | None  # None where colours alone are used
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
        RenderingError: moderngl or an EGL driver is missing.
    """

    def __init__(self) -> None:
        self._gl: Any = open_context()
        self._programs: dict[_Kind, Any] = {}
        self._target_size, self._target = (0, 0), tuple[Any, ...]()  # framebuffer and attachments

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and all that was drawn in it; a second call does nothing."""
        if self._gl is None:
            return
        with self._gl:
            for item in (*self._target, *self._programs.values()):
                item.release()
        self._gl.release()
        self._gl = None

    def upload(self, mesh: trimesh.Trimesh) -> MeshHandle:
        """Put a mesh in metres on the card, with its texture, vertex or face colours, or a neutral grey.

        Raises:
            MeshError: the mesh has no faces, or a vertex is not finite.
        """
        surface = surface_of(mesh)
        with self._gl:
            texture = None if surface.texture is None else make_texture(self._gl, surface.texture)
            return MeshHandle(surface, self._gl, self._gl.buffer(surface.corners.tobytes()), texture)

    @contextmanager
    def uploaded(self, mesh: trimesh.Trimesh | MeshHandle) -> Iterator[MeshHandle]:
        """Upload a mesh for the time of a `with` block; a handle is passed through."""
        if isinstance(mesh, MeshHandle):
            yield mesh
            return
        handle = self.upload(mesh)
        try:
            yield handle
        finally:
            handle.release()

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
        """Draw one mesh from several poses; the same arguments give the same images on one machine.

        Args:
            mesh: in metres; what `upload` returned saves time when it is drawn more than once.
            poses: (n, 4, 4) or (4, 4) camera-from-object, OpenCV axes.
            K: (3, 3) intrinsics in pixels, or (n, 3, 3) for one camera each.
            size: height and width in pixels.
            lighting: default: soft light that shows the geometry.
            supersample: samples a pixel in each direction; more makes smoother edges.
            edges: whether to draw the edges of the triangles as thin lines too, so that a sheet seen edge-on shows.

        Raises:
            MeshError: the mesh has no faces, or a vertex is not finite.
            RenderingError: the image is too large or has no pixel, or the renderer was closed.
        """
        if self._gl is None:
            raise RenderingError("the renderer is closed; make a new one")
        if not all(0 < int(side) * supersample <= MAX_SIDE for side in size):
            raise RenderingError(f"size {size} with supersample {supersample} is outside 1..{MAX_SIDE} pixels a side")
        all_poses = np.asarray(poses, dtype=np.float64).reshape(-1, 4, 4)
        cameras = np.broadcast_to(np.asarray(K, dtype=np.float64), (len(all_poses), 3, 3))
        lighting = lighting or Lighting()
        # Another renderer may have been at work since: its context would be drawn into.
        with self.uploaded(mesh) as handle, self._gl:
            surface, uniforms = handle.surface, lighting.uniforms(handle.surface)
            holes = handle.texture is not None and surface.alpha_cutoff > 0
            kind = _Kind(handle.texture is not None, holes, "shininess" in uniforms, len(lighting.lights))
            if holes:
                uniforms["cutoff"] = surface.alpha_cutoff
            program = self._program(kind)
            for name, value in uniforms.items():
                if isinstance(value, np.ndarray):
                    program[name].write(value.tobytes())
                else:
                    program[name] = value
            if handle.texture is not None:
                handle.texture.use(0)
            return self._draw(kind, handle, all_poses, cameras, size, supersample, edges)

    def _program(self, kind: _Kind) -> Any:
        if kind not in self._programs:
            macros = {"TEXTURED": kind.textured, "HOLES": kind.holes, "GLOSSY": kind.glossy}
            head = "#version 330\n" + "".join(f"#define {name}\n" for name, wanted in macros.items() if wanted)
            head += f"#define LIGHTS {kind.lights}\n{_LINEAR_FROM_SRGB}"
            self._programs[kind] = self._gl.program(vertex_shader=head + _VERTEX, fragment_shader=head + _FRAGMENT)
        return self._programs[kind]

    def _draw(
        self, kind: _Kind, handle: MeshHandle, poses: Array, K: Array, size: tuple[int, int], factor: int, edges: bool
    ) -> Views:
        """Draw all views, as many below one another as one framebuffer holds."""
        n, height, width = len(poses), size[0] * factor, size[1] * factor
        rows = max(1, min(n, _ATLAS_ROWS // height))
        if self._target_size != (width, rows * height):
            for item in self._target:
                item.release()
            self._target_size = (width, rows * height)
            colours, depth = self._gl.texture(self._target_size, 4), self._gl.depth_renderbuffer(self._target_size)
            self._target = (self._gl.framebuffer([colours], depth), depth, colours)
        frame = self._target[0]
        program, surface = self._program(kind), handle.surface
        if kind not in handle.arrays:
            names = ["position", "normal", *(["uv"] if kind.textured else []), "colour"]
            layout = "3f 3f 2f 4f" if kind.textured else "3f 3f 2x4 4f"
            handle.arrays[kind] = self._gl.vertex_array(program, [(handle.buffer, layout, *names)])
        array = handle.arrays[kind]
        self._gl.enable(self._gl.DEPTH_TEST)
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
                depth = float(poses[index, 2, :3] @ surface.centre + poses[index, 2, 3])
                nearest = max(depth - 1.01 * surface.radius, 1e-3 * surface.radius)
                farthest = max(depth + 1.01 * surface.radius, 2 * nearest)
                matrix = clip_matrix(K[index], size, nearest, farthest)
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
                rgba[index], near[index] = _reduce_samples(taken[top : top + height], factor)
        return Views(rgba=rgba, near=near)


_LINEAR_FROM_SRGB = """
vec3 linear_from_srgb(vec3 c) { return c * (c * (c * 0.305306011 + 0.682171111) + 0.012522878); }
"""

_VERTEX = """
uniform mat4 projection;
uniform mat4 pose;
in vec3 position;
in vec3 normal;
in vec4 colour;
out vec3 seen_at;
out vec3 seen_normal;
out vec3 tint;
#ifdef TEXTURED
in vec2 uv;
out vec2 texel;
#endif
void main() {
    vec4 camera = pose * vec4(position, 1.0);
    seen_at = camera.xyz;
    seen_normal = mat3(pose) * normal;
#ifdef TEXTURED
    texel = uv;
#endif
    tint = linear_from_srgb(colour.rgb);
    gl_Position = projection * camera;
}
"""

_FRAGMENT = """
uniform vec3 ambient;
uniform float sky;
uniform float darkest;
#if LIGHTS > 0
uniform vec3 light_direction[LIGHTS];
uniform vec3 light_colour[LIGHTS];
#endif
#ifdef GLOSSY
uniform float specular;
uniform float shininess;
uniform float metallic;
#endif
#ifdef HOLES
uniform float cutoff;
#endif
#ifdef TEXTURED
uniform sampler2D image;
in vec2 texel;
#endif
in vec3 seen_at;
in vec3 seen_normal;
in vec3 tint;
layout(location = 0) out vec4 shaded;

vec3 srgb_from_linear(vec3 c) {
    vec3 half_root = sqrt(c), quarter = sqrt(half_root), eighth = sqrt(quarter);
    return 0.662002687 * half_root + 0.684122060 * quarter - 0.323583601 * eighth - 0.0225411470 * c;
}

// Linear colour and unit normal, towards the camera's side, in; sRGB out. Camera axes: x right, y down, z forward.
vec3 shade(vec3 base, vec3 n, vec3 seen_at) {
    base += max(darkest - dot(base, vec3(0.2126, 0.7152, 0.0722)), 0.0);
    vec3 light = ambient * (1.0 - sky * (1.0 + n.y));
#ifdef GLOSSY
    vec3 view = -normalize(seen_at);
    vec3 shine = vec3(0.0);
#endif
#if LIGHTS > 0
    for (int i = 0; i < LIGHTS; ++i) {
        float cosine = max(dot(n, light_direction[i]), 0.0);
        light += light_colour[i] * cosine;
#ifdef GLOSSY
        float glance = max(dot(n, normalize(light_direction[i] + view)), 0.0);
        shine += light_colour[i] * step(0.0001, cosine) * pow(glance, shininess);
#endif
    }
#endif
#ifdef GLOSSY
    // A metal mirrors a bright sky and a dimmer ground in its own colour, in place of half of its diffuse light.
    float upwards = smoothstep(-0.6, 0.6, -reflect(-view, n).y);
    vec3 mirrored = ambient * mix(0.7, 2.2, upwards);
    vec3 linear = base * mix(light, mirrored, 0.5 * metallic);
    linear += mix(vec3(specular), max(base, specular), metallic) * (shininess + 8.0) / 32.0 * shine;
#else
    vec3 linear = base * light;
#endif
    return srgb_from_linear(clamp(linear, 0.0, 1.0));
}

void main() {
    vec3 base = tint;
#ifdef TEXTURED
#ifdef HOLES
    // From the full image: in a reduced one a lattice is neither solid nor open, and would vanish or close.
    if (textureLod(image, texel, 0.0).a < cutoff) discard;
#endif
    base *= linear_from_srgb(texture(image, texel).rgb);
#endif
    // Both sides are lit: a face seen from behind has its normal turned round. A normal of length 0 is no normal.
    float squared = dot(seen_normal, seen_normal);
    vec3 n = squared > 1e-12 ? seen_normal * inversesqrt(squared) : vec3(0.0, 0.0, 1.0);
    n = gl_FrontFacing ? -n : n;  // rows run downwards in our images, which mirrors OpenGL's idea of front
    shaded = vec4(shade(base, n, seen_at), 1.0);
}
"""
