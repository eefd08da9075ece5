import dataclasses

import numpy as np
import pytest

from ocdit_core.errors import ConfigError, DataError
from ocdit_core.images import write_image
from ocdit_core.masks import tight_box
from ocdit_core.synthesis import room, scenes
from ocdit_core.synthesis.room import random_room
from ocdit_core.synthesis.scenes import SceneMaker, SceneSettings, random_camera
from ocdit_core.synthesis.sources import TexturePool, procedural_objects

pytest.importorskip("mujoco", reason="needs mujoco")

SETTINGS = SceneSettings(targets=(3, 5), distractors=(1, 2), size=(240, 320))
SOURCE = procedural_objects(12)


@pytest.fixture(scope="module", autouse=True)
def near_cameras():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "FILL", (0.9, 1.6))
        patch.setattr(room, "LIGHTS", (1, 1))
        yield


def maker(renderer, seed=0, settings=SETTINGS, **options):
    textures = TexturePool(0, painted=6, size=64)
    return SceneMaker(SOURCE, settings, seed=seed, textures=textures, renderer=renderer, **options)


@pytest.fixture(scope="module")
def scene(renderer, near_cameras):
    """The objects and the frames of scene 3."""
    with maker(renderer) as made:
        return made.layout(3)[1], list(made.frames(3, 4))


def test_the_same_seed_gives_the_same_images(renderer, scene):
    with maker(renderer) as made:
        list(made.frames(0, 1))  # whatever was made before
        again = list(made.frames(3, 4))
    for a, b in zip(scene[1], again, strict=True):
        for name in ("image", "depth", "K", "rotation", "translation"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
        for one, two in zip(a.objects, b.objects, strict=True):
            assert (one.object_id, one.whole) == (two.object_id, two.whole)
            for name in ("visible", "silhouette", "rotation", "translation"):
                assert getattr(one, name).tobytes() == getattr(two, name).tobytes(), name


def test_other_numbers_and_seeds_give_other_scenes(renderer, scene):
    with maker(renderer) as made:
        other = made.layout(4)[1]
    with maker(renderer, seed=1) as made:
        seeded = made.layout(3)[1]
    poses = [np.concatenate([item.pose for item in objects]).tobytes() for objects in (scene[0], other, seeded)]
    assert len(set(poses)) == 3


def test_images_are_exposed_well(scene):
    for frame in scene[1]:
        assert frame.image.shape == (240, 320, 3)
        assert 30 < frame.image.mean() < 225
        assert frame.image.std() > 8
        assert (frame.image == 255).all(axis=2).mean() < 0.25
        assert (frame.image < 3).all(axis=2).mean() < 0.25


def test_labels_masks_and_poses_belong_together(scene):
    objects, frames = scene
    targets = [item for item in objects if item.label]
    assert [item.label for item in targets] == list(range(1, len(targets) + 1))
    assert len(targets) < len(objects)  # a distractor at least
    for frame in frames:
        assert sum(item.visible.astype(int) for item in frame.objects).max() <= 1
        assert (frame.depth > 0.1).all()
        for target, item in zip(targets, frame.objects, strict=True):
            assert list(SOURCE)[item.object_id - 1] == target.name
            assert not (item.visible & ~item.silhouette).any()
            assert item.pixels >= item.silhouette.sum()
            points = SOURCE[target.name]().vertices @ item.rotation.T + item.translation
            uv = (points @ frame.K.T)[:, :2] / points[:, 2:]
            x, y, width, height = item.whole[1]
            if uv[:, 0].min() > -320 and uv[:, 0].max() < 640 and uv[:, 1].min() > -240 and uv[:, 1].max() < 480:
                expected = [*uv.min(axis=0), *uv.max(axis=0)]
                np.testing.assert_allclose([x, y, x + width, y + height], expected, atol=1.5)
            if item.visible.any():
                metres = frame.depth[item.visible]
                assert points[:, 2].min() - 1e-3 < metres.min() <= metres.max() < points[:, 2].max() + 1e-3


def test_an_object_cut_by_the_edge_is_counted_whole(scene):
    cut = 0
    for frame in scene[1]:
        for item in frame.objects:
            count, (x, y, width, height) = item.whole
            beyond = x < 0 or y < 0 or x + width > 320 or y + height > 240
            cut += beyond
            assert (count > item.silhouette.sum()) == beyond
            if item.silhouette.any():
                left, top, wide, high = tight_box(item.silhouette)
                assert x <= left < left + wide <= x + width
                assert y <= top < top + high <= y + height
    assert cut


def test_every_camera_sees_enough(scene):
    for frame in scene[1]:
        seen = np.array([item.visible.sum() for item in frame.objects])
        assert (seen >= 40).mean() >= 0.5
        assert seen.max() < 0.6 * 240 * 320


def test_objects_are_never_target_and_distractor_at_once(renderer):
    with maker(renderer) as made:
        for index in range(4):
            names = [item.name for item in made.layout(index)[1]]
            assert len(set(names)) == len(names)


def test_metals_do_not_turn_black(renderer, monkeypatch):
    monkeypatch.setattr(scenes, "METAL_PROBABILITY", 1.0)
    monkeypatch.setattr(scenes, "EFFECTS", (0.0, 0.0))
    with maker(renderer) as made:
        for frame in made.frames(1, 2):
            for item in frame.objects:
                if item.visible.sum() > 400:
                    assert frame.image[item.visible].mean() > 12


def test_too_few_objects(renderer):
    settings = dataclasses.replace(SETTINGS, targets=(13, 13))
    with (
        maker(renderer, settings=settings) as made,
        pytest.raises(DataError, match="needs 13 objects, and there are 12"),
    ):
        made.layout(0)


def test_cameras_stay_in_the_room():
    rng = np.random.default_rng(0)
    objects = [rng.uniform(-0.05, 0.05, (20, 3)) + np.array([x, 0, 0.06]) for x in (-0.2, 0.0, 0.2)]
    found = 0
    for _ in range(100):
        here = random_room(rng, textures=0)
        drawn = random_camera(rng, here, objects, (480, 640))
        if drawn is None:
            continue
        found += 1
        pose, K = drawn
        place = -pose[:3, :3].T @ pose[:3, 3]
        assert (place > here.low).all()
        assert (place < here.high).all()
        assert place[2] >= 0.05
        assert 515 * 0.8 <= K[0, 0] <= 515 * 1.5 + 1e-9
    assert found > 80


def test_textures_of_a_folder(tmp_path):
    texture = np.zeros((40, 80, 3), np.uint8)
    texture[:, 40:] = 255
    write_image(tmp_path / "half.png", texture)
    pool = TexturePool(5, painted=2, folder=tmp_path, size=32)
    assert len(pool) == 3
    assert pool[2].shape == (32, 32, 3)
    assert (pool[2][:, :12] == 0).all()
    assert (pool[2][:, -12:] == 255).all()
    assert (pool[0] == TexturePool(5, painted=2, size=32)[0]).all()
    assert (pool[0] != pool[1]).any()
    with pytest.raises(IndexError):
        pool[3]
    with pytest.raises(DataError, match="no such folder"):
        TexturePool(folder=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "values", [{"targets": (0, 3)}, {"targets": (5, 3)}, {"targets": (2, 300)}, {"repeats": 2}, {"size": (10, 10)}]
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        SceneSettings(**values)
