import signal
import time
from pathlib import Path

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
        assert "configure failed: nowhere: no such library" in [text for _, text, _ in client.statuses()]
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
