"""Render and check the templates of an object (paper A.1): an icosphere of cameras, each cropped to the object."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.objects.archive import TEMPLATE_SIZE, ObjectTemplates
from ocdit_core.objects.renderer import Light, Lighting, MeshHandle, Renderer, Views
from ocdit_core.objects.surfaces import surface_points
from ocdit_core.objects.viewpoints import TUDL_K, fitting_distance, icosphere_directions, look_at_poses, project

if TYPE_CHECKING:
    import trimesh

CROP_MARGIN = 0.04  # free border on each side of a crop, as a fraction of its side
# Farther than the nearest distance that fits, so that the perspective is that of an object on a table.
DISTANCE_FACTOR = 1.5
# Black plastic is not quite black, or it could not be told from the background.
TEMPLATE_LIGHTING = Lighting(materials=True, darkest=0.03)
# For views in which nearly all surfaces turn away from the light, say into a hollow.
_FRONT = Light(direction=(0, 0, -1), colour=(0.4, 0.4, 0.4))
HEADLIGHT = Lighting(ambient=(0.6, 0.6, 0.6), lights=(_FRONT,), darkest=0.03)
UNLIT = Lighting(ambient=(1.0, 1.0, 1.0), sky=0.0, lights=())
# A view of a mean sRGB value below the first, of 255, has to reach this fraction of the object's own brightness.
DIM, TOO_DARK = 100.0, 0.7
# Of so many surface points this fraction has to project into the mask. With 2,048 others it is then above MIN_INSIDE:
# that would be six standard deviations lower.
CHECKED_POINTS, ENOUGH_INSIDE = 4096, 0.998
MIN_INSIDE = 0.99  # fraction of the surface points that project into the mask of each view
MIN_BRIGHTNESS = 20  # of 255: brightness of the brightest tenth of an object's pixels, black rubber included
MIN_COVERAGE = 0.004  # fraction of a view; a wire from corner to corner covers about twice that
MAX_DISPLACEMENT = 0.1  # between the centres of the view and of the object's box, as a fraction of the view's side
MIN_EXTENT = 0.5  # longer side of the object's box, as a fraction of the view's side
RENDERING_VERSION = 3  # raised whenever the images change, so that libraries are rendered again


class Templates(NamedTuple):
    """V views of one object; `ObjectTemplates` documents the fields.

    The mask holds all pixels that the object touches: the points of its surface project into it.
    """

    rgb: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    alpha: NDArray[np.uint8]  # (V, size, size) coverage
    box: NDArray[np.float32]
    K: NDArray[np.float64]
    pose: NDArray[np.float64]


def render_templates(
    renderer: Renderer, mesh: trimesh.Trimesh | MeshHandle, *, views: int = 12, size: int = TEMPLATE_SIZE
) -> Templates:
    """Draw an object in metres from icosphere directions, seen by TUD-L's camera at a distance that fits.

    The camera is zoomed onto the object's box for each crop: no image is enlarged afterwards. Views that soft light
    leaves too dark are lit from the camera.

    Args:
        renderer: an open renderer.
        mesh: in metres; it need not be centred. Or what the renderer's `upload` made of it.
        views: directions, evenly spread: 12, 42 or 162.
        size: side of the square crop in pixels.

    Raises:
        ConfigError: another number of views.
        MeshError: the mesh has no faces or is not finite.
        RenderingError: the size is out of range.
    """
    directions = icosphere_directions(views)
    with renderer.uploaded(mesh) as handle:
        surface = handle.surface
        distance = DISTANCE_FACTOR * fitting_distance(surface.radius)
        pose = look_at_poses(directions, distance, centre=surface.centre)
        box, K = zoom_cameras(surface.vertices, pose, TUDL_K, size=size, margin=CROP_MARGIN)
        drawn = renderer.render(handle, pose, K, (size, size), TEMPLATE_LIGHTING)
        rgba = drawn.rgba
        points = surface_points(surface, CHECKED_POINTS)
        mask, thin = _masks(points, drawn, pose, K)
        if thin.any():
            drawn = renderer.render(handle, pose[thin], K[thin], (size, size), TEMPLATE_LIGHTING, edges=True)
            rgba[thin], mask[thin] = drawn.rgba, drawn.near
            for index in np.flatnonzero(thin):
                # A lattice seen from its edge: its lines fall into holes, its surface does not.
                column, row = _pixels(points, pose[index], K[index], mask.shape[1:])
                mask[index, row, column] = True
        dark = _too_dark(renderer, handle, rgba, pose, K)
        for chosen, edges in ((dark & ~thin, False), (dark & thin, True)):
            if chosen.any():
                again = renderer.render(handle, pose[chosen], K[chosen], (size, size), HEADLIGHT, edges=edges)
                rgba[chosen] = again.rgba
    alpha = np.ascontiguousarray(rgba[..., 3])
    return Templates(rgb=_own_colours(rgba, mask), mask=mask, alpha=alpha, box=box, K=K, pose=pose)


def _masks(
    points: NDArray[np.float64], drawn: Views, poses: NDArray[np.float64], K: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the smallest masks (V, h, w) that hold the points, and the views (V,) where a thin part is missing."""
    mask = drawn.alpha > 0
    thin = np.zeros(len(mask), bool)
    for i, pose in enumerate(poses):
        if points_inside(mask[i], points, pose, K[i]) < ENOUGH_INSIDE:
            mask[i] = drawn.near[i]
            thin[i] = points_inside(mask[i], points, pose, K[i]) < ENOUGH_INSIDE
    return mask, thin


