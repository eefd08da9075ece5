import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from assets import python_path
from diagnostic_msgs.msg import DiagnosticStatus
from harness import STARTED_WITHIN, Client, NodeProcess

STAND_IN = str(Path(__file__).with_name("stand_in_node.py"))


def test_a_failing_configure_can_be_tried_again():
    process = NodeProcess(STAND_IN, parameters={"library": "nowhere", "autostart": True})
    client = Client(process)
    try:
        client.wait_for(
            lambda: any(level == DiagnosticStatus.ERROR for level, _, _ in client.statuses()), STARTED_WITHIN
        )
        assert any("configure failed: nowhere: no such folder" in text for _, text, _ in client.statuses())
        assert client.state() == "unconfigured"
        assert not client.transition("configure")
        assert client.set_parameter("library", "stand-in").successful
        assert client.set_parameter("target_objects", ["spoon"]).successful
        assert not client.transition("configure")
        assert client.set_parameter("target_objects", ["mug"]).successful
        assert client.transition("configure")
        assert client.transition("activate")
    finally:
        client.close()
        assert process.stop(signal.SIGTERM) == 0, process.output
    assert "Traceback" not in process.output


def test_bad_values_at_the_start_end_it_with_one_line():
    process = NodeProcess(STAND_IN, parameters={"score_threshold": 7.0})
    assert process.process.wait(STARTED_WITHIN) == 2
    process.stop()
    assert "out of range" in process.output
    assert len(process.lines) == 1


def test_a_second_node_of_the_same_name_ends_with_an_error():
    first = NodeProcess(STAND_IN, parameters={"library": "stand-in", "autostart": True})
    client = Client(first)
    try:
        client.wait_until(lambda: client.state() == "active", STARTED_WITHIN)
        parameters = {"library": "stand-in", "autostart": True}
        second = NodeProcess(STAND_IN, parameters=parameters)
        # In another namespace it may run.
        third = NodeProcess(STAND_IN, parameters=parameters, remappings=["__ns:=/other"])
        assert second.process.wait(STARTED_WITHIN) == 2, second.output
        second.stop()
        assert (
            f"error: a node /ocdit_segmentation runs already ({socket.gethostname()}, process {first.process.pid})"
            in (second.output)
        )
        assert "Traceback" not in second.output
        third.wait_for_output("waiting for images")
        assert third.stop() == 0, third.output
        assert client.state() == "active"
    finally:
        client.close()
        assert first.stop() == 0, first.output


INTERRUPTED = """
import os, signal, sys, time

class Interrupt:
    def find_spec(self, name, *_):
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for its background jobs
sys.meta_path.insert(0, Interrupt())
__import__(f"ocdit_ros.{sys.argv[1]}")
sys.exit("not interrupted")
"""


@pytest.mark.parametrize(
    ("module", "imported"),
    [("segmentation_node", "rclpy"), ("segmentation_node", "cv2"), ("image_player", "ocdit_ros.spinning")],
)
def test_an_interruption_during_its_imports_ends_it_quietly(module, imported):
    command = [sys.executable, "-c", INTERRUPTED, module, imported]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_interrupted_twice_it_still_ends_cleanly():
    process = NodeProcess(STAND_IN, parameters={"library": "stand-in", "autostart": True})
    process.wait_for_output("waiting for images")
    # By the terminal and by `ros2 launch`: the second comes while the node is ending.
    while process.alive():
        process.process.send_signal(signal.SIGINT)
        time.sleep(0.005)
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output
    assert "Exception ignored" not in process.output
