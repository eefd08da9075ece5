"""The launch files for real, as `ros2 launch` runs them: they need launch_ros, for which pip has no wheels."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
import yaml
from builders import make_library, make_untrained_model
from harness import NODE, STARTED_WITHIN, Client
from ros2_tools import PROFILES, ROS2, share_folder
from sensor_msgs.msg import CompressedImage
from vision_msgs.msg import Detection2DArray

from ocdit_core.images import write_image

SHARE = share_folder()


class Launched:
    """A launch in a process of its own, with the interface of harness.NodeProcess."""

    def __init__(self, name, log, *arguments, environment=None):
        self.log = log
        kept = {key: value for key, value in os.environ.items() if key != PROFILES}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*ROS2, "launch", "ocdit_ros", name, *arguments],
                env={**kept, "OMP_NUM_THREADS": "1", "ROS_LOG_DIR": str(log.parent / "logs"), **(environment or {})},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def alive(self):
        return self.process.poll() is None

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
    (folder / "images").mkdir()
    write_image(folder / "images" / "desk.png", np.full((96, 128, 3), 100, np.uint8))
    parameters = f"/**:\n  ros__parameters:\n    model: {folder / 'model'}\n    score_threshold: 0.25\n"
    (folder / "segment.yaml").write_text(parameters)
    return folder


class Running:
    """A launch and a client of its node; the launch has to end cleanly."""

    def __init__(self, name, log, *arguments, image="/image", node=NODE, environment=None):
        self.launched = Launched(name, log, *arguments, environment=environment)
        self.client = Client(self.launched, node, image)

    def __enter__(self):
        return self.launched, self.client

    def __exit__(self, kind, *error):
        self.client.close()
        code = self.launched.stop()
        if kind is None:
            assert code == 0, self.launched.output
            assert "Traceback" not in self.launched.output


def processes(launched):
    """Return the numbers of the processes that the launch has started."""
    with open(f"/proc/{launched.process.pid}/task/{launched.process.pid}/children") as file:
        return file.read().split()


def topics(client):
    return {name for name, _ in client.node.get_topic_names_and_types()}


def test_the_arguments_are_listed():
    for name in ("segment.launch.py", "demo.launch.py"):
        command = [*ROS2, "launch", "ocdit_ros", name, "--show-args"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for argument in ("params_file", "library", "target_objects", "device", "rviz", "log_level"):
            assert f"'{argument}':" in shown
        assert os.path.join(SHARE, "config", "segment.yaml") in shown


def test_segment_launch_brings_the_node_to_active(assets, tmp_path):
    arguments = (
        f"params_file:={assets / 'segment.yaml'}",
        f"library:={assets / 'library'}",
        "target_objects:=mug, box",
        "image:=/head/color/image_raw",
        "device:=cpu",
        "log_level:=debug",
    )
    with Running("segment.launch.py", tmp_path / "log", *arguments, image="/head/color/image_raw") as running:
        launched, client = running
        client.wait_for_camera()
        client.wait_until(lambda: client.state() == "active")
        # The argument wins over the file, and the file over the defaults.
        listed, _ = client.call("list_objects")
        assert list(listed.targets) == ["mug", "box"]
        assert client.get_parameter("score_threshold") == 0.25
        assert client.get_parameter("stale_after") == 5.0
        client.segment_one(client.make_image("launched", (480, 640)))
        assert "/head/color/camera_info" in topics(client)
        with open(f"/proc/{processes(launched)[0]}/environ") as file:
            assert f"{PROFILES}={SHARE}/config/fastdds.xml" in file.read()
        assert "[DEBUG]" in launched.output
        # Configured by hand, it waits to be activated by hand.
        for transition in ("deactivate", "cleanup", "configure"):
            assert client.transition(transition)
        time.sleep(1.0)
        assert client.state() == "inactive"
    assert "process has finished cleanly" in launched.output


def test_a_node_in_a_namespace_on_compressed_images_and_simulated_time(assets, tmp_path):
    arguments = (
        f"params_file:={assets / 'segment.yaml'}",
        f"library:={assets / 'library'}",
        "namespace:=arm",
        "image:=wrist/image_raw",
        "image_transport:=compressed",
        "camera_info:=/calibration",
        "use_sim_time:=true",
        "device:=cpu",
    )
    with Running("segment.launch.py", tmp_path / "log", *arguments, node=f"/arm{NODE}") as (_, client):
        client.wait_until(lambda: client.state() == "active", STARTED_WITHIN)
        assert client.get_parameter("use_sim_time") is True
        client.wait_until(lambda: {"/arm/wrist/image_raw/compressed", "/calibration"} <= topics(client))
        camera = client.node.create_publisher(CompressedImage, "/arm/wrist/image_raw/compressed", 1)
        message = CompressedImage(format="png", data=(assets / "images" / "desk.png").read_bytes())
        message.header.frame_id = "simulated"
        client.wait_until(lambda: camera.publish(message) or client.detections)
        assert client.detections[0].header.frame_id == "simulated"


def test_a_node_without_autostart_waits(assets, tmp_path):
    arguments = ("autostart:=false", f"library:={assets / 'library'}")
    with Running("segment.launch.py", tmp_path / "log", *arguments) as (_, client):
        assert client.state() == "unconfigured"


def test_a_node_that_dies_is_started_again_when_asked(assets, tmp_path):
    arguments = (
        f"params_file:={assets / 'segment.yaml'}",
        f"library:={assets / 'library'}",
        "respawn:=true",
        "device:=cpu",
    )
    with Running("segment.launch.py", tmp_path / "log", *arguments) as (launched, client):
        client.wait_for_camera()
        (first,) = processes(launched)
        os.kill(int(first), signal.SIGKILL)
        client.wait_until(lambda: processes(launched) not in ([], [first]), STARTED_WITHIN)
        client.segment_one(client.make_image("again", (480, 640)), STARTED_WITHIN)


def test_demo_launch_plays_images(assets, tmp_path):
    arguments = (
        f"images:={assets / 'images'}",
        f"params_file:={assets / 'segment.yaml'}",
        f"library:={assets / 'library'}",
        "rate:=5.0",
        "device:=cpu",
    )
    with Running("demo.launch.py", tmp_path / "log", *arguments) as (_, client):
        client.wait_for(lambda: any(array.header.frame_id == "desk" for array in client.detections), STARTED_WITHIN)


@pytest.fixture
def rviz(tmp_path):
    """A program in rviz2's place that writes down how it was started."""
    prefix = tmp_path / "prefix"
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True)
    (index / "rviz2").touch()
    program = prefix / "lib" / "rviz2" / "rviz2"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" > "$RVIZ_ARGUMENTS.new"; mv "$RVIZ_ARGUMENTS.new" "$RVIZ_ARGUMENTS"\n'
    )
    program.chmod(0o755)
    path = f"{prefix}{os.pathsep}{os.environ['AMENT_PREFIX_PATH']}"
    return {"AMENT_PREFIX_PATH": path, "RVIZ_ARGUMENTS": str(tmp_path / "arguments")}


