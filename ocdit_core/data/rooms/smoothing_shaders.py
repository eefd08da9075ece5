"""GLSL that runs once on every pixel: the smoothing of edges."""

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
