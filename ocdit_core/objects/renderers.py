"""What the renderers share: lights and shading (GLSL), camera conventions, and the interface `TemplateRenderer`.

On a processor the fragment shader takes most of the rendering time. So there is one program for each kind of surface
and light, selected by macros (software OpenGL computes both sides of a branch), and sRGB is converted to linear and
back by polynomials in place of `pow`; a round trip is within one step of 255.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import ConfigError, RenderingError
from ocdit_core.objects.surfaces import Surface

if TYPE_CHECKING:
    import trimesh

RENDERERS = ("moderngl", "pyvista")
"""Renderer names: OpenGL on EGL; VTK, for machines without EGL."""
MAX_SIDE = 8192
"""Pixels, samples included, of an image's side."""
EDGE_WIDTH = 2.0
"""Samples: a line this wide covers the sample next to every point that it passes, whatever its slope."""
MAX_LIGHTS = 4
DIELECTRIC = 0.04
"""Fresnel reflectance at normal incidence of plastics, paints and glass."""

open_contexts: weakref.WeakSet[Any] = weakref.WeakSet()
"""The moderngl renderers that are open in this process."""


@dataclass(frozen=True, kw_only=True)
class Light:
    """A light at infinity.

    Attributes:
        direction: from the object to the light in camera axes (x right, y down, z forward); any length.
        colour: linear red, green, blue; intensity included.
    """

    direction: tuple[float, float, float]
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """The light of one rendering; the default shows an object's geometry from every side.

    Attributes:
        ambient: linear colour of the light that comes from everywhere, most from above.
        sky: how much weaker the ambient light is on an upright wall than from above; twice as much from below.
        lights: at most four.
        specular: strength of the highlights: 0 matt, 1 very shiny.
        roughness: width of the highlights, in (0, 1].
        materials: whether a mesh that states how metallic or rough it is shines so, whatever the two above say.
        darkest: linear reflectance that no surface stays below, so that black ones show on black; plastics and paints
            reflect some 0.04 of the light however dark their colour.
    """

    ambient: tuple[float, float, float] = (0.42, 0.42, 0.42)
    sky: float = 0.15
    lights: tuple[Light, ...] = (
        Light(direction=(-0.45, -0.75, -0.6), colour=(0.62, 0.62, 0.62)),
        Light(direction=(0.8, 0.1, -0.5), colour=(0.16, 0.16, 0.16)),
    )
    specular: float = 0.0
    roughness: float = 0.5
    materials: bool = False
    darkest: float = 0.0

    def __post_init__(self) -> None:
        if len(self.lights) > MAX_LIGHTS:
            raise ConfigError(f"lights: {len(self.lights)} given, at most {MAX_LIGHTS} are supported")

    def uniforms(self, surface: Surface) -> dict[str, Any]:
        """Return the shader's uniforms for a surface; "shininess" is among them if there are highlights."""
        vectors = np.array([light.direction for light in self.lights], dtype=np.float64).reshape(-1, 3)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        values: dict[str, Any] = {"ambient": self.ambient, "sky": self.sky, "darkest": self.darkest}
        if self.lights:
            values["light_direction"] = vectors.astype(np.float32)
            values["light_colour"] = np.array([light.colour for light in self.lights], dtype=np.float32)
        specular, roughness, metallic = self.specular, max(self.roughness, 0.05), 0.0
        glossy = specular > 0
        if self.materials and (surface.metallic is not None or surface.roughness is not None):
            # Smoother than a quarter: highlights of less than a pixel, and mirrors that would need a room to mirror.
            roughness = float(np.clip(0.5 if surface.roughness is None else surface.roughness, 0.25, 1.0))
            specular, metallic = DIELECTRIC, surface.metallic or 0.0
            # Below that, highlights of a material that does not conduct add less to an image than they cost.
            glossy = metallic > 0 or roughness < 0.5
        if glossy:
            # The exponent of Blinn and Phong's highlights that are as wide as GGX's of this roughness.
            values |= {"specular": specular, "shininess": 2.0 / roughness**4, "metallic": metallic}
        return values


@dataclass(frozen=True, kw_only=True)
class Views:
    """Images of one object on black.

    Attributes:
        rgba: (n, h, w, 4) uint8: sRGB, multiplied by the coverage in the last channel.
        near: (n, h, w) pixels with a covered sample in them or right beside them: all that a solid object touches.
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


def reduce_samples(samples: NDArray[np.uint8], factor: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Average factor x factor samples into a pixel.

    Args:
        samples: (h * factor, w * factor, 4) RGBA, colours multiplied by coverage.
        factor: samples a pixel in each direction.

    Returns:
        The image (h, w, 4), and (h, w) which pixels are `Views.near`.
    """
    height, width = samples.shape[0] // factor, samples.shape[1] // factor
    image = samples if factor == 1 else cv2.resize(samples, (width, height), interpolation=cv2.INTER_AREA)
    # From one sample before each pixel's first to one behind its last.
    reach = np.ones((factor + 2, factor + 2), np.uint8)
    near = cv2.dilate(cv2.extractChannel(samples, 3), reach, anchor=(1, 1))[::factor, ::factor] > 0
    return np.asarray(image, dtype=np.uint8), np.asarray(near)


