"""Fixtures and markers of all tests."""

from pathlib import Path

import pytest

ROS_TESTS = Path(__file__).parent / "ocdit_ros"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in test/ocdit_ros, and skip tests for a GPU where there is none."""
    for item in items:
        if item.path.is_relative_to(ROS_TESTS):
            item.add_marker(pytest.mark.ros)
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Cache template features in a fresh folder, also in processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory) -> Path:
    """The folder of a very small network with random weights."""
    from builders import make_untrained_model

    return make_untrained_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def rendered_library(tmp_path_factory) -> Path:
    """The folder of a library with the objects box, can and mug; not to be changed."""
    from builders import make_library

    return make_library(tmp_path_factory.mktemp("rendered") / "library")
