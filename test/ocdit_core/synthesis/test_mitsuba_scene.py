import logging

import pytest

from ocdit_core.errors import RenderingError
from ocdit_core.synthesis import path_tracer as mitsuba_scene

pytest.importorskip("mitsuba", reason="needs mitsuba")

# As an LLVM that is too old for the processor does it, on the first image.
ABORTS = "import os, sys; print('LLVM ERROR: Cannot select: f32 = fminimum', file=sys.stderr, flush=True); os.abort()"


@pytest.fixture(autouse=True)
def _forget():
    mitsuba_scene._failure.cache_clear()
    yield
    mitsuba_scene._failure.cache_clear()


def test_a_variant_that_does_not_draw_gives_way_to_the_slower_one_and_a_word(monkeypatch, caplog):
    probe = f"import sys\nif sys.argv[1] == 'llvm_ad_rgb':\n    {ABORTS}\n{mitsuba_scene._PROBE}"
    monkeypatch.setattr(mitsuba_scene, "_PROBE", probe)
    with caplog.at_level(logging.WARNING):
        assert mitsuba_scene.load_mitsuba().variant() == "scalar_rgb"
    (record,) = caplog.records
    assert "slower scalar_rgb (llvm_ad_rgb: LLVM ERROR: Cannot select: f32 = fminimum)" in record.getMessage()


def test_where_none_draws_the_reasons_are_named(monkeypatch):
    monkeypatch.setattr(mitsuba_scene, "_PROBE", ABORTS.replace("LLVM ERROR: Cannot select: f32 = fminimum", ""))
    with pytest.raises(RenderingError, match="llvm_ad_rgb: it ended with code -6; scalar_rgb: it ended with code -6"):
        mitsuba_scene.load_mitsuba()
