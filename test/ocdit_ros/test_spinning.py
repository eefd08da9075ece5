import time
from pathlib import Path

from harness import NodeProcess

UNLUCKY = str(Path(__file__).with_name("unlucky_node.py"))


def test_a_subscription_that_ends_while_the_executor_gathers_does_not_end_the_node():
    process = NodeProcess(UNLUCKY)
    process.wait_for_output("destroyed")
    seen = process.output.count("tick")
    deadline = time.monotonic() + 30
    while process.output.count("tick") < seen + 3:
        assert process.alive(), process.output
        assert time.monotonic() < deadline, process.output
        time.sleep(0.02)
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output
