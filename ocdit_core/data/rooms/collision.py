"""What physics feels of a mesh: a few convex hulls of few points, close enough that nothing rests on thin air."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import MeshError

if TYPE_CHECKING:
    import trimesh

Points = NDArray[np.float64]

MAX_POINTS = 600  # of one hull: what the decimation of a finer one loses is a fraction of a millimetre
MAX_COMPONENTS = 24
SLABS = 4
THINNEST = 0.002  # metres: MuJoCo refuses hulls without volume, and thinner ones tunnel
_WORTH = 0.9  # cutting a body has to save a tenth of its hull's volume


def collision_hulls(mesh: trimesh.Trimesh) -> list[Points]:
    """Returns convex bodies that cover a mesh closely, as arrays (n, 3) of hull vertices in metres.

    Connected parts are hulled one by one, and a part that is far from convex is cut into slabs first: the hull of a
    whole lamp or chair would let its neighbours lean on thin air.

    Raises:
        MeshError: the mesh has no faces or vertices that are not finite.
    """
    faces = np.asarray(mesh.faces)
    if len(faces) == 0:
        raise MeshError("the mesh has no faces; a surface mesh is needed for physics")
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if not np.isfinite(vertices[faces]).all():
        raise MeshError("the mesh has vertices that are not finite numbers")
    parts = _components(vertices, faces)
    if len(parts) > MAX_COMPONENTS:
        parts = [faces]
    whole = [(hull, part) for part in parts for hull in [_Hull(vertices[np.unique(part)])]]
    whole.sort(key=lambda item: -item[0].volume)
    bodies: list[_Hull] = []
    for hull, part in whole:
        # Labels and linings lie inside what is there already.
        if any(other.holds(hull.points) for other in bodies):
            continue
        slabs = _slabs(vertices, part)
        cut = slabs and sum(slab.volume for slab in slabs) < _WORTH * hull.volume
        bodies += slabs if cut else [hull]
    return [_few(body.points) for body in bodies]


class _Hull:
    """The convex hull of points, thickened when they are flat."""

    def __init__(self, points: Points) -> None:
        from scipy.spatial import ConvexHull

        points = _thick(points)
        hull = ConvexHull(points)
        self.points: Points = points[hull.vertices]
        self.volume = float(hull.volume)
        self._planes = hull.equations

    def holds(self, points: Points) -> bool:
        """Whether no point is more than a millimetre outside."""
        return bool((points @ self._planes[:, :3].T + self._planes[:, 3]).max() < 1e-3)


def _thick(points: Points) -> Points:
    """The points, moved apart along their thinnest direction until they are THINNEST across."""
    centre = points.mean(axis=0)
    axes = np.linalg.svd(points[:: 1 + len(points) // 2000] - centre, full_matrices=False)[2]
    for axis in axes:
        along = (points - centre) @ axis
        if np.ptp(along) < THINNEST:
            middle = points - np.outer(along - (along.max() + along.min()) / 2, axis)
            points = np.concatenate([middle + THINNEST / 2 * axis, middle - THINNEST / 2 * axis])
    return points


def _components(vertices: Points, faces: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Faces of each connected part; points at one place are one point, as along texture seams."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    scale = max(float(np.ptp(vertices, axis=0).max()), 1e-9)
    _, place = np.unique(np.round(vertices / (scale * 1e-5)).astype(np.int64), axis=0, return_inverse=True)
    joined = place.reshape(-1)[faces]
    edges = np.concatenate([joined[:, :2], joined[:, 1:]])
    n = int(joined.max()) + 1
    graph = coo_matrix((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    part = label[joined[:, 0]]
    return [faces[part == value] for value in np.unique(part)]


def _slabs(vertices: Points, faces: NDArray[np.int64]) -> list[_Hull]:
    """Hulls of the slices across whichever axis leaves the least volume; none when a slice would be degenerate."""
    best: list[_Hull] = []
    least = np.inf
    edges = np.unique(np.sort(np.concatenate([faces[:, :2], faces[:, 1:], faces[:, ::2]]), axis=1), axis=0)
    points = vertices[np.unique(faces)]
    for axis in range(3):
        low, high = points[:, axis].min(), points[:, axis].max()
        if high - low < 4 * SLABS * THINNEST:
            continue
        cuts = np.linspace(low, high, SLABS + 1)[1:-1]
        rims = [_crossings(vertices, edges, axis, cut) for cut in cuts]
        slabs = []
        for index, (bottom, top) in enumerate(zip([low, *cuts], [*cuts, high], strict=True)):
            inside = points[(points[:, axis] >= bottom) & (points[:, axis] <= top)]
            near = [rims[i] for i in (index - 1, index) if 0 <= i < len(rims)]
            cloud = np.concatenate([inside, *near])
            if len(cloud) >= 4:
                slabs.append(_Hull(cloud))
        volume = sum(slab.volume for slab in slabs)
        if slabs and volume < least:
            best, least = slabs, volume
    return best


def _crossings(vertices: Points, edges: NDArray[np.int64], axis: int, at: float) -> Points:
    """Where the edges cross a plane (m, 3)."""
    a, b = vertices[edges[:, 0]], vertices[edges[:, 1]]
    crossing = (a[:, axis] < at) != (b[:, axis] < at)
    a, b = a[crossing], b[crossing]
    share = (at - a[:, axis]) / (b[:, axis] - a[:, axis])
    return a + share[:, None] * (b - a)


def _few(points: Points) -> Points:
    """At most MAX_POINTS of a hull's vertices: those farthest out in directions spread evenly over the sphere."""
    if len(points) <= MAX_POINTS:
        return points
    step = np.arange(MAX_POINTS) + 0.5
    polar, turn = np.arccos(1 - 2 * step / MAX_POINTS), np.pi * (1 + 5**0.5) * step
    directions = np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], axis=1)
    # Measured against each axis's own extent, or a thin plate would be left with the points of its rim only.
    extent = np.maximum(np.ptp(points, axis=0), 1e-9)
    return points[np.unique(np.argmax((points / extent) @ directions.T, axis=0))]
