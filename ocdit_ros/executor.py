"""A pool of threads for callbacks, each of which is handed over once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ocdit_ros import pip_home

if TYPE_CHECKING:
    from rclpy.context import Context
    from rclpy.task import Task

pip_home.prepare()

from rclpy.executors import Executor, ShutdownException, TimeoutException  # noqa: E402  (needs the prefix)

THREADS = 32
"""At most: a thread is started when a callback finds no free one."""


class PoolExecutor(Executor):
    """Runs callbacks in threads, so that one that takes its time holds up no other. They must not be coroutines.

    rclpy's MultiThreadedExecutor hands a callback to its pool again and again until a thread has begun it. Under load
    that was seen to become thousands of times in half a second, in which the interpreter belonged to that loop: images
    were lost, services waited, and memory grew.

    What a callback raises ends `spin`, as with rclpy's.

    Args:
        context: of ROS; None: the default one.
    """

    def __init__(self, *, context: Context | None = None) -> None:
        super().__init__(context=context)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ocdit-callback")
        self._error: Exception | None = None

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Hand the next callback that is ready to a thread, and wait until it has begun.

        Args:
            timeout_sec: seconds to wait for one; None: as long as it takes.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error
        try:
            task, _, _ = self.wait_for_ready_callbacks(timeout_sec=timeout_sec)
        except (ShutdownException, TimeoutException):
            return
        begun = threading.Event()
        self._pool.submit(self._run, task, begun)
        while not begun.wait(0.5) and self.context.ok():
            pass

    def shutdown(self, timeout_sec: float | None = None) -> bool:
        """Stop, and wait for the callbacks that have begun; returns True."""
        ended: bool = super().shutdown(timeout_sec)
        self._pool.shutdown()
        return ended

    def _run(self, task: Task, begun: threading.Event) -> None:
        begun.set()
        task()
        if task.done() and task.exception() is not None:
            self._error = task.exception()
            self.wake()
