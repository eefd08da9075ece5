import numpy as np
import pytest

from ocdit_core.errors import ImageError
from ocdit_core.inference.depth import deproject, depth_in_metres, instance_points, instance_surface, lift, oriented_box
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import tight_box

K = np.array([[300.0, 0, 80], [0, 300, 60], [0, 0, 1]])
SIZE = (120, 160)


def table_with_plate() -> tuple[np.ndarray, np.ndarray]:
    """Return depth of a wall at 1 m and a plate of 0.1 x 0.08 m before it at 0.6 m, and the plate's mask."""
    depth, mask = np.full(SIZE, 1.0, np.float32), np.zeros(SIZE, bool)
    mask[40:80, 50:100] = True
    depth[mask] = 0.6
    return depth, mask


def test_depth_in_metres_of_both_encodings():
    millimetres = np.array([[0, 500], [1250, 65535]], np.uint16)
    assert depth_in_metres(millimetres) == pytest.approx(np.array([[0, 0.5], [1.25, 65.535]]))
    assert depth_in_metres(millimetres, scale=0.0001)[0, 1] == pytest.approx(0.05)
    metres = depth_in_metres(np.array([[np.nan, np.inf, -1, 2.5]], np.float32))
    assert metres.dtype == np.float32
    assert metres.tolist() == [[0, 0, 0, 2.5]]


@pytest.mark.parametrize(
    "wrong",
    [np.ones((2, 2)), np.ones((2, 2, 1), np.float32), np.ones(4, np.uint16), np.ones((2, 2), np.uint8), [[1.0]]],
)
def test_depth_of_another_type_or_shape_is_refused(wrong):
    with pytest.raises(ImageError, match="depth must be"):
        depth_in_metres(wrong)


def test_deproject_is_the_inverse_of_projection():
    depth = np.random.default_rng(0).uniform(0.3, 2, SIZE).astype(np.float32)
    depth[3, 4] = 0
    points = deproject(depth, K)
    assert points.dtype == np.float32
    assert np.isnan(points[3, 4]).all()
    seen = points @ K.T
    v, u = np.mgrid[: SIZE[0], : SIZE[1]]
    valid = depth > 0
    assert (seen[..., 0] / seen[..., 2])[valid] == pytest.approx(u[valid], abs=1e-3)
    assert (seen[..., 1] / seen[..., 2])[valid] == pytest.approx(v[valid], abs=1e-3)
    assert deproject(depth[10:20, 30:50], K, (30, 10)) == pytest.approx(points[10:20, 30:50])


@pytest.mark.parametrize("wrong", [np.eye(2), np.zeros((3, 3)), np.full((3, 3), np.nan), "camera", None, np.eye(4)[:3]])
def test_a_wrong_camera_matrix_is_refused(wrong):
    with pytest.raises(ImageError, match="camera_matrix must be"):
        deproject(np.ones(SIZE, np.float32), wrong)


def test_holes_mixed_pixels_specks_and_background_are_no_points_of_an_instance():
    depth, mask = table_with_plate()
    clean = instance_points(mask, deproject(depth, K))
    assert len(clean) == mask.sum()
    spoiled = depth.copy()
    spoiled[50:55, 60:70] = 0  # a hole
    spoiled[40:80, 99] = 0.8  # mixed pixels along the right edge
    spoiled[60, 80], spoiled[65, 60] = 0.3, 2.0  # specks
    wide = mask.copy()
    wide[35:85, 45:105] = True  # the mask reaches 5 pixels into the wall
    surface = instance_surface(wide, deproject(spoiled, K))
    kept = mask.copy()
    kept[50:55, 60:70] = kept[40:80, 99] = kept[60, 80] = kept[65, 60] = False
    assert (surface & ~mask).sum() == 0
    assert surface[kept].mean() > 0.99
    assert surface.sum() <= kept.sum()


def test_a_mask_of_another_size_or_without_depth():
    depth, mask = table_with_plate()
    points = deproject(depth, K)
    with pytest.raises(ImageError, match="do not belong"):
        instance_points(mask[1:], points)
    assert instance_points(np.zeros_like(mask), points).shape == (0, 3)
    assert instance_points(mask, np.full_like(points, np.nan)).shape == (0, 3)


def test_oriented_box_of_a_turned_box():
    rng = np.random.default_rng(1)
    size, center = np.array([0.2, 0.1, 0.05]), np.array([0.1, -0.2, 0.8])
    points = rng.uniform(-0.5, 0.5, (6000, 3))
    axis = rng.integers(0, 3, 6000)
    points[np.arange(6000), axis] = np.sign(points[np.arange(6000), axis]) / 2
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    box = oriented_box(points * size @ turn.T + center)
    assert box.center == pytest.approx(center, abs=0.004)
    assert box.size == pytest.approx(size, rel=0.1)
    assert np.abs(np.diag(box.rotation.T @ turn)) == pytest.approx(np.ones(3), abs=0.02)
    assert np.linalg.det(box.rotation) == pytest.approx(1)


def test_no_box_of_too_few_points_and_a_flat_one_of_a_plane():
    assert oriented_box(np.zeros((19, 3))) is None
    assert oriented_box(np.full((100, 3), np.nan)) is None
    plane = np.random.default_rng(0).uniform(0, 1, (500, 3)) * (0.3, 0.2, 0)
    assert oriented_box(plane).size == pytest.approx([0.3, 0.2, 0], abs=0.01)
    line = np.linspace(0, 1, 50)[:, None] * [1, 1, 1]
    assert oriented_box(line).size == pytest.approx([3**0.5, 0, 0], abs=0.05)


def test_lift_a_segmentation():
    depth, mask = table_with_plate()
    depth[40:60, 50:75] = 0
    empty = np.zeros(SIZE, bool)
    empty[5:8, 5:8] = True
    instances = [
        Instance(object_id=name, score=0.9, box=tight_box(m), mask=m) for name, m in (("a", mask), ("b", empty))
    ]
    segmentation = Segmentation(instances=tuple(instances), image_size=SIZE, target_ids=("a", "b"))
    plate, patch = lift(segmentation, (1000 * depth).round().astype(np.uint16), K)
    assert plate.instance is segmentation.instances[0]
    assert plate.box.valid_depth == pytest.approx(0.75)
    assert plate.box.center[2] == pytest.approx(0.6, abs=0.001)
    assert plate.box.size == pytest.approx([0.1, 0.08, 0], abs=0.003)
    assert len(plate.points) == plate.surface.sum() == 1500
    assert plate.points == pytest.approx(deproject(depth, K)[plate.surface], abs=1e-4)
    assert patch.box is None
    assert len(patch.points) == 9
    with pytest.raises(ImageError, match="register it"):
        lift(segmentation, depth[1:], K)
