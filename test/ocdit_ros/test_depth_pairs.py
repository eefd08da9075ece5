"""Depth beside colour, without ROS: pairs by time, reading, frames."""

from types import SimpleNamespace

import numpy as np
import pytest

from ocdit_core.errors import ImageError
from ocdit_core.inference.depth import Box3D, Instance3D, Pose
from ocdit_core.inference.results import Instance
from ocdit_ros import depth
from ocdit_ros.depth import HOLD, QUIET, DepthPairs, camera_matrix, moved, quaternion, read_depth, rotation_of

MS = 10**6


@pytest.fixture
def pairs(monkeypatch):
    """Pairs with a slop of 20 ms, what they have submitted and dropped, and a clock to be set."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(depth.time, "monotonic", lambda: clock.now)
    submitted, dropped = [], []
    return (
        DepthPairs(lambda *pair: submitted.append(pair), lambda: dropped.append(1), lambda: 0.02),
        submitted,
        dropped,
        clock,
    )


def test_without_depth_images_do_not_wait(pairs):
    pairs, submitted, dropped, _ = pairs
    for number in range(3):
        pairs.add_image(33 * number * MS, number)
    assert submitted == [(0, None), (1, None), (2, None)]
    assert (dropped, pairs.problem, pairs.in_use) == ([], "", False)


@pytest.mark.parametrize("first", ["depth", "image"])
def test_the_nearest_depth_is_taken_whichever_comes_first(pairs, first):
    pairs, submitted, dropped, _ = pairs
    pairs.add_depth(0, "d0")
    if first == "image":
        pairs.add_image(100 * MS, "image")
        assert submitted == []
        pairs.add_depth(70 * MS, "too early")
        assert submitted == []
    pairs.add_depth(95 * MS, "d1")
    pairs.add_depth(107 * MS, "d2")
    if first == "depth":
        pairs.add_image(100 * MS, "image")
    assert submitted == [("image", "d1")]
    assert dropped == []
    assert pairs.problem == ""


def test_a_newer_image_takes_the_place_of_a_waiting_one(pairs):
    pairs, submitted, dropped, clock = pairs
    pairs.add_depth(0, "d0")
    for number in range(1, 4):
        clock.now += 0.033
        pairs.add_image(33 * number * MS, number)
    assert (submitted, len(dropped)) == ([], 2)
    pairs.add_depth(99 * MS, "d3")
    assert submitted == [(3, "d3")]


def test_depth_that_never_fits_delays_images_but_does_not_stop_them(pairs):
    pairs, submitted, _, clock = pairs
    for number in range(1, 31):
        clock.now += 0.033
        pairs.add_depth((33 * number + 1000) * MS, number)
        pairs.add_image(33 * number * MS, number)
    assert len(submitted) >= 3
    assert all(image_depth is None for _, image_depth in submitted)
    assert "no depth image within depth_slop 0.02 s of the image: the nearest stamp is " in pairs.problem
    clock.now += HOLD
    before = len(submitted)
    pairs.expire()
    pairs.add_image(2000 * MS, "last")
    assert len(submitted) >= before
    clock.now += QUIET
    pairs.add_image(3000 * MS, "depth is gone")
    assert submitted[-1] == ("depth is gone", None)
    assert pairs.problem == ""


def test_an_image_alone_is_submitted_after_a_while(pairs):
    pairs, submitted, dropped, clock = pairs
    pairs.add_depth(0, "d0")
    pairs.add_image(500 * MS, "alone")
    pairs.expire()
    assert submitted == []
    clock.now += HOLD
    pairs.expire()
    pairs.expire()
    assert (submitted, dropped) == ([("alone", None)], [])


def message(values, encoding, padding=0, **fields):
    rows = np.pad(values, ((0, 0), (0, padding)))
    height, width = values.shape
    return SimpleNamespace(
        **{"height": height, "width": width, "encoding": encoding, "step": rows.strides[0], "is_bigendian": 0}
        | {"data": rows.tobytes()}
        | fields
    )


def calibration(width=6, height=4, **fields):
    roi = SimpleNamespace(width=0, height=0, x_offset=0, y_offset=0)
    k = [50.0, 0, 3, 0, 60, 2, 0, 0, 1]
    return SimpleNamespace(
        **{"width": width, "height": height, "roi": roi, "binning_x": 0, "binning_y": 0, "k": k} | fields
    )


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
@pytest.mark.parametrize("big", [0, 1])
def test_depth_is_read_in_metres(encoding, big):
    metres = np.linspace(0.5, 2.0, 24).reshape(4, 6).round(3)
    metres[1, 2] = 0
    values = (1000 * metres).round().astype("u2") if encoding == "16UC1" else metres.astype("f4")
    if encoding == "32FC1":
        values[1, 2] = np.nan
    values = values.astype(values.dtype.newbyteorder(">" if big else "<"))
    found = read_depth(message(values, encoding, padding=3, is_bigendian=big), calibration(), (4, 6))
    assert found.metres.dtype == np.float32
    assert found.metres == pytest.approx(metres, abs=1e-6)
    assert found.camera_matrix.tolist() == [[50, 0, 3], [0, 60, 2], [0, 0, 1]]
    part = found.part(2, 1, 3, 2)
    assert np.array_equal(part.metres, found.metres[1:3, 2:5])
    assert part.camera_matrix[:2, 2].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "info", "needle"),
    [
        ({"encoding": "mono8"}, calibration(), "depth encoding 'mono8' is not supported; supported are 16UC1"),
        ({"width": 5}, calibration(), "depth has 5 x 4 pixels, the image 6 x 4: register it to the image"),
        ({"data": b"x"}, calibration(), "the depth image holds 1 bytes"),
        ({"step": 4}, calibration(), "in rows of 4, too few for its size"),
        ({}, None, "depth needs a calibration, and none has come on camera_info"),
        ({}, calibration(width=12), "the calibration is for 12 x 4 pixels, the image has 6 x 4"),
        ({}, calibration(k=[0.0] * 9), "camera_matrix must be"),
    ],
)
def test_depth_that_cannot_be_used_is_refused(changes, info, needle):
    with pytest.raises(ImageError, match=needle):
        read_depth(SimpleNamespace(**(vars(message(np.ones((4, 6), "u2"), "16UC1")) | changes)), info, (4, 6))


def test_binning_and_region_change_the_camera_matrix():
    roi = SimpleNamespace(width=40, height=20, x_offset=10, y_offset=4)
    info = calibration(width=100, height=80, roi=roi, binning_x=2, binning_y=2, k=[50.0, 0, 30, 0, 60, 24, 0, 0, 1])
    assert depth.calibrated_size(info) == (20, 10)
    assert camera_matrix(info).tolist() == [[25, 0, 10], [0, 30, 10], [0, 0, 1]]


def test_rotations_and_quaternions_agree():
    rng = np.random.default_rng(0)
    for turn in [*rng.normal(size=(20, 4)), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]:
        unit = np.array(turn) / np.linalg.norm(turn)
        rotation = rotation_of(*unit)
        assert np.linalg.det(rotation) == pytest.approx(1)
        found = np.array(quaternion(rotation))
        assert abs(found @ unit) == pytest.approx(1)
    # A quarter turn about z takes x to y.
    assert rotation_of(0, 0, 0.5**0.5, 0.5**0.5) @ (1, 0, 0) == pytest.approx((0, 1, 0))


def test_an_instance_is_moved_with_its_box_and_pose():
    transform = np.eye(4)
    transform[:3, :3] = rotation_of(0, 0, 0.5**0.5, 0.5**0.5)
    transform[:3, 3] = 1, 2, 3
    box = Box3D(center=np.array([1.0, 0, 0]), rotation=np.eye(3), size=np.ones(3))
    pose = Pose(rotation=np.eye(3), translation=np.array([0.0, 1, 0]), fitness=1.0, box=box)
    instance = Instance(object_id="mug", score=1.0, box=(0, 0, 1, 1), mask=np.ones((1, 1), bool))
    old = Instance3D(instance=instance, surface=instance.mask, points=np.float32([[1, 0, 0]]), box=box, pose=pose)
    new = moved(old, transform)
    assert new.points == pytest.approx(np.array([[1, 3, 3]]), abs=1e-6)
    assert new.box.center == pytest.approx((1, 3, 3))
    assert new.box.rotation == pytest.approx(transform[:3, :3])
    assert new.pose.translation == pytest.approx((0, 2, 3))
    assert (
        moved(Instance3D(instance=instance, surface=instance.mask, points=old.points, box=None), transform).box is None
    )
