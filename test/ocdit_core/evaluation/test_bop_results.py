import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco
from small_sets import SIZE, block

from ocdit_core.errors import DataError
from ocdit_core.evaluation.bop_results import read_results, rows_of, write_results
from ocdit_core.files import OWN_FILES
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import decode_mask, encode_mask, tight_box


def found(*pairs):
    instances = tuple(
        Instance(object_id=name, score=score, box=tight_box(mask), mask=mask) for name, score, mask in pairs
    )
    return Segmentation(instances=instances, image_size=SIZE, target_ids=())


@pytest.fixture
def rows():
    numbers = {"cup": 4, "obj_000002": 2}
    two = found(("cup", 0.75, block(3, 5, 10, 7)), ("obj_000002", 0.5, block(0, 0, *SIZE[::-1])))
    return [
        *rows_of((48, 1), two, numbers, 0.25),
        *rows_of((48, 3), found(("cup", 1.0, block(9, 9, 1, 1))), numbers, 2),
    ]


@pytest.fixture
def entries(rows, tmp_path):
    write_results(tmp_path / "good.json", rows)
    return json.loads((tmp_path / "good.json").read_text())


def test_the_file_is_bops_to_the_letter(entries):
    assert len(entries) == 3
    assert entries[0] == {
        "scene_id": 48, "image_id": 1, "category_id": 4, "score": 0.75, "bbox": [3, 5, 10, 7],
        "segmentation": encode_mask(block(3, 5, 10, 7)), "time": 0.25,
    }  # fmt: skip
    assert [entry["time"] for entry in entries] == [0.25, 0.25, 2], "one time for all rows of an image"
    assert coco.area(entries[1]["segmentation"]) == SIZE[0] * SIZE[1]


def test_what_is_written_is_read(rows, tmp_path):
    write_results(tmp_path / "results.json", rows)
    read = read_results(tmp_path / "results.json", objects={2, 4}, size_of=lambda image: SIZE)
    assert read == rows
    np.testing.assert_array_equal(decode_mask(read[0].segmentation), block(3, 5, 10, 7))
    write_results(tmp_path / "empty.json", [])
    assert read_results(tmp_path / "empty.json") == []


def test_a_file_is_whole_or_not_there(rows, tmp_path):
    def broken():
        yield rows[0]
        raise RuntimeError("the power goes")

    write_results(tmp_path / "results.json", rows)
    with pytest.raises(RuntimeError):
        write_results(tmp_path / "results.json", broken())
    assert len(read_results(tmp_path / "results.json")) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name != OWN_FILES] == ["results.json"]


def test_what_the_bop_toolkit_writes_is_read(entries, tmp_path):
    # Plain run lengths, an empty box, and -1 for an unknown time.
    mask = block(3, 5, 2, 7)
    plain = [3 * 60 + 5, 7, 53, 7, 60 * 80 - 3 * 60 - 5 - 67]
    entries[2] |= {"bbox": [], "segmentation": {"size": list(SIZE), "counts": plain}, "time": -1}
    path = tmp_path / "toolkit.json"
    path.write_text(json.dumps(entries))
    row = read_results(path)[2]
    assert (row.box, row.time) == (None, -1)
    np.testing.assert_array_equal(decode_mask(row.segmentation), mask)


SMALLER = encode_mask(block(3, 5, 10, 7, (60, 79)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segmentation": SMALLER}, r"the mask has the size \[60, 79\], the image \[60, 80\]"),
        ({"segmentation": {**SMALLER, "size": [60, 80]}}, "add up to 4740 pixels, the size is 60 x 80"),
        ({"segmentation": {"size": [60, 80], "counts": "é"}}, "segmentation: run lengths of a mask are damaged"),
        (
            {"segmentation": {"size": [60, 80], "counts": SMALLER["counts"][:-1] + "o"}},
            "the compressed counts cannot be read",
        ),
        ({"segmentation": {"size": [60, 80], "counts": [1, 2]}}, "run lengths"),
        ({"segmentation": {"size": [60, 80], "counts": 7}}, "segmentation: run lengths"),
        ({"segmentation": {"size": [60], "counts": "11"}}, "segmentation: run lengths"),
        ({"segmentation": []}, r"segmentation is \[\]"),
        ({"score": math.nan}, "score is NaN, not a finite number"),
        ({"score": math.inf}, "score is Infinity"),
        ({"score": "0.5"}, 'score is "0.5"'),
        ({"score": True}, "score is true"),
        ({"time": -math.inf}, "time is -Infinity"),
        ({"time": -0.5}, "time is -0.5 s"),
        ({"time": 0.26}, "time is 0.26 s, in row 0 of the same image .scene 48, image 1. 0.25 s"),
        ({"category_id": 3}, r"category_id is 3, an object that the dataset does not have \(2, 4\)"),
        ({"image_id": 1.5}, "image_id is 1.5, not a whole number"),
        ({"scene_id": -1}, "scene_id is -1"),
        ({"bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\]"),
        ({"bbox": [1, 2, -3, 4]}, "negative"),
        ({"bbox": [1, 2, math.nan, 4]}, "bbox is NaN"),
        (None, "lacks time"),
        ("row", "is a str, not an object"),
    ],
)
def test_malformed_rows_are_refused_with_number_and_reason(entries, tmp_path, change, reason):
    if change is None:
        del entries[1]["time"]
    elif isinstance(change, dict):
        entries[1] |= change
    else:
        entries[1] = change
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=f"bad.json: row 1: .*{reason}"):
        read_results(path, objects={2, 4}, size_of=lambda image: SIZE)


def test_rows_of_an_image_have_one_size_even_where_nobody_knows_it(entries, tmp_path):
    entries[1]["segmentation"] = SMALLER
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match="row 1: the mask has the size"):
        read_results(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[{", "truncated or damaged JSON"), ('{"a": 1}', "is a dict, not a list"), (None, "cannot be read")],
)
def test_files_that_hold_no_results_are_refused(tmp_path, text, reason):
    path = tmp_path / "file.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=reason):
        read_results(path)


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    (row,) = rows_of((0, 0), found(("cup", math.nan, block(1, 1, 3, 3))), {"cup": 1}, 0.1)
    with pytest.raises(DataError, match="not finite"):
        write_results(tmp_path / "results.json", [row])
    assert not list(tmp_path.iterdir())
