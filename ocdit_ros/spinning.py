"""Run a node as a process: a thread pool for its callbacks, and an end without traceback on SIGINT or SIGTERM."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

import rclpy
from rclpy.exceptions import InvalidHandle, ParameterException
from rclpy.executors import Executor, ExternalShutdownException, ShutdownException, TimeoutException

from ocdit_core.errors import OcditError
from ocdit_ros.worker import describe

if TYPE_CHECKING:
    from rclpy.context import Context
    from rclpy.node import Node
    from rclpy.task import Task

THREADS = 128
"""Upper limit; a thread is started when no other is free. A service that waits for the network holds one."""

END_WITHIN = 1.0
"""Seconds from the end of spinning to the end of the process, whatever is running then."""


class PoolExecutor(Executor):
    """Executor that hands each callback to a thread pool exactly once. Callbacks must not be coroutines.

    rclpy's MultiThreadedExecutor submits a ready callback again and again until a thread has begun it
    (https://github.com/ros2/rclpy/issues/1452, mended in Rolling only). Under camera load this was measured to reach
    thousands of submissions in half a second, during which images were lost, services waited, and memory grew.

    An exception in a callback ends `spin`, as in rclpy's executors.
    """

    def __init__(self, *, context: Context | None = None) -> None:
        super().__init__(context=context)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ocdit-callback")
        self._error: Exception | None = None

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Hand the next ready callback, if one comes within the seconds given, to a thread; wait until it has begun."""
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
        """Stop, and wait for the callbacks that have begun; return True."""
        ended: bool = super().shutdown(timeout_sec)
        self._pool.shutdown()
        return ended

    def _run(self, task: Task, begun: threading.Event) -> None:
        begun.set()
        task()
        if task.done() and task.exception() is not None:
            self._error = task.exception()
            self.wake()


def run(
    make_node: Callable[[], Node], args: list[str] | None = None, close: Callable[[Any], None] | None = None
) -> int:
    """Make a node, spin it until SIGINT, SIGTERM or a shutdown of the context, and end the process.

    The process ends within two seconds after the signal with code 0, whatever is running; with 1 after an unexpected
    error, and with 2 after an OcditError (one line on stderr).

    Args:
        make_node: factory, called after ROS is initialised.
        args: command line; None: the process's own.
        close: called with the node after it has stopped spinning.

    Returns:
        2 where there was nothing to spin because the command line or a parameter is invalid (one line on stderr).
    """
    # rclpy's handler calls this one and ends the spinning. Python's own would raise KeyboardInterrupt anywhere in the
    # main thread, also during the shutdown: Ctrl-C may come twice, from the terminal and from `ros2 launch`.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        rclpy.init(args=args)
        node = make_node()
    except (ParameterException, OcditError, RuntimeError) as error:
        # rclpy raises a RuntimeError of a private type for a command line that it cannot parse.
        print(f"error: {describe(error)}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = PoolExecutor()
    executor.add_node(node)
    code = 0
    try:
        _spin(executor)
    except ExternalShutdownException:
        pass
    except OcditError as error:
        code = 2
        print(f"error: {describe(error)}", file=sys.stderr)
    except BaseException:
        code = 1
        traceback.print_exc()
    # A transition that loads weights, or the frame in progress, cannot be interrupted: do not wait longer for it.
    timer = threading.Timer(END_WITHIN, _end, (code,))
    timer.daemon = True
    timer.start()
    try:
        if close is not None:
            close(node)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        # The garbage collector destroys the remaining DDS entities, which then say goodbye to their peers.
        del node, executor
        gc.collect()
    except BaseException:
        code = code or 1
        traceback.print_exc()
    # Not Python's own exit: it takes seconds on a busy machine, and aborts while a thread is inside the network.
    _end(code)


def _spin(executor: Executor) -> None:
    while True:
        try:
            executor.spin()
            return
        except InvalidHandle:
            # A subscription was destroyed while the executor built its wait set, which rclpy does not handle
            # (https://github.com/ros2/rclpy/issues/1142, /1206). The next wait set is complete; nothing is lost.
            continue
        except RuntimeError:
            # A signal at that moment: rclpy's error for an invalid context is a RuntimeError of a private type.
            if rclpy.ok():
                raise
            return


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
