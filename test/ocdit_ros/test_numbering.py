from itertools import islice

import numpy as np

from ocdit_core.inference.results import Instance
from ocdit_ros.messages import instance_numbers, number


def test_numbers_wrap_past_zero_unless_they_must_be_unique():
    assert list(islice(instance_numbers(unique=False), 65533, 65538)) == [65534, 65535, 1, 2, 3]
    assert list(islice(instance_numbers(unique=True), 65533, 65538)) == [65534, 65535, 65536, 65537, 65538]


def test_a_tracked_instance_has_its_track_s_number():
    mask = np.ones((2, 2), bool)
    instances = [
        Instance(object_id="mug", score=1.0, box=(0, 0, 2, 2), mask=mask, track_id=track) for track in (None, 7, None)
    ]
    assert number(instances, instance_numbers(unique=True)) == [1, 7, 2]
