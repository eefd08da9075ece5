"""Light that stays the same from camera to camera, worked out once a scene: on the table, and at objects' corners."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.synthesis import shaders
from ocdit_core.data.rooms.shadow_maps import SKY_TILE, LightViews, ShadowMaps
from ocdit_core.synthesis.shaders import FULL, LIGHT_SAMPLES

Array = NDArray[np.float64]
SIDE = 512  # of the pictures of the table
_REACH = 2.6  # the table is worked out so far around the objects, against their ball's radius


class BakedLight:
    """Two pictures of the table's light, and the means to light corners; they belong to the context of their maker."""

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
        """Least x and y in metres, and 1 / extent, of what the pictures show."""
        self._lamp: Any = gl.program(vertex_shader=shaders.BAKE_VERTEX, fragment_shader=shaders.lamp_on_table())
        self._sky: Any = gl.program(vertex_shader=shaders.BAKE_VERTEX, fragment_shader=shaders.sky_on_table())
        self.corners: Any = gl.program(vertex_shader=shaders.sky_on_vertices(), varyings=["sky_before", "sky_behind"])
        """The program that `on_corners` wants its vertex arrays made for."""
        quad = gl.buffer(np.array([[-1, -1], [3, -1], [-1, 3]], np.float32).tobytes())
        self._blur: Any = gl.program(vertex_shader=FULL, fragment_shader=shaders.BLUR)
        programs = (self._lamp, self._sky, self._blur)
        self._quads = {p: gl.vertex_array(p, [(quad, "2f", "corner")]) for p in programs}
        self._lamp_frame = gl.framebuffer([self._grainy])
        self._sky_frame = gl.framebuffer([self.sky, self._grainy])
        self._blur_frame = gl.framebuffer([self.lamps])

    def on_table(self, views: LightViews, lamps: int, half_size: tuple[float, float]) -> None:
        """Works out the table's pictures from the shadow maps as they are now."""
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
        # The grain that hides the steps of penumbras would be as coarse as the picture is: it is smoothed away.
        self._grainy.use(1)
        self._blur["lamps_seen"] = 1
        self._blur_frame.use()
        self._quads[self._blur].render()

    def on_corners(self, array: Any, pose: Array, views: LightViews) -> Any:
        """Lights an object's corners by the sky.

        Args:
            array: vertex array of position and normal, made for `corners`.
            pose: (4, 4) world-from-object, metres.
            views: of the shadow maps.

        Returns:
            A buffer of (vertices, 8) float32: colour and share of the sky before the face, then behind it.
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
