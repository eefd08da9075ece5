import json

import numpy as np
import pytest
import torch

from ocdit_core.errors import DataError
from ocdit_core.masks import box_iou, decode_mask, decode_segmentation, encode_mask, mask_iou, tight_box


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
    with pytest.raises(DataError, match="run lengths of a mask are damaged"):
        decode_mask(rle)


def test_plain_run_lengths_begin_with_the_background():
    assert encode_mask(np.ones((2, 2), bool), compressed=False) == {"counts": [0, 4], "size": [2, 2]}
    assert encode_mask(np.zeros((2, 3), bool), compressed=False) == {"counts": [6], "size": [2, 3]}
    diagonal = encode_mask(np.array([[True, False], [False, True]]), compressed=False)
    assert diagonal["counts"] == [0, 1, 2, 1]
    np.testing.assert_array_equal(decode_mask(diagonal), [[True, False], [False, True]])


def test_segmentations_are_run_lengths_polygons_or_nothing():
    square = [1, 1, 3, 1, 3, 4, 1, 4]
    wanted = np.zeros((5, 6), bool)
    wanted[1:4, 1:3] = True
    np.testing.assert_array_equal(decode_segmentation([square], (5, 6)), wanted)
    wanted[2:5, 4:6] = True  # the union of both, of which one reaches outside
    found = decode_segmentation([square, [4, 2, 9, 2, 9, 8, 4, 8]], (5, 6))
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(decode_segmentation(encode_mask(wanted), (5, 6)), wanted)
    for nothing in (None, []):
        assert decode_segmentation(nothing, (5, 6)).tolist() == [[False] * 6] * 5


@pytest.mark.parametrize("polygon", [[1, 2, 3, 4], [0, 0, 3, 0, 3, 3, 4], [0, 0, 3, 0, 3, float("nan")], "abcdef", 5])
def test_damaged_polygons_are_refused(polygon):
    with pytest.raises(DataError, match="a polygon of a mask is damaged"):
        decode_segmentation([polygon], (5, 6))


def block(x, shape=(20, 40)):
    mask = np.zeros(shape, bool)
    mask[5:15, x : x + 10] = True
    return mask


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_mask_iou_of_arrays_and_tensors(kind):
    empty = block(0) & False
    first = kind(np.stack([block(0), block(0), block(0), empty, empty]))
    second = kind(np.stack([block(0), block(5), block(20), block(0), empty]))
    assert mask_iou(first, second).tolist() == pytest.approx([1, 1 / 3, 0, 0, 1])
    assert float(mask_iou(first[0], second[1])) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="do not compare"):
        mask_iou(first, kind(block(0, shape=(20, 41))))


def test_box_iou():
    assert box_iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert box_iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert box_iou((0, 0, 10, 10), (20, 20, 5, 5)) == 0


def test_tight_box_holds_all_pixels_and_no_empty_row():
    assert tight_box(block(7)) == (7, 5, 10, 10)
    assert tight_box(np.ones((3, 4), bool)) == (0, 0, 4, 3)
    with pytest.raises(ValueError, match="empty"):
        tight_box(np.zeros((3, 4), bool))


def test_damaged_compressed_run_lengths_are_refused():
    """The library that decodes them reads and writes past the end of its memory."""
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (40, 60)):
        for fraction in (0.0, 0.1, 0.5, 1.0):
            mask = rng.random(shape) < fraction
            encoded = encode_mask(mask)
            assert (decode_mask(encoded) == mask).all()
    for _ in range(500):
        counts = "".join(map(chr, rng.integers(40, 120, rng.integers(0, 20))))
        size = [int(side) for side in rng.choice([-1, 0, 1, 10, 1000], 2)]
        try:
            assert decode_mask({"size": size, "counts": counts}).shape == tuple(size)
        except DataError:
            continue
