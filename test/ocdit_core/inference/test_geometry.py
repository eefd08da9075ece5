import weakref
from dataclasses import replace

import numpy as np
import pytest
from test_segmenter import make_segmenter

from ocdit_core import ObjectLibrary
from ocdit_core.inference.geometry import ObjectGeometry, size_checked, visible_points
from ocdit_core.inference.postprocess import Candidate
from ocdit_core.masks import tight_box

SIZE = (240, 320)
K = np.array([[600.0, 0, 160], [0, 600, 120], [0, 0, 1]])


@pytest.fixture(scope="module")
def library(rendered_library):
    return ObjectLibrary(rendered_library)


def seen(points, direction=5) -> tuple[np.ndarray, np.ndarray]:
    """Return mask and depth of an object whose points (N, 3) a camera sees from about 0.6 m."""
    rng = np.random.default_rng(direction)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    camera = points @ turn.T + (0, 0, 0.6)
    depth = np.full(SIZE, np.inf, np.float32)
    column, row = np.round((camera @ K.T)[:, :2] / camera[:, 2:]).astype(int).T
    # Splats of 7 x 7 pixels close the gaps between the points.
    for down, right in np.ndindex(7, 7):
        np.minimum.at(depth, (row + down - 3, column + right - 3), camera[:, 2].astype(np.float32))
    mask = np.isfinite(depth)
    return mask, np.where(mask, depth, 0).astype(np.float32)


def scaled(templates, scale):
    return ObjectGeometry(
        replace(templates, points=templates.points * np.float32(scale), diameter=templates.diameter * scale)
    )


def candidate(mask, target=0):
    x, y, width, height = box = tight_box(mask)
    inside = mask[y : y + height, x : x + width]
    return Candidate(target=target, score=0.8, region=box, probabilities=inside.astype(np.float32), mask=inside)


@pytest.mark.parametrize("name", ["box", "can", "mug"])
def test_the_size_tells_twins_apart(library, name):
    templates = library[name]
    twins = [scaled(templates, scale) for scale in (1, 1.5, 1 / 1.5)]
    for direction in range(4):
        mask, depth = seen(templates.points, direction)
        candidates = [candidate(mask, target) for target in range(3)]
        same, larger, smaller = (one.score for one in size_checked(candidates, twins, depth, K, 1))
        assert 0.8 >= same > 0.6
        assert same > larger
        assert same > 1.2 * smaller
        squared = size_checked(candidates, twins, depth, K, 2)
        assert squared[2].score == pytest.approx(0.8 * (smaller / 0.8) ** 2)


def test_without_depth_or_geometry_a_score_stays_as_it_is(library):
    templates = library["box"]
    mask, depth = seen(templates.points)
    [one] = size_checked([candidate(mask)], [ObjectGeometry(templates)], np.zeros_like(depth), K, 1)
    assert one.score == 0.8
    photographs = replace(templates, points=templates.points[:0], diameter=float("nan"))
    [one] = size_checked([candidate(mask)], [ObjectGeometry(photographs)], depth, K, 1)
    assert one.score == 0.8
    # A diameter that was given for photographs: nothing is larger than that.
    for diameter, largest in ((1.2, 0.8), (0.4, 0.1)):
        known = ObjectGeometry(replace(photographs, diameter=templates.diameter * diameter))
        [one] = size_checked([candidate(mask)], [known], depth, K, 1)
        assert (one.score == 0.8) == (largest == 0.8)
        assert one.score <= largest


def test_visible_points_are_the_nearest_of_their_cells():
    points = np.array([[0.1, 0.1, 2.0], [0.2, 0.3, 1.0], [1.5, 0.1, 3.0], [-0.5, 0.1, 1.0]])
    assert sorted(visible_points(points, 1.0).tolist()) == [1, 2, 3]


def test_geometry_in_use_is_kept_when_the_targets_change(library):
    segmenter = make_segmenter(library)
    kept = segmenter.encode_objects(library, ["mug", "box"]).geometry[0]
    assert segmenter.objects.geometry[library.object_ids.index("mug")] is kept
    segmenter.set_objects(library, ["box"])
    old = weakref.ref(kept)
    del kept
    assert old() is None
