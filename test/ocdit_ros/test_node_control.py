"""What changes while the node is active: thresholds, region, rate, pauses, tracking, and the requests of ~/segment."""

import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import NODE, Client, NodeProcess
from sensor_msgs.msg import CameraInfo
from std_srvs.srv import SetBool, Trigger

from ocdit_interfaces.srv import Segment

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))
SECONDS = 0.05


@pytest.fixture(scope="module")
def client():
    parameters = {"library": "stand-in", "target_objects": "[box, can, mug]", "tracking": True, "autostart": True}
    process = NodeProcess(STAND_IN, parameters=parameters, environment={"STAND_IN_SECONDS": str(SECONDS)})
    client = Client(process)
    for name, kind in {"enable": SetBool, "reset_tracking": Trigger}.items():
        client.services[name] = client.node.create_client(kind, f"{NODE}/{name}")
    client.wait_for_camera()
    yield client
    client.close()
    assert process.stop() == 0, process.output


@pytest.fixture(autouse=True)
def defaults(client):
    """Each test begins with the parameters of the start."""
    yield
    for name, value in {
        "score_threshold": -1.0,
        "object_thresholds": [""],
        "object_limits": [""],
        "region_of_interest": [0, 0, 0, 0],
        "max_rate": 0.0,
        "stale_after": 5.0,
    }.items():
        assert client.set_parameter(name, value).successful
    assert client.call("enable", SetBool.Request(data=True))[0].success


def scores(array):
    return {
        detection.results[0].hypothesis.class_id: detection.results[0].hypothesis.score
        for detection in array.detections
    }


def test_thresholds_and_limits_of_single_objects(client):
    # The stand-in's scores are 0.9, 0.7 and 0.5, its recommended threshold is 0.5.
    assert set(scores(client.segment_one(client.make_image("all")))) == {"box", "can", "mug"}
    assert client.set_parameter("object_thresholds", ["box=0.95", "mug=0.2"]).successful
    assert client.set_parameter("score_threshold", 0.6).successful
    assert set(scores(client.segment_one(client.make_image("own thresholds")))) == {"can", "mug"}
    assert client.set_parameter("object_limits", ["can=0", "mug=1"]).successful
    assert set(scores(client.segment_one(client.make_image("limited")))) == {"mug"}


@pytest.mark.parametrize(
    ("name", "value", "needle"),
    [
        ("object_thresholds", ["spoon=0.5"], "object_thresholds: unknown object 'spoon'"),
        ("object_thresholds", ["box"], "'box' is not OBJECT=NUMBER with a number from 0 to 1, such as mug=1"),
        ("object_thresholds", ["box=1.5"], "'box=1.5' is not"),
        ("object_limits", ["box=1.5"], "'box=1.5' is not OBJECT=NUMBER with a whole number"),
        ("object_limits", ["box=nan"], "is not OBJECT=NUMBER"),
        ("region_of_interest", [0, 0, 10], "[0, 0, 10] is not x, y, width, height in pixels"),
        ("region_of_interest", [0, 0, 10, 0], "is not x, y, width, height"),
        ("region_of_interest", [-1, 0, 10, 10], "is not x, y, width, height"),
        ("max_rate", -1.0, "out of range"),
    ],
)
def test_bad_values_are_refused_with_the_reason(client, name, value, needle):
    before = client.get_parameter(name)
    result = client.set_parameter(name, value)
    assert not result.successful
    assert needle in result.reason
    assert client.get_parameter(name) == before


def test_a_region_of_interest_is_segmented_alone(client):
    assert client.set_parameter("region_of_interest", [20, 30, 26, 100]).successful
    image = client.make_image("part")
    array = client.segment_one(image)
    # The stand-in finds box and can in rows 2 to 9, columns 2 to 11 and 14 to 23 of what it is given: 26 x 18 pixels.
    boxes = {d.results[0].hypothesis.class_id: d.bbox for d in array.detections}
    assert set(boxes) == {"box", "can"}
    assert (boxes["box"].center.position.x, boxes["box"].center.position.y) == (20 + 6.5, 30 + 5.5)
    client.wait_for(lambda: any(message.header == image.header for message in client.instances))
    message = next(message for message in client.instances if message.header == image.header)
    labels = np.frombuffer(message.data, np.uint16).reshape(48, 64)
    assert labels[:30].max() == labels[:, :20].max() == 0
    assert (labels[32:40, 22:32] == int(array.detections[0].id)).all()
    # A single image is segmented whole.
    reply, _ = client.call("segment", Segment.Request(image=image))
    assert reply.detections.detections[0].bbox.center.position.x == 6.5


def test_a_region_outside_the_image_is_an_error_of_the_frame(client):
    assert client.set_parameter("region_of_interest", [64, 0, 10, 10]).successful
    client.diagnostics.clear()
    text = "region_of_interest [64, 0, 10, 10] (x, y, width, height) is outside the image of 64 x 48 pixels"
    client.wait_until(
        lambda: (
            client.camera.publish(client.make_image("outside"))
            or any(level == DiagnosticStatus.ERROR and text in message for level, message, _ in client.statuses())
        )
    )


def test_the_rate_is_limited(client):
    assert client.set_parameter("max_rate", 4.0).successful
    client.segment_one(client.make_image("found"))
    client.detections.clear()
    started = time.monotonic()
    while time.monotonic() - started < 2.0:
        client.camera.publish(client.make_image("fast"))
        time.sleep(0.02)
    assert 6 <= len(client.detections) <= 10


