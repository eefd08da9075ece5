"""Tiles: what they cover, and which of the places that they show are new."""

from dataclasses import replace

import numpy as np
import pytest

from ocdit_core.errors import ConfigError
from ocdit_core.inference.proposals import propose
from ocdit_core.inference.settings import InferenceSettings, TileSettings
from ocdit_core.inference.tiles import new_proposals, tile_windows
from ocdit_core.inference.windows import Window

SIZE = (120, 160)
CANVAS = (48, 64)


def settings_with(**tiles) -> InferenceSettings:
    return InferenceSettings(tiles=TileSettings(**{"grid": 3, **tiles}), merge_gap=0.0)


@pytest.mark.parametrize(("size", "grid", "share"), [(SIZE, 3, 0.4), ((1080, 1921), 4, 0.25), ((7, 5), 2, 0.5)])
def test_tiles_cover_the_image_and_lie_inside_it(size, grid, share):
    windows = tile_windows(size, CANVAS, settings_with(grid=grid, share=share))
    assert len(windows) == grid * grid
    seen = np.zeros(size, bool)
    for window in windows:
        x, y, width, height = window.box
        assert x >= 0
        assert y >= 0
        assert x + width <= size[1]
        assert y + height <= size[0]
        assert window.canvas_size == CANVAS
        seen[y : y + height, x : x + width] = True
    assert seen.all()


def test_tiles_have_a_size_of_their_own_or_there_are_none():
    windows = tile_windows(SIZE, CANVAS, settings_with(image_size=(32, 48)))
    assert {window.canvas_size for window in windows} == {(32, 48)}
    assert tile_windows(SIZE, CANVAS, InferenceSettings()) == []


def shown(box: tuple[int, int, int, int], *squares: tuple[int, int, int, float]) -> tuple[Window, np.ndarray]:
    """A tile, and one target's probabilities: squares of x, y in the image, side and probability."""
    maps = np.zeros((1, *SIZE), np.float32)
    for x, y, side, probability in squares:
        maps[0, y : y + side, x : x + side] = probability
    x, y, width, height = box
    return Window(box=box, canvas_size=CANVAS), maps[:, y : y + height, x : x + width]


def test_places_of_tiles_are_the_images_and_known_ones_are_left_out():
    settings = settings_with(max_proposals=2)
    left, right = (0, 0, 64, 48), (60, 20, 64, 48)
    whole = shown((0, 0, *SIZE[::-1]), (10, 10, 20, 0.9))[1]
    known = propose(whole, 1, settings, threshold=0.5, exclusive=False)
    assert [one.box for one in known] == [(10, 10, 20, 20)]
    seen = [shown(left, (12, 10, 20, 0.8)), shown(right, (80, 30, 15, 0.6), (105, 50, 12, 0.3))]
    found = new_proposals(known, seen, 1, SIZE, settings, threshold=0.05)
    assert [one.box for one in found] == [(80, 30, 15, 15), (105, 50, 12, 12)]
    assert [round(one.score, 3) for one in found] == [0.6, 0.3]
    assert all(one.mask.all() and one.probabilities.shape == one.mask.shape for one in found)


def test_the_best_of_several_tiles_stands_for_a_place_and_the_number_is_limited():
    settings = settings_with(max_proposals=1)
    seen = [shown((0, 0, 64, 48), (30, 20, 15, 0.4)), shown((20, 10, 64, 48), (30, 20, 15, 0.7), (60, 20, 15, 0.6))]
    (found,) = new_proposals([], seen, 1, SIZE, settings, threshold=0.05)
    assert round(found.score, 3) == 0.7
    more = replace(settings, tiles=replace(settings.tiles, max_proposals=5))
    assert [one.box[0] for one in new_proposals([], seen, 1, SIZE, more, threshold=0.05)] == [30, 60]


def test_specks_are_no_places():
    seen = [shown((0, 0, 64, 48), (30, 20, 3, 0.9))]
    assert new_proposals([], seen, 1, SIZE, replace(settings_with(), min_area=0.001), threshold=0.05) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": 1}, "at least 2"),
        ({"grid": -1}, "at least 2"),
        ({"grid": 3, "share": 0.3}, "do not cover"),
        ({"grid": 2, "share": 1.5}, "share"),
        ({"image_size": (50, 64)}, "multiples of 16"),
        ({"proposal_threshold": 0.0}, "proposal_threshold"),
        ({"max_proposals": 0}, "max_proposals"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        TileSettings(**changes)
