"""Masks whose borders move to edges of the image."""

import dataclasses

import cv2
import numpy as np
import pytest

from ocdit_core.inference import postprocess
from ocdit_core.inference.edges import snap
from ocdit_core.inference.postprocess import Candidate, snapped
from ocdit_core.masks import mask_iou

SIZE = (240, 320)


def disc(radius, centre=(160, 120)):
    mask = np.zeros(SIZE, np.uint8)
    cv2.circle(mask, centre, radius, 1, -1)
    return mask.astype(bool)


def textured(mask):
    """Return an image of a red object on a blue background, both with noise."""
    rng = np.random.default_rng(0)
    colours = np.where(mask[..., None], (180, 40, 40), (40, 60, 170))
    return np.clip(colours + rng.normal(0, 12, colours.shape), 0, 255).astype(np.uint8)


def candidate(mask, region=(60, 20, 200, 200)):
    x, y, width, height = region
    own = mask[y : y + height, x : x + width]
    probabilities = cv2.GaussianBlur(own.astype(np.float32), (0, 0), 4)
    return Candidate(target=0, score=0.7, region=region, probabilities=probabilities, mask=own)


@pytest.mark.parametrize("radius", [56, 64])
def test_a_border_moves_to_the_edge(radius):
    truth, given = disc(60), disc(radius)
    one = candidate(given)
    found = snapped(one, textured(truth))
    assert mask_iou(given, truth) < 0.89
    assert mask_iou(found.whole(SIZE), truth) > 0.98
    assert (found.score, found.region) == (one.score, one.region)
    assert found.probabilities is one.probabilities


def test_only_masks_that_become_instances_move(monkeypatch):
    image, best = textured(disc(60)), candidate(disc(64))
    rest = [
        dataclasses.replace(best, score=0.6),  # at the same place
        dataclasses.replace(candidate(disc(20, (30, 30)), (0, 0, 80, 80)), score=0.2),  # below the threshold
    ]
    moved = []
    monkeypatch.setattr(postprocess, "snap", lambda *args: moved.append(args) or snap(*args))
    (found,) = postprocess.resolve([*rest, best], ["can"], SIZE, score_threshold=0.5, max_instances=3, image=image)
    assert mask_iou(found.mask, disc(60)) > 0.98
    assert len(moved) == 1
    (plain,) = postprocess.resolve([*rest, best], ["can"], SIZE, score_threshold=0.5, max_instances=3)
    assert np.array_equal(plain.mask, disc(64))
    done = dataclasses.replace(best, snapped=True)
    (plain,) = postprocess.resolve([done], ["can"], SIZE, score_threshold=0.5, max_instances=3, image=image)
    assert np.array_equal(plain.mask, disc(64))


def test_an_edge_that_is_far_away_does_not_attract():
    given = disc(40)
    found = snapped(candidate(given), textured(disc(90)))
    assert found.mask.sum() <= 1.5 * given.sum()


def test_without_an_edge_the_mask_hardly_changes():
    given = disc(60)
    one = candidate(given)
    assert mask_iou(snapped(one, textured(np.zeros(SIZE, bool))).mask, one.mask) > 0.7
    assert np.array_equal(snapped(one, np.full((*SIZE, 3), 90, np.uint8)).mask, one.mask)


def test_the_same_twice_also_after_other_work():
    one, image = candidate(disc(64)), textured(disc(60))
    first = snapped(one, image).mask
    snapped(candidate(disc(50)), image)
    cv2.setRNGSeed(7)
    assert np.array_equal(snapped(one, image).mask, first)


@pytest.mark.parametrize("region", [(150, 110, 1, 1), (150, 110, 2, 20), (60, 20, 200, 200)])
def test_masks_that_fill_their_region_stay(region):
    full = np.ones(region[:1:-1], bool)
    one = Candidate(target=0, score=0.5, region=region, probabilities=full.astype(np.float32), mask=full)
    assert np.array_equal(snapped(one, textured(disc(60))).mask, full)


def test_a_mask_is_never_empty():
    """The object's colours are all around, and nothing is certain."""
    one = candidate(disc(12))
    one = dataclasses.replace(one, probabilities=np.minimum(one.probabilities, 0.5))
    for seed in range(5):
        image = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
        assert snapped(one, image).mask.any()


def test_certain_and_excluded_pixels_are_kept_at_any_size():
    image = np.repeat(np.repeat(textured(disc(60)), 4, 0), 4, 1)
    mask = np.repeat(np.repeat(disc(64), 4, 0), 4, 1)
    certain, excluded = np.zeros_like(mask), np.zeros_like(mask)
    certain[10, 10] = excluded[480, 640] = True
    found = snap(image, mask, certain, excluded)
    assert found[10, 10]
    assert not found[480, 640]
