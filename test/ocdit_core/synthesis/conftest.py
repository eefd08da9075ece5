import pytest

from ocdit_core.synthesis.renderer import SceneRenderer


@pytest.fixture(scope="package")
def renderer():
    """One context for all tests: its programs are compiled once."""
    with SceneRenderer() as made:
        yield made
