"""What a renderer of objects is, and the choice among those there are."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import ConfigError, RenderingError
from ocdit_core.objects.shading import Lighting, Surface

if TYPE_CHECKING:
    import trimesh

logger = logging.getLogger(__name__)

MAX_SIDE = 8192
"""Pixels, samples included, of a picture's side."""
RENDERERS = ("moderngl", "pyvista")
"""Renderer names: OpenGL on EGL; VTK, for machines without EGL."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Pictures of one object on black."""

    rgb: NDArray[np.uint8]
    """(n, h, w, 3) sRGB, multiplied by the coverage: exact black where the object is not."""
    alpha: NDArray[np.uint8]
    """(n, h, w) how much of the pixel the object covers, 0 to 255."""
    near: NDArray[np.bool_]
    """(n, h, w) pixels with a covered sample in them or right beside them: all that a solid object touches."""
    depth: NDArray[np.float32] | None
    """(n, h, w) metres along the optical axis, 0 beside the object; None unless asked for."""

    @property
    def rgba(self) -> NDArray[np.uint8]:
        """(n, h, w, 4) the colours and the coverage in one array."""
        return np.concatenate([self.rgb, self.alpha[..., None]], axis=3)


def reduce_samples(samples: NDArray[np.uint8], factor: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Averages factor x factor samples into a pixel.

    Args:
        samples: (h * factor, w * factor, 4) RGBA, colours multiplied by coverage.
        factor: samples a pixel in each direction.

    Returns:
        the picture (h, w, 4), and (h, w) which pixels are `Views.near`.
    """
    height, width = samples.shape[0] // factor, samples.shape[1] // factor
    picture = samples if factor == 1 else cv2.resize(samples, (width, height), interpolation=cv2.INTER_AREA)
    # From one sample before each pixel's first to one behind its last.
    reach = np.ones((factor + 2, factor + 2), np.uint8)
    near = cv2.dilate(cv2.extractChannel(samples, 3), reach, anchor=(1, 1))[::factor, ::factor] > 0
    return np.asarray(picture, dtype=np.uint8), np.asarray(near)


def camera_arrays(
    poses: ArrayLike, K: ArrayLike, size: tuple[int, int], supersample: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns poses (n, 4, 4) and intrinsics (n, 3, 3) for what `TemplateRenderer.render` takes.

    Raises:
        RenderingError: the picture is too large or has no pixel.
    """
    if not all(0 < int(side) * supersample <= MAX_SIDE for side in size):
        raise RenderingError(f"size {size} with supersample {supersample} is outside 1..{MAX_SIDE} pixels a side")
    all_poses = np.asarray(poses, dtype=np.float64).reshape(-1, 4, 4)
    return all_poses, np.broadcast_to(np.asarray(K, dtype=np.float64), (len(all_poses), 3, 3))


def clipping_range(surface: Surface, pose: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the distances in metres, along the optical axis, between which a surface seen from a pose (4, 4) lies."""
    z = float(pose[2, :3] @ surface.centre + pose[2, 3])
    near = max(z - 1.01 * surface.radius, 1e-3 * surface.radius)
    return near, max(z + 1.01 * surface.radius, 2 * near)


class UploadedMesh(Protocol):
    """A mesh as a renderer keeps it: quick to draw again."""

    surface: Surface

    def release(self) -> None:
        """Frees its memory; it must not be drawn any more."""


class TemplateRenderer(Protocol):
    """Draws objects; a context manager, used from one thread. The pictures' geometry is the same for all of them.

    Image coordinates are continuous: a point that projects to (u, v) lies in pixel (floor(u), floor(v)).
    """

    name: str
    """One of RENDERERS."""

    def upload(self, mesh: trimesh.Trimesh) -> UploadedMesh:
        """Prepares a mesh in metres for drawing; raises MeshError when it has no faces or is not finite."""

    def render(
        self,
        mesh: trimesh.Trimesh | Any,
        poses: ArrayLike,
        K: ArrayLike,
        size: tuple[int, int],
        lighting: Lighting | None = None,
        *,
        supersample: int = 2,
        depth: bool = False,
        edges: bool = False,
    ) -> Views:
        """Draws one mesh from several poses; the same arguments give the same pictures on one machine.

        Args:
            mesh: in metres; what `upload` returned saves time when it is drawn more than once.
            poses: (n, 4, 4) or (4, 4) camera-from-object, OpenCV axes.
            K: (3, 3) intrinsics in pixels, or (n, 3, 3) for one camera each.
            size: height and width in pixels.
            lighting: default: soft light that shows the geometry.
            supersample: samples a pixel in each direction; more makes smoother edges.
            depth: whether to return depth as well.
            edges: whether to draw the edges of the triangles as thin lines too, so that a sheet seen edge-on shows.

        Raises:
            RenderingError: the picture is too large, or the renderer was closed.
        """

    def close(self) -> None:
        """Frees everything; a second call does nothing."""

    def __enter__(self) -> TemplateRenderer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_renderer(name: str = "moderngl") -> TemplateRenderer:
    """Opens a renderer, to be used as a context manager.

    Args:
        name: one of RENDERERS; or "auto": moderngl, and where there is no EGL, PyVista, which is then logged.

    Raises:
        ConfigError: an unknown name.
        RenderingError: its package or a driver is missing; the message names what to install.
    """
    if name == "auto":
        try:
            return open_renderer("moderngl")
        except RenderingError as error:
            logger.warning("%s; drawing with PyVista instead", error)
            return open_renderer("pyvista")
    if name == "moderngl":
        from ocdit_core.objects.rendering import Renderer

        return Renderer()
    if name == "pyvista":
        from ocdit_core.objects.pyvista_renderer import PyVistaRenderer

        return PyVistaRenderer()
    raise ConfigError(f"renderer: {name!r} is unknown; use auto, {', '.join(RENDERERS)}")
