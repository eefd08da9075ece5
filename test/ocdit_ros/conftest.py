"""ROS for the tests: real nodes over real DDS, on a domain of their own and on this machine only."""

import importlib.util
import os
from pathlib import Path

from ocdit_ros import pip_home

pip_home.prepare()
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
# It is the sender's profile that decides whether large best-effort images arrive, and the tests send some.
os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(Path(__file__).parents[2] / "config" / "fastdds.xml"))
os.environ.setdefault("ROS_DOMAIN_ID", str(20 + os.getpid() % 80))

HAVE_ROS = importlib.util.find_spec("rclpy") is not None
# The core's tests run on a machine without ROS too; the worker needs none.
collect_ignore = (
    [] if HAVE_ROS else [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_worker.py"]
)


def pytest_report_header() -> str:
    return "ROS: rclpy is there" if HAVE_ROS else f"ROS: rclpy is missing, left out: {', '.join(collect_ignore)}"