def test_a_pause_keeps_the_network_loaded(client):
    client.segment_one(client.make_image("before"))
    assert client.set_parameter("stale_after", 0.1).successful
    assert client.call("enable", SetBool.Request(data=False))[0].message == "paused; the network is loaded"
    client.wait_until(lambda: not client.camera.get_subscription_count(), what="the end of the subscription")
    reply, seconds = client.call("segment", Segment.Request(image=client.make_image("asked")))
    assert reply.success
    assert seconds < 2
    client.diagnostics.clear()
    client.wait_for(lambda: any(values.get("state") == "paused" for _, _, values in client.statuses()))
    assert not any("no image" in text for _, text, values in client.statuses() if values.get("state") == "paused")
    assert client.call("enable", SetBool.Request(data=True))[0].message == "enabled"
    client.wait_for_camera()
    client.segment_one(client.make_image("after"))


def test_a_reset_gives_new_ids(client):
    def ids(name):
        return [detection.id for detection in client.segment_one(client.make_image(name)).detections]

    first = ids("first")
    assert ids("second") == first
    reply, _ = client.call("reset_tracking")
    assert reply.success, reply.message
    assert not set(ids("third")) & set(first)


def test_a_request_with_targets_and_threshold_of_its_own(client):
    request = Segment.Request(image=client.make_image("asked"), object_ids=["drill", "mug"], score_threshold=0.8)
    request.overlay = True
    reply, _ = client.call("segment", request)
    assert reply.success, reply.message
    assert set(scores(reply.detections)) == {"drill"}
    assert (reply.overlay.encoding, reply.overlay.width, reply.overlay.header) == ("rgb8", 64, request.image.header)
    assert reply.camera_info.width == 0
    # The stream's targets are what they were.
    assert set(scores(client.segment_one(client.make_image("stream")))) == {"box", "can", "mug"}
    given = CameraInfo(header=request.image.header, width=64, height=48)
    reply, _ = client.call("segment", Segment.Request(image=request.image, camera_info=given))
    assert reply.camera_info == given
    assert reply.overlay.width == 0


@pytest.mark.parametrize(
    ("values", "needle"),
    [
        ({"object_ids": ["spoon"]}, "unknown object 'spoon'"),
        ({"score_threshold": 1.5}, "score_threshold 1.5 is not a score up to 1"),
        ({"score_threshold": float("nan")}, "score_threshold nan is not a score"),
        ({"timeout": -1.0}, "timeout -1 is not a number of seconds"),
        ({"timeout": float("inf")}, "timeout inf is not a number of seconds"),
        ({"timeout": 0.001}, "not segmented within 0.001 s"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(client, values, needle):
    reply, _ = client.call("segment", Segment.Request(image=client.make_image("asked"), **values))
    assert not reply.success
    assert needle in reply.message


def test_the_newest_calibration_of_the_image_s_frame_is_returned(client):
    publisher = client.node.create_publisher(CameraInfo, "/camera_info", 5)
    client.wait_until(publisher.get_subscription_count)
    image = client.make_image("eye")
    calibration = CameraInfo(header=image.header, width=64, height=48)

    def found():
        publisher.publish(calibration)
        return client.call("segment", Segment.Request(image=image))[0].camera_info == calibration

    client.wait_until(found, what="the calibration")
    assert client.call("segment", Segment.Request(image=client.make_image("other eye")))[0].camera_info.width == 0


def test_a_calibration_that_does_not_fit_is_a_warning(client):
    publisher = client.node.create_publisher(CameraInfo, "/camera_info", 5)
    client.wait_until(publisher.get_subscription_count)
    for size, needle in (
        ((1280, 720), "the calibration on /camera_info is for 1280 x 720 pixels, the image has 64 x 48"),
        ((64, 48), "the calibration on /camera_info is empty: the focal length is 0"),
    ):
        client.diagnostics.clear()

        def warned(size=size, needle=needle):
            image = client.make_image("mismatch")
            publisher.publish(CameraInfo(header=image.header, width=size[0], height=size[1]))
            client.camera.publish(image)
            return any(level == DiagnosticStatus.WARN and needle in text for level, text, _ in client.statuses())

        client.wait_until(warned, what=needle)
    image = client.make_image("fits")
    calibration = CameraInfo(header=image.header, width=128, height=96, binning_x=2, binning_y=2)
    calibration.k[0] = calibration.k[4] = 50.0
    client.diagnostics.clear()
    client.wait_until(
        lambda: (
            publisher.publish(calibration)
            or client.camera.publish(image)
            or any(
                values.get("frame id") == "fits" and level == DiagnosticStatus.OK
                for level, _, values in client.statuses()
            )
        )
    )


def test_diagnostics_tell_when_each_target_was_last_seen(client):
    assert client.set_parameter("object_thresholds", ["mug=1.0"]).successful
    assert client.transition("deactivate")
    assert client.transition("activate")
    client.wait_for_camera()
    client.segment_one(client.make_image("seen"))
    client.diagnostics.clear()
    client.wait_for(lambda: any("last seen s" in values for _, _, values in client.statuses()))
    text = next(values["last seen s"] for _, _, values in client.statuses() if "last seen s" in values)
    box, can, mug = text.split(", ")
    assert mug == "mug never"
    assert box.startswith("box ")
    assert 0 <= float(can.removeprefix("can ")) < 5


def test_services_of_an_inactive_node_say_so(client):
    assert client.transition("deactivate")
    try:
        assert client.call("enable", SetBool.Request(data=True))[0].message == "the node is inactive: activate it first"
        reply, _ = client.call("reset_tracking")
        assert (reply.success, reply.message) == (False, "the network is not loaded")
    finally:
        assert client.transition("activate")
        client.wait_for_camera()
