"""GLSL of the scene renderer: light, surfaces and edge smoothing.

Objects are drawn into a buffer of surfaces first and shaded once per pixel afterwards: software OpenGL shades blocks of
16 pixels, most of which a small triangle does not cover. Rooms are large triangles and shaded as they are drawn.
"""

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
    """Return the first lines of a shader, with these macros defined."""
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
    """Return statements that add the sky's light at a point to the vec4 `out`: colour and visible fraction."""
    lines = []
    for k in range(SKY_DIRECTIONS):
        row, column = divmod(k, SKY_GRID[0])
        lines.append(
            f"seen = lit(sky_maps, (sky_clip[{k}] * {at}).xyz, {jitter}, vec2({column}, {row}), SKY_GRID, 0.003);\n"
            f"{out} += seen * vec4(sky_colour[{k}] * max(dot({normal}, sky_towards[{k}]), 0.0), 1.0 / SKY_DIRECTIONS);"
        )
    return "\n".join(lines)


def sky_on_vertices() -> str:
    """Return the vertex shader that bakes the sky's light into an object's corners, for both sides of its faces."""
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
    """Return the fragment shader that bakes how much of one lamp each point of the table sees."""
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
    """Return the fragment shader that bakes the sky's light on the table: colour, and the fraction that is visible."""
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


FULL = """
#version 330
in vec2 corner;
out vec2 across;
void main() {
    across = corner * 0.5 + 0.5;
    // As far as can be: with the depth test turned round, only pixels that an object covers are shaded.
    gl_Position = vec4(corner, 1.0, 1.0);
}
"""

# Edges are smoothed after the drawing: with samples of each pixel, software OpenGL shades what is hidden, too.
# After Lottes's FXAA (2009), in its short form: along the edge that the luma's slope tells, colours are averaged.
SMOOTHING = """
#version 330
uniform sampler2D shaded_map;
in vec2 across;
out vec4 smoothed;
const vec3 LUMA = vec3(0.299, 0.587, 0.114);
void main() {
    vec2 one = 1.0 / vec2(textureSize(shaded_map, 0));
    vec3 middle = textureLod(shaded_map, across, 0.0).rgb;
    float nw = dot(textureLod(shaded_map, across + vec2(-0.5, -0.5) * one, 0.0).rgb, LUMA);
    float ne = dot(textureLod(shaded_map, across + vec2(0.5, -0.5) * one, 0.0).rgb, LUMA);
    float sw = dot(textureLod(shaded_map, across + vec2(-0.5, 0.5) * one, 0.0).rgb, LUMA);
    float se = dot(textureLod(shaded_map, across + vec2(0.5, 0.5) * one, 0.0).rgb, LUMA);
    float m = dot(middle, LUMA);
    float least = min(m, min(min(nw, ne), min(sw, se)));
    float most = max(m, max(max(nw, ne), max(sw, se)));
    vec2 along = vec2((sw + se) - (nw + ne), (nw + sw) - (ne + se));
    float dull = max((nw + ne + sw + se) * 0.03, 0.008);
    along = clamp(along / (min(abs(along.x), abs(along.y)) + dull), -6.0, 6.0) * one;
    vec3 near = 0.5 * (textureLod(shaded_map, across - along / 6.0, 0.0).rgb
                     + textureLod(shaded_map, across + along / 6.0, 0.0).rgb);
    vec3 far = 0.5 * near + 0.25 * (textureLod(shaded_map, across - along * 0.5, 0.0).rgb
                                  + textureLod(shaded_map, across + along * 0.5, 0.0).rgb);
    float luma = dot(far, LUMA);
    vec3 chosen = luma < least || luma > most ? near : far;
    smoothed = vec4(most - least < max(0.03, 0.08 * most) ? middle : chosen, 1.0);
}
"""


