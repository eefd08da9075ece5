"""A robot's engineer at the command line: the node under `ros2 launch`, handled by nothing but the tools of `ros2`."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from builders import make_library, make_untrained_model
from harness import NODE, STARTED_WITHIN
from ros2_tools import ROS2, share_folder

from ocdit_core.images import write_image

share_folder()


@pytest.fixture(scope="module")
def robot(tmp_path_factory, ros_domain):
    """The node and a camera, as two people would start them in two terminals; their logs."""
    folder = tmp_path_factory.mktemp("robot")
    make_library(folder / "library")
    make_untrained_model(folder / "model")
    (folder / "images").mkdir()
    write_image(folder / "images" / "desk.png", np.full((480, 640, 3), 100, np.uint8))
    node = ("segment.launch.py", f"library:={folder / 'library'}", f"model:={folder / 'model'}", "device:=cpu")
    camera = ("image_player", "--ros-args", "-p", f"folder:={folder / 'images'}", "-p", "rate:=5.0")
    logs, processes = {}, []
    for name, command in {"launch": ("launch", "ocdit_ros", *node), "run": ("run", "ocdit_ros", *camera)}.items():
        logs[name] = folder / f"{name}.log"
        with logs[name].open("w") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ROS_LOG_DIR": str(folder / "logs")}
            process = subprocess.Popen(
                [*ROS2, *command], env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            processes.append(process)
    yield logs
    for process in processes:
        # As a terminal's Ctrl-C, to the tool and to what it runs.
        os.killpg(process.pid, signal.SIGINT)
    codes = [process.wait(STARTED_WITHIN) for process in processes]
    subprocess.run([*ROS2, "daemon", "stop"], capture_output=True, check=False)
    assert codes == [0, 0]
    assert all("Traceback" not in log.read_text() for log in logs.values())


def ros2(*command, expected=""):
    """Run a command until its output holds what is expected (nodes are found after a while); returns the output."""
    deadline = time.monotonic() + STARTED_WITHIN
    while True:
        done = subprocess.run([*ROS2, *command], capture_output=True, text=True, timeout=STARTED_WITHIN, check=False)
        output = done.stdout + done.stderr
        if expected in output:
            return output
        assert time.monotonic() < deadline, f"ros2 {' '.join(command)} did not say {expected!r}:\n{output}"
        time.sleep(0.5)


def test_lifecycle(robot):
    ros2("lifecycle", "get", NODE, expected="active [3]")
    assert NODE in ros2("lifecycle", "nodes")
    assert "- deactivate [4]" in ros2("lifecycle", "list", NODE)
    assert "Transitioning successful" in ros2("lifecycle", "set", NODE, "deactivate")
    assert "inactive [2]" in ros2("lifecycle", "get", NODE)
    assert "Unknown transition requested" in ros2("lifecycle", "set", NODE, "configure")
    assert "Transitioning successful" in ros2("lifecycle", "set", NODE, "activate")


def test_param(robot):
    ros2("lifecycle", "get", NODE, expected="active [3]")
    assert "Set parameter successful" in ros2("param", "set", NODE, "score_threshold", "0.125")
    assert "Double value is: 0.125" in ros2("param", "get", NODE, "score_threshold")
    assert "out of range Min: -1.0, Max: 1.0" in ros2("param", "set", NODE, "score_threshold", "1.5")
    assert "mask_object: unknown object 'spoon'" in ros2("param", "set", NODE, "mask_object", "spoon")
    assert "cannot change while the node is active" in ros2("param", "set", NODE, "device", "cpu")
    described = ros2("param", "describe", NODE, "score_threshold")
    assert "can change: at any time" in described
    assert "Max value: 1.0" in described


def test_service_call(robot):
    kind = ("ocdit_interfaces/srv/SetTargetObjects",)
    ros2("service", "type", f"{NODE}/set_target_objects", expected=kind[0])
    reply = ros2("service", "call", f"{NODE}/set_target_objects", *kind, "{object_ids: [mug]}")
    assert "success=True, message='looking for mug from the next frame on'" in reply
    reply = ros2("service", "call", f"{NODE}/set_target_objects", *kind, "{object_ids: [mug, spoon]}")
    assert "success=False" in reply
    assert "unknown=['spoon']" in reply
    reply = ros2("service", "call", f"{NODE}/list_objects", "ocdit_interfaces/srv/ListObjects")
    assert "object_ids=['box', 'can', 'mug'], targets=['mug']" in reply


def test_topic(robot):
    ros2("topic", "list", expected=f"{NODE}/detections")
    for topic in ("detections", "instances", "overlay"):
        echo = ros2("topic", "echo", "--once", f"{NODE}/{topic}", "--field", "header", expected="frame_id: desk")
        assert "stamp" in echo
    assert "class_name: mug" in ros2("topic", "echo", "--once", f"{NODE}/label_info", expected="class_name")
    command = subprocess.Popen([*ROS2, "topic", "hz", f"{NODE}/detections"], stdout=subprocess.PIPE, text=True)
    try:
        rate = next(line for line in command.stdout if line.startswith("average rate"))
    finally:
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=STARTED_WITHIN)
    assert 0 < float(rate.split()[-1]) < 10


def test_node_info_and_interfaces(robot):
    info = ros2("node", "info", NODE, expected="/image: sensor_msgs/msg/Image")
    assert f"{NODE}/segment: ocdit_interfaces/srv/Segment" in info
    assert "string[] object_ids" in ros2("interface", "show", "ocdit_interfaces/srv/SetTargetObjects")
    executables = ros2("pkg", "executables", "ocdit_ros").split("\n")
    assert {"ocdit_ros segmentation_node", "ocdit_ros image_player"} <= set(executables)
    assert "showing 1 images on /image" in robot["run"].read_text()
