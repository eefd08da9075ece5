import json

import numpy as np
import pytest

from ocdit_core.errors import DataError
from ocdit_core.rle import decode_mask, encode_mask


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (480, 640)])
def test_masks_survive_json(shape):
    for density in (0.0, 0.3, 1.0):
        mask = np.random.default_rng(0).random(shape) < density
        decoded = decode_mask(json.loads(json.dumps(encode_mask(mask))))
        assert decoded.dtype == bool
        np.testing.assert_array_equal(decoded, mask)


def test_plain_run_lengths_go_down_the_columns():
    # BOP's files have them: background first, column by column.
    mask = decode_mask({"size": [2, 3], "counts": [1, 2, 3]})
    np.testing.assert_array_equal(mask, [[False, True, False], [True, False, False]])


@pytest.mark.parametrize(
    "rle", [{}, {"size": [2, 3]}, {"size": [2, 3], "counts": [1, 2]}, {"size": [2, 3], "counts": [9, -3]},
            {"size": [2], "counts": "11"}, {"size": [2, 2], "counts": 5}, {"size": [2, 2], "counts": "é"}]
)  # fmt: skip
def test_damaged_run_lengths_are_refused(rle):
    with pytest.raises(DataError, match="run lengths"):
        decode_mask(rle)
