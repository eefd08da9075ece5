import cv2
import numpy as np
import pytest

from ocdit_core.data import augment
from ocdit_core.data.augment import augment_image, replace_background
from ocdit_core.data.painting import random_background


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def photo():
    """Uneven, of several colours, not saturated."""
    return (40 + random_background(rng(3), (120, 160)) * 0.6).astype(np.uint8)


RANGES = ("MAX_BLUR", "MAX_SHARPNESS", "CONTRAST", "BRIGHTNESS", "SATURATION", "TINT")


@pytest.fixture
def only(monkeypatch):
    """Return a function that turns all changes off but those named."""

    def turn_on(**ranges):
        monkeypatch.setattr(augment, "EACH_PROBABILITY", 1.0)
        monkeypatch.setattr(augment, "IMAGE_PROBABILITY", 1.0)
        for name in RANGES:
            monkeypatch.setattr(augment, name, ranges.get(name, 0.0))

    return turn_on


def sharpness(image):
    return float(cv2.Laplacian(image.astype(np.float32), cv2.CV_32F).std())


def test_images_are_changed_with_the_given_probability(photo, monkeypatch):
    monkeypatch.setattr(augment, "EACH_PROBABILITY", 1.0)
    monkeypatch.setattr(augment, "IMAGE_PROBABILITY", 0.6)
    changed = [not np.array_equal(augment_image(rng(seed), photo), photo) for seed in range(200)]
    assert np.mean(changed) == pytest.approx(0.6, abs=0.08)


def test_the_same_randomness_changes_alike_and_the_input_stays(photo):
    before = photo.copy()
    a, b = (augment_image(rng(5), photo) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(photo, before)
    assert a.shape == photo.shape
    assert a.dtype == np.uint8


def test_brightness_scales_all_channels_within_its_range(photo, only):
    only(BRIGHTNESS=0.3)
    ratios = []
    for seed in range(60):
        out = augment_image(rng(seed), photo)
        ratio = out.astype(float).mean(axis=(0, 1)) / photo.mean(axis=(0, 1))
        assert np.ptp(ratio) < 0.02  # but for rounding and a few saturated pixels
        ratios.append(ratio.mean())
    assert 1 / 1.31 < min(ratios) < 0.85
    assert 1.15 < max(ratios) < 1.31


def test_contrast_keeps_the_mean_and_changes_the_spread(photo, only):
    only(CONTRAST=0.3)
    spreads = []
    for seed in range(40):
        out = augment_image(rng(seed), photo)
        assert abs(float(out.mean()) - float(photo.mean())) < 4
        spreads.append(out.std() / photo.std())
    assert min(spreads) < 0.9
    assert max(spreads) > 1.1


def test_saturation_keeps_grey_and_luma(only):
    only(SATURATION=0.5)
    grey = np.full((20, 20, 3), 90, np.uint8)
    np.testing.assert_array_equal(augment_image(rng(), grey), grey)
    red = np.full((20, 20, 3), (140, 70, 70), np.uint8)
    luma = np.array([0.299, 0.587, 0.114])
    differences = set()
    for seed in range(20):
        out = augment_image(rng(seed), red)[0, 0].astype(float)
        assert out @ luma == pytest.approx(red[0, 0] @ luma, abs=1.5)
        differences.add(out[0] - out[1])
    assert min(differences) < 60
    assert max(differences) > 80


def test_blur_takes_detail_and_sharpening_adds_some(photo, only, monkeypatch):
    only(MAX_BLUR=3.0)
    assert sharpness(augment_image(rng(1), photo)) < 0.9 * sharpness(photo)
    only(MAX_BLUR=1.5, MAX_SHARPNESS=1.5)
    monkeypatch.setattr(augment, "EACH_PROBABILITY", 0.5)
    values = [sharpness(augment_image(rng(seed), photo)) for seed in range(40)]
    assert max(values) > 1.1 * sharpness(photo)
    assert min(values) < 0.95 * sharpness(photo)


def test_a_replaced_background_leaves_the_foreground(photo):
    foreground = np.zeros((120, 160), bool)
    foreground[30:90, 40:100] = True
    background = np.full_like(photo, 200)
    out = replace_background(photo, foreground, background)
    np.testing.assert_array_equal(out[32:88, 42:98], photo[32:88, 42:98])
    assert (out[:28] == 200).all()
    edge = np.abs(out[60, 39].astype(float) - 200)  # between both
    assert (edge < np.abs(photo[60, 39].astype(float) - 200) + 1).all()
