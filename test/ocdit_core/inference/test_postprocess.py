"""Proposals and instances from probabilities, on small hand-made images."""

from dataclasses import replace

import numpy as np
import pytest

from ocdit_core.inference.crops import Crop
from ocdit_core.inference.postprocess import (
    Candidate,
    candidate_in,
    grouped_parts,
    propose,
    propose_from_tiles,
    resolve,
    score,
    uncertainty_map,
)
from ocdit_core.inference.settings import InferenceSettings, RefineSettings

SIZE = (60, 80)
SETTINGS = InferenceSettings()
TILED = (120, 160)
APART = InferenceSettings(merge_gap=0.0)


def square(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y : y + side, x : x + side] = True
    return mask


def candidate(target: int, mask: np.ndarray, probability: float, confidence: float | None = None) -> Candidate:
    return Candidate(
        target=target,
        score=probability if confidence is None else confidence,
        region=(0, 0, SIZE[1], SIZE[0]),
        probabilities=np.where(mask, np.float32(probability), np.float32(0)),
        mask=mask,
    )


def resolved(candidates, names, score_threshold=0.1, max_instances=4):
    return resolve(candidates, names, SIZE, score_threshold=score_threshold, max_instances=max_instances)


def test_near_parts_are_one_instance_and_far_ones_are_two():
    near = square(10, 10, 10) | square(26, 10, 9)
    assert [group.sum() for group in grouped_parts(near, 1.0)] == [181]
    far = square(10, 10, 10) | square(60, 40, 9)
    assert [group.sum() for group in grouped_parts(far, 1.0)] == [100, 81]
    assert [group.sum() for group in grouped_parts(near, 0.3)] == [100, 81]


def test_specks_are_neither_parts_nor_instances():
    mask = square(10, 10, 20) | square(34, 10, 6) | square(70, 50, 5)
    assert [group.sum() for group in grouped_parts(mask, 1.0)] == [400]
    assert grouped_parts(np.zeros(SIZE, bool), 1.0) == []


def test_proposals_lie_where_the_probabilities_are():
    maps = np.zeros((3, *SIZE), np.float32)
    maps[0][square(10, 10, 10)] = 0.9
    maps[0][square(55, 35, 12)] = 0.6
    maps[1][square(10, 10, 10)] = 0.7
    maps[2][square(40, 5, 10)] = 1.0  # a distractor
    found = propose(maps, 2, SETTINGS, threshold=0.5, exclusive=True)
    assert [(one.target, one.box) for one in found] == [(0, (10, 10, 10, 10)), (0, (55, 35, 12, 12))]
    assert [round(one.score, 4) for one in found] == [0.9, 0.6]
    both = propose(maps, 2, SETTINGS, threshold=0.5, exclusive=False)
    assert sorted((one.target, one.box) for one in both) == [
        (0, (10, 10, 10, 10)),
        (0, (55, 35, 12, 12)),
        (1, (10, 10, 10, 10)),
    ]
    assert len(propose(maps, 2, replace(SETTINGS, max_instances=1), threshold=0.5, exclusive=False)) == 2
    specks = np.zeros((1, 600, 800), np.float32)
    specks[0, 10:20, 10:20] = 0.9
    assert propose(specks, 1, SETTINGS, threshold=0.5, exclusive=False) == []


def test_expected_iou_counts_what_lies_outside():
    probabilities = np.zeros(SIZE, np.float32)
    mask, other = square(10, 10, 10), square(50, 10, 10)
    probabilities[mask] = 0.8
    assert score(probabilities, mask, "mean") == pytest.approx(0.8)
    assert score(probabilities, mask, "expected_iou") == pytest.approx(0.8)
    probabilities[other] = 0.5
    assert score(probabilities, mask, "mean") == pytest.approx(0.8)
    assert score(probabilities, mask, "expected_iou") == pytest.approx(80 / 150)
    # Another instance of the object is no reason to doubt this one.
    assert score(probabilities, mask, "expected_iou", [mask, other]) == pytest.approx(0.8)


def test_of_rivals_for_one_place_the_better_one_stays():
    mask = square(10, 10, 20)
    found = resolve(
        [candidate(0, mask, 0.6), candidate(1, mask, 0.9)], ["mug", "bowl"], SIZE, score_threshold=0.1, max_instances=4
    )
    assert [(one.object_id, one.score) for one in found] == [("bowl", 0.9)]
    assert np.array_equal(found[0].mask, mask)


