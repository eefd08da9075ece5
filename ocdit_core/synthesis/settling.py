"""Let objects fall onto a table and come to rest (MuJoCo), as convex bodies close to their meshes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import DataError, MeshError

if TYPE_CHECKING:
    import trimesh

Array = NDArray[np.float64]
Points = Array

TIME_STEP, TIME_LIMIT = 0.004, 2.5
"""Seconds of the simulation; what still moves at the limit is removed."""
MAX_SPEED = 0.01
"""Metres a second at an object's rim; slower is at rest."""
MAX_DEPTH = 0.003
"""Metres; objects deeper in one another, or in the table, are removed."""
CROWDING = (0.6, 1.6)
"""Side of the area that objects fall into, relative to the side of the square that they would fill."""
MAX_POINTS = 600  # of one hull: what the decimation of a finer one loses is a fraction of a millimetre
MAX_COMPONENTS = 24
SLABS = 4
THINNEST = 0.002  # metres: MuJoCo refuses hulls without volume, and thinner ones tunnel
_WORTH = 0.9  # cutting a body has to save a tenth of its hull's volume
_ROUNDS = 6


def collision_hulls(mesh: trimesh.Trimesh) -> list[Points]:
    """Return convex bodies that cover a mesh closely, as arrays (n, 3) of hull vertices in metres.

    Connected parts are hulled one by one, and a part that is far from convex is cut into slabs first: the hull of a
    whole lamp or chair would support its neighbours in mid-air.

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
        """Return whether no point is more than a millimetre outside."""
        return bool((points @ self._planes[:, :3].T + self._planes[:, 3]).max() < 1e-3)


def _thick(points: Points) -> Points:
    """Return the points, moved apart along their thinnest direction until they are THINNEST across."""
    centre = points.mean(axis=0)
    axes = np.linalg.svd(points[:: 1 + len(points) // 2000] - centre, full_matrices=False)[2]
    for axis in axes:
        along = (points - centre) @ axis
        if np.ptp(along) < THINNEST:
            middle = points - np.outer(along - (along.max() + along.min()) / 2, axis)
            points = np.concatenate([middle + THINNEST / 2 * axis, middle - THINNEST / 2 * axis])
    return points


def _components(vertices: Points, faces: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the faces of each connected part; points at one place are one point, as along texture seams."""
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
    """Return the hulls of the slices across the axis that leaves the least volume; none if slices are degenerate."""
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
    """Return the points where the edges cross a plane (m, 3)."""
    a, b = vertices[edges[:, 0]], vertices[edges[:, 1]]
    crossing = (a[:, axis] < at) != (b[:, axis] < at)
    a, b = a[crossing], b[crossing]
    along = (at - a[:, axis]) / (b[:, axis] - a[:, axis])
    return a + along[:, None] * (b - a)


