import cv2
import numpy as np
import pytest

from ocdit_core.data import augment
from ocdit_core.data.augment import (
    NO_AUGMENTATION,
    AugmentSettings,
    Backgrounds,
    augment_image,
    augment_templates,
    replace_background,
)
from ocdit_core.data.painting import random_background
from ocdit_core.errors import ConfigError, DataError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def picture():
    """Uneven, of several colours, not saturated."""
    return (40 + random_background(rng(3), (120, 160)) * 0.6).astype(np.uint8)


RANGES = ("MAX_BLUR", "MAX_SHARPNESS", "CONTRAST", "BRIGHTNESS", "SATURATION", "TINT")
ALWAYS = AugmentSettings(image_probability=1, template_probability=1)


@pytest.fixture
def only(monkeypatch):
    """Return a function that turns all changes off but those named."""

    def turn_on(**ranges):
        monkeypatch.setattr(augment, "EACH_PROBABILITY", 1.0)
        for name in RANGES:
            monkeypatch.setattr(augment, name, ranges.get(name, 0.0))

    return turn_on


def sharpness(image):
    return float(cv2.Laplacian(image.astype(np.float32), cv2.CV_32F).std())


def test_images_are_changed_with_the_given_probability(picture, monkeypatch):
    monkeypatch.setattr(augment, "EACH_PROBABILITY", 1.0)
    settings = AugmentSettings(image_probability=0.6)
    changed = [not np.array_equal(augment_image(rng(seed), picture, settings), picture) for seed in range(200)]
    assert np.mean(changed) == pytest.approx(0.6, abs=0.08)


def test_the_same_randomness_changes_alike_and_the_input_stays(picture):
    before = picture.copy()
    a, b = (augment_image(rng(5), picture, ALWAYS) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(picture, before)
    assert a.shape == picture.shape
    assert a.dtype == np.uint8


def test_brightness_scales_all_channels_within_its_range(picture, only):
    only(BRIGHTNESS=0.3)
    ratios = []
    for seed in range(60):
        out = augment_image(rng(seed), picture, ALWAYS)
        ratio = out.astype(float).mean(axis=(0, 1)) / picture.mean(axis=(0, 1))
        assert np.ptp(ratio) < 0.02  # but for rounding and a few saturated pixels
        ratios.append(ratio.mean())
    assert 1 / 1.31 < min(ratios) < 0.85
    assert 1.15 < max(ratios) < 1.31


def test_contrast_keeps_the_mean_and_changes_the_spread(picture, only):
    only(CONTRAST=0.3)
    spreads = []
    for seed in range(40):
        out = augment_image(rng(seed), picture, ALWAYS)
        assert abs(float(out.mean()) - float(picture.mean())) < 4
        spreads.append(out.std() / picture.std())
    assert min(spreads) < 0.9
    assert max(spreads) > 1.1


def test_saturation_keeps_grey_and_luma(only):
    only(SATURATION=0.5)
    grey = np.full((20, 20, 3), 90, np.uint8)
    np.testing.assert_array_equal(augment_image(rng(), grey, ALWAYS), grey)
    red = np.full((20, 20, 3), (140, 70, 70), np.uint8)
    luma = np.array([0.299, 0.587, 0.114])
    differences = set()
    for seed in range(20):
        out = augment_image(rng(seed), red, ALWAYS)[0, 0].astype(float)
        assert out @ luma == pytest.approx(red[0, 0] @ luma, abs=1.5)
        differences.add(out[0] - out[1])
    assert min(differences) < 60
    assert max(differences) > 80


def test_blur_takes_detail_and_sharpening_adds_some(picture, only, monkeypatch):
    only(MAX_BLUR=3.0)
    assert sharpness(augment_image(rng(1), picture, ALWAYS)) < 0.9 * sharpness(picture)
    only(MAX_BLUR=1.5, MAX_SHARPNESS=1.5)
    monkeypatch.setattr(augment, "EACH_PROBABILITY", 0.5)
    values = [sharpness(augment_image(rng(seed), picture, ALWAYS)) for seed in range(40)]
    assert max(values) > 1.1 * sharpness(picture)
    assert min(values) < 0.95 * sharpness(picture)


def test_a_replaced_background_leaves_the_foreground(picture):
    foreground = np.zeros((120, 160), bool)
    foreground[30:90, 40:100] = True
    background = np.full_like(picture, 200)
    out = replace_background(picture, foreground, background)
    np.testing.assert_array_equal(out[32:88, 42:98], picture[32:88, 42:98])
    assert (out[:28] == 200).all()
    edge = np.abs(out[60, 39].astype(float) - 200)  # between both
    assert (edge < np.abs(picture[60, 39].astype(float) - 200) + 1).all()


def test_backgrounds_are_drawn_or_come_from_a_folder(tmp_path):
    drawn = [Backgrounds().draw(rng(seed), (60, 80)) for seed in range(3)]
    assert all(d.shape == (60, 80, 3) and d.dtype == np.uint8 for d in drawn)
    assert not np.array_equal(drawn[0], drawn[1])

    (tmp_path / "deep").mkdir()
    # A large JPEG, a PNG smaller than what is asked for, of other aspects, and no picture at all.
    cv2.imwrite(str(tmp_path / "deep" / "red.jpg"), np.full((900, 700, 3), (0, 0, 250), np.uint8))
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((30, 90, 3), (250, 0, 0), np.uint8))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    backgrounds = Backgrounds(tmp_path)
    drawn = [backgrounds.draw(rng(seed), (60, 80)) for seed in range(30)]
    colours = {tuple(round(v / 50) for v in picture.mean(axis=(0, 1))) for picture in drawn}
    assert colours == {(5, 0, 0), (0, 0, 5)}


