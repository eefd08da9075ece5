import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from ocdit_core.errors import DataError
from ocdit_core.masks import encode_mask
from ocdit_ros import demo
from ocdit_ros.demo import GroundTruth, Seen, compare, read_ground_truth, report

STAND_IN = (str(Path(__file__).with_name("stand_in_node.py")),)


def square(number):
    """The mask that the stand-in segmenter reports for the target of this position."""
    mask = np.zeros((96, 128), bool)
    mask[2:10, 2 + 12 * number : 12 + 12 * number] = True
    return mask


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The demo sets its process's environment: give the tests theirs back."""
    for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE"):
        monkeypatch.setenv(name, os.environ[name])
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    objects = {"kitchen": ("mug", "can"), "bench": ("drill", "mug"), "shelf": ("mug", "can")}
    for name, targets in objects.items():
        cv2.imwrite(str(folder / f"{name}.png"), np.full((96, 128, 3), 90, np.uint8))
        present = [(targets[0], square(0)), (targets[1], square(1))]
        if name == "shelf":
            present = present[:1]  # the stand-in reports a can that is not there
        truth = {
            "image": f"{name}.png",
            "targets": list(targets),
            "objects": [{"object_id": object_id, "segmentation": encode_mask(mask)} for object_id, mask in present],
        }
        (folder / f"{name}.json").write_text(json.dumps(truth))
    cv2.imwrite(str(folder / "unknown.png"), np.full((96, 128, 3), 20, np.uint8))
    return folder


def test_every_image_comes_back_from_the_node(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STAND_IN_SECONDS", "0.05")
    out = tmp_path / "out"
    arguments = ["--images", str(images), "--library", "stand-in", "--out", str(out)]
    assert demo.main(arguments, STAND_IN) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    assert "4 images, mean IoU 1.00 over 5 objects, 1 false alarms" in text
    assert "FALSE ALARM" in text
    results = json.loads((out / "results.json").read_text())
    assert sorted(results) == ["bench", "kitchen", "shelf", "unknown"]
    assert [entry["object_id"] for entry in results["unknown"]["objects"]] == ["box", "can", "drill"]
    assert results["bench"]["stages_ms"]["sampling"] == pytest.approx(25, abs=1)
    assert results["bench"]["latency_ms"] > 50
    for name in results:
        assert cv2.imread(str(out / f"{name}_overlay.png")).shape == (96, 128, 3)


@pytest.mark.parametrize(
    ("library", "needle"),
    [("nowhere", "configure failed: nowhere: no such folder"), (None, "no such folder of images")],
)
def test_what_goes_wrong_ends_it_with_one_line(images, tmp_path, capsys, library, needle):
    folder = images if library else images / "missing"
    arguments = ["--images", str(folder), "--library", str(library), "--out", str(tmp_path)]
    assert demo.main(arguments, STAND_IN) == 2
    error = capsys.readouterr().err
    assert needle in error
    assert error.count("\n") == 1


def test_outputs_replace_no_file_of_others(images, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "bench_overlay.png").write_text("precious")
    arguments = ["--images", str(images), "--library", "stand-in", "--out", str(out)]
    assert demo.main(arguments, ("-c", "raise SystemExit('started in vain')")) == 2
    assert "bench_overlay.png: exists and was not written by ocdit" in capsys.readouterr().err
    assert [path.read_text() for path in out.iterdir()] == ["precious"]


@pytest.mark.parametrize("name", ["results.json", "kitchen_overlay.png"])
def test_files_of_others_stay_as_they_are(images, tmp_path, capsys, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    before = (out / name).stat()
    arguments = ["--images", str(images), "--library", "stand-in", "--out", str(out)]
    assert demo.main(arguments, STAND_IN) == 2
    assert f"{name}: exists and was not written by ocdit" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).stat() == before


def test_results_are_compared_with_the_ground_truth(capsys):
    truth = GroundTruth(targets=("mug", "can", "drill", "box"), masks={"mug": square(0), "can": square(1)})
    seen = Seen(
        instances=(("mug", 0.9, square(0)), ("mug", 0.6, square(3)), ("drill", 0.7, square(2))), latency=0.2, stages={}
    )
    assert [tuple(row.values()) for row in compare(truth, seen)] == [
        ("mug", 0.9, 1.0, ""),
        ("can", None, 0.0, "MISSED"),
        ("drill", 0.7, None, "FALSE ALARM"),
        ("box", None, None, "not in the image"),
    ]
    data = report({"desk": truth}, {"desk": seen})
    assert data["desk"]["objects"][1] == {"object_id": "can", "score": None, "iou": 0.0, "remark": "MISSED"}
    text = capsys.readouterr().out
    assert "1 images, mean IoU 0.50 over 2 objects, 1 false alarms, median latency 200 ms" in text


def test_damaged_truth_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"targets": ["mug"]}')
    with pytest.raises(DataError, match=r"a\.json: not a ground truth file"):
        read_ground_truth(tmp_path / "a.png")
    assert read_ground_truth(tmp_path / "b.png") == GroundTruth(targets=(), masks=None)
