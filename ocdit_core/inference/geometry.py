"""Geometry of the target objects, and whether a candidate has the size of its object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property

import cv2
import numpy as np

from ocdit_core.inference.depth import deproject, main_depths
from ocdit_core.inference.postprocess import Candidate
from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.objects.viewpoints import icosphere_directions, look_at_poses

# Directions from which an object's visible points are known; cells across its diameter, of which each shows one point.
DIRECTIONS, CELLS = 42, 24
SYMMETRY_STEPS = 72  # of a rotation about an axis of symmetry
# Quantiles of the distances between visible points that describe their size and shape; points that are used.
QUANTILES, SIZE_POINTS = (0.25, 0.5, 0.75, 0.95), 100
# Standard deviations of their logarithms: larger than the object can be, and smaller, which may be for a hidden part:
# such a candidate keeps a fraction of its score.
LARGER, SMALLER, HIDDEN = 0.1, 0.25, 0.5


class ObjectGeometry:
    """Geometry of one object, in its own axes and metres.

    Args:
        templates: the object.
    """

    def __init__(self, templates: ObjectTemplates) -> None:
        self.points = templates.points
        self.diameter = templates.diameter
        self.view_masks, self.view_rotations = templates.mask, templates.pose[:, :3, :3]
        self._discrete, self._continuous = templates.symmetries_discrete, templates.symmetries_continuous

    def seen_along(self, rotation: np.ndarray) -> np.ndarray:
        """Return the indices of the points that a camera sees, for a rotation (3, 3) camera-from-object."""
        return self.visible[int((icosphere_directions(DIRECTIONS) @ rotation[2]).argmin())]

    def upright(self, rotation: np.ndarray, translation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pose of the smallest angle among those that the object's symmetries make equal."""
        moves = self.symmetries
        best = np.trace(rotation @ moves[:, :3, :3], axis1=1, axis2=2).argmax()
        return rotation @ moves[best, :3, :3], rotation @ moves[best, :3, 3] + translation

    @cached_property
    def symmetries(self) -> np.ndarray:
        """(S, 4, 4) transforms that leave the object looking alike, the identity first; rotations in steps."""
        moves = np.concatenate([np.eye(4)[None], self._discrete])
        for axis, point in self._continuous:
            turns = np.tile(np.eye(4), (SYMMETRY_STEPS, 1, 1))
            for move, angle in zip(turns, np.arange(SYMMETRY_STEPS) * 2 * np.pi / SYMMETRY_STEPS, strict=True):
                move[:3, :3] = cv2.Rodrigues(angle * axis / np.linalg.norm(axis))[0]
                move[:3, 3] = point - move[:3, :3] @ point
            moves = (moves[:, None] @ turns).reshape(-1, 4, 4)
        return moves

    @cached_property
    def visible(self) -> tuple[np.ndarray, ...]:
        """Indices of the points that are seen from each of `DIRECTIONS` directions, one for each cell of an image."""
        centre = (self.points.min(axis=0) + self.points.max(axis=0)) / 2
        poses = look_at_poses(icosphere_directions(DIRECTIONS), 2 * self.diameter, centre=centre)
        return tuple(visible_points(self.points @ pose[:3, :3].T, self.diameter / CELLS) for pose in poses)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(D, Q) logarithms of the size of the visible points, see `size_of`; (0, Q) without points."""
        seen = self.visible if len(self.points) else ()
        return np.array([size_of(self.points[indices]) for indices in seen]).reshape(-1, len(QUANTILES))

    def size_factor(self, points: np.ndarray) -> float:
        """Return a factor in [0, 1] of the score of a candidate: 1 if its visible points (N, 3) have the object's size.

        Without points of the object, only its diameter bounds the size.
        """
        if len(points) < 3 or math.isnan(self.diameter):
            return 1.0
        measured = size_of(points)
        if not len(self.sizes):
            excess = max(float(measured[-1]) - math.log(self.diameter), 0)
            return math.exp(-((excess / LARGER) ** 2) / 2)
        difference = measured - self.sizes
        larger = np.exp(-(np.maximum(difference / LARGER, 0) ** 2).mean(axis=1) / 2)
        smaller = np.exp(-(np.minimum(difference / SMALLER, 0) ** 2).mean(axis=1) / 2)
        return float((larger * (HIDDEN + (1 - HIDDEN) * smaller)).max())


def visible_points(points: np.ndarray, cell: float) -> np.ndarray:
    """Return the indices of the points (N, 3), seen along z, that are the nearest in their cell of x and y."""
    cells = np.floor(points[:, :2] / cell).astype(np.int64)
    cells -= cells.min(axis=0)
    order = np.argsort(points[:, 2], kind="stable")
    _, first = np.unique((cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1])[order], return_index=True)
    return order[first]


def size_of(points: np.ndarray) -> np.ndarray:
    """Return (Q,) logarithms of the `QUANTILES` of the distances in metres between points (N, 3)."""
    points = points[:: -(-len(points) // SIZE_POINTS)]
    distances = np.linalg.norm(points[:, None] - points, axis=2)[np.triu_indices(len(points), 1)]
    return np.log(np.maximum(np.quantile(distances, QUANTILES), 1e-4))


def size_checked(
    candidates: Sequence[Candidate],
    geometry: Sequence[ObjectGeometry],
    depth: np.ndarray,
    camera_matrix: np.ndarray,
    weight: float,
) -> list[Candidate]:
    """Return candidates whose scores are multiplied by the size factors of their objects.

    Args:
        candidates: candidates of all targets.
        geometry: geometry of each target.
        depth: (H, W) metres, see `depth_in_metres`.
        camera_matrix: (3, 3) intrinsics in pixels.
        weight: exponent of the factor.
    """
    checked = []
    for one in candidates:
        points = deproject(depth[one.part], camera_matrix, one.region[:2])
        own = points[main_depths(points, one.mask & np.isfinite(points[..., 2]))]
        factor = geometry[one.target].size_factor(own) ** weight
        checked.append(dataclasses.replace(one, score=one.score * factor))
    return checked