def points_inside(
    mask: NDArray[np.bool_], points: NDArray[np.floating], pose: NDArray[np.float64], K: NDArray[np.float64]
) -> float:
    """Return the fraction of object points (n, 3), metres, that a camera projects into its mask (h, w)."""
    column, row = _pixels(points, pose, K, mask.shape)
    return float(np.count_nonzero(mask[row, column]) / len(points))


def _pixels(
    points: NDArray[np.floating], pose: NDArray[np.float64], K: NDArray[np.float64], size: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return columns and rows (2, m) of the object points (n, 3) that a camera sees within an image of (h, w)."""
    camera = np.asarray(points, dtype=np.float64) @ pose[:3, :3].T + pose[:3, 3]
    ahead = camera[camera[:, 2] > 0] @ K.T
    at = np.floor(ahead[:, :2] / ahead[:, 2:])
    return at[((at >= 0) & (at < size[::-1])).all(axis=1)].astype(np.int64).T


def _too_dark(
    renderer: Renderer, handle: MeshHandle, rgba: NDArray[np.uint8], poses: NDArray[np.float64], K: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which views (V,) are dark though the object's colours, drawn without shading, are not."""
    dark = _brightness(rgba) < DIM
    if dark.any():
        # One sample a pixel is enough for a mean.
        colours = renderer.render(handle, poses[dark], K[dark], rgba.shape[1:3], UNLIT, supersample=1)
        dark[dark] = _brightness(rgba[dark]) < TOO_DARK * _brightness(colours.rgba)
    return dark


def _brightness(rgba: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean sRGB value (V,) of the object in each view, 0..255."""
    covered = np.maximum(rgba[..., 3].sum(axis=(1, 2), dtype=np.int64), 1)
    return 255 * rgba[..., :3].sum(axis=(1, 2, 3), dtype=np.int64) / (3 * covered)


def _own_colours(rgba: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the object's colours (V, h, w, 3) inside the mask, not mixed with the background; black outside.

    A dark rim is no colour of the object: it would spoil colour statistics, and cut-out photographs have none.
    """
    rgb = np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3]
    rim = (alpha > 0) & (alpha < 255)
    rgb[rim] = np.minimum(np.rint(rgb[rim] * (255 / alpha[rim].astype(np.float32))[:, None]), 255)
    for i in np.flatnonzero((mask & (alpha == 0)).any(axis=(1, 2))):
        # Touched between the samples: what its neighbours show.
        around = cv2.boxFilter(rgba[i], cv2.CV_32F, (3, 3), normalize=False)
        bare = mask[i] & (alpha[i] == 0)
        rgb[i][bare] = np.rint(255 * around[bare, :3] / np.maximum(around[bare, 3:], 1))
        alone = bare & (around[..., 3] == 0)
        covered = rgba[i][alpha[i] > 0]
        if alone.any() and len(covered):
            rgb[i][alone] = np.rint(255 * covered[:, :3].mean(axis=0) / covered[:, 3].mean())
    return rgb


def zoom_cameras(
    vertices: NDArray[np.float64], poses: NDArray[np.float64], K: NDArray[np.float64], *, size: int, margin: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return cameras that show the square around an object's box for each pose.

    Args:
        vertices: (n, 3) object points in metres, all of them in front of the camera.
        poses: (V, 4, 4) camera-from-object.
        K: (3, 3) intrinsics of the full view.
        size: side of the crop in pixels.
        margin: free border on each side, as a fraction of the crop, below one half.

    Returns:
        Boxes (V, 4) as x, y, width, height in the full view, and intrinsics (V, 3, 3) of the crops.
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


def check_views(templates: ObjectTemplates) -> list[str]:
    """Return what is wrong with an object's views, one line for each kind of problem; empty if all is well.

    Found are views that are empty, black, cropped (the object touches the border), off-centre or too small, and views
    whose mask does not lie where the stored camera sees the stored points (of photographs no camera is known).
    """
    mask = templates.mask
    area = np.asarray(mask.mean(axis=(1, 2)))
    shown = area > 0
    border = np.asarray(mask[:, [0, -1]].any(axis=(1, 2)) | mask[:, :, [0, -1]].any(axis=(1, 2)))
    low, high = _extents(mask)
    displaced = np.abs((low + high) / 2 - 0.5).max(axis=1) > MAX_DISPLACEMENT
    narrow = (high - low).max(axis=1) < MIN_EXTENT
    # A saturated blue counts as much as a grey: the largest channel.
    views = zip(templates.rgb.max(axis=3), mask, strict=True)
    dark = np.array([view[own].size > 0 and np.percentile(view[own], 90) < MIN_BRIGHTNESS for view, own in views])
    problems = [
        _line(~shown, "empty"),
        _line(shown & dark, f"black (brightness below {MIN_BRIGHTNESS})"),
        _line(shown & (area < MIN_COVERAGE), f"too small (covers under {MIN_COVERAGE:.1%})"),
        _line(border, "cropped (the object touches the border)"),
        _line(shown & ~border & displaced, "off-centre"),
        _line(shown & narrow, f"too small (under {MIN_EXTENT:.0%} of the view wide)"),
    ]
    if templates.origin == "cad":
        inside = inside_fractions(templates)
        wrong = shown & (inside < MIN_INSIDE)
        worst = f"{inside[wrong].min():.2%}" if wrong.any() else ""
        problems.append(_line(wrong, f"points outside the mask (only {worst} inside)"))
    return [problem for problem in problems if problem]


def inside_fractions(templates: ObjectTemplates) -> NDArray[np.float64]:
    """Return for each view the fraction of the surface points, (V,), that its camera projects onto its mask."""
    views = zip(templates.mask, templates.pose, templates.K, strict=True)
    return np.array([points_inside(mask, templates.points, pose, K) for mask, pose, K in views])


def _extents(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and upper ends (V, 2), as fractions of the view, of the box around each mask."""
    low, high = np.zeros((len(mask), 2)), np.ones((len(mask), 2))
    for axis in (1, 2):
        line = np.asarray(mask.any(axis=3 - axis))
        size = line.shape[1]
        low[:, axis - 1] = line.argmax(axis=1) / size
        high[:, axis - 1] = 1 - line[:, ::-1].argmax(axis=1) / size
    return low, high


def _line(views: NDArray[np.bool_], problem: str) -> str:
    """Return one line that names the views, counted from 1; empty if there are none."""
    numbers = [str(number + 1) for number in np.flatnonzero(views)]
    if not numbers:
        return ""
    named = ", ".join(numbers[:8]) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"view{'s' if len(numbers) > 1 else ''} {named} of {len(views)}: {problem}"
