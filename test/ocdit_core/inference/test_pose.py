"""Poses of an object as its own templates show it: image, mask and camera of a view, depth of its points."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from test_segmenter import make_segmenter

from ocdit_core import ObjectLibrary
from ocdit_core.errors import ConfigError, ImageError
from ocdit_core.inference.depth import lift
from ocdit_core.inference.geometry import ObjectGeometry
from ocdit_core.inference.pose import fit, icp, overlap, placed_by_box, similarities, turn
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box


@pytest.fixture(scope="module")
def library(rendered_library):
    return ObjectLibrary(rendered_library)


@pytest.fixture(scope="module")
def mug(library):
    return library["mug"]


def scene(templates, view) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return image, mask, depth and camera matrix of a view; its pixel centres are whole numbers, as in images."""
    K = templates.K[view].copy()
    K[:2, 2] -= 0.5
    camera = templates.points @ templates.pose[view, :3, :3].T + templates.pose[view, :3, 3]
    column, row = np.rint((camera @ K.T)[:, :2] / camera[:, 2:]).astype(int).clip(2, 125).T
    depth = np.full(templates.mask[view].shape, np.inf, np.float32)
    for down, right in np.ndindex(5, 5):
        np.minimum.at(depth, (row + down - 2, column + right - 2), camera[:, 2].astype(np.float32))
    mask = templates.mask[view] & np.isfinite(depth)
    return templates.rgb[view], mask, np.where(mask, depth, 0).astype(np.float32), K


def degrees(one, other) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(one.T @ other) - 1) / 2, -1, 1))))


def result_of(mask, name="mug") -> Segmentation:
    instance = Instance(object_id=name, score=1.0, box=tight_box(mask), mask=mask)
    return Segmentation(instances=(instance,), image_size=mask.shape, target_ids=(name,))


@pytest.mark.parametrize("view", [0, 5])
def test_an_instance_is_turned_about_the_line_of_sight(mug, view):
    image, mask, _, K = scene(mug, view)
    turned = turn(image, mask, K)
    assert np.einsum("tij,tkj->tik", turned.rotations, turned.rotations) == pytest.approx(
        np.tile(np.eye(3), (12, 1, 1)), abs=1e-9
    )
    # The first crop is the view itself, the seventh stands on its head.
    assert (turned.masks[0].astype(bool) ^ mask).mean() < 0.03
    assert (turned.masks[6].astype(bool)[::-1, ::-1] ^ mask).mean() < 0.05
    assert np.abs(turned.rgb[0].astype(int) - image * mask[..., None]).mean() < 6
    assert all(0.85 < max(tight_box(one > 0)[2:]) / 128 <= 1 for one in turned.masks)


