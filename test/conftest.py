"""For all tests: what programs keep for the user goes to a folder of the test run."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Features of views are cached in a fresh folder, by the processes that tests start too."""
    before = os.environ.get("OCDIT_CACHE")
    os.environ["OCDIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["OCDIT_CACHE"]
    else:
        os.environ["OCDIT_CACHE"] = before
