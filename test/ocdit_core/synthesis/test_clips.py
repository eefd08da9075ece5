"""Clips: a moving camera, and two equal objects that cross each other."""

import numpy as np
import pytest

from ocdit_core.errors import ConfigError
from ocdit_core.synthesis import room
from ocdit_core.synthesis.clips import equal_pair
from ocdit_core.synthesis.plan import SynthesisSettings, views_of_scenes
from ocdit_core.synthesis.scenes import SceneMaker, SceneSettings
from ocdit_core.synthesis.sources import TexturePool, procedural_objects

pytest.importorskip("mujoco", reason="needs mujoco")

SOURCE = procedural_objects(6)
FRAMES = 9


def make_clip(renderer, **options):
    settings = SceneSettings(distractors=(0, 0), size=(240, 320), video=True, depth=False, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "LIGHTS", (1, 1))
        textures = TexturePool(0, painted=6, size=64)
        with SceneMaker(SOURCE, settings, textures=textures, renderer=renderer) as made:
            return made.layout(0)[1], list(made.frames(0, FRAMES))


def in_world(frame, item):
    """Return the pose (4, 4) of an object in the world."""
    camera, model = np.eye(4), np.eye(4)
    camera[:3, :3], camera[:3, 3] = frame.rotation, frame.translation
    model[:3, :3], model[:3, 3] = item.rotation, item.translation
    return np.linalg.inv(camera) @ model


def test_two_equal_objects_cross_and_the_camera_moves_smoothly(renderer):
    objects, frames = make_clip(renderer, targets=(3, 3), repeats=1.0)
    assert equal_pair(objects) is not None
    pair = np.array([[frame.objects[i].translation for i in (0, 1)] for frame in frames])
    ahead = pair[:, 0, 0] - pair[:, 1, 0]  # along the rows of the image
    assert ahead[0] * ahead[-1] < 0
    assert len({tuple(item.object_id for item in frame.objects) for frame in frames}) == 1
    # One hides a part of the other in the middle, and neither at both ends.
    visible = [min(item.visible_fraction for item in frame.objects[:2]) for frame in frames]
    assert min(visible[3:6]) < 0.9 < min(visible[0], visible[-1])
    worlds = np.array([[in_world(frame, item) for item in frame.objects] for frame in frames])
    steps = np.diff(worlds[:, :2, :3, 3], axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=1e-9)
    assert (steps[0, 0] @ steps[0, 1]) < 0
    np.testing.assert_allclose(steps[..., 2], 0, atol=1e-9)
    np.testing.assert_allclose(worlds[:, 2:] - worlds[:1, 2:], 0, atol=1e-9)  # the others stay
    eyes = np.array([-frame.rotation.T @ frame.translation for frame in frames])
    ways = np.linalg.norm(np.diff(eyes, axis=0), axis=1)
    assert 0 < ways.max() < 1.5 * ways.min()
    assert len({frame.K.tobytes() for frame in frames}) == 1
    assert np.ptp([frame.image.mean() for frame in frames]) < 12  # one exposure


def test_without_equal_objects_only_the_camera_moves(renderer):
    objects, frames = make_clip(renderer, targets=(2, 3))
    assert equal_pair(objects) is None
    worlds = np.array([[in_world(frame, item) for item in frame.objects] for frame in frames])
    np.testing.assert_allclose(worlds - worlds[:1], 0, atol=1e-9)
    assert not np.array_equal(frames[0].image, frames[-1].image)


def test_settings_of_clips():
    settings = SynthesisSettings(images=60, objects=9, video=True, views=(24, 24))
    assert views_of_scenes(settings) == (24, 24, 12)
    with pytest.raises(ConfigError, match="clips are not path-traced"):
        SynthesisSettings(objects=9, video=True, path_traced=0.5)
