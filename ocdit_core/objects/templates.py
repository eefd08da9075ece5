"""The views by which the model knows an object (paper A.1): an icosphere of cameras, each cropped to the object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ocdit_core.objects.rendering import Lighting, MeshHandle, Renderer
from ocdit_core.objects.viewpoints import (
    TUDL_K,
    TUDL_SIZE,
    fitting_distance,
    icosphere_directions,
    look_at_poses,
    project,
)

if TYPE_CHECKING:
    import trimesh

TEMPLATE_SIZE = 128
CROP_MARGIN = 0.04
# Farther than the nearest distance that fits, so that the perspective is that of an object on a table.
DISTANCE_FACTOR = 1.5


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
    renderer: Renderer,
    mesh: trimesh.Trimesh | MeshHandle,
    *,
    views: int = 12,
    size: int = TEMPLATE_SIZE,
    margin: float = CROP_MARGIN,
    lighting: Lighting | None = None,
) -> Templates:
    """Draws an object in metres from `views` icosphere directions, seen by TUD-L's camera at a distance that fits.

    Each crop is drawn as such, with the camera zoomed onto the object's box: no picture is enlarged afterwards.

    Args:
        renderer: an open renderer.
        mesh: in metres; it need not be centred.
        views: 12, 42 or 162.
        size: side of the square crop in pixels.
        margin: free border on each side, as a share of the crop.
        lighting: default: soft light that shows the geometry.

    Raises:
        MeshError: the mesh has no faces or is not finite.
        RenderingError: the size is out of range.
    """
    handle = mesh if isinstance(mesh, MeshHandle) else renderer.upload(mesh)
    try:
        surface = handle.surface
        distance = DISTANCE_FACTOR * fitting_distance(surface.radius, TUDL_K, TUDL_SIZE)
        pose = look_at_poses(icosphere_directions(views), distance, centre=surface.centre)
        box, K = zoom_cameras(surface.vertices, pose, TUDL_K, size=size, margin=margin)
        drawn = renderer.render(handle, pose, K, (size, size), lighting)
    finally:
        if handle is not mesh:
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