def test_a_folder_without_usable_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        Backgrounds(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no image"):
        Backgrounds(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(DataError, match=r"broken\.jpg: not readable"):
        Backgrounds(tmp_path).draw(rng(), (20, 20))


def template(side=64):
    """A square that fills the crop as archives do, with a red half, as (1, side, side, 4)."""
    view = np.zeros((1, side, side, 4), np.uint8)
    view[:, 3:-3, 3:-3] = (60, 120, 90, 255)
    view[:, 3 : side // 2, 3:-3, :3] = (150, 40, 40)
    return view


def test_templates_stay_on_black_with_a_mask_of_two_values_and_whole():
    views = np.repeat(template(), 6, axis=0)
    for seed in range(10):
        out = augment_templates(rng(seed), views, ALWAYS)
        assert set(np.unique(out[..., 3])) == {0, 255}
        # Half-covered pixels aside, what is not object is black.
        far = cv2.dilate(out[0, ..., 3], np.ones((3, 3), np.uint8)) == 0
        assert (out[0][far] == 0).all()
        # Nothing is cut off: the border of the crop stays free.
        assert not out[:, [0, -1], :, 3].any()
        assert not out[:, :, [0, -1], 3].any()
        assert out[..., 3].mean() > 0.5 * views[..., 3].mean()


def test_templates_of_one_object_share_their_light_and_turn_each_for_itself():
    views = np.repeat(template(), 4, axis=0)
    out = augment_templates(rng(2), views, ALWAYS)
    means = np.array([v[..., :3][v[..., 3] > 0].mean(axis=0) for v in out])
    assert np.ptp(means, axis=0).max() < 5
    assert np.abs(means.mean(axis=0) - views[0, 3:-3, 3:-3, :3].mean(axis=(0, 1))).max() > 5
    assert not np.array_equal(out[0], out[1])


def test_some_templates_stay_as_they_are():
    views = template()
    same = [augment_templates(rng(seed), views, AugmentSettings()) is views for seed in range(200)]
    assert np.mean(same) == pytest.approx(0.5, abs=0.1)
    assert augment_templates(rng(), views, NO_AUGMENTATION) is views


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match=r"image_probability: -0\.1"):
        AugmentSettings(image_probability=-0.1)
