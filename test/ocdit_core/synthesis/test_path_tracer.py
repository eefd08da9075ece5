"""Path-traced colours over the same labels, and the same light as the scene renderer's."""

import cv2
import numpy as np
import pytest

from ocdit_core.synthesis import scenes
from ocdit_core.synthesis.scenes import SceneMaker, SceneSettings
from ocdit_core.synthesis.sources import procedural_objects

pytest.importorskip("mitsuba", reason="needs mitsuba")


@pytest.fixture
def scene(monkeypatch):
    """Return a function that makes the frames of one scene, a fraction of them path-traced."""
    monkeypatch.setattr(scenes, "EFFECTS", (0.0, 0.0))

    def make(path_traced):
        settings = SceneSettings(targets=(3, 4), distractors=(0, 1), size=(120, 160), path_traced=path_traced)
        with SceneMaker(procedural_objects(8), settings, seed=1) as maker:
            return list(maker.frames(2, 3))

    return make


def test_only_the_colours_are_drawn_anew_and_show_the_same(scene):
    drawn, traced = scene(0.0), scene(1.0)
    for one, other in zip(drawn, traced, strict=True):
        np.testing.assert_array_equal(one.depth, other.depth)
        for a, b in zip(one.objects, other.objects, strict=True):
            np.testing.assert_array_equal(a.visible, b.visible)
        np.testing.assert_array_equal(one.K, other.K)
        assert not np.array_equal(one.image, other.image)
        # The same things in the same places in about the same light: an image shifted by some pixels agrees less.
        ours, theirs = (cv2.GaussianBlur(i.image, (0, 0), 1.5).astype(float) for i in (one, other))
        agreement = np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]
        shifted = np.corrcoef(ours[:, 8:].ravel(), theirs[:, :-8].ravel())[0, 1]
        assert agreement > 0.85
        assert agreement > shifted + 0.02
        assert 0.5 < theirs.mean() / ours.mean() < 2


def test_the_same_scene_is_traced_the_same(scene):
    for one, other in zip(scene(0.5), scene(0.5), strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_a_share_of_the_images_is_traced(scene):
    none, some, all_of_them = scene(0.0), scene(0.6), scene(1.0)
    kinds = [
        (np.array_equal(b.image, a.image), np.array_equal(b.image, c.image))
        for a, b, c in zip(none, some, all_of_them, strict=True)
    ]
    assert set(kinds) == {(True, False), (False, True)}
