import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import NODE, Client, NodeProcess
from sensor_msgs.msg import CameraInfo, Image

from ocdit_interfaces.srv import ListObjects, Segment, SetTargetObjects

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))


def names_of(array):
    return [detection.results[0].hypothesis.class_id for detection in array.detections]


@pytest.fixture(scope="module")
def client():
    process = NodeProcess(STAND_IN, parameters={"library": "stand-in"})
    client = Client(process)
    yield client
    client.close()
    assert process.stop() == 0, process.output


@pytest.fixture
def active(client):
    """The node in the state active, looking for box and mug above a score of 0.5."""
    if client.state() == "unconfigured":
        assert client.transition("configure"), client.process.output
    if client.state() == "inactive":
        assert client.transition("activate"), client.process.output
    assert client.set_targets("box", "mug")[0].success
    assert client.set_parameter("score_threshold", 0.5).successful
    client.wait_for_camera()
    return client


def test_the_states_mirror_one_another(client):
    assert client.state() == "unconfigured"
    reply, _ = client.set_targets("mug")
    assert not reply.success
    assert reply.message == "the node is unconfigured: configure it first"
    for _ in range(2):
        assert client.transition("configure")
        assert client.state() == "inactive"
        assert client.transition("activate")
        client.wait_for_camera()
        assert client.transition("deactivate")
        deadline = time.monotonic() + 10
        while client.camera.get_subscription_count():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert client.transition("cleanup")
        assert client.state() == "unconfigured"


def test_results_carry_the_image_s_header_and_agree(active):
    image = active.make_image("left eye")
    array = active.segment_one(image)
    assert names_of(array) == ["box", "mug"]
    assert array.header == image.header == array.detections[0].header
    active.wait_for(lambda: any(message.header == image.header for message in active.instances))
    instances = next(message for message in active.instances if message.header == image.header)
    labels = np.frombuffer(instances.data, np.uint16).reshape(48, 64)
    for detection in array.detections:
        rows, columns = np.nonzero(labels == int(detection.id))
        assert detection.bbox.size_x == columns.max() - columns.min() + 1
        assert detection.bbox.center.position.y == (rows.min() + rows.max()) / 2


def test_numbers_go_on_from_frame_to_frame(active):
    first = active.segment_one(active.make_image("a"))
    second = active.segment_one(active.make_image("b"))
    numbers = [int(detection.id) for array in (first, second) for detection in array.detections]
    assert numbers == sorted(set(numbers))


def test_unknown_targets_leave_the_old_ones_and_none_means_all(active):
    reply, _ = active.set_targets("can", "spoon")
    assert not reply.success
    assert (list(reply.unknown), list(reply.object_ids)) == (["spoon"], ["box", "mug"])
    assert "'spoon': the library holds box, can, drill, mug" in reply.message
    assert names_of(active.segment_one(active.make_image("after"))) == ["box", "mug"]
    reply, _ = active.set_targets()
    assert reply.success
    assert list(reply.object_ids) == ["box", "can", "drill", "mug"]


def test_bad_images_are_reported_and_the_node_goes_on(active):
    nan = np.full((4, 4, 3), np.nan, np.float32)
    bad = [
        Image(encoding="32FC3", width=4, height=4, step=48, data=nan.tobytes()),
        Image(encoding="nonsense", width=4, height=4, step=12, data=bytes(48)),
        Image(encoding="rgb8", width=4, height=4, step=1, data=bytes(48)),
        Image(encoding="rgb8", width=4, height=4, step=12, data=bytes(10)),
        Image(encoding="rgb8"),
    ]
    active.diagnostics.clear()
    for message in bad:
        needle = f"'{message.encoding}'" if message.encoding != "rgb8" else "rgb8"
        deadline = time.monotonic() + 60
        while not any(level == DiagnosticStatus.ERROR and needle in text for level, text, _ in active.statuses()):
            assert time.monotonic() < deadline, f"{needle} is not in /diagnostics"
            active.camera.publish(message)
            time.sleep(0.1)
    assert names_of(active.segment_one(active.make_image("after"))) == ["box", "mug"]


