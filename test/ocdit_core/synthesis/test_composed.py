import cv2
import numpy as np
import pytest

from ocdit_core.data.painting import random_background
from ocdit_core.errors import ConfigError
from ocdit_core.synthesis import composed
from ocdit_core.synthesis.composed import Scene, SceneSettings, compose_scene


def square(colour, side=40):
    sprite = np.zeros((side, side, 4), np.uint8)
    sprite[2:-2, 2:-2] = (*colour, 255)
    return sprite


COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
CLEAN = SceneSettings(effects=0.0)


@pytest.fixture
def plain(monkeypatch):
    """Upright sprites without shadows and clutter."""
    for name in ("ROTATION", "SHADOW_PROBABILITY", "CLUTTER_PROBABILITY"):
        monkeypatch.setattr(composed, name, 0.0)


def scenes(settings, n, **options):
    return [
        compose_scene(np.random.default_rng(k), [square(c) for c in COLOURS], settings, **options) for k in range(n)
    ]


def test_masks_are_exactly_the_visible_pixels(plain):
    for scene in scenes(CLEAN, 20):
        assert not (scene.masks.sum(axis=0) > 1).any()  # a pixel shows one thing
        for mask, colour in zip(scene.masks, COLOURS, strict=True):
            inside = cv2.erode(mask.astype(np.uint8), np.ones((5, 5)))  # away from half-covered edges
            shown = scene.image[inside > 0].astype(float)
            # Sprites are lit a little differently each time, but red stays red.
            strength = shown @ np.array(colour) / (np.linalg.norm(shown, axis=1) * np.linalg.norm(colour) + 1e-9)
            assert len(shown) == 0 or (strength > 0.98).all()


def test_pixels_outside_all_masks_show_the_background(plain):
    for k in range(5):
        sprites = [square(c) for c in COLOURS]
        scene = compose_scene(np.random.default_rng(k), sprites, CLEAN)
        background = random_background(np.random.default_rng(k), CLEAN.image_size, clutter=0.0).astype(np.uint8)
        same = (scene.image == background).all(axis=2)
        beside = ~scene.masks.any(axis=0)
        assert same[beside].mean() > 0.95  # but for half-covered edges
        assert same[scene.masks.any(axis=0)].mean() < 0.05


def test_scenes_repeat_and_differ():
    first, again, other = (
        compose_scene(np.random.default_rng(k), [square(c) for c in COLOURS], SceneSettings()) for k in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert (first.image != other.image).any()


def test_most_objects_stay_visible_and_sizes_fit(monkeypatch):
    monkeypatch.setattr(composed, "ROTATION", 0.0)
    made = scenes(SceneSettings(), 60, cut_probability=0.0)
    visibility = np.stack([scene.visibility for scene in made])
    assert (visibility >= 0.3).mean() > 0.97
    assert (visibility < 0.999).mean() > 0.05  # some do hide others
    for scene in made:
        for mask, share in zip(scene.masks, scene.visibility, strict=True):
            side = (mask.sum() / share) ** 0.5 / (36 / 40)
            assert 0.15 * 144 - 2 < side < 0.6 * 144 + 2


def test_shadows_darken_the_ground_and_leave_masks_alone(monkeypatch):
    monkeypatch.setattr(composed, "SHADOW_PROBABILITY", 1.0)
    monkeypatch.setattr(composed, "CLUTTER_PROBABILITY", 0.0)
    darker = []
    for k in range(10):
        background = random_background(np.random.default_rng(k), CLEAN.image_size, clutter=0.0)
        scene = compose_scene(np.random.default_rng(k), [square(COLOURS[0])], CLEAN)
        ground = ~scene.masks[0]
        change = scene.image[ground].astype(float) - background[ground]
        darker.append(np.minimum(change, 0).sum())
        assert np.percentile(change, 99) < 1.5  # light is only taken away
    assert np.mean(np.array(darker) < -1000) >= 0.9


def test_no_sprites_is_a_background():
    scene = compose_scene(np.random.default_rng(0), [], SceneSettings())
    assert isinstance(scene, Scene)
    assert scene.image.shape == (144, 192, 3)
    assert scene.masks.shape == (0, 144, 192)
    assert scene.visibility.shape == (0,)


def test_large_pictures_from_large_sprites():
    scene = compose_scene(
        np.random.default_rng(0), [square(c, 256) for c in COLOURS], SceneSettings(image_size=(480, 640))
    )
    assert scene.image.shape == (480, 640, 3)
    assert scene.image.dtype == np.uint8
    assert (scene.masks.sum(axis=(1, 2)) > 500).sum() >= 4


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="object_size"):
        SceneSettings(object_size=(0.5, 0.2))
    with pytest.raises(ConfigError, match="image_size"):
        SceneSettings(image_size=(8, 100))
