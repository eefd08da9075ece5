"""What goes into the scene renderer, as it lies in its context, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.rooms.room import Material, Place, Room
from ocdit_core.objects.shading import Surface
from ocdit_core.synthesis.lighting import LightViews

Array = NDArray[np.float64]
_WORDS = {"position": "3f", "normal": "3f", "uv": "2f", "colour": "4f"}


@dataclass(eq=False)
class SceneMesh:
    """A mesh, or a part of a room, on the graphics card; give it back with `SceneRenderer.release`."""

    surface: Surface | None
    """None for parts of a room, whose textures belong to their pool."""
    arrays: dict[str, Any]
    buffer: Any
    texture: Any | None

    def release(self) -> None:
        """Frees the card's memory; its context has to be the current one."""
        for item in (*self.arrays.values(), self.buffer, self.texture if self.surface is not None else None):
            if item is not None:
                item.release()

    @property
    def cutoff(self) -> float:
        """Texels with less alpha than this are holes; 0: there are none."""
        return 0.0 if self.surface is None else self.surface.alpha_cutoff


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """One object where it lies."""

    mesh: SceneMesh
    pose: NDArray[np.float64]
    """(4, 4) world-from-object, metres."""
    material: Material
    label: int
    """Its value in the picture of labels, 1..254; 0 hides it among the background, as distractors are."""

    @property
    def points(self) -> NDArray[np.float64]:
        """Its vertices in the world (n, 3), metres."""
        assert self.mesh.surface is not None
        return np.asarray(self.mesh.surface.vertices @ self.pose[:3, :3].T + self.pose[:3, 3])


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneView:
    """What one camera sees."""

    rgb: NDArray[np.uint8]
    """(h, w, 3) sRGB, with smooth edges."""
    labels: NDArray[np.uint8]
    """(h, w) of what the pixel's middle shows; 0 for the room and unlabelled objects."""
    depth: NDArray[np.float32]
    """(h, w) metres along the optical axis."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StagedScene:
    """What `SceneRenderer.stage` prepares."""

    room: Room
    parts: list[tuple[SceneMesh, Material, Place]]
    objects: Sequence[Placed]
    skies: list[Any]
    """For each object a buffer of the sky's light on its corners."""
    views: LightViews


def make_texture(gl: Any, rgba: NDArray[np.uint8]) -> Any:
    """Puts a picture (H, W, 4) on the card, with its smaller copies; the first row is the top."""
    import moderngl

    limit = int(gl.info["GL_MAX_TEXTURE_SIZE"])
    if max(rgba.shape[:2]) > limit:
        factor = limit / max(rgba.shape[:2])
        rgba = np.asarray(cv2.resize(rgba, None, fx=factor, fy=factor), dtype=np.uint8)
    # OpenGL counts rows from the bottom.
    texture = gl.texture(rgba.shape[1::-1], 4, np.ascontiguousarray(rgba[::-1]).tobytes())
    texture.build_mipmaps()
    texture.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
    return texture


def layout_for(program: Any) -> tuple[str, ...]:
    """Returns the layout of a buffer of `Surface.corners`, as far as the program reads it."""
    words = [word if name in program else f"{4 * int(word[0])}x" for name, word in _WORDS.items()]
    return (" ".join(words), *(name for name in _WORDS if name in program))