@pytest.mark.parametrize(
    "arguments",
    [(), ("namespace:=/arm/", "image:=eye/image_raw"), ("cameras:=left=/l/image_raw right=r/image_raw",)],
    ids=["plain", "namespace", "cameras"],
)
def test_rviz_shows_what_the_node_publishes_and_its_camera(assets, tmp_path, rviz, arguments):
    node = f"/arm{NODE}" if "namespace:=/arm/" in arguments else NODE
    arguments = (
        f"params_file:={assets / 'segment.yaml'}",
        f"library:={assets / 'library'}",
        "device:=cpu",
        "rviz:=true",
        *arguments,
    )
    with Running("segment.launch.py", tmp_path / "log", *arguments, node=node, environment=rviz) as (_, client):
        client.wait_until(lambda: os.path.exists(rviz["RVIZ_ARGUMENTS"]), STARTED_WITHIN)
        with open(rviz["RVIZ_ARGUMENTS"]) as file:
            started = file.read().split("\n")
        with open(started[started.index("-d") + 1]) as file:
            displays = yaml.safe_load(file)["Visualization Manager"]["Displays"]
        remappings = dict(item.split(":=") for item in started if item.startswith("/") and ":=" in item)
        shown = {remappings[display["Topic"]["Value"]] for display in displays if "Topic" in display}
        assert len(shown) == 5
        client.wait_until(lambda: shown <= topics(client), STARTED_WITHIN, f"topics {shown}")


