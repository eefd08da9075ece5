"""From the command line to a spinning node, and out again without a traceback."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ocdit_core.errors import OcditError
from ocdit_ros import heap, pip_home
from ocdit_ros.executor import PoolExecutor
from ocdit_ros.worker_types import describe

if TYPE_CHECKING:
    from rclpy.node import Node

pip_home.prepare()

import rclpy  # noqa: E402  (needs the prefix)
from rclpy.exceptions import InvalidHandle, ParameterException  # noqa: E402
from rclpy.executors import Executor, ExternalShutdownException  # noqa: E402

END_WITHIN = 1.0
"""Seconds from the end of the spinning to that of the process, whatever is under way then."""


def run(
    make_node: Callable[[], Node], args: list[str] | None = None, close: Callable[[Any], None] | None = None
) -> int:
    """Make a node, spin it until SIGINT, SIGTERM or a shutdown of the context, and end the process.

    The process ends within two seconds of the signal, with code 0, whatever is under way; 1 after an error.

    Args:
        make_node: called after ROS is initialised.
        args: command line, by default the process's.
        close: called with the node when it has stopped spinning.

    Returns:
        Only where there was nothing to spin: 2, when the command line or a parameter is bad (one line on stderr).
    """
    heap.tune()
    # rclpy's handler, which calls this one, ends the spinning. Python's own would raise KeyboardInterrupt wherever the
    # main thread is just then, within the node's end too: Ctrl-C may come twice, by the terminal and by `ros2 launch`.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        rclpy.init(args=args)
        node = make_node()
    except (ParameterException, OcditError, RuntimeError) as error:
        # rclpy's error for a command line that it cannot read is a RuntimeError of a private type.
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
    except BaseException:
        code = 1
        traceback.print_exc()
    # A transition that loads weights, or a frame under way, cannot be interrupted: no longer wait for its end.
    timer = threading.Timer(END_WITHIN, _end, (code,))
    timer.daemon = True
    timer.start()
    try:
        if close is not None:
            close(node)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        # What is left of DDS says goodbye as it is collected.
        del node, executor
        gc.collect()
    except BaseException:
        code = 1
        traceback.print_exc()
    # Python's own end is left out: it takes seconds on a busy machine, and aborts the process where a thread is still
    # within the network.
    _end(code)


def _spin(executor: Executor) -> None:
    while True:
        try:
            executor.spin()
            return
        except InvalidHandle:
            # A subscription was destroyed while the executor gathered what to wait for, which rclpy does not foresee
            # (its issues 1142 and 1206): it gathers anew, and nothing that has arrived is lost.
            continue
        except RuntimeError:
            # The signal came just then: rclpy's error for a context that has ended has a private type.
            if rclpy.ok():
                raise
            return


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
