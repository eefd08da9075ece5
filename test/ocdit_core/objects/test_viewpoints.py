import numpy as np
import pytest

from ocdit_core.errors import ConfigError
from ocdit_core.objects.viewpoints import (
    TUDL_K,
    TUDL_SIZE,
    fitting_distance,
    icosphere_directions,
    look_at_poses,
    project,
    spread_indices,
)


@pytest.mark.parametrize("count", [12, 42, 162])
def test_icosphere_covers_the_sphere_evenly(count):
    directions = icosphere_directions(count)
    assert directions.shape == (count, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions.sum(axis=0), 0, atol=1e-9)
    cosines = directions @ directions.T - 3 * np.eye(count)
    nearest = np.degrees(np.arccos(cosines.max(axis=1)))
    assert nearest.min() > 0.8 * nearest.max()  # no two views coincide, none is far from the rest
    np.testing.assert_array_equal(directions[:12], icosphere_directions(12))


def test_other_counts_are_refused_with_the_choices():
    with pytest.raises(ConfigError, match=r"13.*12, 42 or 162"):
        icosphere_directions(13)


def test_poses_look_at_the_centre_upright():
    directions = np.concatenate([icosphere_directions(42), [[0, 0, 1], [0, 0, -1]]])
    centre = np.array([0.3, -0.2, 0.1])
    poses = look_at_poses(directions, 2.0, centre=centre)
    rotation = poses[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (44, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    np.testing.assert_allclose((poses @ [*centre, 1])[:, :3], np.tile([0, 0, 2], (44, 1)), atol=1e-12)
    camera = -np.einsum("nji,nj->ni", rotation, poses[:, :3, 3])
    np.testing.assert_allclose(camera, centre + 2 * directions, atol=1e-12)
    # The object's z axis points up in the image (OpenCV's y points down), except straight from above or below.
    assert (rotation[:42, 1, 2] < 0.1).all()


def test_roll_turns_the_image_clockwise():
    upright, turned = (look_at_poses([[0.0, -1.0, 0.0]], 1.0, roll)[0] for roll in (0.0, np.pi / 2))
    above = [[0.0, 0.0, 0.1]]
    u, v = project(above, upright, TUDL_K)[0] - TUDL_K[:2, 2]
    assert abs(u) < 1e-9
    assert v < -1  # above the middle
    u, v = project(above, turned, TUDL_K)[0] - TUDL_K[:2, 2]
    assert u > 1  # now at the right
    assert abs(v) < 1e-9


def test_a_sphere_at_the_fitting_distance_just_fits():
    radius = 0.17
    directions = np.random.default_rng(0).normal(size=(20_000, 3))
    points = radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    height, width = TUDL_SIZE
    pose = look_at_poses([[1.0, 0.0, 0.0]], fitting_distance(radius))[0]
    seen = project(points, pose, TUDL_K)
    assert (seen >= 0).all()
    assert (seen <= [width, height]).all()
    assert seen[:, 1].min() < 2  # the principal point is nearest to the upper edge


def test_spread_views_cover_better_than_the_first_ones():
    directions = icosphere_directions(42)
    chosen = spread_indices(directions, 6, first=5)
    assert chosen[0] == 5
    assert len(set(chosen)) == 6
    worst = np.degrees(np.arccos((directions @ directions[chosen].T).max(axis=1).min()))
    assert worst < 65
    with pytest.raises(ConfigError, match="43 of 42"):
        spread_indices(directions, 43)
