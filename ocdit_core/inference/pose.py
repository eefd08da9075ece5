"""Approximate poses of instances. They initialise a pose refiner (FoundationPose, MegaPose), and complete 3D boxes.

1. Each instance, cut out by its mask, is turned about the line of sight. The template views and turns whose features
   agree best give rotations to start with.
2. Translations: the points that are visible in such a view lie around the measured ones; without depth, the object's
   box is that of the mask.
3. With depth, rounds of ICP move the stored points onto the measured ones. The pose that explains mask, depth and
   features best is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ocdit_core.errors import ConfigError
from ocdit_core.inference.depth import Box3D, Pose, deproject, instance_points
from ocdit_core.inference.geometry import ObjectGeometry
from ocdit_core.inference.network import Network
from ocdit_core.inference.results import Instance
from ocdit_core.inference.targets import EncodedObjects
from ocdit_core.masks import tight_box
from ocdit_core.objects.archive import TEMPLATE_SIZE
from ocdit_core.objects.templates import CROP_MARGIN

TURNS = 12  # about the line of sight
STARTS = 10  # rotations that are tried, of all views and turns
MIN_OBSERVED = 30  # measured points from which there is ICP
# Measured and stored points, and rounds, of ICP from all starts, and then from the best pose.
SEARCH, FINAL = (150, 512, 15), (400, 2048, 5)
# Measured points this near to the object are explained: metres, or a fraction of its diameter.
NEAR, NEAR_FRACTION = 0.003, 0.03
HIDING = 0.01  # what is nearer by this hides the object, metres
GRID = 24  # cells across a mask in which silhouettes are compared


class PoseStage:
    """Estimates poses with the backbone of a model.

    Args:
        network: the coarse model.
    """

    def __init__(self, network: Network) -> None:
        self._network = network

    def estimate(
        self,
        image: np.ndarray,
        instances: Sequence[Instance],
        objects: EncodedObjects,
        camera_matrix: np.ndarray,
        depth: np.ndarray | None,
    ) -> list[Pose | None]:
        """Return the pose of each instance; None for objects from photographs.

        Args:
            image: (H, W, 3) uint8 RGB.
            instances: instances with masks of the image's size.
            objects: target objects.
            camera_matrix: (3, 3) intrinsics in pixels.
            depth: (H, W) metres; None: none.

        Raises:
            ConfigError: an instance is none of the target objects.
        """
        if others := {instance.object_id for instance in instances} - set(objects.object_ids):
            raise ConfigError(f"objects: {', '.join(sorted(others))} of the segmentation are not among them")
        targets = [objects.object_ids.index(instance.object_id) for instance in instances]
        found: list[Pose | None] = [None] * len(instances)
        known = [number for number, target in enumerate(targets) if len(objects.geometry[target].points)]
        if not known:
            return found
        height, width = self._network.model.config.template_size
        turned = [turn(image, instances[number].mask, camera_matrix) for number in known]
        crops = [cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA) for one in turned for crop in one.rgb]
        features = self._network.features(np.stack(crops)).reshape(len(known), TURNS, -1, height // 16, width // 16)
        capacity = objects.runs[0].templates.features.shape[1]
        for number, own, one in zip(known, features, turned, strict=True):
            target = targets[number]
            geometry, views = objects.geometry[target], objects.runs[target // capacity].templates.features
            agreement = similarities(
                own, one.masks, views[0, target % capacity].float().cpu().numpy(), geometry.view_masks
            )
            best = np.argsort(-agreement, axis=None)[:STARTS]
            turns, view = np.unravel_index(best, agreement.shape)
            starts = one.rotations[turns].transpose(0, 2, 1) @ geometry.view_rotations[view]
            mask = instances[number].mask
            found[number] = fit(starts, agreement.flat[best], geometry, mask, camera_matrix, depth)
        return found


class Turned(NamedTuple):
    """An instance, cut out and turned about the line of sight: T crops that are framed as templates are.

    Attributes:
        rotations: (T, 3, 3) rotations from the camera to the one that sees each crop.
        rgb: (T, 128, 128, 3) uint8, on black.
        masks: (T, 128, 128) uint8, 0 or 1.
    """

    rotations: np.ndarray
    rgb: np.ndarray
    masks: np.ndarray


def turn(image: np.ndarray, mask: np.ndarray, camera_matrix: np.ndarray) -> Turned:
    """Return an instance, turned; its mask (H, W) is not empty."""
    outline = np.concatenate(cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0])
    rays = np.c_[outline[:, 0], np.ones(len(outline))] @ np.linalg.inv(camera_matrix).T
    forward = (rays.min(axis=0) + rays.max(axis=0)) / 2
    forward /= np.linalg.norm(forward)
    right = np.cross((0.0, 1.0, 0.0), forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pixels = np.dstack([image, mask.astype(np.uint8)]) * mask[..., None]
    rotations, crops = [], []
    for angle in np.arange(TURNS) * 2 * np.pi / TURNS:
        c, s = np.cos(angle), np.sin(angle)
        rotation = np.stack([c * right - s * down, s * right + c * down, forward])
        seen = rays @ rotation.T
        low, high = ((seen[:, :2] / seen[:, 2:]).min(axis=0), (seen[:, :2] / seen[:, 2:]).max(axis=0))
        scale = TEMPLATE_SIZE * (1 - 2 * CROP_MARGIN) / max(float((high - low).max()), 1e-9)
        zoom = np.diag([scale, scale, 1.0])
        zoom[:2, 2] = TEMPLATE_SIZE / 2 - scale * (low + high) / 2
        warp = zoom @ rotation @ np.linalg.inv(camera_matrix)
        rotations.append(rotation)
        crops.append(cv2.warpPerspective(pixels, warp, (TEMPLATE_SIZE, TEMPLATE_SIZE)))
    drawn = np.stack(crops)
    return Turned(np.stack(rotations), drawn[..., :3], drawn[..., 3])


def similarities(features: np.ndarray, masks: np.ndarray, views: np.ndarray, view_masks: np.ndarray) -> np.ndarray:
    """Return the similarities (T, V) of crops and views, at most 1: mean cosine over the cells of either mask.

    Args:
        features: (T, C, h, w) features of the crops.
        masks: (T, H, W) masks of the crops.
        views: (V, C, h, w) features of the views.
        view_masks: (V, H, W) masks of the views.
    """
    cells = (features.shape[3], features.shape[2])
    own, others = (
        np.stack([cv2.resize(mask.astype(np.float32), cells, interpolation=cv2.INTER_AREA) for mask in both])
        for both in (masks, view_masks)
    )
    units = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6) for part in (features, views)]
    cosines = np.einsum("tchw,vchw->tvhw", *units, optimize=True)
    union = np.maximum(own[:, None], others).sum(axis=(2, 3))
    return (np.minimum(own[:, None], others) * cosines).sum(axis=(2, 3)) / np.maximum(union, 1e-6)


def fit(
    rotations: np.ndarray,
    agreement: np.ndarray,
    geometry: ObjectGeometry,
    mask: np.ndarray,
    camera_matrix: np.ndarray,
    depth: np.ndarray | None,
) -> Pose:
    """Return the best pose that is found from several rotations.

    Args:
        rotations: (M, 3, 3) camera-from-object.
        agreement: (M,) similarities of the features.
        geometry: geometry of the object.
        mask: (H, W) bool, not empty.
        camera_matrix: (3, 3) intrinsics in pixels.
        depth: (H, W) metres; None: none.
    """
    x, y, width, height = tight_box(mask)
    left, top = max(x - 2, 0), max(y - 2, 0)
    part = np.s_[top : y + height + 2, left : x + width + 2]
    points, explained = geometry.points, np.ones(len(rotations))
    observed, reach = points[:0], max(NEAR, NEAR_FRACTION * geometry.diameter)
    if depth is not None:
        observed = instance_points(mask[part], deproject(depth[part], camera_matrix, (left, top)))
    if len(observed) < MIN_OBSERVED:
        translations = placed_by_box(rotations, thinned(points, SEARCH[1]), (x, y, width, height), camera_matrix)
    else:
        visible = np.stack([points[geometry.seen_along(rotation)].mean(axis=0) for rotation in rotations])
        translations = np.median(observed, axis=0) - np.einsum("mij,mj->mi", rotations, visible)
        rotations, translations, explained = icp(rotations, translations, observed, points, reach, *SEARCH)
    overlaps = [
        overlap(points @ rotation.T + translation, mask, camera_matrix, depth)
        for rotation, translation in zip(rotations, translations, strict=True)
    ]
    best = np.s_[np.argmax(explained * overlaps * np.maximum(agreement, 0)), None]
    rotations, translations, fitness = rotations[best], translations[best], float(explained[best][0])
    if len(observed) >= MIN_OBSERVED:
        rotations, translations, explained = icp(rotations, translations, observed, points, reach, *FINAL)
        fitness = float(explained[0])
    rotation, translation = geometry.upright(rotations[0], translations[0])
    fitness *= overlap(points @ rotation.T + translation, mask, camera_matrix, depth)
    low, high = points.min(axis=0), points.max(axis=0)
    box = Box3D(
        center=rotation @ ((low + high) / 2) + translation, rotation=rotation, size=(high - low).astype(np.float64)
    )
    return Pose(rotation=rotation, translation=translation, fitness=fitness, box=box)


def placed_by_box(
    rotations: np.ndarray, points: np.ndarray, box: tuple[int, int, int, int], camera_matrix: np.ndarray
) -> np.ndarray:
    """Return translations (M, 3) at which the box of an object's points (N, 3) is the given one."""
    x, y, width, height = box
    corners = np.array([[x - 0.5, y - 0.5, 1], [x + width - 0.5, y + height - 0.5, 1]])
    corners = (corners @ np.linalg.inv(camera_matrix).T)[:, :2]
    centre, size = corners.mean(axis=0), np.ptp(corners, axis=0)
    turned = points @ rotations.transpose(0, 2, 1)
    distances = np.ptp(turned[..., :2], axis=1).max(axis=1) / size.max() + np.ptp(turned[..., 2], axis=1)
    translations = np.c_[distances[:, None] * centre, distances]
    for _ in range(5):
        seen = turned + translations[:, None]
        seen = seen[..., :2] / np.maximum(seen[..., 2:], 1e-3)
        low, high = seen.min(axis=1), seen.max(axis=1)
        translations[:, 2] *= np.sqrt(((high - low) / size).prod(axis=1))
        translations[:, :2] += (centre - (low + high) / 2) * translations[:, 2:]
    return translations