def _few(points: Points) -> Points:
    """Return at most MAX_POINTS of a hull's vertices: the farthest in directions spread evenly over the sphere."""
    if len(points) <= MAX_POINTS:
        return points
    step = np.arange(MAX_POINTS) + 0.5
    polar, turn = np.arccos(1 - 2 * step / MAX_POINTS), np.pi * (1 + 5**0.5) * step
    directions = np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], axis=1)
    # Measured against each axis's own extent, or a thin plate would be left with the points of its rim only.
    extent = np.maximum(np.ptp(points, axis=0), 1e-9)
    return points[np.unique(np.argmax((points / extent) @ directions.T, axis=0))]


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Objects at rest on the plane z = 0.

    Attributes:
        poses: (n, 4, 4) table-from-object, metres; z points up, the origin is the middle of the table's top.
        kept: (n,) bool; False for objects that were removed: they fell off, sank in, or never came to rest.
        depth: deepest overlap of two kept objects' hulls, or of one with the table, metres.
    """

    poses: Array
    kept: NDArray[np.bool_]
    depth: float


def settle(objects: Sequence[Sequence[Array]], half_size: tuple[float, float], rng: np.random.Generator) -> Settled:
    """Drop objects inside invisible walls, remove the walls, and wait until nothing moves.

    Args:
        objects: convex bodies (m, 3) of each object in metres, as from `collision_hulls`.
        half_size: half the table's extent in x and y, metres.
        rng: draws positions and orientations of the falling objects.

    Raises:
        DataError: MuJoCo is missing, or refuses a body.
    """
    radii = np.array([max(float(np.linalg.norm(hull, axis=1).max()) for hull in hulls) for hulls in objects])
    filled = 2 * float(np.sqrt((radii**2).sum())) * rng.uniform(*CROWDING)
    area = np.minimum(np.full(2, max(filled / 2, radii.max())), 0.92 * np.asarray(half_size))
    return _Simulation(objects, radii, area, half_size).run(rng)


class _Simulation:
    """A table, walls around its middle, and the objects."""

    def __init__(
        self, objects: Sequence[Sequence[Array]], radii: Array, area: Array, half_size: tuple[float, float]
    ) -> None:
        try:
            import mujoco
        except ImportError as error:
            raise DataError("settling objects needs the package mujoco: pip install mujoco") from error
        self._mujoco: Any = mujoco
        self._hulls, self._radii, self._area = objects, radii, area
        self._half_size = np.asarray(half_size)
        try:
            self._model: Any = self._spec().compile()
        except ValueError as error:  # what MuJoCo's compiler raises for any body that it cannot use
            raise DataError(f"MuJoCo refuses a body: {' '.join(str(error).split())}") from error
        self._data: Any = mujoco.MjData(self._model)
        # Air as thick as syrup for turning, thin for falling: what rolls comes to rest, what falls falls.
        damping = self._model.dof_damping.reshape(-1, 6)
        damping[:, :3] = 0.3 * self._model.body_mass[1:, None]
        damping[:, 3:] = 6.0 * self._model.body_inertia[1:].max(axis=1, keepdims=True)
        self._owner = self._model.geom_bodyid - 1  # -1: the table and the walls
        self._kept = np.ones(len(objects), bool)

    def _spec(self) -> Any:
        mujoco = self._mujoco
        spec = mujoco.MjSpec()
        spec.option.timestep = TIME_STEP
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.iterations, spec.option.ls_iterations = 15, 8
        plane = mujoco.mjtGeom.mjGEOM_PLANE
        # What rolls is slowed, what stands does not slide; stiff contacts keep overlaps under a millimetre.
        feel = {"condim": 6, "friction": [0.7, 0.01, 0.004], "solref": [2.2 * TIME_STEP, 1.0]}
        spec.worldbody.add_geom(type=plane, size=[0, 0, 1], **feel)
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            inwards = {"pos": [x * self._area[0], y * self._area[1], 0], "zaxis": [-x, -y, 0]}
            spec.worldbody.add_geom(type=plane, size=[0, 0, 1], condim=1, **inwards)
        for index, hulls in enumerate(self._hulls):
            body = spec.worldbody.add_body()
            body.add_freejoint()
            for number, hull in enumerate(hulls):
                name = f"{index}_{number}"
                mesh = spec.add_mesh(name=name, uservert=hull.astype(np.float32).ravel())
                mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX
                body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, density=400, **feel)
        return spec

    def run(self, rng: np.random.Generator) -> Settled:
        self._place(rng)
        budget = round(TIME_LIMIT / TIME_STEP)
        self._until_still(budget)
        self._model.geom_contype[1:5] = self._model.geom_conaffinity[1:5] = 0
        for _ in range(_ROUNDS):
            # Without the walls, and without what had to go, others may fall: those rounds are short.
            self._until_still(budget // 3)
            if not self._remove_bad():
                break
        else:
            # What was taken out last may have borne any of the others.
            self._kept[:] = False
        depth = max((d for a, b, d in self._overlaps() if self._counts(a) and self._counts(b)), default=0.0)
        return Settled(poses=self._poses(), kept=self._kept.copy(), depth=depth)

    def _place(self, rng: np.random.Generator) -> None:
        """Place every object in the air, free of the others, as low as one of a few random places allows."""
        qpos = self._data.qpos.reshape(-1, 7)
        placed: list[tuple[Array, float, float]] = []
        for index in np.argsort(-self._radii):
            quaternion = rng.normal(size=4)
            if rng.random() < 0.35:  # as it was drawn: often standing
                quaternion[1:3] = 0
            quaternion /= np.linalg.norm(quaternion)
            turned = np.concatenate(self._hulls[index]) @ _rotation(quaternion).T
            low, high = turned[:, 2].min(), turned[:, 2].max()
            reach = float(np.linalg.norm(turned[:, :2], axis=1).max())
            best: tuple[float, Array] | None = None
            for _ in range(8):
                xy = rng.uniform(-1, 1, 2) * np.maximum(self._area - reach, 0)
                floor = max((top for at, r, top in placed if np.linalg.norm(at - xy) < r + reach), default=0.0)
                if best is None or floor < best[0]:
                    best = (floor, xy)
            assert best is not None
            z = best[0] - low + 0.005
            qpos[index] = [*best[1], z, *quaternion]
            placed.append((best[1], reach, z + high))
        self._mujoco.mj_forward(self._model, self._data)

    def _until_still(self, budget: int) -> None:
        """Step until nothing that is kept moves for a while, at most `budget` steps."""
        check, quiet = max(1, round(0.04 / TIME_STEP)), 0
        for _ in range(0, budget, check):
            self._mujoco.mj_step(self._model, self._data, nstep=check)
            quiet = quiet + 1 if not self._moving().any() else 0
            if quiet == 3:
                return

    def _moving(self) -> NDArray[np.bool_]:
        velocity = self._data.qvel.reshape(-1, 6)
        rim = np.linalg.norm(velocity[:, :3], axis=1) + self._radii * np.linalg.norm(velocity[:, 3:], axis=1)
        return self._kept & ~(rim < MAX_SPEED)

    def _remove_bad(self) -> bool:
        """Remove what moves, sank, or is not wholly above the table; return whether anything was removed."""
        bad = self._moving()
        for a, b, depth in self._overlaps():
            if depth > MAX_DEPTH and self._counts(a) and self._counts(b):
                bad[min(i for i in (a, b) if i >= 0)] = True
        for index, pose in enumerate(self._poses()):
            points = np.concatenate(self._hulls[index]) @ pose[:3, :3].T + pose[:3, 3]
            inside = (np.abs(points[:, :2]) < self._half_size).all()
            if not (inside and np.isfinite(points).all() and points[:, 2].min() > -MAX_DEPTH):
                bad[index] = True
        bad &= self._kept
        if bad.any():
            self._kept &= ~bad
            gone = np.flatnonzero(bad)
            touching = np.isin(self._owner, gone)
            self._model.geom_contype[touching] = self._model.geom_conaffinity[touching] = 0
            self._model.dof_damping.reshape(-1, 6)[gone] = 0
            self._data.qvel.reshape(-1, 6)[gone] = 0
            self._data.qpos.reshape(-1, 7)[gone, 2] = 100.0
            self._mujoco.mj_forward(self._model, self._data)
        return bool(bad.any())

    def _counts(self, body: int) -> bool:
        return body < 0 or bool(self._kept[body])

    def _overlaps(self) -> list[tuple[int, int, float]]:
        """Return pairs of touching bodies (-1: the table), and the depth of their overlap in metres."""
        n = self._data.ncon
        owner = self._owner[self._data.contact.geom[:n]]
        return [(int(a), int(b), float(-d)) for (a, b), d in zip(owner, self._data.contact.dist[:n], strict=True)]

    def _poses(self) -> Array:
        poses = np.tile(np.eye(4), (len(self._hulls), 1, 1))
        qpos = self._data.qpos.reshape(-1, 7)
        poses[:, :3, 3] = qpos[:, :3]
        poses[:, :3, :3] = [_rotation(q) for q in qpos[:, 3:]]
        return poses


def _rotation(quaternion: Array) -> Array:
    """Return the rotation matrix (3, 3) of a quaternion w, x, y, z of any length."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
