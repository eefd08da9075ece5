"""The node as it is started by a user, around the real segmenter with untrained weights."""

import os
import signal
import time

import cv2
import numpy as np
import pytest
from builders import make_library, make_untrained_model
from harness import Client, NodeProcess
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.inference.settings import InferenceSettings
from ocdit_interfaces.srv import Segment
from ocdit_ros import topics


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    return {"library": make_library(folder / "library"), "model": make_untrained_model(folder / "model")}


@pytest.fixture(scope="module")
def client(assets):
    parameters = {**assets, "device": "cpu", "autostart": True, "score_threshold": 0.0}
    process = NodeProcess("-m", "ocdit_ros.segmentation_node", parameters=parameters)
    client = Client(process)
    client.wait_for_camera()
    yield client
    client.close()
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output


def test_a_frame_goes_through(client):
    image = client.make_image("real", (480, 640), 120)
    array = client.segment_one(image)
    client.wait_for(lambda: any(message.header == image.header for message in client.instances))
    instances = next(message for message in client.instances if message.header == image.header)
    labels = np.frombuffer(instances.data, np.uint16).reshape(480, 640)
    assert set(np.unique(labels)) - {0} <= {int(detection.id) for detection in array.detections}
    for detection in array.detections:
        assert detection.results[0].hypothesis.class_id in ("box", "can", "mug")
        assert 0 <= detection.results[0].hypothesis.score <= 1


def test_poses_and_boxes_of_the_real_segmenter(client):
    assert client.set_parameter("estimate_poses", True).successful
    image = client.make_image("posed", (480, 640), 120)
    depth = Image(header=image.header, height=480, width=640, encoding="16UC1", step=1280)
    depth.data = np.full((480, 640), 700, np.uint16).tobytes()
    info = CameraInfo(header=image.header, height=480, width=640, k=[600.0, 0, 319.5, 0, 600, 239.5, 0, 0, 1])
    reply, _ = client.call("segment", Segment.Request(image=image, depth=depth, camera_info=info), timeout=120)
    assert client.set_parameter("estimate_poses", False).successful
    assert reply.success, reply.message
    assert reply.detections.detections, "the untrained model finds something at a threshold of 0"
    found = {detection.id: detection for detection in reply.detections_3d.detections}
    assert found
    assert found.keys() <= {detection.id for detection in reply.detections.detections}
    for detection in found.values():
        turn, place = detection.results[0].pose.pose.orientation, detection.results[0].pose.pose.position
        assert np.linalg.norm([turn.x, turn.y, turn.z, turn.w]) == pytest.approx(1)
        assert place.z == pytest.approx(0.7, abs=0.2)
        # A pose, not the box's centre, which lies on the plane.
        assert detection.bbox.size.x > 0


def test_services_answer_under_load(client):
    names = ["box", "can", "mug"]
    rng = np.random.default_rng(0)
    replies = []
    start = time.perf_counter()
    for frame in range(40):
        time.sleep(max(0.0, start + frame / 10 - time.perf_counter()))
        image = client.make_image(f"loaded {frame}", (480, 640), frame)
        client.camera.publish(image)
        if frame % 4 == 2:
            chosen = [str(name) for name in rng.permutation(names)[: rng.integers(1, 4)]]
            reply, _ = client.set_targets(*chosen)
            assert reply.success, reply.message
            replies.append(client.call("list_objects")[1])
    client.wait_for(lambda: client.of(image.header), what="the last frame")
    array = client.of(image.header)[0]
    assert {detection.results[0].hypothesis.class_id for detection in array.detections} <= set(chosen)
    # Not the median: other work on the machine delays some.
    assert min(replies) < 0.1, f"replies took {np.round(replies, 3)} s"


def test_the_same_image_gives_the_same_result(client):
    assert client.set_targets("box", "can")[0].success
    image = client.make_image("again", (240, 320), 90)
    first, second = (client.call("segment", Segment.Request(image=image))[0] for _ in range(2))
    assert first.success, first.message
    assert len(first.detections.detections) == len(second.detections.detections)
    for a, b in zip(first.detections.detections, second.detections.detections, strict=True):
        assert a.bbox == b.bbox
        assert a.id != b.id


def test_the_node_says_what_the_segmenter_says(client, assets):
    segmenter = Segmenter.from_pretrained(
        assets["model"], device="cpu", settings=InferenceSettings(score_threshold=0.0)
    )
    segmenter.set_objects(ObjectLibrary(assets["library"]), ["can", "box"])
    pixels = np.random.default_rng(5).integers(0, 256, (100, 150, 3), np.uint8)
    expected = segmenter.segment(pixels)
    assert client.set_targets("can", "box")[0].success
    header = client.make_image("same").header
    reply, _ = client.call("segment", Segment.Request(image=topics.maker.from_rgb(pixels, header)))
    assert reply.success, reply.message
    found = [detection.results[0].hypothesis for detection in reply.detections.detections]
    assert [item.class_id for item in found] == [item.object_id for item in expected.instances]
    # Another number of threads rounds otherwise, and a pixel on the edge changes sides.
    assert [item.score for item in found] == pytest.approx([item.score for item in expected.instances], abs=1e-3)
    labels = np.frombuffer(reply.instances.data, np.uint16).reshape(100, 150)
    for detection, instance in zip(reply.detections.detections, expected.instances, strict=True):
        assert np.mean((labels == int(detection.id)) != instance.mask) < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3)])
def test_odd_sizes(client, shape):
    reply, _ = client.call("segment", Segment.Request(image=client.make_image("odd", shape)))
    assert reply.success, reply.message
    assert (reply.instances.height, reply.instances.width) == shape


def test_compressed_images(client):
    assert client.transition("deactivate")
    assert client.set_parameter("image_transport", "compressed").successful
    assert client.transition("activate")
    camera = client.node.create_publisher(CompressedImage, "/image/compressed", 5)
    data = cv2.imencode(".jpg", np.full((96, 128, 3), 70, np.uint8))[1].tobytes()
    header = client.make_image("squeezed").header
    deadline = time.monotonic() + 60
    while not client.of(header):
        assert time.monotonic() < deadline, client.process.output
        camera.publish(CompressedImage(header=header, format="jpeg", data=data))
        time.sleep(0.2)
    assert client.transition("deactivate")
    assert client.set_parameter("image_transport", "raw").successful
    assert client.transition("activate")


def start(**parameters):
    """Start a second node, on a domain where it does not meet the first."""
    parameters = {"device": "cpu", "autostart": True, **parameters}
    elsewhere = {"ROS_DOMAIN_ID": str(int(os.environ["ROS_DOMAIN_ID"]) + 101)}
    return NodeProcess("-m", "ocdit_ros.segmentation_node", parameters=parameters, environment=elsewhere)


def test_sigterm_while_segmenting_ends_it_cleanly(assets):
    process = start(**assets)
    deadline = time.monotonic() + 60
    while "waiting for images" not in process.output:
        assert time.monotonic() < deadline, process.output
        assert process.alive(), process.output
        time.sleep(0.05)
    assert process.stop(signal.SIGTERM) == 0, process.output
    assert "Traceback" not in process.output


def test_a_failing_configure_is_one_line(assets):
    process = start(**{**assets, "model": "no-such-model"})
    deadline = time.monotonic() + 60
    while "configure failed" not in process.output:
        assert time.monotonic() < deadline, process.output
        assert process.alive(), process.output
        time.sleep(0.05)
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output
    # rclpy itself has a word to say where the end meets the transition.
    own = [line for line in process.lines if "rosout" not in line and "complete transition" not in line]
    assert len(own) == 1
