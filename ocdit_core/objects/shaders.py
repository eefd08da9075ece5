"""The renderer's one shader program (GLSL): textured or coloured surfaces, up to four lights, linear shading."""

VERTEX_SHADER = """
#version 330
uniform mat4 projection;
uniform mat4 pose;
in vec3 position;
in vec3 normal;
in vec2 uv;
in vec4 colour;
out vec3 seen_at;
out vec3 seen_normal;
out vec2 texel;
out vec4 tint;
void main() {
    vec4 camera = pose * vec4(position, 1.0);
    seen_at = camera.xyz;
    seen_normal = mat3(pose) * normal;
    texel = uv;
    tint = colour;
    gl_Position = projection * camera;
}
"""

FRAGMENT_SHADER = """
#version 330
const int MAX_LIGHTS = 4;
uniform sampler2D image;
uniform float textured;
uniform float cutoff;
uniform vec3 ambient;
uniform int light_count;
uniform vec3 light_direction[MAX_LIGHTS];
uniform vec3 light_colour[MAX_LIGHTS];
uniform float specular;
uniform float shininess;
in vec3 seen_at;
in vec3 seen_normal;
in vec2 texel;
in vec4 tint;
layout(location = 0) out vec4 shaded;
layout(location = 1) out float depth;
void main() {
    vec4 base = vec4(pow(tint.rgb, vec3(2.2)), 1.0);
    if (textured > 0.5) {
        vec4 sampled = texture(image, texel);
        if (sampled.a < cutoff) discard;
        base.rgb *= pow(sampled.rgb, vec3(2.2));
    }
    vec3 view = -normalize(seen_at);
    // Both sides are lit: the face as drawn decides which way the normal has to point, not the winding in the file.
    vec3 face = cross(dFdx(seen_at), dFdy(seen_at));
    face *= dot(face, view) < 0.0 ? -1.0 : 1.0;
    vec3 n = normalize(seen_normal);
    n *= dot(n, face) < 0.0 ? -1.0 : 1.0;

    vec3 light = ambient * (0.85 - 0.15 * n.y);
    vec3 shine = vec3(0.0);
    for (int i = 0; i < light_count; ++i) {
        float cosine = max(dot(n, light_direction[i]), 0.0);
        light += light_colour[i] * cosine;
        float glance = max(dot(n, normalize(light_direction[i] + view)), 0.0);
        shine += light_colour[i] * step(0.0001, cosine) * pow(glance, shininess);
    }
    vec3 linear = base.rgb * light + specular * (shininess + 8.0) / 32.0 * shine;
    shaded = vec4(pow(clamp(linear, 0.0, 1.0), vec3(1.0 / 2.2)), 1.0);
    depth = seen_at.z;
}
"""
