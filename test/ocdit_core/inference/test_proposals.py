"""Places from probabilities, and instances from places: small hand-made pictures."""

from dataclasses import replace

import numpy as np
import pytest

from ocdit_core.inference.instances import resolve
from ocdit_core.inference.proposals import Candidate, grouped_parts, propose, score
from ocdit_core.inference.segmenter import uncertainty_map
from ocdit_core.inference.settings import InferenceSettings

SIZE = (60, 80)
SETTINGS = InferenceSettings(score_threshold=0.1)


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


def test_near_parts_are_one_instance_and_far_ones_are_two():
    near = square(10, 10, 10) | square(26, 10, 9)
    assert [group.sum() for group in grouped_parts(near, SETTINGS)] == [181]
    far = square(10, 10, 10) | square(60, 40, 9)
    assert [group.sum() for group in grouped_parts(far, SETTINGS)] == [100, 81]
    apart = replace(SETTINGS, merge_gap=0.3)
    assert [group.sum() for group in grouped_parts(near, apart)] == [100, 81]


def test_specks_are_neither_parts_nor_instances():
    mask = square(10, 10, 20) | square(34, 10, 6) | square(70, 50, 5)
    assert [group.sum() for group in grouped_parts(mask, SETTINGS)] == [400]
    everything = replace(SETTINGS, min_part=0.0, min_instance=0.0)
    assert [group.sum() for group in grouped_parts(mask, everything)] == [436, 25]
    assert grouped_parts(np.zeros(SIZE, bool), SETTINGS) == []


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
    assert propose(maps, 2, replace(SETTINGS, min_area=0.1), threshold=0.5, exclusive=False) == []


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
    found = resolve([candidate(0, mask, 0.6), candidate(1, mask, 0.9)], ["mug", "bowl"], SIZE, SETTINGS)
    assert [(one.object_id, one.score) for one in found] == [("bowl", 0.9)]
    assert np.array_equal(found[0].mask, mask)


def test_neighbours_share_pixels_by_probability():
    left, right = square(10, 10, 20), square(26, 10, 20)
    found = resolve([candidate(0, left, 0.6, 0.95), candidate(1, right, 0.9)], ["mug", "bowl"], SIZE, SETTINGS)
    assert [one.object_id for one in found] == ["mug", "bowl"]
    assert np.array_equal(found[1].mask, right)
    assert np.array_equal(found[0].mask, left & ~right)
    assert found[0].box == (10, 10, 16, 20)


def test_instances_of_one_object_are_kept_apart_and_counted_once():
    here, nearly, there = square(10, 10, 20), square(12, 11, 20), square(50, 30, 15)
    every = [candidate(0, here, 0.9), candidate(0, nearly, 0.8), candidate(0, there, 0.7)]
    found = resolve(every, ["mug"], SIZE, SETTINGS)
    assert [one.box for one in found] == [(10, 10, 20, 20), (50, 30, 15, 15)]
    assert len(resolve(every, ["mug"], SIZE, replace(SETTINGS, max_instances=1))) == 1
    assert resolve(every, ["mug"], SIZE, replace(SETTINGS, score_threshold=0.95)) == ()


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