def test_the_threshold_changes_at_run_time_and_empty_results_are_published(active):
    assert active.set_parameter("score_threshold", 0.8).successful
    assert names_of(active.segment_one(active.make_image("strict"))) == ["box"]
    active.wait_for(lambda: abs(active.labels[-1].threshold - 0.8) < 1e-6)
    assert active.set_parameter("score_threshold", 1.0).successful
    assert names_of(active.segment_one(active.make_image("nothing"))) == []
    # What the stand-in recommends is 0.5.
    assert active.set_parameter("score_threshold", -1.0).successful
    assert names_of(active.segment_one(active.make_image("as recommended"))) == ["box", "mug"]
    active.wait_for(lambda: abs(active.labels[-1].threshold - 0.5) < 1e-6)


@pytest.mark.parametrize(
    ("name", "value", "needle"),
    [
        ("score_threshold", 1.5, "out of range"),
        ("score_threshold", "high", "type"),
        ("model", "other", "model cannot change while the node is active: deactivate and clean it up first"),
        ("image_transport", "raw", "image_transport cannot change while the node is active"),
        ("target_objects", ["spoon"], "unknown object 'spoon'"),
        ("mask_object", "spoon", "mask_object: unknown object 'spoon'"),
        ("autostart", True, "read-only"),
        ("image_reliability", "reliable", "image_reliability cannot change while the node is active"),
        ("cameras", ["left"], "cameras cannot change while the node is active"),
        ("max_age", -1.0, "out of range"),
    ],
)
def test_bad_parameters_are_refused_with_the_reason(active, name, value, needle):
    result = active.set_parameter(name, value)
    assert not result.successful
    assert needle in result.reason


def test_targets_by_parameter(active):
    assert active.set_parameter("target_objects", ["drill"]).successful
    assert names_of(active.segment_one(active.make_image("one"))) == ["drill"]
    assert active.set_parameter("target_objects", [""]).successful
    assert list(active.call("list_objects")[0].targets) == ["box", "can", "drill", "mug"]


def test_list_objects_and_the_latched_topics(active):
    reply, _ = active.call("list_objects")
    assert list(reply.object_ids) == ["box", "can", "drill", "mug"]
    assert (list(reply.targets), reply.library) == (["box", "mug"], "stand-in")
    active.wait_for(lambda: active.labels and active.infos)
    numbers = {entry.class_name: entry.class_id for entry in active.labels[-1].class_map}
    assert numbers == {"box": 7, "can": 2, "drill": 4, "mug": 9}
    version = active.infos[-1].database_version
    assert active.set_targets("can")[0].success
    active.wait_for(lambda: active.infos[-1].database_version > version)
    assert (active.infos[-1].method, active.infos[-1].database_location) == ("stand-in", "stand-in")


def test_every_call_of_a_burst_is_answered(active):
    calls = [("list_objects", ListObjects.Request())] * 50
    calls += [("set_target_objects", SetTargetObjects.Request(object_ids=names)) for names in (["can"], ["box"])] * 25
    futures = [active.services[name].call_async(request) for name, request in calls]
    active.wait_until(lambda: all(future.done() for future in futures), what="100 replies")
    replies = [future.result() for future in futures[50:]]
    assert replies[-1].success or any(reply.success for reply in replies)
    # A request that a later one overtook before its set was encoded is told so.
    assert all(reply.success or "superseded" in reply.message for reply in replies)
    (in_force,) = {tuple(reply.targets) for reply in [active.call("list_objects")[0]]}
    assert in_force in (("can",), ("box",))
    assert active.get_parameter("target_objects") == list(in_force)


def test_class_numbers_are_those_of_label_info(active):
    classes = active.listen_to(Image, f"{NODE}/classes")
    active.wait_until(
        lambda: active.segment_one(active.make_image(f"classes {time.monotonic()}")) and classes, what="a class image"
    )
    pixels = np.frombuffer(classes[-1].data, np.uint16).reshape(48, 64)
    assert classes[-1].encoding == "mono16"
    numbers = {entry.class_name: entry.class_id for entry in active.labels[-1].class_map}
    assert set(np.unique(pixels)) == {0, numbers["box"], numbers["mug"]}
    assert pixels[5, 5] == numbers["box"]
    assert any(array.header == classes[-1].header for array in active.detections)