def test_neighbours_share_pixels_by_probability():
    left, right = square(10, 10, 20), square(26, 10, 20)
    found = resolve(
        [candidate(0, left, 0.6, 0.95), candidate(1, right, 0.9)],
        ["mug", "bowl"],
        SIZE,
        score_threshold=0.1,
        max_instances=4,
    )
    assert [one.object_id for one in found] == ["mug", "bowl"]
    assert np.array_equal(found[1].mask, right)
    assert np.array_equal(found[0].mask, left & ~right)
    assert found[0].box == (10, 10, 16, 20)


def test_instances_of_one_object_are_kept_apart_and_counted_once():
    here, nearly, there = square(10, 10, 20), square(12, 11, 20), square(50, 30, 15)
    every = [candidate(0, here, 0.9), candidate(0, nearly, 0.8), candidate(0, there, 0.7)]
    found = resolved(every, ["mug"])
    assert [one.box for one in found] == [(10, 10, 20, 20), (50, 30, 15, 15)]
    assert len(resolved(every, ["mug"], max_instances=1)) == 1
    assert resolved(every, ["mug"], score_threshold=0.95) == ()


def test_pixels_are_uncertain_where_the_model_is():
    maps = np.zeros((2, *SIZE), np.float32)
    maps[0][square(10, 10, 10)] = 0.5
    maps[1][square(40, 10, 10)] = 1.0
    found = uncertainty_map(maps.copy(), [])
    assert found.dtype == np.float32
    assert found[square(10, 10, 10)] == pytest.approx(1)
    assert found[~square(10, 10, 10)] == pytest.approx(0)
    closer = uncertainty_map(maps.copy(), [candidate(0, square(10, 10, 10), 0.9)])
    assert closer[square(10, 10, 10)] == pytest.approx(0.36)


def shown(box: tuple[int, int, int, int], *squares: tuple[int, int, int, float]) -> tuple[Crop, np.ndarray]:
    """A tile, and one target's probabilities: squares of x, y in the image, side and probability."""
    maps = np.zeros((1, *TILED), np.float32)
    for x, y, side, probability in squares:
        maps[0, y : y + side, x : x + side] = probability
    x, y, width, height = box
    return Crop(box=box, input_size=(48, 64)), maps[:, y : y + height, x : x + width]


def test_places_of_tiles_are_the_images_and_known_ones_are_left_out():
    left, right = (0, 0, 64, 48), (60, 20, 64, 48)
    whole = shown((0, 0, *TILED[::-1]), (10, 10, 20, 0.9))[1]
    known = propose(whole, 1, APART, threshold=0.5, exclusive=False)
    assert [one.box for one in known] == [(10, 10, 20, 20)]
    seen = [shown(left, (12, 10, 20, 0.8)), shown(right, (80, 30, 15, 0.6), (105, 50, 12, 0.3))]
    found = propose_from_tiles(known, seen, 1, TILED, APART, threshold=0.05)
    assert [one.box for one in found] == [(80, 30, 15, 15), (105, 50, 12, 12)]
    assert [round(one.score, 3) for one in found] == [0.6, 0.3]
    assert all(one.mask.all() and one.probabilities.shape == one.mask.shape for one in found)


def test_the_best_of_overlapping_tiles_counts_and_the_number_is_limited():
    seen = [
        shown((0, 0, 64, 48), (30, 20, 15, 0.4)),
        shown((20, 10, 64, 48), (30, 20, 15, 0.7), (60, 20, 15, 0.6)),
        shown((60, 60, 64, 48), (80, 80, 15, 0.3)),
    ]
    found = propose_from_tiles([], seen, 1, TILED, APART, threshold=0.05)
    assert [(one.box[0], round(one.score, 3)) for one in found] == [(30, 0.7), (60, 0.6)]


def test_specks_in_tiles_are_no_proposals():
    seen = [shown((0, 0, 64, 48), (30, 20, 3, 0.9))]
    assert propose_from_tiles([], seen, 1, TILED, APART, threshold=0.05) == []


def test_a_refined_crop_shows_its_largest_group_or_nothing():
    settings = InferenceSettings(refine=RefineSettings(mask_threshold=0.4), merge_gap=0.0)
    probabilities = np.zeros((40, 50), np.float32)
    probabilities[5:15, 5:15], probabilities[25:33, 25:33] = 0.9, 0.5
    found = candidate_in(1, (20, 10, 50, 40), probabilities, SIZE, settings)
    assert (found.target, found.box, found.mask.sum()) == (1, (25, 15, 10, 10), 100)
    assert found.score == pytest.approx(0.9)
    assert candidate_in(1, (20, 10, 50, 40), probabilities * 0.3, SIZE, settings) is None
    assert candidate_in(1, (0, 0, 50, 40), probabilities, (2000, 2000), settings) is None
