"""The examples as processes of their own, behind the node, over DDS."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from assets import ROOT
from geometry_msgs.msg import PoseArray
from harness import Client, NodeProcess
from sensor_msgs.msg import CameraInfo, Image

from ocdit_ros.depth import rotation_of

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))
EXAMPLES = ROOT / "examples"
HEIGHT, WIDTH = 48, 64
FX, FY, CX, CY = 60.0, 50.0, 31.5, 23.5
# The stand-in finds box and mug in rows 2 to 9, in columns 2 to 11 and 14 to 23.
PLACES = {"box": (6.5, 5.5, 0.3), "mug": (18.5, 5.5, 1.2)}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded") / "found.jsonl"
    parameters = {"library": "stand-in", "autostart": True, "target_objects": "[box, mug]", "mask_object": "mug"}
    node = NodeProcess(STAND_IN, parameters=parameters, environment={"STAND_IN_SECONDS": "0.05"})
    given = {"grasp_candidates": {"max_width": 0.1}, "recorder": {"out": out}, "mask_consumer": {}}
    examples = {name: NodeProcess(str(EXAMPLES / f"{name}.py"), parameters=value) for name, value in given.items()}
    client = Client(node)
    client.examples, client.out = examples, out
    client.depth = client.node.create_publisher(Image, "/depth", 5)
    client.calibration = client.node.create_publisher(CameraInfo, "/camera_info", 5)
    client.grasps = client.listen_to(PoseArray, "/grasp_candidates", 50)
    client.wait_for_camera()
    for publisher in (client.depth, client.camera):  # the node, and the consumer of masks
        client.wait_until(lambda publisher=publisher: publisher.get_subscription_count() >= 2)
    yield client
    client.close()
    for example in examples.values():
        assert example.stop() == 0, example.output
    assert node.stop() == 0, node.output


def publish(client, frame):
    """Each object at a distance of its own, before a wall, with the holes that depth cameras leave; padded rows."""
    image = client.make_image(frame, (HEIGHT, WIDTH))
    metres = np.full((HEIGHT, WIDTH), 3.0)
    for u, v, z in PLACES.values():
        metres[int(v - 3.5) : int(v + 4.5), int(u - 4.5) : int(u + 5.5)] = z
    metres[4, ::4] = 0
    values = np.pad((1000 * metres).astype(np.uint16), ((0, 0), (0, 6)))
    depth = Image(header=image.header, height=HEIGHT, width=WIDTH, encoding="16UC1", step=values.strides[0])
    depth.data = values.tobytes()
    k = [FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0]
    client.depth.publish(depth)
    client.calibration.publish(CameraInfo(header=image.header, width=WIDTH, height=HEIGHT, k=k))
    client.camera.publish(image)
    return image.header


def output(client, name):
    return client.examples[name].output


def test_grasps_are_where_the_objects_are(client):
    sent = []
    client.wait_until(
        lambda: sent.append(publish(client, "grasped")) or any(array.poses for array in client.grasps), what="a grasp"
    )
    array = next(array for array in client.grasps if array.poses)
    assert array.header in sent
    # The mug is 0.18 m wide (9 / 60 * 1.2) and 0.17 m high: too wide for the gripper; the box has 0.045 m.
    assert len(array.poses) == 1
    u, v, z = PLACES["box"]
    place, turn = array.poses[0].position, array.poses[0].orientation
    centre = ((u - CX) * z / FX, (v - CY) * z / FY, z)
    assert (place.x, place.y, place.z) == pytest.approx(centre, abs=0.01)
    axes = rotation_of(turn.x, turn.y, turn.z, turn.w)
    assert axes[:, 2] == pytest.approx(np.array(centre) / np.linalg.norm(centre), abs=0.05)
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-6)
    found = re.search(r"box \d+: (\S+) (\S+) (\S+) in grasped, width (\S+) m\n", output(client, "grasp_candidates"))
    assert found, output(client, "grasp_candidates")
    assert [float(value) for value in found.groups()[:3]] == pytest.approx(centre, abs=0.01)
    assert 0.03 < float(found[4]) < 0.06
    assert re.search(r"mug \d+: \S+ \S+ \S+, too wide: 0.1\d+ m\n", output(client, "grasp_candidates"))


def test_the_estimator_gets_mask_depth_and_camera(client):
    client.wait_until(lambda: publish(client, "posed") and "pixels" in output(client, "mask_consumer"))
    assert "80 pixels, 1.200 m away, focal length 60\n" in output(client, "mask_consumer")


def test_the_recorder_joins_2d_and_3d(client):
    def lines():
        publish(client, "recorded")
        text = client.out.read_text() if client.out.exists() else ""
        found = [json.loads(line) for line in text.splitlines()]
        return [line for line in found if any("centre" in one for one in line["objects"].values())]

    client.wait_until(lines, what="a recorded frame")
    line = lines()[0]
    objects = {one["name"]: one for one in line["objects"].values()}
    assert objects["mug"]["centre"][2] == pytest.approx(1.2, abs=0.02)
    assert objects["mug"]["box"] == [18.5, 5.5, 10.0, 8.0]
    assert objects["box"]["frame_3d"] == line["frame_id"]
    again = NodeProcess(str(EXAMPLES / "recorder.py"), parameters={"out": client.out})
    assert again.process.wait(90) != 0
    again._reader.join(10)
    assert "FileExistsError" in again.output


def test_a_grasp_crosses_the_narrow_side_in_any_pose():
    spec = importlib.util.spec_from_file_location("grasp_candidates", EXAMPLES / "grasp_candidates.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    rng = np.random.default_rng(0)
    for angle in rng.uniform(0, np.pi, 10):
        long, across = np.array([np.cos(angle), np.sin(angle), 0]), np.array([-np.sin(angle), np.cos(angle), 0])
        sides = rng.uniform(-0.5, 0.5, (2000, 2)) * (0.2, 0.04)
        points = sides[:, :1] * long + sides[:, 1:] * across + (0, 0, 0.6)
        centre, axes, width = example.grasp(points)
        assert centre == pytest.approx((0, 0, 0.6), abs=0.01)
        assert abs(axes[:, 0] @ across) > 0.99
        assert width == pytest.approx(0.04, abs=0.005)
        assert np.linalg.det(axes) == pytest.approx(1)
        turn = example.pose(centre, axes).orientation
        found = rotation_of(turn.x, turn.y, turn.z, turn.w)
        assert np.minimum(abs(found - axes), abs(found - axes * [-1, -1, 1])).max() < 0.02
