"""The launch files for real: they need launch_ros and an installed ocdit_ros, which pip has no wheels for."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from assets import make_library, make_untrained_model
from harness import Client
from vision_msgs.msg import Detection2DArray

from ocdit_core.images import write_image

pytest.importorskip("launch_ros", reason="launch_ros is not installed")
packages = pytest.importorskip("ament_index_python.packages")
try:
    SHARE = packages.get_package_share_directory("ocdit_ros")
except packages.PackageNotFoundError:
    pytest.skip("ocdit_ros is not installed into an ament prefix", allow_module_level=True)

LAUNCH = """
import sys
from launch import LaunchService
from launch.actions import IncludeLaunchDescription
from launch import LaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [tuple(argument.split(":=", 1)) for argument in sys.argv[2:]]
service = LaunchService()
source = PythonLaunchDescriptionSource(sys.argv[1])
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


class Launched:
    """A launch in a process of its own, with the interface of harness.NodeProcess."""

    def __init__(self, name, log, *arguments):
        self.log = log
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FASTDDS")}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, os.path.join(SHARE, "launch", name), *arguments],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self):
        return self.log.read_text()

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    make_library(folder / "library")
    make_untrained_model(folder / "model")
    (folder / "pictures").mkdir()
    write_image(folder / "pictures" / "desk.png", np.full((96, 128, 3), 100, np.uint8))
    parameters = f"/**:\n  ros__parameters:\n    model: {folder / 'model'}\n    score_threshold: 0.25\n"
    (folder / "segment.yaml").write_text(parameters)
    return folder


def test_segment_launch_brings_the_node_to_active(assets, tmp_path):
    launched = Launched(
        "segment.launch.py",
        tmp_path / "log",
        f"params_file:={assets / 'segment.yaml'}",
        f"library:={assets / 'library'}",
        "target_objects:=mug, box",
        "image:=/image",
        "device:=cpu",
    )
    client = Client(launched)
    try:
        client.wait_for_camera()
        assert client.state() == "active"
        listed, _ = client.call("list_objects")
        assert list(listed.targets) == ["mug", "box"]
        client.wait_for(lambda: client.labels)
        assert client.labels[-1].threshold == 0.25
        client.segment_one(client.make_image("launched", (480, 640)))
        with open(f"/proc/{node_process(launched)}/environ") as file:
            assert f"FASTDDS_DEFAULT_PROFILES_FILE={SHARE}/config/fastdds.xml" in file.read()
    finally:
        client.close()
        assert launched.stop() == 0, launched.output
    assert "Traceback" not in launched.output
    assert "process has finished cleanly" in launched.output


def node_process(launched):
    """Return the number of the process that the launch has started."""
    children = f"/proc/{launched.process.pid}/task/{launched.process.pid}/children"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with open(children) as file:
            found = file.read().split()
        if found:
            return found[0]
    raise AssertionError(launched.output)


def test_a_node_without_autostart_waits(assets, tmp_path):
    launched = Launched("segment.launch.py", tmp_path / "log", "autostart:=false", f"library:={assets / 'library'}")
    client = Client(launched)
    try:
        assert client.state() == "unconfigured"
    finally:
        client.close()
        assert launched.stop() == 0, launched.output


def test_demo_launch_plays_pictures(assets, tmp_path):
    launched = Launched(
        "demo.launch.py",
        tmp_path / "log",
        f"pictures:={assets / 'pictures'}",
        f"params_file:={assets / 'segment.yaml'}",
        f"library:={assets / 'library'}",
        "rate:=5.0",
        "device:=cpu",
        "rviz:=true",
    )
    client = Client(launched)
    try:
        client.wait_for(lambda: any(array.header.frame_id == "desk" for array in client.detections))
    finally:
        client.close()
        assert launched.stop() == 0, launched.output
    assert "Traceback" not in launched.output


def test_segment_launch_with_two_cameras(assets, tmp_path):
    launched = Launched(
        "segment.launch.py",
        tmp_path / "log",
        f"params_file:={assets / 'segment.yaml'}",
        f"library:={assets / 'library'}",
        "cameras:=left=/head/left/image_raw right=/head/right/image_raw",
        "device:=cpu",
    )
    client = Client(launched, image="/head/left/image_raw")
    try:
        client.wait_for_camera()
        found = client.listen_to(Detection2DArray, "/ocdit_segmentation/left/detections")
        client.wait_until(lambda: client.camera.publish(client.make_image("left")) or found)
        names = {name for name, _ in client.node.get_topic_names_and_types()}
        assert {"/head/right/image_raw", "/head/right/camera_info", "/ocdit_segmentation/right/mask"} <= names
    finally:
        client.close()
        assert launched.stop() == 0, launched.output


def test_a_camera_without_a_topic_is_refused(tmp_path):
    launched = Launched("segment.launch.py", tmp_path / "log", "cameras:=left")
    assert launched.process.wait(30) != 0
    assert "cameras:=left is not NAME=TOPIC" in launched.output


def test_a_switch_that_is_none_is_refused(tmp_path):
    launched = Launched("segment.launch.py", tmp_path / "log", "rviz:=perhaps")
    assert launched.process.wait(30) != 0
    assert "rviz:=perhaps is neither true nor false" in launched.output
