"""GLSL of the light: shadow maps, and how much lamps and sky reach the table and the objects' corners."""

MAX_LIGHTS = 3
LIGHT_SAMPLES = 6  # shadow maps of one light, from points all over it: their mean is its penumbra
SKY_DIRECTIONS = 16  # shadow maps of the light that comes from everywhere
LIGHT_GRID = (6, 3)  # tiles of the shadow atlas
SKY_GRID = (4, 4)

LIT = """
// 1 where light from a shadow map's view arrives. Without a branch: beside its tile nothing casts a shadow.
float lit(sampler2DShadow maps, vec3 ndc, vec2 jitter, vec2 tile, vec2 grid, float bias) {
    vec2 inside = (clamp(ndc.xy, -0.985, 0.985) * 0.5 + 0.5 + jitter + tile) / grid;
    float seen = textureLod(maps, vec3(inside, ndc.z * 0.5 + 0.5 - bias), 0.0);
    return max(seen, step(0.985, max(abs(ndc.x), abs(ndc.y))));
}

// Interleaved gradient noise (Jimenez 2014) turns each pixel's taps, so that steps become grain.
vec2 noise(vec2 pixel) {
    float turn = 6.2832 * fract(52.9829189 * fract(dot(pixel, vec2(0.06711056, 0.00583715))));
    return vec2(cos(turn), sin(turn));
}
"""


def head(**definitions: object) -> str:
    """Returns the first lines of a shader, with these macros defined."""
    lines = [f"#define {name} {value}" for name, value in definitions.items()]
    return "\n".join(
        [
            "#version 330",
            *lines,
            f"#define LIGHT_SAMPLES {LIGHT_SAMPLES}",
            f"#define SKY_DIRECTIONS {SKY_DIRECTIONS}",
            f"#define LIGHT_GRID vec2{LIGHT_GRID}",
            f"#define SKY_GRID vec2{SKY_GRID}",
            "",
        ]
    )


_SKY_UNIFORMS = """
uniform vec3 sky_towards[SKY_DIRECTIONS];
uniform vec3 sky_colour[SKY_DIRECTIONS];
uniform mat4 sky_clip[SKY_DIRECTIONS];
uniform sampler2DShadow sky_maps;
uniform float sky_texel;
"""


def _sky_sum(at: str, normal: str, out: str, jitter: str) -> str:
    """Statements that add the sky's light at a point with a normal to the vec4 `out`: colour, and share seen."""
    lines = []
    for k in range(SKY_DIRECTIONS):
        row, column = divmod(k, SKY_GRID[0])
        lines.append(
            f"seen = lit(sky_maps, (sky_clip[{k}] * {at}).xyz, {jitter}, vec2({column}, {row}), SKY_GRID, 0.003);\n"
            f"{out} += seen * vec4(sky_colour[{k}] * max(dot({normal}, sky_towards[{k}]), 0.0), 1.0 / SKY_DIRECTIONS);"
        )
    return "\n".join(lines)


def sky_on_vertices() -> str:
    """Returns the vertex shader that bakes the sky's light into an object's corners, for both sides of its faces."""
    return (
        head()
        + _SKY_UNIFORMS
        + LIT
        + """
uniform mat4 world_from_object;
in vec3 position;
in vec3 normal;
out vec4 sky_before;
out vec4 sky_behind;
void main() {
    vec3 place = (world_from_object * vec4(position, 1.0)).xyz;
    vec3 n = normalize(mat3(world_from_object) * normal);
    vec4 from = vec4(place + n * (1.5 * sky_texel), 1.0);
    float seen;
    sky_before = vec4(0.0);
    sky_behind = vec4(0.0);
"""
        + _sky_sum("from", "n", "sky_before", "vec2(0.0)")
        + "\nfrom = vec4(place - n * (1.5 * sky_texel), 1.0);\nn = -n;\n"
        + _sky_sum("from", "n", "sky_behind", "vec2(0.0)")
        + "\n}\n"
    )


BAKE_VERTEX = """
#version 330
uniform vec4 baked_area;
in vec2 corner;
out vec3 world_at;
void main() {
    world_at = vec3(baked_area.xy + (corner * 0.5 + 0.5) / baked_area.zw, 0.0);
    gl_Position = vec4(corner, 0.0, 1.0);
}
"""


def lamp_on_table() -> str:
    """Returns the fragment shader that bakes how much of one lamp each point of the table sees."""
    taps = "".join(
        f"at = light_clip[{j}] * from;\n"
        f"seen += lit(light_maps, at.xyz / at.w, jitter, vec2({j}, lamp), LIGHT_GRID, 0.0012);\n"
        for j in range(LIGHT_SAMPLES)
    )
    return (
        head()
        + LIT
        + """
uniform mat4 light_clip[LIGHT_SAMPLES];
uniform sampler2DShadow light_maps;
uniform float lamp;
in vec3 world_at;
out vec4 baked;
void main() {
    vec2 jitter = noise(gl_FragCoord.xy) * 0.0022;
    vec4 from = vec4(world_at, 1.0);
    vec4 at;
    float seen = 0.0;
"""
        + taps
        + f"baked = vec4(seen / {LIGHT_SAMPLES}.0);\n}}\n"
    )


def sky_on_table() -> str:
    """Returns the fragment shader that bakes the sky's light on the table: colour, and the share that is seen."""
    return (
        head()
        + _SKY_UNIFORMS
        + LIT
        + """
in vec3 world_at;
layout(location = 0) out vec4 light;
layout(location = 1) out vec4 open;
void main() {
    vec2 jitter = noise(gl_FragCoord.xy) * 0.006;
    vec4 from = vec4(world_at, 1.0);
    float seen;
    light = vec4(0.0);
"""
        + _sky_sum("from", "vec3(0.0, 0.0, 1.0)", "light", "jitter")
        + "\nopen = vec4(light.a);\n}\n"
    )


SHADOW_VERTEX = """
#version 330
uniform mat4 clip_from_object;
in vec3 position;
void main() { gl_Position = clip_from_object * vec4(position, 1.0); }
"""

SHADOW = """
#version 330
void main() {}
"""

BLUR = """
#version 330
uniform sampler2D lamps_seen;
in vec2 across;
out vec4 blurred;
void main() {
    vec2 one = 0.8 / vec2(textureSize(lamps_seen, 0));
    blurred = 0.25 * (texture(lamps_seen, across + one) + texture(lamps_seen, across - one)
                    + texture(lamps_seen, across + vec2(one.x, -one.y))
                    + texture(lamps_seen, across + vec2(-one.x, one.y)));
}
"""
