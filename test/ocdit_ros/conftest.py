"""ROS for the tests: real nodes over real DDS, on a domain of their own and on this machine only."""

import importlib.util
import os
from pathlib import Path

import pytest
from ros2_tools import PROFILES

import ocdit_ros  # noqa: F401  (makes ROS from wheels importable)

os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
# It is the sender's profile that decides whether large best-effort images arrive, and the tests send some.
os.environ.setdefault(PROFILES, str(Path(__file__).parents[2] / "config" / "fastdds.xml"))
# Below those of the demo, which begin at 60. The processes of pytest-xdist have the same first one.
FIRST_DOMAIN = 1 + (os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()) % 28
os.environ.setdefault("ROS_DOMAIN_ID", str(FIRST_DOMAIN))

HAVE_ROS = importlib.util.find_spec("rclpy") is not None
# The core's tests run on a machine without ROS too; the logic of the node needs none.
WITHOUT_ROS = {
    "test_bag.py",
    "test_bag_refusals.py",
    "test_worker.py",
    "test_worker_thread.py",
    "test_numbering.py",
    "test_depth_pairs.py",
}
collect_ignore = sorted({path.name for path in Path(__file__).parent.glob("test_*.py")} - WITHOUT_ROS) * (not HAVE_ROS)


@pytest.fixture(scope="module", autouse=True)
def ros_domain(request):
    """A ROS domain of each file's own: a node that a test has killed is not seen by the next."""
    files = sorted({item.path for item in request.session.items})
    os.environ["ROS_DOMAIN_ID"] = str(FIRST_DOMAIN + files.index(request.path) % 31)


def pytest_report_header() -> str:
    return "ROS: rclpy is there" if HAVE_ROS else f"ROS: rclpy is missing, left out: {', '.join(collect_ignore)}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A library of three objects, and an untrained model."""
    import torch
    from builders import make_library, make_untrained_model

    folder = tmp_path_factory.mktemp("bag")
    make_library(folder / "library")
    make_untrained_model(folder / "model")
    threads = torch.get_num_threads()
    # A network this small is slowed down by a second thread.
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def make_recorder():
    """Start workers with stand-in networks, and end them."""
    from recorder import Recorder

    recorders = []

    def make(**options):
        batch = options.pop("batch", 1)
        recorder = Recorder(**options)
        recorder.worker.start(lambda: recorder.segmenter, batch=batch)
        recorders.append(recorder)
        return recorder

    yield make
    for recorder in recorders:
        recorder.segmenter.go_on.set()
        assert recorder.worker.stop(10)


@pytest.fixture
def recorded(tmp_path):
    """A bag of three images and two notes."""
    from bags import IMAGE, STRING, images, string, write_bag

    topics = {"/camera/image_raw": (IMAGE, images()), "/note": (STRING, [string("a"), string("b")])}
    return write_bag(tmp_path / "recorded.mcap", topics)
