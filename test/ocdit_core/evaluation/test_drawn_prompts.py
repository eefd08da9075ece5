"""Prompts that are drawn from the ground truth."""

import cv2
import numpy as np
import pytest
from small_sets import write_set

from ocdit_core.data.bop import BopFolder
from ocdit_core.evaluation.drawn_prompts import KINDS, draw_prompt, drawn_point
from ocdit_core.masks import tight_box


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return list(BopFolder(write_set(tmp_path_factory.mktemp("drawn") / "set"), "test"))


def test_they_lie_in_the_visible_mask(frames):
    points = set()
    for frame in frames:
        for index in range(len(frame.annotations)):
            mask = frame.mask(index)
            point, scribble, box, dilated = (draw_prompt(kind, frame, index, "can") for kind in KINDS)
            (x, y) = point.points[0]
            assert (x, y) == drawn_point(frame, index, mask)
            distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
            assert distance[int(y), int(x)] >= distance.max() / 2
            ends = [tuple(map(int, end)) for end in scribble.scribble]
            assert mask[cv2.line(np.zeros(mask.shape, np.uint8), ends[0], ends[-1], 1).astype(bool)].all()
            assert box.box == tight_box(mask)
            assert dilated.mask[mask].all()
            assert dilated.mask.sum() < 1.5 * mask.sum()
            points.add((x - box.box[0], y - box.box[1]))
    assert len(points) > len(frames), "another place for each"


def test_they_are_the_same_each_time(frames):
    for kind in ("point", "scribble"):
        first, again = (draw_prompt(kind, frames[0], 1, "can") for _ in range(2))
        assert (first.points, first.scribble) == (again.points, again.scribble)