def camera_arrays(
    poses: ArrayLike, K: ArrayLike, size: tuple[int, int], supersample: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return poses (n, 4, 4) and intrinsics (n, 3, 3) for what `TemplateRenderer.render` takes.

    Raises:
        RenderingError: the image is too large or has no pixel.
    """
    if not all(0 < int(side) * supersample <= MAX_SIDE for side in size):
        raise RenderingError(f"size {size} with supersample {supersample} is outside 1..{MAX_SIDE} pixels a side")
    all_poses = np.asarray(poses, dtype=np.float64).reshape(-1, 4, 4)
    return all_poses, np.broadcast_to(np.asarray(K, dtype=np.float64), (len(all_poses), 3, 3))


def projection(
    K: NDArray[np.float64], size: tuple[int, int], pose: NDArray[np.float64], surface: Surface
) -> tuple[NDArray[np.float64], float, float]:
    """Return OpenGL's clip matrix (4, 4) for camera axes x right, y down, z forward; and its near and far distance.

    The image's first row is the buffer's first row: nothing needs flipping.
    """
    height, width = size
    z = float(pose[2, :3] @ surface.centre + pose[2, 3])
    near = max(z - 1.01 * surface.radius, 1e-3 * surface.radius)
    far = max(z + 1.01 * surface.radius, 2 * near)
    matrix = np.zeros((4, 4))
    matrix[0, :3] = 2 * K[0] / width
    matrix[1, :3] = 2 * K[1] / height
    matrix[0, 2] -= 1
    matrix[1, 2] -= 1
    matrix[2, 2:] = (far + near) / (far - near), -2 * far * near / (far - near)
    matrix[3, 2] = 1
    return matrix, near, far


class UploadedMesh(Protocol):
    """A mesh as a renderer keeps it: quick to draw again.

    Attributes:
        surface: what was uploaded.
    """

    surface: Surface

    def release(self) -> None:
        """Free its memory; it must not be drawn any more."""


class TemplateRenderer(Protocol):
    """Draws objects; a context manager, used from one thread. The images' geometry is the same for all of them.

    Image coordinates are continuous: the first pixel covers [0, 1) in both directions, so a point that projects to
    (u, v) lies in pixel (floor(u), floor(v)), and resizing an image scales its intrinsics and nothing else.

    Attributes:
        name: one of RENDERERS.
    """

    name: str

    def upload(self, mesh: trimesh.Trimesh) -> UploadedMesh:
        """Prepare a mesh in metres for drawing.

        Raises:
            MeshError: it has no faces, or a vertex is not finite.
        """

    def render(
        self,
        mesh: trimesh.Trimesh | Any,
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
            RenderingError: the image is too large, or the renderer was closed.
        """

    def close(self) -> None:
        """Free everything; a second call does nothing."""

    def __enter__(self) -> TemplateRenderer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


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

_UNIFORMS = """
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
"""

_SHADE = """
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
"""

_FRAGMENT = """
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


def shading_functions(*, glossy: bool, lights: int) -> str:
    """Return the GLSL functions `linear_from_srgb` and `shade`, to stand behind the uniforms that they read."""
    return f"#define LIGHTS {lights}\n" + ("#define GLOSSY\n" if glossy else "") + _LINEAR_FROM_SRGB + _SHADE


def shaders(*, textured: bool, holes: bool, glossy: bool, lights: int) -> tuple[str, str]:
    """Return vertex and fragment shader for one kind of surface and light.

    Args:
        textured: whether there is a texture; its inputs are `image` and the attribute `uv`.
        holes: whether texels of less alpha than `cutoff` are holes.
        glossy: whether there are highlights: `specular`, `shininess`, `metallic`.
        lights: how many lights there are.
    """
    macros = {"TEXTURED": textured, "HOLES": holes, "GLOSSY": glossy}
    head = "#version 330\n" + "".join(f"#define {name}\n" for name, wanted in macros.items() if wanted)
    head += f"#define LIGHTS {lights}\n{_LINEAR_FROM_SRGB}"
    return head + _VERTEX, head + _UNIFORMS + _SHADE + _FRAGMENT
