"""Several cameras: in one node that shares the network, and in nodes of their own, by namespace."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import NODE, Client, NodeProcess
from sensor_msgs.msg import CameraInfo, Image
from vision_msgs.msg import Detection2DArray, Detection3DArray

from ocdit_ros import parameters

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))


@pytest.fixture(scope="module")
def client():
    parameters = {"library": "stand-in", "autostart": True, "cameras": "[left, right]", "stale_after": 2.0}
    process = NodeProcess(STAND_IN, parameters=parameters, environment={"STAND_IN_SECONDS": "0.1"})
    client = Client(process, image="/left/image")
    client.wait_for_camera()
    yield client
    client.close()
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output


def test_each_camera_has_its_topics_and_numbers_are_shared(client):
    right = client.node.create_publisher(Image, "/right/image", 5)
    calibration = client.node.create_publisher(CameraInfo, "/right/camera_info", 5)
    found = {name: client.listen_to(Detection2DArray, f"{NODE}/{name}/detections", 50) for name in ("left", "right")}
    calibrations = client.listen_to(CameraInfo, f"{NODE}/right/camera_info")
    client.wait_until(lambda: right.get_subscription_count() and calibration.get_subscription_count())
    numbers = []
    for turn in range(5):
        images = {name: client.make_image(f"{name} {turn}", (48, 64)) for name in ("left", "right")}
        info = CameraInfo(header=images["right"].header, width=64, height=48)
        info.k[0] = info.k[4] = 50.0

        def arrived(images=images, info=info):
            client.camera.publish(images["left"])
            right.publish(images["right"])
            calibration.publish(info)
            segmented = all(any(array.header == images[name].header for array in list(found[name])) for name in found)
            return segmented and info in calibrations

        client.wait_until(arrived)
    for name, arrays in found.items():
        assert all(array.header.frame_id.startswith(name) for array in arrays)
        numbers += [int(detection.id) for array in arrays for detection in array.detections]
    assert len(numbers) == len(set(numbers))


def test_depth_belongs_to_its_camera(client):
    right = client.node.create_publisher(Image, "/right/image", 5)
    depths = client.node.create_publisher(Image, "/right/depth", 5)
    infos = client.node.create_publisher(CameraInfo, "/right/camera_info", 5)
    found = {name: client.listen_to(Detection3DArray, f"{NODE}/{name}/detections_3d", 50) for name in ("left", "right")}
    client.wait_until(lambda: all(one.get_subscription_count() for one in (right, depths, infos)))

    def arrived():
        image = client.make_image("right in depth")
        depth = Image(header=image.header, height=48, width=64, encoding="32FC1", step=256)
        depth.data = np.full((48, 64), 0.5, np.float32).tobytes()
        info = CameraInfo(header=image.header, width=64, height=48, k=[50.0, 0, 31.5, 0, 50, 23.5, 0, 0, 1])
        for publisher, message in ((infos, info), (depths, depth), (right, image), (client.camera, image)):
            publisher.publish(message)
        return found["right"]

    client.wait_until(arrived)
    detection = found["right"][0].detections[0]
    assert found["right"][0].header.frame_id == "right in depth"
    assert detection.bbox.center.position.z == pytest.approx(0.5, abs=0.01)
    assert found["left"] == []


def test_frames_of_both_are_counted_by_camera(client):
    right = client.node.create_publisher(Image, "/right/image", 5)
    client.wait_until(right.get_subscription_count)
    client.diagnostics.clear()
    client.wait_until(lambda: client.camera.publish(client.make_image("l")) or len(client.diagnostics) > 3)
    cameras = {}
    for status in client.diagnostics[-1].status:
        values = {entry.key: entry.value for entry in status.values}
        cameras[status.name] = values
    assert list(cameras) == [f"{NODE}: segmentation", f"{NODE}: camera left", f"{NODE}: camera right"]
    whole, left, other = cameras.values()
    assert whole["images at once"] == "2"
    assert (left["topic"], other["topic"]) == ("/left/image", "/right/image")
    for key in ("received", "processed", "dropped", "failed", "stale"):
        assert int(whole[f"frames {key}"]) == int(left[f"frames {key}"]) + int(other[f"frames {key}"])
    counts = {key: int(left[f"frames {key}"]) for key in ("received", "processed", "dropped", "failed", "stale")}
    received = counts.pop("received")
    assert 0 <= received - sum(counts.values()) <= 2
    assert counts["dropped"] > 0, "it is slower than its camera"


def test_a_camera_that_dies_shows_and_comes_back(client, tmp_path):
    cv2.imwrite(str(tmp_path / "view.png"), np.full((48, 64, 3), 90, np.uint8))

    def start_camera():
        return NodeProcess(
            "-m",
            "ocdit_ros.image_player",
            parameters={"folder": tmp_path, "rate": 10.0},
            remappings=["image:=/right/image", "__node:=right_camera"],
        )

    def has(level, text):
        return lambda: any(
            status.level == level and text in status.message
            for array in list(client.diagnostics)
            for status in array.status
            if status.name.endswith("camera right")
        )

    found = client.listen_to(Detection2DArray, f"{NODE}/right/detections", 50)
    camera = start_camera()
    client.wait_for(lambda: found, timeout=90)
    client.diagnostics.clear()
    client.wait_for(has(DiagnosticStatus.OK, "active"))
    camera.process.kill()
    client.diagnostics.clear()
    client.wait_for(has(DiagnosticStatus.WARN, "no image on /right/image for "), timeout=60)
    # The worst of all is the node's own level.
    assert any(level == DiagnosticStatus.WARN and "/right/image" in text for level, text, _ in client.statuses())
    found.clear()
    camera = start_camera()
    client.wait_for(lambda: found, timeout=90)
    client.diagnostics.clear()
    client.wait_for(has(DiagnosticStatus.OK, "active"))
    assert camera.stop() == 0, camera.output


def test_nodes_by_namespace_do_not_mix():
    started = []
    for name in ("east", "west"):
        process = NodeProcess(
            STAND_IN,
            parameters={
                "library": "stand-in",
                "autostart": True,
                "target_objects": {"east": "[mug]", "west": "[can]"}[name],
            },
            remappings=[f"__ns:=/{name}"],
            environment={"STAND_IN_SECONDS": "0"},
        )
        started.append(Client(process, node=f"/{name}{NODE}", image=f"/{name}/image"))
    try:
        for client, name, target in zip(started, ("east", "west"), ("mug", "can"), strict=True):
            client.wait_for_camera()
            array = client.segment_one(client.make_image(name))
            assert [detection.results[0].hypothesis.class_id for detection in array.detections] == [target]
            assert {array.header.frame_id for array in client.detections} == {name}
    finally:
        for client in started:
            client.close()
            assert client.process.stop() == 0, client.process.output


@pytest.mark.parametrize(
    ("names", "needle"),
    [
        (["left", "left"], "'left' is named twice"),
        (["2nd"], "'2nd' cannot be part of a topic name"),
        (["left/eye"], "'left/eye' cannot be part of a topic name"),
    ],
)
def test_names_that_are_no_topics_are_refused(names, needle):
    assert needle in parameters.refusal("cameras", names, "unconfigured")
    assert not parameters.refusal("cameras", [""], "unconfigured")