def thinned(points: np.ndarray, count: int) -> np.ndarray:
    """Return about `count` of the points, evenly."""
    return points[:: -(-len(points) // count)]


def icp(
    rotations: np.ndarray,
    translations: np.ndarray,
    observed: np.ndarray,
    points: np.ndarray,
    reach: float,
    most_observed: int,
    most_points: int,
    rounds: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move poses so that measured points lie on the object: point to point, with Geman-McClure weights.

    Args:
        rotations: (M, 3, 3) camera-from-object.
        translations: (M, 3) metres.
        observed: (N, 3) measured points in the camera's frame.
        points: (P, 3) points of the object.
        reach: distance in metres below which a point is explained; the scale of the weights, at first times four.
        most_observed: measured points that are used.
        most_points: points of the object that are used.
        rounds: number of rounds.

    Returns:
        Rotations, translations, and the fraction (M,) of the measured points that are explained.
    """
    observed, points = thinned(observed, most_observed), thinned(points, most_points).astype(np.float32)
    squares = (points**2).sum(axis=1)
    for step in range(rounds + 1):
        own = (observed - translations[:, None]) @ rotations  # in the object's axes
        nearest = (squares - 2 * own.reshape(-1, 3).astype(np.float32) @ points.T).argmin(axis=1)
        matched = points[nearest].reshape(own.shape)
        distances = np.linalg.norm(own - matched, axis=2)
        if step == rounds:
            break
        weights = 1 / (1 + (distances / (reach * max(4 * (1 - step / (rounds - 1)), 1))) ** 2) ** 2
        weights /= weights.sum(axis=1, keepdims=True)
        here, there = (weights[..., None] * matched).sum(axis=1), weights @ observed
        # Kabsch: the rotation that maximises the trace of R^T sum w (observed - there) (matched - here)^T.
        products = (weights[..., None] * (observed - there[:, None])).transpose(0, 2, 1) @ (matched - here[:, None])
        u, _, v = np.linalg.svd(products)
        u[:, :, 2] *= np.linalg.det(u @ v)[:, None]
        rotations = u @ v
        translations = there - np.einsum("mij,mj->mi", rotations, here)
    return rotations, translations, (distances < reach).mean(axis=1)


def overlap(seen: np.ndarray, mask: np.ndarray, camera_matrix: np.ndarray, depth: np.ndarray | None) -> float:
    """Return the IoU of an object's silhouette with a mask; what something nearer hides does not count.

    Args:
        seen: (N, 3) points of the object in the camera's frame, metres.
        mask: (H, W) bool, not empty.
        camera_matrix: (3, 3) intrinsics in pixels.
        depth: (H, W) metres, or None.
    """
    x, y, width, height = tight_box(mask)
    projected = seen @ camera_matrix.T
    pixels = projected[:, :2] / np.maximum(projected[:, 2:], 1e-3)
    columns, rows = np.rint(np.clip(pixels, -1, mask.shape[::-1])).astype(np.int64).T
    shown = (columns >= 0) & (columns < mask.shape[1]) & (rows >= 0) & (rows < mask.shape[0])
    if depth is not None:
        there = rows[shown], columns[shown]
        shown[shown] = mask[there] | (depth[there] == 0) | (depth[there] > seen[shown, 2] - HIDING)
    # Cells of the mask's box, and as many on each side of it.
    cell = max(width, height) / GRID
    at = ((pixels[shown] - (x, y)) / cell + GRID).astype(np.int64)
    at = at[((at >= 0) & (at < 3 * GRID)).all(axis=1)]
    silhouette = np.zeros((3 * GRID, 3 * GRID), np.uint8)
    silhouette[at[:, 1], at[:, 0]] = 1
    closed = cv2.morphologyEx(silhouette, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool)
    to_cells = np.array([[1 / cell, 0, GRID - x / cell], [0, 1 / cell, GRID - y / cell]])
    own = cv2.warpAffine(mask.astype(np.uint8), to_cells, closed.shape, flags=cv2.INTER_NEAREST).astype(bool)
    return float((closed & own).sum() / max((closed | own).sum(), 1))
