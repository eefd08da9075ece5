"""From the command line to a spinning node, and out again without a traceback."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ocdit_core.errors import OcditError
from ocdit_ros import pip_home
from ocdit_ros.worker_types import describe

if TYPE_CHECKING:
    from rclpy.node import Node

pip_home.prepare()

import rclpy  # noqa: E402  (needs the prefix)
from rclpy.exceptions import ParameterException  # noqa: E402
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor  # noqa: E402

END_WITHIN = 1.5
"""Seconds from the signal to the end of the process, whatever is under way then."""


def run(
    make_node: Callable[[], Node], args: list[str] | None = None, close: Callable[[Any], None] | None = None
) -> int:
    """Make a node and spin it until SIGINT, SIGTERM or a shutdown of the context.

    Args:
        make_node: called after ROS is initialised.
        args: command line, by default the process's.
        close: called with the node when it has stopped spinning.

    Returns:
        The exit code: 0 after an orderly end, 2 when the command line or a parameter is bad (one line on stderr).
    """
    try:
        rclpy.init(args=args)
        node = make_node()
    except (ParameterException, OcditError, RuntimeError) as error:
        # rclpy's error for a command line that it cannot read is a RuntimeError of a private type.
        print(f"error: {describe(error)}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    # Four threads: one transition may load weights for a minute, the services still find a free one.
    executor = MultiThreadedExecutor(num_threads=4)
    executor.add_node(node)
    code = 1
    try:
        executor.spin()
        code = 0
    except (KeyboardInterrupt, ExternalShutdownException):
        code = 0
    except BaseException:
        # Now: the end may come before Python would print it.
        traceback.print_exc()
    finally:
        # A transition that loads weights, or a frame under way, cannot be interrupted: no longer wait for its end.
        timer = threading.Timer(END_WITHIN, _end, (code,))
        timer.daemon = True
        timer.start()
        if close is not None:
            close(node)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
        if any(thread.daemon and thread.name.startswith("ocdit-") for thread in threading.enumerate()):
            # A thread within the network would be torn out of it by Python's end, which aborts the process.
            _end(code)
        timer.cancel()
    return code


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
