"""The ROS 2 node around `ocdit_core`, its demo, and the command `ocdit bag`.

Importing this package makes ROS from PyPI wheels usable: rclpy finds message types through AMENT_PREFIX_PATH, which a
sourced ROS installation sets and the wheels do not.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if not os.environ.get("AMENT_PREFIX_PATH") and (Path(sys.prefix) / "share" / "ament_index").is_dir():
    os.environ["AMENT_PREFIX_PATH"] = sys.prefix


def share_folder() -> Path:
    """Return the folder that holds config/ and launch/: the source tree, or the installed share folder.

    Raises:
        FileNotFoundError: neither exists.
    """
    source = Path(__file__).resolve().parents[1]
    prefixes = [Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    for folder in [source, *(prefix / "share" / "ocdit_ros" for prefix in [*prefixes, Path(sys.prefix)])]:
        if (folder / "config" / "segment.yaml").is_file():
            return folder
    raise FileNotFoundError("ocdit_ros is not installed: no share/ocdit_ros/config/segment.yaml on AMENT_PREFIX_PATH")


def profiles_variable() -> str:
    """Return the environment variable that names Fast DDS's profiles; version 2 (Humble, Jazzy) has the older name."""
    prefixes = filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))
    old = any((Path(prefix) / "share" / "fastrtps").is_dir() for prefix in prefixes)
    return f"{'FASTRTPS' if old else 'FASTDDS'}_DEFAULT_PROFILES_FILE"


@contextmanager
def interruptible_imports() -> Iterator[None]:
    """End the process with code 0 on SIGINT while an executable imports ROS: nothing is there yet to be cleaned up."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
