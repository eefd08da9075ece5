"""The example of docs/cad_to_grasp.md as a process of its own, behind the real node, over DDS."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from assets import ROOT
from harness import Client, NodeProcess
from sensor_msgs.msg import CameraInfo, Image

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))
HEIGHT, WIDTH = 48, 64
FX, FY, CX, CY = 60.0, 50.0, 31.5, 23.5
# The stand-in finds box and mug in rows 2 to 9, in columns 2 to 11 and 14 to 23.
PLACES = {"box": (6.5, 5.5, 0.8), "mug": (18.5, 5.5, 1.2)}


@pytest.fixture(scope="module")
def client():
    parameters = {"library": "stand-in", "autostart": True, "target_objects": "[box, mug]"}
    node = NodeProcess(STAND_IN, parameters=parameters)
    example = NodeProcess(str(ROOT / "examples" / "grasp_centre.py"))
    client = Client(node)
    client.example = example
    client.depth = client.node.create_publisher(Image, "/depth", 5)
    client.calibration = client.node.create_publisher(CameraInfo, "/camera_info", 5)
    client.wait_for_camera()
    client.wait_until(lambda: client.depth.get_subscription_count() and client.calibration.get_subscription_count())
    yield client
    client.close()
    assert example.stop() == 0, example.output
    assert node.stop() == 0, node.output


def depth_image(encoding, header):
    """Each object at a distance of its own, before a wall, with the holes that depth cameras leave; padded rows."""
    metres = np.full((HEIGHT, WIDTH), 3.0)
    for u, v, z in PLACES.values():
        metres[int(v - 3.5) : int(v + 4.5), int(u - 4.5) : int(u + 5.5)] = z
    metres[3::3, ::4] = np.nan
    image = np.nan_to_num(1000 * metres).astype(np.uint16) if encoding == "16UC1" else metres.astype(np.float32)
    image = np.pad(image, ((0, 0), (0, 6)))
    message = Image(header=header, height=HEIGHT, width=WIDTH, encoding=encoding, step=image.strides[0])
    message.data = image.tobytes()
    return message


def test_depth_waits_for_its_results_by_time(monkeypatch):
    spec = importlib.util.spec_from_file_location("grasp_centre", ROOT / "examples" / "grasp_centre.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    node = example.GraspCentre.__new__(example.GraspCentre)
    clock, located = [0.0], []
    monkeypatch.setattr(example.time, "monotonic", lambda: clock[0])
    node.frames, node.locate = {}, lambda **frame: located.append(frame)

    def collect(name, number):
        clock[0] = max(clock[0], number / 60)
        stamp = SimpleNamespace(sec=number // 60, nanosec=number % 60)
        node.collect(name, SimpleNamespace(header=SimpleNamespace(stamp=stamp)))

    for number in range(3600):  # a minute at 60 Hz, results nine seconds late
        collect("depth", number)
        if number >= 540:
            for name in example.RESULTS:
                collect(name, number - 540)
    assert len(located) == 3600 - 540
    assert len(node.frames) <= 60 * example.KEEP_SECONDS + 1


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_the_centres_are_where_the_objects_are(client, encoding):
    def centres():
        image = client.make_image(f"camera {encoding}", (HEIGHT, WIDTH))
        k = [FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0]
        client.depth.publish(depth_image(encoding, image.header))
        client.calibration.publish(CameraInfo(header=image.header, k=k))
        client.camera.publish(image)
        found = re.findall(rf"(\w+) (\d+): (\S+) (\S+) (\S+) in camera {encoding}\n", client.example.output)
        return {name: (float(x), float(y), float(z)) for name, _, x, y, z in found}

    # Another frame every 20 ms: best effort may lose one.
    client.wait_until(lambda: set(centres()) == set(PLACES), what="two centres")
    for name, (u, v, z) in PLACES.items():
        assert centres()[name] == pytest.approx(((u - CX) * z / FX, (v - CY) * z / FY, z), abs=0.02)