VERTEX = """
#version 330
uniform mat4 clip_from_world;
uniform mat4 world_from_object;
in vec3 position;
in vec3 normal;
in vec2 uv;
in vec4 colour;
in vec4 sky_before;  // the sky's light before the face and behind it, see `sky_on_vertices`
in vec4 sky_behind;
out vec3 world_at;
out vec3 world_normal;
out vec2 texel;
out vec4 tint;
out vec4 baked_before;
out vec4 baked_behind;
invariant gl_Position;
void main() {
    vec4 world = world_from_object * vec4(position, 1.0);
    world_at = world.xyz;
    world_normal = mat3(world_from_object) * normal;
    texel = uv;
    tint = colour;
    baked_before = sky_before;
    baked_behind = sky_behind;
    gl_Position = clip_from_world * world;
}
"""

# Statements that turn albedo, view, n, roughness, specular, metallic, sky, open and lamps into linear light:
# Lambert and GGX (Walter et al. 2007; Fresnel by Schlick, visibility by Hammon).
_SHADING = """
    vec3 base = mix(vec3(0.08 * specular), albedo, metallic);
    vec3 diffuse_albedo = albedo * (1.0 - metallic);
    float alpha = max(roughness * roughness, 0.01);
    float n_view = max(dot(n, view), 1e-3);
    vec3 diffuse = vec3(0.0);
    vec3 shine = vec3(0.0);
//LAMPS
    // What the ground throws back reaches what faces it.
    diffuse += sky + ground_colour * ((0.5 - 0.5 * n.z) * open);

    vec3 mirrored = reflect(-view, n);
    vec3 around = mirrored.z > 0.0 ? mix(horizon_colour, zenith_colour, mirrored.z)
                                   : mix(horizon_colour, ground_colour, min(-3.0 * mirrored.z, 1.0));
    vec3 grazing = base + (max(vec3(1.0 - roughness), base) - base) * pow(1.0 - n_view, 5.0);
    vec3 linear = diffuse_albedo * diffuse + shine + around * grazing * open;
"""

_SHADING_UNIFORMS = """
uniform vec3 eye;
uniform vec3 light_at[LAMPS];
uniform vec3 light_colour[LAMPS];
uniform vec3 ground_colour;
uniform vec3 horizon_colour;
uniform vec3 zenith_colour;
uniform float exposure;        // 0: leave the colours linear
"""

# Filmic tone curve (Narkowicz's fit of ACES), then sRGB's gamma.
_TONE = """
vec3 developed(vec3 linear) {
    vec3 x = linear * exposure;
    x = clamp(x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14), 0.0, 1.0);
    return exposure > 0.0 ? pow(x, vec3(1.0 / 2.2)) : linear;
}
"""

_LAMP = """
    {
        vec3 towards = light_at[LAMP] - world_at;
        float square = dot(towards, towards);
        vec3 l = towards * inversesqrt(square);
        float n_light = max(dot(n, l), 0.0);
        vec3 arriving = light_colour[LAMP] * (n_light * lamps[LAMP] / square);
        diffuse += arriving;
        vec3 h = normalize(l + view);
        float n_half = max(dot(n, h), 0.0);
        float d = n_half * n_half * (alpha * alpha - 1.0) + 1.0;
        float visibility = 0.5 / mix(2.0 * n_light * n_view, n_light + n_view, alpha);
        float facing = 1.0 - max(dot(view, h), 0.0);
        vec3 fresnel = base + (1.0 - base) * (facing * facing * facing * facing * facing);
        shine += arriving * fresnel * min(alpha * alpha / (d * d) * visibility, 40.0);
    }
"""

_ROOM = """
uniform sampler2D image;
uniform float textured;
uniform float roughness;
uniform float specular;
uniform float metallic;
uniform float label;
uniform vec3 forward;
uniform sampler2D lamps_seen;  // on the table: how much of each lamp is seen, and of the sky
uniform sampler2D sky_seen;    // on the table: the sky's light
uniform vec4 baked_area;       // least x and y, then 1 / extent of these two images
uniform vec3 table;            // half size in x and y; height over the floor
in vec3 world_at;
in vec3 world_normal;
in vec2 texel;
in vec4 tint;
layout(location = 0) out vec4 shaded;
layout(location = 1) out vec2 seen_there;  // metres along the axis, label
void main() {
    vec3 albedo = pow(tint.rgb * mix(vec3(1.0), texture(image, texel).rgb, textured), vec3(2.2));
    vec3 view = normalize(eye - world_at);
    vec3 n = normalize(world_normal);
    n *= dot(n, view) < 0.0 ? -1.0 : 1.0;
    vec3 sky;
    float open;
    vec3 lamps = vec3(1.0);
//PLACE
//SHADING
    seen_there = vec2(dot(world_at - eye, forward), label);
    shaded = vec4(developed(linear), 1.0);
}
"""

