import numpy as np
import pytest
import trimesh
from scipy.spatial import ConvexHull

from ocdit_core.errors import MeshError
from ocdit_core.synthesis.procedural import procedural_object
from ocdit_core.synthesis.settling import MAX_POINTS, THINNEST, collision_hulls


def volume(hulls):
    return sum(ConvexHull(hull).volume for hull in hulls)


def farthest_outside(mesh, hulls):
    """How far the vertex that is farthest from all the bodies sticks out of them."""
    planes = [ConvexHull(hull).equations for hull in hulls]
    outside = [(mesh.vertices @ p[:, :3].T + p[:, 3]).max(axis=1) for p in planes]
    return np.min(outside, axis=0).max()


def test_a_box_is_its_own_hull():
    (hull,) = collision_hulls(trimesh.creation.box((0.1, 0.2, 0.3)))
    assert sorted(map(tuple, np.round(hull, 6))) == [
        (x, y, z) for x in (-0.05, 0.05) for y in (-0.1, 0.1) for z in (-0.15, 0.15)
    ]


def test_parts_are_hulled_one_by_one():
    far = trimesh.creation.box((0.02, 0.02, 0.02)).apply_translation((0.2, 0, 0))
    both = trimesh.util.concatenate([trimesh.creation.box((0.02, 0.02, 0.02)), far])
    hulls = collision_hulls(both)
    assert len(hulls) == 2
    assert volume(hulls) == pytest.approx(2 * 0.02**3)


def test_a_bent_part_is_cut_so_that_nothing_rests_on_thin_air():
    hourglass = trimesh.creation.revolve(np.array([[0, 0], [0.1, 0], [0.02, 0.1], [0.1, 0.2], [0, 0.2]]))
    hulls = collision_hulls(hourglass)
    assert len(hulls) > 1
    assert volume(hulls) < 0.7 * ConvexHull(hourglass.vertices).volume
    assert farthest_outside(hourglass, hulls) < 1e-4


@pytest.mark.parametrize("seed", range(8))
def test_nothing_of_an_object_sticks_out_of_its_bodies(seed):
    mesh = procedural_object(seed)
    hulls = collision_hulls(mesh)
    assert farthest_outside(mesh, hulls) < 1.5e-3  # what lies inside another part may stick out a millimetre
    assert max(map(len, hulls)) <= MAX_POINTS


def test_a_finer_mesh_is_decimated_without_losing_its_size():
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.1)
    (hull,) = collision_hulls(ball)
    assert 100 < len(hull) <= MAX_POINTS
    assert ConvexHull(hull).volume > 0.98 * ball.volume


def test_a_sheet_gets_a_thickness():
    sheet = trimesh.Trimesh([[0, 0, 0], [0.2, 0, 0], [0.2, 0.1, 0], [0, 0.1, 0]], [[0, 1, 2], [0, 2, 3]])
    (hull,) = collision_hulls(sheet)
    assert np.ptp(hull[:, 2]) == pytest.approx(THINNEST)


def test_meshes_without_a_body_are_refused():
    with pytest.raises(MeshError, match="no faces"):
        collision_hulls(trimesh.Trimesh(np.zeros((3, 3))))
    broken = trimesh.creation.box((0.1, 0.1, 0.1))
    vertices = np.array(broken.vertices)
    vertices[0, 0] = np.nan
    with pytest.raises(MeshError, match="not finite"):
        collision_hulls(trimesh.Trimesh(vertices, broken.faces, process=False))
