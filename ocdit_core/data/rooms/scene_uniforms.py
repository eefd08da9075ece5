"""What the scene renderer tells its programs about the camera and the light."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.rooms.room import Room
from ocdit_core.synthesis.lighting import LIGHT_TILE, LightViews
from ocdit_core.synthesis.shaders import LIGHT_SAMPLES

Array = NDArray[np.float64]
NEAR, FAR = 0.03, 30.0  # metres


def clip_matrix(K: Array, size: tuple[int, int]) -> Array:
    """Returns OpenGL's clip matrix (4, 4) for K (3, 3) and a picture of height and width in pixels.

    The picture's first row is the buffer's first row, so nothing needs flipping.
    """
    height, width = size
    matrix = np.zeros((4, 4))
    matrix[0, :3] = 2 * K[0] / width
    matrix[1, :3] = 2 * K[1] / height
    matrix[0, 2] -= 1
    matrix[1, 2] -= 1
    matrix[2, 2:] = (FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR)
    matrix[3, 2] = 1
    return matrix


def camera_uniforms(room: Room, views: LightViews, pose: Array, K: Array, size: tuple[int, int]) -> dict[str, Any]:
    """Returns the uniforms that all programs share for one camera, matrices in OpenGL's order (column by column)."""
    to_pixels = np.diag([size[1], size[0], 1.0])
    return {
        "clip_from_world": (clip_matrix(K, size) @ pose).T,
        "ray_from_picture": (pose[:3, :3].T @ np.linalg.inv(K) @ to_pixels).T,
        "eye": -pose[:3, :3].T @ pose[:3, 3],
        "forward": pose[2, :3],
        "light_at": views.light_at[::LIGHT_SAMPLES],
        "light_colour": np.array([light.colour for light in room.lights]),
        "light_clip": views.light_clip.transpose(0, 2, 1),
        "light_texel": 2 * views.radius / LIGHT_TILE,
        "ground_colour": room.ground,
        "horizon_colour": room.horizon,
        "zenith_colour": room.zenith,
        "table": [*room.half_size, room.table_height],
    }


def write_uniforms(program: Any, values: dict[str, Any]) -> None:
    """Writes those values that the program has a use for, matrices in OpenGL's order (column by column)."""
    for name, value in values.items():
        if name in program:
            # The driver cuts arrays off after the last entry that is used.
            length = program[name].array_length * program[name].dimension
            flat = np.ascontiguousarray(value, dtype=np.float32).reshape(-1)[:length]
            program[name].write(flat.tobytes())
