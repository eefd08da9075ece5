import numpy as np
import pytest
import trimesh

from ocdit_core.errors import DataError
from ocdit_core.synthesis import settling
from ocdit_core.synthesis.procedural import procedural_object
from ocdit_core.synthesis.settling import collision_hulls, settle

pytest.importorskip("mujoco", reason="needs mujoco")


@pytest.fixture(scope="module")
def objects():
    meshes = [procedural_object(seed) for seed in range(8)]
    return meshes, [collision_hulls(mesh) for mesh in meshes]


def placed(mesh, pose):
    return mesh.vertices @ pose[:3, :3].T + pose[:3, 3]


def test_objects_lie_on_the_table_and_in_nothing(objects):
    meshes, hulls = objects
    settled = settle(hulls, (0.6, 0.5), np.random.default_rng(0))
    assert settled.kept.sum() >= 6
    assert settled.depth < 0.002
    lowest = []
    for mesh, pose, kept in zip(meshes, settled.poses, settled.kept, strict=True):
        if kept:
            points = placed(mesh, pose)
            assert points[:, 2].min() > -0.002
            assert (np.abs(points[:, :2]) < (0.6, 0.5)).all()
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)
            lowest.append(points[:, 2].min())
    # Most stand on the table itself, some may lie on others.
    assert np.mean(np.array(lowest) < 0.002) > 0.5


def test_the_same_seed_gives_the_same_poses(objects):
    _, hulls = objects
    first, again = (settle(hulls, (0.6, 0.5), np.random.default_rng(7)) for _ in range(2))
    other = settle(hulls, (0.6, 0.5), np.random.default_rng(8))
    assert first.poses.tobytes() == again.poses.tobytes()
    assert first.poses.tobytes() != other.poses.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_a_cube_comes_to_rest_on_a_face(seed):
    hulls = collision_hulls(trimesh.creation.box((0.1, 0.1, 0.1)))
    settled = settle([hulls], (0.5, 0.5), np.random.default_rng(seed))
    assert settled.kept.all()
    assert settled.poses[0, 2, 3] == pytest.approx(0.05, abs=1e-3)
    upright = np.abs(settled.poses[0, 2, :3])
    assert upright.max() == pytest.approx(1, abs=1e-3)


def test_balls_stop_rolling():
    ball = collision_hulls(trimesh.creation.icosphere(subdivisions=3, radius=0.04))
    settled = settle([ball] * 6, (0.5, 0.5), np.random.default_rng(1))
    assert settled.kept.sum() >= 5


def test_what_finds_no_place_on_the_table_is_removed():
    wide, small = (collision_hulls(trimesh.creation.box((side,) * 3)) for side in (0.5, 0.05))
    settled = settle([wide, small], (0.2, 0.2), np.random.default_rng(0))
    assert settled.kept.tolist() == [False, True]
    # The small one may have lain on the wide one, and has fallen since.
    assert settled.poses[1, 2, 3] == pytest.approx(0.025, abs=1e-3)


def test_no_time_to_settle_leaves_nothing_in_the_air(objects, monkeypatch):
    monkeypatch.setattr(settling, "TIME_LIMIT", 0.05)
    _, hulls = objects
    settled = settle(hulls, (0.6, 0.5), np.random.default_rng(0))
    assert not settled.kept.any()


def test_bodies_without_volume_are_refused():
    flat = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0.1, 0.1, 0]], float)
    with pytest.raises(DataError, match="MuJoCo refuses"):
        settle([[flat]], (0.5, 0.5), np.random.default_rng(0))