_PLACES = {
    "on_table": """
    vec2 there = (world_at.xy - baked_area.xy) * baked_area.zw;
    vec4 seen = textureLod(lamps_seen, there, 0.0);
    lamps = seen.rgb;
    open = seen.a;
    sky = textureLod(sky_seen, there, 0.0).rgb;
""",
    # The floor and the table's own sides and legs: its rectangle is all that hides the light.
    "under_table": """
    float beside = length(max(abs(world_at.xy) - table.xy, 0.0));
    open = mix(0.2, 1.0, smoothstep(0.0, 1.2, beside / table.z));
    sky = mix(horizon_colour, zenith_colour, 0.35 + 0.3 * n.z) * ((0.55 + 0.45 * n.z) * open);
""",
    # Far from the objects; corners at the floor are darker.
    "around": """
    open = mix(0.45, 1.0, smoothstep(0.0, 0.5, world_at.z + table.z));
    sky = mix(horizon_colour, zenith_colour, 0.35 + 0.3 * n.z) * ((0.55 + 0.45 * n.z) * open);
""",
}
_UNDER = """
    {
        vec3 to = light_at[LAMP] - world_at;
        vec2 over = table.xy - abs(world_at.xy - to.xy * (world_at.z / max(to.z, 1e-4)));
        vec2 soft = clamp(0.5 + over / 0.06, 0.0, 1.0);
        lamps[LAMP] = 1.0 - soft.x * soft.y * step(world_at.z, -0.004);
    }
"""


def _shading(lamps: int) -> str:
    return _SHADING.replace("//LAMPS", _each(_LAMP, lamps))


def _each(text: str, lamps: int) -> str:
    """Return the statements for each lamp: unrolled loops run more than twice as fast in software OpenGL."""
    return "".join(text.replace("LAMP", str(lamp)) for lamp in range(lamps))


def _room(place: str, lamps: int) -> str:
    """Return the fragment shader of a room's surfaces: "on_table", "under_table" or "around", under so many lamps."""
    light = _PLACES[place] + (_each(_UNDER, lamps) if place == "under_table" else "")
    body = _ROOM.replace("//PLACE", light).replace("//SHADING", _shading(lamps))
    return head(LAMPS=lamps) + _SHADING_UNIFORMS + _TONE + body


_SURFACES = """
#version 330
uniform vec3 eye;
uniform vec3 forward;
uniform sampler2D image;
uniform float textured;
uniform float roughness;
uniform float specular;
uniform float metallic;
uniform float label;
//CUTOFF
in vec3 world_at;
in vec3 world_normal;
in vec2 texel;
in vec4 tint;
in vec4 baked_before;
in vec4 baked_behind;
layout(location = 0) out vec2 seen;      // metres along the axis, label
layout(location = 1) out vec4 normal;    // and roughness after the point, metallic in fifteenths before it
layout(location = 2) out vec4 colour;    // sRGB, and specular
layout(location = 3) out vec4 sky;       // the sky's light, and the visible fraction of it
void main() {
    //CUT
    vec3 face = cross(dFdx(world_at), dFdy(world_at));
    face *= dot(face, eye - world_at) < 0.0 ? -1.0 : 1.0;
    // Both sides are lit: the face as drawn decides which way the normal has to point, not the winding in the file.
    bool before = dot(world_normal, face) >= 0.0;
    seen = vec2(dot(world_at - eye, forward), label);
    normal = vec4(normalize(before ? world_normal : -world_normal), floor(metallic * 15.0 + 0.5) + 0.98 * roughness);
    colour = vec4(tint.rgb * mix(vec3(1.0), texture(image, texel).rgb, textured), specular);
    sky = before ? baked_before : baked_behind;
}
"""

