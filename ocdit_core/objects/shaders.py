"""The renderer's shaders (GLSL): textured or coloured surfaces, up to four lights, shading in linear colours.

On a processor the fragment shader takes most of a rendering's time. So there is one program for each kind of surface
and light, chosen by macros (software OpenGL computes both sides of a branch), and sRGB is turned to linear and back by
polynomials in place of `pow`; there and back again they are within one step of 255.
"""

from __future__ import annotations

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
#ifdef DEPTH
layout(location = 1) out float depth;
#endif
void main() {
    vec3 base = tint;
#ifdef TEXTURED
#ifdef HOLES
    // From the full picture: in a reduced one a lattice is neither solid nor open, and would vanish or close.
    if (textureLod(image, texel, 0.0).a < cutoff) discard;
#endif
    base *= linear_from_srgb(texture(image, texel).rgb);
#endif
    // Both sides are lit: a face seen from behind has its normal turned round. A normal of length 0 is no normal.
    float squared = dot(seen_normal, seen_normal);
    vec3 n = squared > 1e-12 ? seen_normal * inversesqrt(squared) : vec3(0.0, 0.0, 1.0);
    n = gl_FrontFacing ? -n : n;  // rows run downwards in our pictures, which mirrors OpenGL's idea of front
    shaded = vec4(shade(base, n, seen_at), 1.0);
#ifdef DEPTH
    depth = seen_at.z;
#endif
}
"""


def shading_functions(*, glossy: bool, lights: int) -> str:
    """Returns GLSL functions alone: `linear_from_srgb` and `shade`; the uniforms that they read stand before them."""
    return f"#define LIGHTS {lights}\n" + ("#define GLOSSY\n" if glossy else "") + _LINEAR_FROM_SRGB + _SHADE


def shaders(*, textured: bool, holes: bool, glossy: bool, lights: int, depth: bool) -> tuple[str, str]:
    """Returns vertex and fragment shader for one kind of surface and light.

    Args:
        textured: whether there is a texture; its inputs are `image` and the attribute `uv`.
        holes: whether texels of less alpha than `cutoff` are holes.
        glossy: whether there are highlights: `specular`, `shininess`, `metallic`.
        lights: how many lights there are.
        depth: whether metres along the optical axis are a second output.
    """
    macros = {"TEXTURED": textured, "HOLES": holes, "GLOSSY": glossy, "DEPTH": depth}
    head = "#version 330\n" + "".join(f"#define {name}\n" for name, wanted in macros.items() if wanted)
    head += f"#define LIGHTS {lights}\n{_LINEAR_FROM_SRGB}"
    return head + _VERTEX, head + _UNIFORMS + _SHADE + _FRAGMENT