def test_similarities_are_highest_for_the_same_features_under_the_same_mask():
    features = np.random.default_rng(0).normal(size=(3, 8, 4, 4)).astype(np.float32)
    masks = np.zeros((3, 64, 64), np.uint8)
    masks[0, :32], masks[1, 16:], masks[2, :, :48] = 1, 1, 1
    found = similarities(features, masks, features[::-1], masks[::-1])
    assert found.shape == (3, 3)
    assert found.argmax(axis=1).tolist() == [2, 1, 0]
    assert found.max(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_icp_finds_a_small_displacement(library):
    box, rng = library["box"], np.random.default_rng(0)
    rotation, translation = box.pose[3, :3, :3], box.pose[3, :3, 3]
    observed = box.points[::7] @ rotation.T + translation
    observed += rng.normal(0, 0.0005, observed.shape)
    observed[::10] += rng.uniform(-0.1, 0.1, (len(observed[::10]), 3))  # outliers
    start = cv2.Rodrigues(np.radians([8.0, -6, 10]))[0] @ rotation
    found, moved, explained = icp(
        np.stack([start, rotation]), np.stack([translation + 0.01] * 2), observed, box.points, 0.004, 300, 2048, 30
    )
    for index in range(2):
        assert degrees(found[index], rotation) < 4
        assert moved[index] == pytest.approx(translation, abs=0.004)
        assert explained[index] > 0.85


def test_a_box_gives_the_distance(mug):
    for view in range(3):
        _, mask, _, K = scene(mug, view)
        rotation = mug.pose[view, :3, :3]
        [translation] = placed_by_box(rotation[None], mug.points, tight_box(mask), K)
        truth = mug.pose[view, :3, 3]
        assert translation == pytest.approx(truth, abs=0.08 * np.linalg.norm(truth))


def test_what_is_hidden_does_not_count_for_the_silhouette(mug):
    _, mask, depth, K = scene(mug, 2)
    seen = mug.points @ mug.pose[2, :3, :3].T + mug.pose[2, :3, 3]
    assert overlap(seen, mask, K, None) > 0.85
    half, hiding = mask.copy(), depth.copy()
    half[:, 64:] = False
    hiding[:, 64:] = depth[mask].min() / 2
    behind = np.where(half, depth, 9).astype(np.float32)
    assert overlap(seen, half, K, behind) < 0.7
    assert overlap(seen, half, K, hiding) > overlap(seen, half, K, behind) + 0.2


def test_the_pose_of_a_view_is_found_from_rotations_near_it(mug):
    geometry = ObjectGeometry(mug)
    _, mask, depth, K = scene(mug, 4)
    truth = mug.pose[4]
    starts = np.stack([cv2.Rodrigues(np.radians(turn))[0] @ truth[:3, :3] for turn in ([90.0, 0, 0], [10, 5, -10])])
    for measured, tolerance in ((depth, 0.006), (None, 0.03), (np.zeros_like(depth), 0.03)):
        pose = fit(starts, np.array([0.5, 0.5]), geometry, mask, K, measured)
        assert degrees(pose.rotation, truth[:3, :3]) < 20
        assert pose.translation == pytest.approx(truth[:3, 3], abs=tolerance)
        assert pose.fitness > 0.6
        low, high = mug.points.min(axis=0), mug.points.max(axis=0)
        assert pose.box.size == pytest.approx(high - low)
        assert pose.box.center == pytest.approx(pose.rotation @ ((low + high) / 2) + pose.translation)


def test_equal_poses_of_a_symmetric_object_are_one(mug):
    half, axis = np.diag([-1.0, -1, 1, 1]), np.array([[0, 0, 2.0], [0.1, 0, 0]])
    half[0, 3] = 0.2  # about the same axis
    symmetric = replace(mug, symmetries_discrete=half[None], symmetries_continuous=axis[None])
    geometry = ObjectGeometry(symmetric)
    assert len(geometry.symmetries) == 144
    assert geometry.symmetries[0] == pytest.approx(np.eye(4))
    rotation, translation = mug.pose[1, :3, :3], mug.pose[1, :3, 3]
    first = geometry.upright(rotation, translation)
    move = geometry.symmetries[100]
    second = geometry.upright(rotation @ move[:3, :3], rotation @ move[:3, 3] + translation)
    assert first[0] == pytest.approx(second[0], abs=1e-9)
    assert first[1] == pytest.approx(second[1], abs=1e-9)


def test_a_segmenter_estimates_poses_and_completes_boxes(library, mug):
    segmenter = make_segmenter(library)
    for view in (1, 6):
        image, mask, depth, K = scene(mug, view)
        result = result_of(mask)
        [pose] = segmenter.poses(image, result, K, depth=depth)
        assert pose.translation == pytest.approx(mug.pose[view, :3, 3], abs=0.01)
        [item] = lift(result, depth, K, [pose])
        assert item.pose is pose
        assert item.box.size == pytest.approx(np.ptp(mug.points, axis=0))
        [surface] = lift(result, depth, K, [replace(pose, fitness=0.0)])
        assert surface.box.size.min() < item.box.size.min()
        [coarse] = segmenter.poses(image, result, K)
        assert np.linalg.norm(coarse.translation - mug.pose[view, :3, 3]) < 0.3 * mug.pose[view, 2, 3]
    assert segmenter.poses(image, replace(result, instances=()), K) == []
    for wrong, size, message in ((image[1:], mask, "the segmentation"), (image, mask[1:], "the segmentation")):
        with pytest.raises(ImageError, match=message):
            segmenter.poses(wrong, result_of(size), K)
    with pytest.raises(ImageError, match="camera_matrix must be"):
        segmenter.poses(image, result, None)
    with pytest.raises(ConfigError, match="objects: hammer of the segmentation are not among them"):
        segmenter.poses(image, result_of(mask, "hammer"), K)


def test_objects_from_photographs_have_no_pose(library, mug):
    segmenter = make_segmenter(library)
    objects = segmenter.objects
    photographs = ObjectGeometry(replace(mug, points=mug.points[:0], diameter=float("nan"), pose=mug.pose * np.nan))
    unknown = replace(objects, geometry=tuple(photographs for _ in objects.geometry))
    image, mask, depth, K = scene(mug, 0)
    assert segmenter.poses(image, result_of(mask), K, depth=depth, objects=unknown) == [None]
    assert torch.is_grad_enabled()
