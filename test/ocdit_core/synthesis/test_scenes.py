import dataclasses
import itertools

import numpy as np
import pytest

from ocdit_core.errors import ConfigError, DataError
from ocdit_core.images import write_image
from ocdit_core.synthesis.room import random_room
from ocdit_core.synthesis.scenes import CameraSettings, SceneMaker, SceneSettings, random_camera
from ocdit_core.synthesis.sources import ProceduralObjects, TexturePool

pytest.importorskip("mujoco", reason="needs mujoco")

SETTINGS = SceneSettings(
    targets=(3, 5),
    distractors=(1, 2),
    cameras=(4, 4),
    lights=(1, 1),
    camera=CameraSettings(size=(240, 320), fill=(0.9, 1.6)),
)


def maker(renderer, seed=0, settings=SETTINGS, **options):
    textures = TexturePool(0, painted=6, size=64)
    return SceneMaker(ProceduralObjects(12), settings, seed=seed, textures=textures, renderer=renderer, **options)


@pytest.fixture(scope="module")
def scene(renderer):
    with maker(renderer) as made:
        layout = made.layout(3)
        return layout, list(made.images(3, layout))


def test_the_same_seed_gives_the_same_pictures(renderer, scene):
    with maker(renderer) as made:
        list(made.images(0))  # whatever was made before
        again = list(made.images(3))
    assert len(again) == len(scene[1])
    for a, b in zip(scene[1], again, strict=True):
        for name in ("rgb", "depth", "masks", "masks_visible", "K", "cam_R_w2c", "cam_t_w2c"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
        for one, two in zip(a.instances, b.instances, strict=True):
            assert (one.name, one.px_count_all, one.bbox_obj) == (two.name, two.px_count_all, two.bbox_obj)
            assert one.cam_t_m2c.tobytes() == two.cam_t_m2c.tobytes()


def test_other_numbers_and_seeds_give_other_scenes(renderer, scene):
    with maker(renderer) as made:
        other = made.layout(4)
    with maker(renderer, seed=1) as made:
        seeded = made.layout(3)
    poses = [np.concatenate([o.pose for o in x.objects]).tobytes() for x in (scene[0], other, seeded)]
    assert len(set(poses)) == 3


def test_pictures_are_fit_to_be_seen(scene):
    _, images = scene
    assert len(images) == 4
    for image in images:
        assert image.rgb.shape == (240, 320, 3)
        assert 30 < image.rgb.mean() < 225
        assert image.rgb.std() > 8
        assert (image.rgb == 255).all(axis=2).mean() < 0.25
        assert (image.rgb < 3).all(axis=2).mean() < 0.25


def test_labels_masks_and_poses_belong_together(scene):
    layout, images = scene
    targets = [item for item in layout.objects if item.label]
    assert [item.label for item in targets] == list(range(1, len(targets) + 1))
    assert len(targets) < len(layout.objects)  # a distractor at least
    source = ProceduralObjects(12)
    for image in images:
        assert image.masks.shape == image.masks_visible.shape == (len(targets), 240, 320)
        assert not (image.masks_visible & ~image.masks).any()
        assert image.masks_visible.sum(axis=0).max() <= 1
        assert (image.depth > 100).all()
        for item, instance, whole, seen in zip(targets, image.instances, image.masks, image.masks_visible, strict=True):
            assert instance.name == item.name
            assert instance.px_count_all >= whole.sum()
            points = source.mesh(item.name).vertices * 1000 @ instance.cam_R_m2c.T + instance.cam_t_m2c
            uv = (points @ image.K.T)[:, :2] / points[:, 2:]
            x, y, width, height = instance.bbox_obj
            if uv[:, 0].min() > -320 and uv[:, 0].max() < 640 and uv[:, 1].min() > -240 and uv[:, 1].max() < 480:
                expected = [*uv.min(axis=0), *uv.max(axis=0)]
                np.testing.assert_allclose([x, y, x + width, y + height], expected, atol=1.5)
            if seen.any():
                metres = image.depth[seen]
                assert points[:, 2].min() - 1 < metres.min() <= metres.max() < points[:, 2].max() + 1


def test_an_object_cut_by_the_edge_is_counted_whole(scene):
    cut = 0
    for image in scene[1]:
        for instance, mask in zip(image.instances, image.masks, strict=True):
            x, y, width, height = instance.bbox_obj
            beyond = x < 0 or y < 0 or x + width > 320 or y + height > 240
            cut += beyond
            assert (instance.px_count_all > mask.sum()) == beyond
            if mask.any():
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                assert x <= columns[0] <= columns[-1] < x + width
                assert y <= rows[0] <= rows[-1] < y + height
    assert cut


def test_every_camera_sees_enough(scene):
    for image in scene[1]:
        seen = image.masks_visible.sum(axis=(1, 2))
        assert (seen >= 40).mean() >= 0.5
        assert seen.max() < 0.6 * 240 * 320


def test_objects_are_never_target_and_distractor_at_once(renderer):
    with maker(renderer) as made:
        for index in range(4):
            names = [item.name for item in made.layout(index).objects]
            assert len(set(names)) == len(names)


def test_metals_do_not_turn_black(renderer):
    settings = dataclasses.replace(SETTINGS, metal_share=1.0, effects=(0.0, 0.0))
    with maker(renderer, settings=settings) as made:
        for image in itertools.islice(made.images(1), 2):
            for mask in image.masks_visible:
                if mask.sum() > 400:
                    assert image.rgb[mask].mean() > 12


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
        room = random_room(rng, textures=0)
        drawn = random_camera(rng, room, objects, CameraSettings())
        if drawn is None:
            continue
        found += 1
        pose, K = drawn
        place = -pose[:3, :3].T @ pose[:3, 3]
        assert (place > room.low).all()
        assert (place < room.high).all()
        assert place[2] >= 0.05
        assert 515 * 0.8 <= K[0, 0] <= 515 * 1.5 + 1e-9
    assert found > 80


def test_textures_of_a_folder(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 40:] = 255
    write_image(tmp_path / "half.png", picture)
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
    "values",
    [
        {"targets": (0, 3)},
        {"targets": (5, 3)},
        {"targets": (2, 300)},
        {"cameras": (0, 0)},
        {"effects": (-1, 0)},
        {"metal_share": 2},
    ],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        SceneSettings(**values)


def test_camera_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="elevation"):
        CameraSettings(elevation=(20, 95))
    with pytest.raises(ConfigError, match="fill"):
        CameraSettings(fill=(1.0, 0.5))
    with pytest.raises(ConfigError, match="size"):
        CameraSettings(size=(10, 10))
