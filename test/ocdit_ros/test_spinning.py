import time
from pathlib import Path

import pytest
import rclpy
from harness import NodeProcess
from rclpy.executors import SingleThreadedExecutor

from ocdit_ros import spinning

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


def test_a_signal_while_the_executor_gathers_ends_it_and_other_errors_stay_errors():
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(rclpy.create_node("waiting", context=context))

    def gather():
        # What a signal does, at the worst instant: the wait set is made of a context that has ended.
        context.try_shutdown()
        executor._wait_for_ready_callbacks().send(None)

    executor.spin = gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rclpy, "ok", context.ok)
        spinning._spin(executor)
        patch.setattr(rclpy, "ok", lambda: True)
        with pytest.raises(RuntimeError):
            spinning._spin(executor)
