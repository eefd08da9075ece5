"""Depth in, 3D results out: boxes, points, frames; over DDS, around a stand-in segmenter."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from harness import NODE, Client, NodeProcess
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection3DArray

from ocdit_interfaces.srv import Segment
from ocdit_ros.messages import POINT
from ocdit_ros.space import Space

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))
HEIGHT, WIDTH = 48, 64
FX, FY, CX, CY = 60.0, 50.0, 31.5, 23.5
# The stand-in finds box and mug in rows 2 to 9, in columns 2 to 11 and 14 to 23.
PLACES = {"box": (6.5, 5.5, 0.8), "mug": (18.5, 5.5, 1.2)}
CENTRES = {name: ((u - CX) * z / FX, (v - CY) * z / FY, z) for name, (u, v, z) in PLACES.items()}


@pytest.fixture(scope="module")
def client():
    parameters = {
        "library": "stand-in",
        "target_objects": "[box, mug]",
        "tracking": True,
        "publish_tf": True,
        "target_frame": "base",
        "autostart": True,
    }
    process = NodeProcess(STAND_IN, parameters=parameters, environment={"STAND_IN_SECONDS": "0.02"})
    client = Client(process)
    client.depth = client.node.create_publisher(Image, "/depth", 5)
    client.info = client.node.create_publisher(CameraInfo, "/camera_info", 5)
    client.boxes = client.listen_to(Detection3DArray, f"{NODE}/detections_3d", 100)
    client.points = client.listen_to(PointCloud2, f"{NODE}/points", 100)
    client.transforms = client.listen_to(TFMessage, "/tf", 100)
    client.wait_for_camera()
    client.wait_until(lambda: client.depth.get_subscription_count() and client.info.get_subscription_count())
    yield client
    client.close()
    assert process.stop() == 0, process.output


def depth_image(encoding, header, offset=0.0):
    """Each object at a distance of its own, before a wall, with a hole in the middle of the box; padded rows."""
    metres = np.full((HEIGHT, WIDTH), 3.0)
    for u, v, z in PLACES.values():
        metres[int(v - 3.5) : int(v + 4.5), int(u - 4.5) : int(u + 5.5)] = z
    metres[4:8, 6:8] = 0
    image = (1000 * metres).astype(np.uint16) if encoding == "16UC1" else metres.astype(np.float32)
    image = np.pad(image, ((0, 0), (0, 6)))
    message = Image(header=header, height=HEIGHT, width=WIDTH, encoding=encoding, step=image.strides[0])
    message.data = image.tobytes()
    nanoseconds = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec + int(offset * 1e9)
    message.header = type(header)(frame_id=header.frame_id)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, 10**9)
    return message


def calibration(header, width=WIDTH):
    return CameraInfo(header=header, width=width, height=HEIGHT, k=[FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0])


def segment(client, frame, *, encoding="16UC1", offset=0.01, where=None):
    """Publish images with depth until 3D results of one of them arrive; returns them."""
    where = client.boxes if where is None else where
    sent = []

    def found():
        image = client.make_image(frame, (HEIGHT, WIDTH), value=77)
        sent.append(image.header)
        client.info.publish(calibration(image.header))
        client.depth.publish(depth_image(encoding, image.header, offset))
        client.camera.publish(image)
        return [message for message in list(where) if message.header in sent]

    client.wait_until(found, what=f"3D results of {frame}")
    return found()[0]


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_boxes_are_where_the_objects_are(client, encoding):
    array = segment(client, f"boxes {encoding}", encoding=encoding)
    assert [detection.results[0].hypothesis.class_id for detection in array.detections] == ["box", "mug"]
    for detection in array.detections:
        name = detection.results[0].hypothesis.class_id
        z = PLACES[name][2]
        center = detection.bbox.center.position
        assert (center.x, center.y, center.z) == pytest.approx(CENTRES[name], abs=0.01)
        sides = sorted((detection.bbox.size.x, detection.bbox.size.y, detection.bbox.size.z))
        assert sides == pytest.approx(sorted((0, 7 * z / FY, 9 * z / FX)), abs=0.02)
        pose = detection.results[0].pose.pose.position
        assert (pose.x, pose.y, pose.z) == pytest.approx(CENTRES[name], abs=0.02)
        assert detection.header == array.header
    client.wait_for(lambda: client.of(array.header))
    assert [d.id for d in client.of(array.header)[0].detections] == [d.id for d in array.detections]


def cloud_of(message):
    assert [(field.name, field.offset, field.datatype) for field in message.fields] == [
        ("x", 0, 7), ("y", 4, 7), ("z", 8, 7), ("rgb", 12, 7), ("instance_id", 16, 6)
    ]  # fmt: skip
    assert (message.point_step, message.row_step) == (20, 20 * message.width)
    return np.frombuffer(message.data, POINT).reshape(message.height, message.width)


def test_points_of_the_instances(client):
    message = segment(client, "points", where=client.points)
    cloud = cloud_of(message)
    boxes = next(array for array in client.boxes if array.header == message.header)
    assert (message.is_dense, len(cloud)) == (True, 1)
    assert set(cloud["rgb"].ravel()) == {77 << 16 | 77 << 8 | 77}
    for detection in boxes.detections:
        name = detection.results[0].hypothesis.class_id
        own = cloud[cloud["instance_id"] == int(detection.id)]
        assert np.median([own["x"], own["y"], own["z"]], axis=1) == pytest.approx(CENTRES[name], abs=0.03)
        assert len(own) <= (72 if name == "box" else 80)
        assert len(own) > 30
    assert set(cloud["instance_id"].ravel()) == {int(detection.id) for detection in boxes.detections}


def test_no_instances_are_no_points(client):
    assert client.set_parameter("score_threshold", 1.0).successful
    try:
        message = segment(client, "nothing", where=client.points)
    finally:
        assert client.set_parameter("score_threshold", -1.0).successful
    assert (message.width, len(message.data)) == (0, 0)


def test_organized_points_have_the_image_s_pixels(client):
    assert client.set_parameter("organized_points", True).successful
    try:
        messages = client.points
        client.wait_until(lambda: segment(client, "organized", where=messages) and messages[-1].height == HEIGHT)
        cloud = cloud_of(messages[-1])
    finally:
        assert client.set_parameter("organized_points", False).successful
    assert cloud.shape == (HEIGHT, WIDTH)
    assert not messages[-1].is_dense
    assert np.isnan(cloud["z"][4:8, 6:8]).all()
    assert (cloud["z"][20:], cloud["x"][40, 60]) == (pytest.approx(3.0), pytest.approx((60 - CX) * 3 / FX))
    assert set(cloud["instance_id"][12:].ravel()) == {0}
    assert len(set(cloud["instance_id"][2:10].ravel())) == 3


def test_frames_of_the_instances_are_published(client):
    array = segment(client, "frames")
    client.wait_for(lambda: any(m.transforms and m.transforms[0].header == array.header for m in client.transforms))
    message = next(m for m in client.transforms if m.transforms and m.transforms[0].header == array.header)
    assert [t.child_frame_id for t in message.transforms] == [f"object_{d.id}" for d in array.detections]
    for transform, detection in zip(message.transforms, array.detections, strict=True):
        pose = detection.results[0].pose.pose
        assert (transform.transform.translation.z, transform.transform.rotation) == (pose.position.z, pose.orientation)


def test_without_tf2_the_camera_s_frame_stays_and_that_is_said_once(client):
    for turn in range(2):
        assert segment(client, f"still the camera's {turn}").header.frame_id == f"still the camera's {turn}"
    text = "3D results stay in the camera's frame until they can be moved to base: tf2_ros cannot be imported"
    assert client.process.output.count(text) == 1


def test_with_tf2_results_move_into_the_target_frame(monkeypatch):
    """The calls of tf2_ros, which no wheel carries, are answered by the test; the geometry is ours."""
    known = TransformStamped()
    known.transform.translation.x = 1.0
    known.transform.rotation.z = known.transform.rotation.w = 0.5**0.5

    class Buffer:
        def lookup_transform(self, target, source, time):
            if source != "eye" or time.nanoseconds != 5 * 10**9:
                raise LookupError(f'"{source}" passed to lookupTransform does not exist.\n')
            assert target == "base"
            return known

    listeners = []
    fake = SimpleNamespace(Buffer=Buffer, TransformListener=lambda *arguments, **_: listeners.append(arguments))
    monkeypatch.setitem(sys.modules, "tf2_ros", fake)
    said = []
    node = SimpleNamespace(create_lifecycle_publisher=None, get_logger=lambda: SimpleNamespace(warning=said.append))
    space = Space(node, "base", broadcast=False)
    assert listeners[0][1] is node
    header = Header(frame_id="eye", stamp=Time(sec=5))
    moved, transform = space.place(header)
    assert (moved.frame_id, moved.stamp) == ("base", header.stamp)
    assert transform @ (1, 0, 0, 1) == pytest.approx((1, 1, 0, 1))
    for _ in range(2):
        lost = Header(frame_id="other", stamp=Time(sec=5))
        assert space.place(lost) == (lost, None)
    assert len(said) == 1
    assert 'moved to base: "other" passed to lookupTransform does not exist. (said once)' in said[0]
    assert space.place(moved) == (moved, None)
    space.close()


def test_depth_of_another_time_is_a_warning_and_2d_results_go_on(client):
    segment(client, "in time")
    client.boxes.clear()
    client.diagnostics.clear()

    def warned():
        image = client.make_image("too late", (HEIGHT, WIDTH))
        client.info.publish(calibration(image.header))
        client.depth.publish(depth_image("16UC1", image.header, offset=100.0))
        client.camera.publish(image)
        text = "no depth image within depth_slop 0.02 s of the image: the nearest stamp is "
        return any(level == DiagnosticStatus.WARN and text in message for level, message, _ in client.statuses())

    client.wait_until(warned)
    # The first ones came soon after depth that was in time.
    client.detections.clear()
    client.boxes.clear()
    client.wait_until(lambda: warned() and any(array.header.frame_id == "too late" for array in client.detections))
    assert not any(array.header.frame_id == "too late" for array in client.boxes)
    # A larger slop takes it.
    assert client.set_parameter("depth_slop", 1.0).successful
    segment(client, "within the slop", offset=0.5)
    assert client.set_parameter("depth_slop", 0.02).successful


@pytest.mark.parametrize(
    ("changes", "needle"),
    [
        ({"encoding": "mono8"}, "depth encoding 'mono8' is not supported; supported are 16UC1 (mm) and 32FC1 (m)"),
        ({"height": 20}, "depth has 64 x 20 pixels, the image 64 x 48: register it to the image"),
    ],
)
def test_depth_that_cannot_be_used_is_a_warning(client, changes, needle):
    client.diagnostics.clear()
    client.detections.clear()

    def warned():
        image = client.make_image("bad depth", (HEIGHT, WIDTH))
        depth = depth_image("16UC1", image.header)
        for name, value in changes.items():
            setattr(depth, name, value)
        client.info.publish(calibration(image.header))
        client.depth.publish(depth)
        client.camera.publish(image)
        return any(level == DiagnosticStatus.WARN and needle in text for level, text, _ in client.statuses())

    client.wait_until(warned)
    assert any(array.header.frame_id == "bad depth" and len(array.detections) == 2 for array in client.detections)


def test_the_valid_fraction_is_in_the_diagnostics(client):
    client.diagnostics.clear()
    segment(client, "valid")
    client.wait_until(
        lambda: any(values.get("valid depth") == "box 0.90, mug 1.00" for _, _, values in client.statuses())
    )


def test_a_request_with_depth_gets_boxes(client):
    image = client.make_image("asked", (HEIGHT, WIDTH))
    request = Segment.Request(
        image=image, depth=depth_image("32FC1", image.header), camera_info=calibration(image.header)
    )
    reply, _ = client.call("segment", request)
    assert reply.success, reply.message
    assert [d.id for d in reply.detections_3d.detections] == [d.id for d in reply.detections.detections]
    assert reply.detections_3d.detections[1].bbox.center.position.z == pytest.approx(1.2, abs=0.01)
    assert reply.camera_info == request.camera_info
    request.image.header.frame_id = "never calibrated"
    request.camera_info = CameraInfo()
    reply, _ = client.call("segment", request)
    assert not reply.success
    assert "depth needs a calibration" in reply.message
    request.depth.encoding = "rgb8"
    assert "depth encoding 'rgb8' is not supported" in client.call("segment", request)[0].message


def test_without_depth_nothing_is_different(client):
    assert client.transition("deactivate")
    assert client.transition("activate")
    client.wait_for_camera()
    client.boxes.clear()
    client.transforms.clear()
    array = client.segment_one(client.make_image("plain", (HEIGHT, WIDTH)))
    assert len(array.detections) == 2
    assert (client.boxes, client.transforms) == ([], [])
