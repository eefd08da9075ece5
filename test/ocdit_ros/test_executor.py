import threading
import time

import pytest
import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup

from ocdit_ros import spinning as module
from ocdit_ros.spinning import PoolExecutor


@pytest.fixture
def place(monkeypatch):
    """A context, a node in it, and an executor of two threads that spins it."""
    monkeypatch.setattr(module, "THREADS", 2)
    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node("busy", context=context)
    executor = PoolExecutor(context=context)
    executor.add_node(node)
    yield node, executor
    executor.shutdown()
    node.destroy_node()
    context.try_shutdown()


def every(node, seconds, callback):
    node.create_timer(seconds, callback, callback_group=ReentrantCallbackGroup())


def test_a_callback_that_takes_its_time_holds_up_no_other(place):
    node, executor = place
    go_on, blocked, ticks = threading.Event(), [], []

    def block():
        if not blocked:
            blocked.append(threading.current_thread())
            go_on.wait(30)

    every(node, 0.01, block)
    every(node, 0.02, lambda: ticks.append(bool(blocked)))
    deadline = time.monotonic() + 20
    while sum(ticks) < 5:
        assert time.monotonic() < deadline
        executor.spin_once(timeout_sec=0.1)
    go_on.set()
    assert blocked[0] is not threading.current_thread()


def test_waiting_for_a_free_thread_takes_no_processor(place):
    node, executor = place
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def block():
        begun.release()
        go_on.wait(30)

    for _ in range(4):
        every(node, 0.01, block)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    for _ in range(2):
        assert begun.acquire(timeout=20)
    before = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - before < 0.5
    assert not begun.acquire(blocking=False), "there are two threads only"
    go_on.set()
    assert begun.acquire(timeout=20), "the others had their turn"
    node.context.shutdown()
    spinning.join(20)
    assert not spinning.is_alive()


def test_what_a_callback_raises_ends_the_spinning(place):
    node, executor = place

    done = []

    def fail_once():
        done.append(True)
        if len(done) == 1:
            raise ValueError("so it goes")

    every(node, 0.01, fail_once)
    with pytest.raises(ValueError, match="so it goes"):
        executor.spin()
    # It may be spun on: what was raised is raised once.
    deadline = time.monotonic() + 20
    while len(done) < 3:
        assert time.monotonic() < deadline
        executor.spin_once(timeout_sec=0.1)


def test_shutdown_waits_for_what_has_begun(place):
    node, executor = place
    done = []

    def work():
        time.sleep(0.3)
        done.append(True)

    every(node, 0.01, work)
    executor.spin_once()
    executor.shutdown()
    assert done
