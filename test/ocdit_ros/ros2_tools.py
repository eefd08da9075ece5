"""The command line tool `ros2`, for tests: where it is, and where it has found our package."""

import importlib.util
import sys

import pytest

from ocdit_ros import profiles_variable

ROS2 = (sys.executable, "-c", "import sys; sys.argv[0] = 'ros2'; from ros2cli.cli import main; sys.exit(main())")

PROFILES = profiles_variable()
"""What this distribution's Fast DDS calls the variable that names its profiles."""


def share_folder():
    """Return the installed package's share folder; skips the test file where a tool or the package is missing."""
    for name in ("launch_ros", "ros2cli", "ros2launch"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed", allow_module_level=True)
    packages = pytest.importorskip("ament_index_python.packages")
    try:
        return packages.get_package_share_directory("ocdit_ros")
    except packages.PackageNotFoundError:
        pytest.skip("ocdit_ros is not installed into an ament prefix", allow_module_level=True)
