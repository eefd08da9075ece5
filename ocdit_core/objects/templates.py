"""The views by which the model knows an object (paper A.1): an icosphere of cameras, each cropped to the object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ConfigError
from ocdit_core.objects.renderers import RENDERERS, TemplateRenderer, UploadedMesh
from ocdit_core.objects.shading import Lighting
from ocdit_core.objects.viewpoints import (
    TUDL_K,
    TUDL_SIZE,
    check_view_count,
    fitting_distance,
    project,
    template_poses,
)

if TYPE_CHECKING:
    import trimesh

TEMPLATE_SIZE = 128
CROP_MARGIN = 0.04
# Farther than the nearest distance that fits, so that the perspective is that of an object on a table.
DISTANCE_FACTOR = 1.5
RENDERING_VERSION = 2
"""Raised whenever the pictures change, so that libraries are rendered again."""


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Which views of an object are drawn, and by what."""

    views: int = 12
    """Directions, evenly spread: 12, 42 or 162."""
    in_plane: int = 1
    """Pictures a direction, turned about the optical axis by even steps over 360 degrees."""
    renderer: str = "moderngl"
    """"moderngl", "pyvista" or "mitsuba"."""
    samples: int = 16
    """Light paths a pixel, for Mitsuba only."""

    def __post_init__(self) -> None:
        check_view_count(self.views)
        if not 1 <= self.in_plane <= 36:
            raise ConfigError(f"in_plane: {self.in_plane} rotations a direction are outside 1..36")
        if self.renderer not in RENDERERS:
            raise ConfigError(f"renderer: {self.renderer!r} is unknown; use {', '.join(RENDERERS)}")
        if not 1 <= self.samples <= 4096:
            raise ConfigError(f"samples: {self.samples} light paths a pixel are outside 1..4096")

    def recipe(self) -> str:
        """A short text that is the same exactly when the same mesh gives the same pictures."""
        samples = f" samples={self.samples}" if self.renderer == "mitsuba" else ""
        return f"rendering {RENDERING_VERSION}: {self.renderer} views={self.views} in_plane={self.in_plane}{samples}"


@dataclass(frozen=True, kw_only=True)
class Templates:
    """V views of one object."""

    rgb: NDArray[np.uint8]
    """(V, size, size, 3) sRGB on black."""
    mask: NDArray[np.bool_]
    """(V, size, size) where the object covers more than half of the pixel."""
    alpha: NDArray[np.uint8]
    """(V, size, size) coverage, 0 to 255."""
    box: NDArray[np.float32]
    """(V, 4) x, y, width, height of the object in pixels of the full 640 x 480 view."""
    K: NDArray[np.float64]
    """(V, 3, 3) intrinsics of the crop."""
    pose: NDArray[np.float64]
    """(V, 4, 4) camera-from-object, OpenCV axes, metres."""


def render_templates(
    renderer: TemplateRenderer,
    mesh: trimesh.Trimesh | UploadedMesh,
    settings: ViewSettings | None = None,
    *,
    size: int = TEMPLATE_SIZE,
    margin: float = CROP_MARGIN,
    lighting: Lighting | None = None,
) -> Templates:
    """Draws an object in metres from icosphere directions, seen by TUD-L's camera at a distance that fits.

    Each crop is drawn as such, with the camera zoomed onto the object's box: no picture is enlarged afterwards.

    Args:
        renderer: an open renderer, the one that the settings name.
        mesh: in metres; it need not be centred. Or what the renderer's `upload` made of it.
        settings: which views; default: 12 directions, each once. All directions come first, then all of them turned.
        size: side of the square crop in pixels.
        margin: free border on each side, as a share of the crop.
        lighting: default: soft light that shows the geometry.

    Raises:
        MeshError: the mesh has no faces or is not finite.
        RenderingError: the size is out of range.
    """
    settings = settings or ViewSettings()
    given = hasattr(mesh, "surface")
    handle = cast(UploadedMesh, mesh) if given else renderer.upload(cast("trimesh.Trimesh", mesh))
    try:
        surface = handle.surface
        distance = DISTANCE_FACTOR * fitting_distance(surface.radius, TUDL_K, TUDL_SIZE)
        pose = template_poses(settings.views, settings.in_plane, distance, centre=surface.centre)
        box, K = zoom_cameras(surface.vertices, pose, TUDL_K, size=size, margin=margin)
        drawn = renderer.render(handle, pose, K, (size, size), lighting)
    finally:
        if not given:
            handle.release()
    return Templates(rgb=drawn.rgb, mask=drawn.alpha > 127, alpha=drawn.alpha, box=box, K=K, pose=pose)


def zoom_cameras(
    vertices: NDArray[np.float64], poses: NDArray[np.float64], K: NDArray[np.float64], *, size: int, margin: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Cameras that show the square around an object's box, `size` pixels wide, for each pose.

    Args:
        vertices: (n, 3) object points in metres, all of them in front of the camera.
        poses: (V, 4, 4) camera-from-object.
        K: (3, 3) intrinsics of the full view.
        size: side of the crop in pixels.
        margin: free border on each side, as a share of the crop, below one half.

    Returns:
        boxes (V, 4) as x, y, width, height in the full view, and intrinsics (V, 3, 3) of the crops.
    """
    boxes = np.empty((len(poses), 4), np.float32)
    zoomed = np.tile(np.eye(3), (len(poses), 1, 1))
    for index, pose in enumerate(poses):
        seen = project(vertices, pose, K)
        low, high = seen.min(axis=0), seen.max(axis=0)
        boxes[index] = *low, *(high - low)
        scale = size * (1 - 2 * margin) / max(float((high - low).max()), 1e-9)
        corner = (low + high) / 2 - size / (2 * scale)
        zoomed[index, :2] = K[:2] * scale
        zoomed[index, :2, 2] = (K[:2, 2] - corner) * scale
    return boxes, zoomed