_OBJECTS = """
uniform sampler2D seen_map;
uniform sampler2D normal_map;
uniform sampler2D colour_map;
uniform sampler2D sky_map;
uniform mat3 ray_from_image;
uniform mat4 light_clip[LAMPS * LIGHT_SAMPLES];
uniform sampler2DShadow light_maps;
uniform float light_texel;     // metres that a texel of a shadow map covers
in vec2 across;
out vec4 shaded;
void main() {
    ivec2 pixel = ivec2(gl_FragCoord.xy);
    vec2 seen = texelFetch(seen_map, pixel, 0).xy;
    vec4 packed_normal = texelFetch(normal_map, pixel, 0);
    vec4 colour = texelFetch(colour_map, pixel, 0);
    vec4 baked = texelFetch(sky_map, pixel, 0);
    vec3 world_at = eye + ray_from_image * vec3(across, 1.0) * seen.x;
    vec3 n = packed_normal.xyz;
    vec3 view = normalize(eye - world_at);
    vec3 albedo = pow(colour.rgb, vec3(2.2));
    float specular = colour.a;
    float roughness = fract(packed_normal.w) / 0.98;
    float metallic = floor(packed_normal.w) / 15.0;
    vec3 sky = baked.rgb;
    // Little light gets to the ground right beside an object.
    float open = baked.a * mix(0.35, 1.0, smoothstep(0.0, 0.06, world_at.z));
    vec3 lamps = vec3(1.0);
    vec2 jitter = noise(gl_FragCoord.xy) * 0.0022;
    vec4 from = vec4(world_at + n * (1.6 * light_texel), 1.0);
    vec4 at;
//TAPS
//SHADING
    shaded = vec4(developed(linear), 1.0);
}
"""


def _objects(lamps: int) -> str:
    """Return the fragment shader that shades the buffer of surfaces under so many lamps."""
    taps = []
    for lamp in range(lamps):
        one = [
            f"at = light_clip[{lamp * LIGHT_SAMPLES + j}] * from;\n"
            f"seen{lamp} += lit(light_maps, at.xyz / at.w, jitter, vec2({j}, {lamp}), LIGHT_GRID, 0.0015);\n"
            for j in range(LIGHT_SAMPLES)
        ]
        taps += [f"float seen{lamp} = 0.0;\n", *one, f"lamps[{lamp}] = seen{lamp} / {LIGHT_SAMPLES}.0;\n"]
    body = _OBJECTS.replace("//TAPS", "".join(taps)).replace("//SHADING", _shading(lamps))
    return head(LAMPS=lamps) + _SHADING_UNIFORMS + LIT + _TONE + body


_SILHOUETTE = """
#version 330
uniform sampler2D image;
uniform float cutoff;
in vec2 texel;
out float covered;
void main() {
    if (cutoff > 0.0 && texture(image, texel).a < cutoff) discard;
    covered = 1.0;
}
"""


def source(kind: str, lamps: int) -> tuple[str, str]:
    """Return the vertex and fragment shader of one of the renderer's programs; `lamps` matters where there is light.

    Args:
        kind: "surfaces", or "surfaces, holes" with a way to leave out transparent texels; "objects"; "smoothing";
            "silhouette"; or a place of a room.
        lamps: 1 to 3.
    """
    if kind in _PLACES:
        return VERTEX, _room(kind, lamps)
    if kind.startswith("surfaces"):
        # Without a way to discard, what is hidden costs nothing.
        cut = ("uniform float cutoff;", "if (texture(image, texel).a < cutoff) discard;")
        cutoff, test = cut if kind.endswith("holes") else ("", "")
        return VERTEX, _SURFACES.replace("//CUTOFF", cutoff).replace("//CUT", test)
    if kind == "silhouette":
        return VERTEX, _SILHOUETTE
    return FULL, SMOOTHING if kind == "smoothing" else _objects(lamps)
