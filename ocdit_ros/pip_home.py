"""ROS 2 from pip wheels: the one setting that the wheels leave to their user.

rclpy finds message types by AMENT_PREFIX_PATH. A sourced ROS installation sets it; the wheels on PyPI do not, although
they install into the same layout under `sys.prefix`. Call `prepare()` before the first `import rclpy`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def prepare() -> None:
    """Set AMENT_PREFIX_PATH to this Python's prefix when it is unset and the wheels are installed; else do nothing."""
    if not os.environ.get("AMENT_PREFIX_PATH") and (Path(sys.prefix) / "share" / "ament_index").is_dir():
        os.environ["AMENT_PREFIX_PATH"] = sys.prefix


def share_folder() -> Path:
    """Return the folder that holds config/ and launch/: the installed share folder, or the source tree.

    Raises:
        FileNotFoundError: neither is there.
    """
    source = Path(__file__).resolve().parents[1]
    prefixes = [Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    for folder in [source, *(prefix / "share" / "ocdit_ros" for prefix in [*prefixes, Path(sys.prefix)])]:
        if (folder / "config" / "segment.yaml").is_file():
            return folder
    raise FileNotFoundError("ocdit_ros is not installed: no share/ocdit_ros/config/segment.yaml on AMENT_PREFIX_PATH")
