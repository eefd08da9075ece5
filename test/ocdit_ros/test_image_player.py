import threading

import cv2
import numpy as np
import pytest
import rclpy
from harness import STARTED_WITHIN, NodeProcess
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from ocdit_core.errors import OcditError
from ocdit_ros import converter
from ocdit_ros.image_player import find_images

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def folder(tmp_path):
    for name, colour in COLOURS.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((480, 640, 3), colour[::-1], np.uint8))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    (tmp_path / "red.json").write_text("{}")
    return tmp_path


@pytest.fixture
def camera(folder):
    process = NodeProcess("-m", "ocdit_ros.image_player", parameters={"folder": folder, "rate": 20.0})
    yield process
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output


@pytest.fixture
def viewer():
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node("viewer", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown()
    thread.join(10)
    node.destroy_node()
    rclpy.try_shutdown(context=context)


class Seen:
    def __init__(self, node, process):
        self.process = process
        self.changed = threading.Condition()
        self.messages = []
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        node.create_subscription(Image, "/image", self.note, qos)

    def note(self, message):
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    def wait_for(self, condition):
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self.messages), 15), self.process.output


def test_images_come_round_with_their_names(camera, viewer):
    seen = Seen(viewer, camera)
    seen.wait_for(lambda messages: len(messages) >= 8)
    for message in seen.messages:
        assert converter.to_rgb(message)[0, 0].tolist() == list(COLOURS[message.header.frame_id])
    assert {message.header.frame_id for message in seen.messages} == set(COLOURS)
    stamps = [message.header.stamp.sec + message.header.stamp.nanosec * 1e-9 for message in seen.messages]
    assert np.all(np.diff(stamps) > 0)
    assert "broken.png" in camera.output


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(OcditError, match="not set"):
        find_images("")
    with pytest.raises(OcditError, match="no such folder"):
        find_images(tmp_path / "missing")
    with pytest.raises(OcditError, match="no images"):
        find_images(tmp_path)


def test_a_missing_folder_ends_the_camera_with_one_line(tmp_path):
    process = NodeProcess("-m", "ocdit_ros.image_player", parameters={"folder": tmp_path / "missing"})
    assert process.process.wait(STARTED_WITHIN) == 2
    process.stop()
    assert process.output.strip().endswith("missing: no such folder of images")
    assert len(process.lines) == 1
