"""Light of staged rooms: shadow maps of lamps and sky, and light baked from them once per scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.objects.viewpoints import look_at_poses
from ocdit_core.synthesis import shaders
from ocdit_core.synthesis.room import Room, RoomLight
from ocdit_core.synthesis.shaders import LIGHT_GRID, LIGHT_SAMPLES, MAX_LIGHTS, SKY_DIRECTIONS, SKY_GRID

Array = NDArray[np.float64]
LIGHT_TILE, SKY_TILE = 768, 256


@dataclass(frozen=True, kw_only=True)
class LightViews:
    """Viewpoints of the shadow maps of one scene.

    Attributes:
        light_at: (3 * LIGHT_SAMPLES, 3) points on the lamps; a lamp's first is its centre.
        light_clip: (3 * LIGHT_SAMPLES, 4, 4) clip-from-world.
        sky_towards: (SKY_DIRECTIONS, 3) unit vectors.
        sky_colour: (SKY_DIRECTIONS, 3) linear radiance; a white horizontal surface shows the cosine-weighted mean.
        sky_clip: (SKY_DIRECTIONS, 4, 4) clip-from-world.
        centre: (3,) centre in metres of the bounding ball of all shadow casters.
        radius: its radius in metres.
    """

    light_at: Array
    light_clip: Array
    sky_towards: Array
    sky_colour: Array
    sky_clip: Array
    centre: Array
    radius: float


def light_views(room: Room, points: Array) -> LightViews:
    """Return the viewpoints of all shadow maps of a room; `points` (n, 3) in metres bound the shadow casters."""
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    radius = 1.02 * float(np.linalg.norm(points - centre, axis=1).max()) + 0.01
    at = np.zeros((MAX_LIGHTS * LIGHT_SAMPLES, 3))
    clip = np.tile(np.eye(4), (len(at), 1, 1))
    for index, light in enumerate(room.lights):
        rows = slice(index * LIGHT_SAMPLES, (index + 1) * LIGHT_SAMPLES)
        at[rows] = _points_on(light, centre)
        clip[rows] = [_perspective(place, centre, radius) for place in at[rows]]
    towards = sky_directions()
    colour = room.horizon + towards[:, 2:] * (room.zenith - room.horizon)
    for window in room.windows:
        colour = colour + np.maximum(towards @ window[:3], 0)[:, None] ** 6 * window[3:]
    # Spread evenly over the hemisphere, the cosines have a mean of one half.
    return LightViews(
        light_at=at,
        light_clip=clip,
        sky_towards=towards,
        sky_colour=colour * 2 / SKY_DIRECTIONS,
        sky_clip=np.stack([_parallel(direction, centre, radius) for direction in towards]),
        centre=centre,
        radius=radius,
    )


def sky_directions() -> Array:
    """Return unit vectors (SKY_DIRECTIONS, 3), evenly over the upper hemisphere (Fibonacci spiral)."""
    step = np.arange(SKY_DIRECTIONS) + 0.5
    z, turn = step / SKY_DIRECTIONS, np.pi * (1 + 5**0.5) * step
    flat = np.sqrt(1 - z**2)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), z], axis=1)


def _points_on(light: RoomLight, centre: Array) -> Array:
    """Return the centre of a lamp, then points on its disc as seen from the objects (LIGHT_SAMPLES, 3)."""
    axes = look_at_poses((light.position - centre) / np.linalg.norm(light.position - centre), 1.0)[0, :3, :3]
    turn = 2 * np.pi * np.arange(LIGHT_SAMPLES - 1) / (LIGHT_SAMPLES - 1)
    reach = light.radius * np.resize([0.55, 0.9], LIGHT_SAMPLES - 1)[:, None]
    ring = reach * (np.cos(turn)[:, None] * axes[0] + np.sin(turn)[:, None] * axes[1])
    return np.concatenate([light.position[None], light.position + ring])


def _perspective(place: Array, centre: Array, radius: float) -> Array:
    offset = place - centre
    distance = float(np.linalg.norm(offset))
    near, far = max(distance - radius, 0.05), distance + radius
    narrow = distance / radius
    zoom = np.sqrt(max(narrow**2 - 1, 0.05))  # the ball touches the tile's sides
    matrix = np.zeros((4, 4))
    matrix[0, 0] = matrix[1, 1] = zoom
    matrix[2, 2:] = (far + near) / (far - near), -2 * far * near / (far - near)
    matrix[3, 2] = 1
    return matrix @ look_at_poses(offset / distance, distance, centre=centre)[0]


def _parallel(direction: Array, centre: Array, radius: float) -> Array:
    matrix = np.diag([1 / radius, 1 / radius, 1 / radius, 1.0])
    matrix[2, 3] = -2.0
    return matrix @ look_at_poses(direction, 2 * radius, centre=centre)[0]


class ShadowMaps:
    """Two atlases of depth maps on the GPU, of lamps and sky, in the context `gl`."""

    def __init__(self, gl: Any) -> None:
        import moderngl

        self._gl = gl
        self.program: Any = gl.program(vertex_shader=shaders.SHADOW_VERTEX, fragment_shader=shaders.SHADOW)
        self.lights, self.sky = (
            gl.depth_texture((grid[0] * tile, grid[1] * tile))
            for grid, tile in ((LIGHT_GRID, LIGHT_TILE), (SKY_GRID, SKY_TILE))
        )
        for texture in (self.lights, self.sky):
            texture.compare_func = "<="
            texture.filter = (moderngl.LINEAR, moderngl.LINEAR)
            texture.repeat_x = texture.repeat_y = False
        self._frames = {t: gl.framebuffer(depth_attachment=t) for t in (self.lights, self.sky)}

    def draw(self, casters: Sequence[tuple[Any, Array]], views: LightViews, lights: int) -> None:
        """Fill the atlases.

        Args:
            casters: vertex arrays made for `program`, and their poses world-from-object.
            views: from `light_views`.
            lights: number of lamps.
        """
        self._gl.enable_only(self._gl.DEPTH_TEST)
        for atlas, grid, tile, clips in (
            (self.lights, LIGHT_GRID, LIGHT_TILE, views.light_clip[: lights * LIGHT_SAMPLES]),
            (self.sky, SKY_GRID, SKY_TILE, views.sky_clip),
        ):
            frame = self._frames[atlas]
            frame.use()
            frame.viewport = (0, 0, grid[0] * tile, grid[1] * tile)
            frame.clear(depth=1.0)
            for index, clip in enumerate(clips):
                row, column = divmod(index, grid[0])
                frame.viewport = (column * tile, row * tile, tile, tile)
                for array, pose in casters:
                    self.program["clip_from_object"].write((clip @ pose).T.astype(np.float32).tobytes())
                    array.render()


SIDE = 512  # of the images of the table
_REACH = 2.6  # the table is worked out so far around the objects, against their ball's radius


class BakedLight:
    """Two images of the light on the table, and programs that light vertices by the sky, in the context `gl`."""

    def __init__(self, gl: Any, maps: ShadowMaps) -> None:
        import moderngl

        self._gl, self._maps = gl, maps
        self._grainy: Any = gl.texture((SIDE, SIDE), 4)
        self.lamps: Any = gl.texture((SIDE, SIDE), 4)
        """How much of lamps 1 to 3 is seen, and of the sky."""
        self.sky: Any = gl.texture((SIDE, SIDE), 4, dtype="f2")
        """The sky's light on the table."""
        for texture in (self._grainy, self.lamps, self.sky):
            texture.filter = (moderngl.LINEAR, moderngl.LINEAR)
            texture.repeat_x = texture.repeat_y = False
        self.area: Array = np.array([0.0, 0.0, 1.0, 1.0])
        """Least x and y in metres, and 1 / extent, of what the images show."""
        self._lamp: Any = gl.program(vertex_shader=shaders.BAKE_VERTEX, fragment_shader=shaders.lamp_on_table())
        self._sky: Any = gl.program(vertex_shader=shaders.BAKE_VERTEX, fragment_shader=shaders.sky_on_table())
        self.corners: Any = gl.program(vertex_shader=shaders.sky_on_vertices(), varyings=["sky_before", "sky_behind"])
        """The program that `on_corners` wants its vertex arrays made for."""
        quad = gl.buffer(np.array([[-1, -1], [3, -1], [-1, 3]], np.float32).tobytes())
        self._blur: Any = gl.program(vertex_shader=shaders.FULL, fragment_shader=shaders.BLUR)
        programs = (self._lamp, self._sky, self._blur)
        self._quads = {p: gl.vertex_array(p, [(quad, "2f", "corner")]) for p in programs}
        self._lamp_frame = gl.framebuffer([self._grainy])
        self._sky_frame = gl.framebuffer([self.sky, self._grainy])
        self._blur_frame = gl.framebuffer([self.lamps])

    def on_table(self, views: LightViews, lamps: int, half_size: tuple[float, float]) -> None:
        """Compute the images of the table from the current shadow maps."""
        reach = _REACH * views.radius
        half = np.asarray(half_size)
        low, high = np.maximum(views.centre[:2] - reach, -half), np.minimum(views.centre[:2] + reach, half)
        self.area = np.concatenate([low, 1 / (high - low)])
        self._gl.enable_only(self._gl.NOTHING)
        self._light_sky(self._sky, views)
        _write(self._sky, "baked_area", self.area)
        # A mask counts from the next `use` on.
        self._sky_frame.color_mask = ((True,) * 4, (False, False, False, True))
        self._sky_frame.use()
        self._quads[self._sky].render()
        self._maps.lights.use(1)
        self._lamp["light_maps"] = 1
        _write(self._lamp, "baked_area", self.area)
        for lamp in range(lamps):
            clips = views.light_clip[lamp * LIGHT_SAMPLES : (lamp + 1) * LIGHT_SAMPLES]
            _write(self._lamp, "light_clip", clips.transpose(0, 2, 1))
            self._lamp["lamp"] = float(lamp)
            self._lamp_frame.color_mask = tuple(index == lamp for index in range(4))
            self._lamp_frame.use()
            self._quads[self._lamp].render()
        # The grain that hides the steps of penumbras would be as coarse as the image is: it is smoothed away.
        self._grainy.use(1)
        self._blur["lamps_seen"] = 1
        self._blur_frame.use()
        self._quads[self._blur].render()

    def on_corners(self, array: Any, pose: Array, views: LightViews) -> Any:
        """Compute the sky's light on the corners of an object.

        Args:
            array: vertex array of position and normal, made for `corners`.
            pose: (4, 4) world-from-object, metres.
            views: views of the shadow maps.

        Returns:
            A buffer of (vertices, 8) float32: colour and visible fraction of the sky before the face, then behind.
        """
        self._light_sky(self.corners, views)
        _write(self.corners, "world_from_object", pose.T)
        buffer = self._gl.buffer(reserve=array.vertices * 32)
        array.transform(buffer, mode=self._gl.POINTS)
        return buffer

    def _light_sky(self, program: Any, views: LightViews) -> None:
        self._maps.sky.use(2)
        program["sky_maps"] = 2
        _write(program, "sky_towards", views.sky_towards)
        _write(program, "sky_colour", views.sky_colour)
        _write(program, "sky_clip", views.sky_clip.transpose(0, 2, 1))
        _write(program, "sky_texel", np.array(2 * views.radius / SKY_TILE))


def _write(program: Any, name: str, value: Array) -> None:
    if name in program:
        program[name].write(np.ascontiguousarray(value, dtype=np.float32).tobytes())