def test_one_given_image(active):
    image = active.make_image("asked")
    reply, _ = active.call("segment", Segment.Request(image=image))
    assert reply.success, reply.message
    assert names_of(reply.detections) == ["box", "mug"]
    assert reply.detections.header == reply.instances.header == image.header
    assert np.count_nonzero(np.frombuffer(reply.instances.data, np.uint16)) == 160
    reply, _ = active.call("segment", Segment.Request(image=Image(encoding="64FC1", width=1, height=1)))
    assert not reply.success
    assert "64FC1" in reply.message


def test_overlay_and_mask_when_asked_for(active):
    active.listen_to_overlay()
    assert active.set_parameter("mask_object", "mug").successful
    deadline = time.monotonic() + 60
    while not (active.overlays and active.masks):
        assert time.monotonic() < deadline
        active.segment_one(active.make_image(f"drawn {time.monotonic()}"))
    assert active.overlays[-1].encoding == "rgb8"
    assert np.any(np.frombuffer(active.overlays[-1].data, np.uint8))
    mask = np.frombuffer(active.masks[-1].data, np.uint8).reshape(48, 64)
    assert (active.masks[-1].encoding, set(np.unique(mask))) == ("mono8", {0, 255})
    assert mask[5, 20] == 255


def test_the_uncertainty_is_worked_out_while_somebody_looks(active):
    uncertainties = active.listen_to(Image, f"{NODE}/uncertainty")
    active.wait_until(
        lambda: active.segment_one(active.make_image(f"doubt {time.monotonic()}")) and uncertainties,
        what="an uncertainty image",
    )
    message = uncertainties[-1]
    assert (message.encoding, message.height, message.width) == ("32FC1", 48, 64)
    assert set(np.frombuffer(message.data, np.float32)) == {0.25}
    assert any(array.header == message.header for array in active.detections)


@pytest.fixture
def camera_info(active):
    """A publisher that the node is known to hear: what is sent before both sides have found each other is lost."""
    publisher = active.node.create_publisher(CameraInfo, "/camera_info", 5)
    image = active.make_image("heard")
    active.segment_one(image)
    calibration = CameraInfo(header=image.header)
    active.wait_until(
        lambda: publisher.publish(calibration) or calibration in active.calibrations, what="a calibration passed on"
    )
    yield publisher
    active.node.destroy_publisher(publisher)


def test_a_calibration_that_is_late_is_passed_on_as_well(active, camera_info):
    image = active.make_image("slowly calibrated")
    active.segment_one(image)
    calibration = CameraInfo(header=image.header, width=64, height=48)
    camera_info.publish(calibration)
    active.wait_for(lambda: calibration in active.calibrations)


def test_the_calibration_comes_in_step_with_the_masks(active, camera_info):
    for number in range(3):
        image = active.make_image(f"calibrated {number}")
        calibration = CameraInfo(header=image.header, width=64, height=48)
        calibration.k[0] = 500.0 + number
        camera_info.publish(calibration)
        active.segment_one(image)
        active.wait_for(lambda wanted=calibration: wanted in active.calibrations)
    assert len([found for found in active.calibrations if found.header.frame_id.startswith("calibrated")]) == 3


def test_diagnostics_tell_the_stages(active):
    active.segment_one(active.make_image("measured"))
    active.wait_for(lambda: any(v.get("frame id") == "measured" for _, _, v in active.statuses()))
    values = next(v for _, _, v in active.statuses() if v.get("frame id") == "measured")
    assert float(values["sampling ms"]) == pytest.approx(75, abs=1)
    assert values["frame targets"] == values["targets"] == "box, mug"
    assert {"rate Hz", "memory MiB", "frames dropped", "waiting ms", "device", "model"} <= values.keys()


def test_silence_of_the_camera_is_a_warning(active):
    assert active.set_parameter("stale_after", 0.1).successful
    active.diagnostics.clear()
    active.wait_for(lambda: any(level == DiagnosticStatus.WARN for level, _, _ in active.statuses()))
    text = next(text for level, text, _ in active.statuses() if level == DiagnosticStatus.WARN)
    assert text.startswith("no image on /image for ")
    assert active.set_parameter("stale_after", 5.0).successful
