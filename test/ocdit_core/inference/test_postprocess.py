"""Proposals and instances from probabilities, on small hand-made images."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ocdit_core.inference.postprocess import (
    Candidate,
    calibrated,
    candidate_in,
    coarse_candidates,
    grouped_parts,
    propose,
    resolve,
    score,
    uncalibrated,
    uncertainty_map,
)
from ocdit_core.inference.settings import InferenceSettings, RefineSettings

SIZE = (60, 80)
SETTINGS = InferenceSettings()


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


def test_parts_whose_boxes_touch_are_one_instance_and_others_are_two():
    ring = square(10, 10, 30) & ~square(14, 14, 22)
    assert [group.sum() for group in grouped_parts(ring | square(18, 18, 14))] == [900 - 484]
    assert [group.sum() for group in grouped_parts(ring | square(15, 15, 20))] == [900 - 484 + 400]
    apart = square(10, 10, 10) | square(22, 10, 9)
    assert [group.sum() for group in grouped_parts(apart)] == [100, 81]


def test_specks_are_neither_parts_nor_instances():
    mask = square(10, 10, 20) | square(34, 10, 6) | square(70, 50, 5)
    assert [group.sum() for group in grouped_parts(mask)] == [400]
    assert grouped_parts(np.zeros(SIZE, bool)) == []


def test_candidates_of_the_coarse_stage_share_no_pixel():
    maps = np.zeros((3, *SIZE), np.float32)
    maps[0][square(10, 10, 10)] = 0.9
    maps[0][square(55, 35, 12)] = 0.6
    maps[1][square(10, 10, 10)] = 0.7
    maps[2][square(40, 5, 10)] = 1.0  # a distractor
    found = coarse_candidates(maps, 2, replace(SETTINGS, mask_threshold=0.5))
    assert [(one.target, one.box) for one in found] == [(0, (10, 10, 10, 10)), (0, (55, 35, 12, 12))]
    assert [round(one.score, 4) for one in found] == [0.9, 0.6]
    assert len(coarse_candidates(maps, 2, replace(SETTINGS, mask_threshold=0.5, max_instances=1))) == 1
    specks = np.zeros((1, 600, 800), np.float32)
    specks[0, 10:19, 10:20] = 0.9
    assert coarse_candidates(specks, 1, SETTINGS) == []


def test_proposals_are_the_most_probable_regions_of_all_maps():
    settings = replace(SETTINGS, refine=replace(SETTINGS.refine, proposal_threshold=0.1))
    first, second = np.zeros((2, *SIZE), np.float32), np.zeros((2, *SIZE), np.float32)
    first[0][square(10, 10, 10)] = 0.9
    first[1][square(10, 10, 10)] = 0.7  # the same pixels for two targets: the refine stage decides
    first[1][square(50, 5, 25)] = 0.2
    second[0][square(11, 10, 10)] = 0.8  # the region of the first map again
    second[0][square(55, 35, 3)] = 0.15  # small and weak, and far smaller than the other one
    found = propose([first, second], 2, settings)
    assert [(one.target, one.region) for one in found] == [
        (0, (10, 10, 10, 10)),
        (0, (55, 35, 3, 3)),
        (1, (10, 10, 10, 10)),
        (1, (50, 5, 25, 25)),
    ]
    assert [round(one.score, 4) for one in found] == [0.9, 0.15, 0.7, 0.2]
    assert all(one.mask.all() for one in found)


def test_the_number_of_proposals_of_a_target_is_limited_and_specks_are_none():
    probabilities = np.zeros((1, 100, 200), np.float32)
    for number in range(7):
        probabilities[0, 10:20, 10 + 25 * number : 20 + 25 * number] = 0.3 + number / 10
    assert [round(one.score, 4) for one in propose([probabilities], 1, SETTINGS)] == [0.9, 0.8, 0.7, 0.6]
    assert len(propose([probabilities], 1, replace(SETTINGS, max_instances=6))) == 6
    specks = np.zeros((1, 600, 800), np.float32)
    specks[0, 10:19, 10:20] = 0.9
    assert propose([specks], 1, SETTINGS) == []


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


def proposal(x, y, side, score, target=0) -> Candidate:
    square = np.ones((side, side))
    return Candidate(
        target=target,
        score=score,
        region=(x, y, side, side),
        probabilities=square.astype(np.float32),
        mask=square.astype(bool),
    )


def test_calibration_is_the_logistic_map_and_keeps_the_order():
    given = [proposal(0, 0, 5, score) for score in (0.2, 0.5, 1.0)]
    assert calibrated(given, None) == given
    found = [one.score for one in calibrated(given, (2.0, -1.0))]
    assert found[0] == pytest.approx(1 / (1 + math.exp(-2 * math.log(0.2 / 0.8) + 1)))
    assert found[1] == pytest.approx(1 / (1 + math.e))
    assert found[0] < found[1] < found[2] <= 1


@pytest.mark.parametrize("calibration", [None, (2.82, -0.57)])
def test_uncalibrated_scores_become_the_calibrated_ones(calibration):
    assert [uncalibrated(limit, calibration) for limit in (-1, 0, 1, 2)] == [-1, 0, 1, 2]
    for wanted in (0.05, 0.5, 0.9):
        (found,) = calibrated([proposal(0, 0, 5, uncalibrated(wanted, calibration))], calibration)
        assert found.score == pytest.approx(wanted)


def test_a_refined_crop_shows_its_largest_group_or_nothing():
    settings = InferenceSettings(refine=RefineSettings(mask_threshold=0.4))
    probabilities = np.zeros((40, 50), np.float32)
    probabilities[5:15, 5:15], probabilities[25:33, 25:33] = 0.9, 0.5
    found = candidate_in(1, (20, 10, 50, 40), probabilities, 1.0, SIZE, settings)
    assert (found.target, found.box, found.mask.sum()) == (1, (25, 15, 10, 10), 100)
    assert found.score == pytest.approx(0.9)
    doubtful = candidate_in(1, (20, 10, 50, 40), probabilities, 0.5, SIZE, settings)
    assert doubtful.score == pytest.approx(found.score / 2)
    assert candidate_in(1, (20, 10, 50, 40), probabilities * 0.3, 1.0, SIZE, settings) is None
    assert candidate_in(1, (0, 0, 50, 40), probabilities, 1.0, (2000, 2000), settings) is None
