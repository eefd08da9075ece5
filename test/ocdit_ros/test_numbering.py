import numpy as np
import pytest

from ocdit_core.inference.results import Instance
from ocdit_ros.messages import KEPT_TRACKS, InstanceNumbers, Numbering


def test_numbers_go_on_and_without_tracking_wrap_past_zero():
    numbers = InstanceNumbers(reuse=True, first=65533)
    assert numbers.take(2) == [65533, 65534]
    assert numbers.take(3) == [65535, 1, 2]
    assert numbers.take(0) == []
    assert numbers.take(1) == [3]
    with pytest.raises(ValueError, match="65536"):
        numbers.take(65536)


def test_with_tracking_no_number_comes_twice():
    numbers = InstanceNumbers(reuse=False, first=65535)
    assert numbers.take(3) == [65535, 65536, 65537]


def instances(*tracks):
    mask = np.ones((2, 2), bool)
    return [Instance(object_id="mug", score=1.0, box=(0, 0, 2, 2), mask=mask, track_id=track) for track in tracks]


def test_a_track_keeps_its_number_and_cameras_do_not_share_them():
    numbers = InstanceNumbers(reuse=False)
    left, right = Numbering(numbers), Numbering(numbers)
    assert left(instances(1, 2)) == [1, 2]
    assert right(instances(3, 1)) == [3, 4]
    assert left(instances(2, 7, 1)) == [2, 5, 1]
    assert left(instances(None, None)) == [6, 7]
    # After a reload the tracker counts from 1 again; those are others.
    assert Numbering(numbers)(instances(1, 2)) == [8, 9]


def test_only_tracks_that_are_long_gone_are_forgotten():
    numbering = Numbering(InstanceNumbers(reuse=False))
    (first,) = numbering(instances(1))
    for track in range(2, 2 * KEPT_TRACKS):
        numbering(instances(track))
        assert numbering(instances(1)) == [first]
    assert len(numbering._of_track) == KEPT_TRACKS