def test_segment_launch_with_two_cameras(assets, tmp_path):
    arguments = (
        f"params_file:={assets / 'segment.yaml'}",
        f"library:={assets / 'library'}",
        "cameras:=left=/head/left/image_raw right=/head/right/image_raw",
        "device:=cpu",
    )
    with Running("segment.launch.py", tmp_path / "log", *arguments, image="/head/left/image_raw") as (_, client):
        client.wait_for_camera()
        found = client.listen_to(Detection2DArray, "/ocdit_segmentation/left/detections")
        client.wait_until(lambda: client.camera.publish(client.make_image("left")) or found)
        assert {"/head/right/image_raw", "/head/right/camera_info", "/ocdit_segmentation/right/mask"} <= topics(client)


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("library:=/no/such/library", "the node could not be configured"),
        ("params_file:=PARAMS", "the node died with exit code 2"),
    ],
)
def test_a_launch_that_fails_ends_with_an_error(tmp_path, argument, reason):
    (tmp_path / "params.yaml").write_text("/**:\n  ros__parameters:\n    score_threshold: 7.0\n")
    argument = argument.replace("PARAMS", str(tmp_path / "params.yaml"))
    launched = Launched("segment.launch.py", tmp_path / "log", argument, "device:=cpu")
    assert launched.process.wait(STARTED_WITHIN) == 1, launched.output
    assert reason in launched.output


def test_a_launch_that_fails_can_stay_and_later_failures_are_the_user_s(assets, tmp_path):
    with Running("segment.launch.py", tmp_path / "log", "library:=/no/such/library", "on_failure:=stay") as running:
        launched, client = running
        client.wait_until(lambda: "configure failed" in launched.output, STARTED_WITHIN)
        time.sleep(1.0)
        assert client.state() == "unconfigured"
    arguments = (f"params_file:={assets / 'segment.yaml'}", f"library:={assets / 'library'}", "device:=cpu")
    with Running("segment.launch.py", tmp_path / "log2", *arguments) as (launched, client):
        client.wait_until(lambda: client.state() == "active", STARTED_WITHIN)
        assert client.transition("deactivate")
        assert client.transition("cleanup")
        assert client.set_parameter("library", "/no/such/library").successful
        assert not client.transition("configure")
        time.sleep(1.0)
        assert launched.alive()
        assert client.state() == "unconfigured"


@pytest.mark.parametrize(
    ("argument", "refusal"),
    [
        ("cameras:=left", "cameras:=left is not NAME=TOPIC"),
        ("cameras:=left=/a left=/b", "cameras:=left=/a left=/b: left is named twice"),
        ("on_failure:=ignore", 'Argument "on_failure" provided value "ignore" is not valid'),
        ("cameras:=left=/l/image depth:=right=/d", "depth:=right=/d: no camera has this name; there are left"),
        ("rviz:=perhaps", "rviz:=perhaps is neither true nor false"),
        ("use_sim_time:=maybe", "use_sim_time:=maybe is neither true nor false"),
        ("params_file:=nowhere.yaml", "params_file:=nowhere.yaml: there is no such file"),
        ("log_level:=loud", 'Argument "log_level" provided value "loud" is not valid'),
    ],
)
def test_a_bad_argument_is_refused(tmp_path, argument, refusal):
    launched = Launched("segment.launch.py", tmp_path / "log", argument)
    assert launched.process.wait(STARTED_WITHIN) != 0
    assert refusal in launched.output
