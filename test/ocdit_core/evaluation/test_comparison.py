"""Comparison of runs, and its confidence intervals."""

import json

import numpy as np
import pytest
from small_sets import write_library, write_set

from ocdit_core.cli import main
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.evaluation.average_precision import Matches
from ocdit_core.evaluation.comparison import COMPARED, Estimate, Resampling, compare, draw_weights, estimate, unit_of
from ocdit_core.evaluation.metrics import summarise
from ocdit_core.evaluation.records import ImageRecord, TargetRecord, write_records
from ocdit_core.evaluation.run import read_run, write_metrics

THRESHOLD = 0.4


def made_records(seed, images=12, noise=0.25, scenes=4):
    """Three objects with up to two instances an image; scores are equal between images, some instances ignored."""
    rng = np.random.default_rng(1)
    own = np.random.default_rng(seed)
    records = []
    for image in range(images):
        targets = []
        for number in (1, 2, 3):
            truths, results = int(rng.integers(0, 3)), int(own.integers(0, 4))
            visibility = rng.choice([0.05, 0.5, 1.0], truths)
            # Of one image each score is another; between images the ten values meet often.
            scores = np.sort(own.choice(np.linspace(0.1, 1, 10), results, replace=False))[::-1]
            overlaps = np.clip(own.normal(0.75, noise, (results, truths)), 0, 1)
            targets.append(
                TargetRecord(
                    object_id=number, asked=True, scores=scores, areas=np.full(results, 100.0),
                    truth_areas=np.full(truths, 100.0), visibility=visibility, overlaps=overlaps,
                )
            )  # fmt: skip
        records.append(
            ImageRecord(scene_id=image % scenes, image_id=image, size=(60, 80), time=0.5, targets=tuple(targets))
        )
    return records


def write_run(path, records, threshold=THRESHOLD, **plan):
    path.mkdir()
    write_records(path / "records.jsonl", records)
    write_metrics(path, {"dataset": "small", "targets_digest": "a", **plan}, records, threshold=threshold)
    return path


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_the_same_as_copies(seed):
    records = made_records(seed)
    resampling = Resampling(records, THRESHOLD)
    for weights in draw_weights(records, 8, unit="image", seed=seed):
        copies = [record for record, weight in zip(records, weights, strict=True) for _ in range(weight)]
        brute = summarise(copies, threshold=THRESHOLD)
        at = brute["at_threshold"]
        expected = [brute["ap"], brute["ap50"], at["mean_iou"], at["false_mask_rate"]]
        assert resampling.metrics(weights) == pytest.approx(expected, abs=1e-12)
        assert at["false_mask_rate"] > 0
    # More than the mean: objects that a resampled set lacks are left out of it.
    for number, pool in Matches(records).pools().items():
        weights = (pool.instances == 0).astype(np.int64)
        assert pool.average_precision(weights) is None, number


def test_what_is_drawn():
    records = made_records(0)
    images = draw_weights(records, 500, unit="image")
    assert (images.sum(axis=1) == len(records)).all()
    assert images.mean(axis=0) == pytest.approx(np.ones(len(records)), abs=0.2)
    scenes = draw_weights(records, 500, unit="scene")
    assert (scenes.sum(axis=1) == len(records)).all(), "scenes of equal size"
    for scene in range(4):
        columns = scenes[:, [record.scene_id == scene for record in records]]
        assert (columns == columns[:, :1]).all(), "a scene comes with all its images"
    assert (unit_of(records), unit_of(made_records(0, 40, scenes=20))) == ("image", "scene")
    assert not np.array_equal(images, draw_weights(records, 500, unit="image", seed=1))


def test_the_interval_of_a_mean_is_the_known_one():
    # Of a mean of n values the interval is known: 1.96 standard errors.
    values = np.random.default_rng(0).normal(3, 1, 400)
    records = made_records(0, 400, scenes=400)
    samples = draw_weights(records, 4000, unit="image") @ values / 400
    found = estimate(values.mean(), samples)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert found.excludes_zero
    assert not Estimate(value=0.1, low=-0.1, high=0.3).excludes_zero
    assert np.isnan(estimate(float("nan"), np.array([np.nan, np.nan])).low)


def test_differences_are_paired(tmp_path):
    good, worse = made_records(3, 40, noise=0.2), made_records(3, 40, noise=0.2)
    for record in worse:
        for target in record.targets:
            target.overlaps[:] *= 0.9
    runs = [
        read_run(write_run(tmp_path / name, records))
        for name, records in (("good", good), ("same", good), ("worse", worse))
    ]
    result = compare(runs, resamples=300)
    assert "40 images" in result.note
    assert "300 resamples of images" in result.note
    assert [run.name for run in result.runs] == ["good", "same", "worse"]
    first, same, last = result.runs
    assert first.differences == {}
    metrics = runs[0].metrics
    at = metrics["at_threshold"]
    known = [metrics["ap"], metrics["ap50"], at["mean_iou"], at["false_mask_rate"]]
    assert [first.metrics[name].value for name in COMPARED] == pytest.approx(known, abs=1e-12)
    for name in COMPARED:
        assert first.metrics[name].low <= first.metrics[name].value <= first.metrics[name].high
        assert (same.differences[name].value, same.differences[name].low, same.differences[name].high) == (0, 0, 0)
    difference = last.differences["mean_iou"]
    assert difference.value == pytest.approx(last.metrics["mean_iou"].value - at["mean_iou"])
    assert difference.high < 0
    wide = first.metrics["mean_iou"].high - first.metrics["mean_iou"].low
    assert difference.high - difference.low < 0.4 * wide, "what both runs share does not count"


def test_the_command(tmp_path, capsys):
    paths = [write_run(tmp_path / name, made_records(seed)) for name, seed in (("one", 1), ("two", 2))]
    (tmp_path / "deeper").mkdir()
    paths.append(write_run(tmp_path / "deeper" / "one", made_records(1)))
    assert main(["compare", *map(str, paths), "--resamples", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [f"{tmp_path.name}/one", "two", "deeper/one"]
    assert [line.split()[0] for line in lines[1:4]] == names
    compared = compare([read_run(path) for path in paths], resamples=50)
    ap = compared.runs[1].metrics["ap"]
    assert f"{100 * ap.value:.1f} [{100 * ap.low:.1f}, {100 * ap.high:.1f}]" in lines[2]
    assert lines[4].startswith(f"two - {tmp_path.name}/one")
    assert lines[-1] == compared.note
    assert main(["compare", str(paths[0])]) == 2
    assert "two or more runs" in capsys.readouterr().err


def test_results_of_another_program_against_a_run(tmp_path, capsys):
    dataset = ["--dataset", str(write_set(tmp_path / "set", 4)), "--split", "test"]
    library = ["--objects", str(write_library(tmp_path / "library"))]
    run, other = str(tmp_path / "run"), str(tmp_path / "other")
    assert main(["evaluate", *dataset, *library, "--method", "colour", "--out", run]) == 0
    results = ["--results", f"{run}/results.json", "--threshold", "0.6"]
    assert main(["evaluate", *dataset, *results, "--out", other]) == 0
    capsys.readouterr()
    assert main(["compare", run, other, "--resamples", "20"]) == 0
    difference = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("other - run"))
    assert difference.split()[3:6] == ["+0.0", "[+0.0,", "+0.0]"]


def test_what_cannot_be_compared(tmp_path):
    run = read_run(write_run(tmp_path / "run", made_records(1)))
    other = read_run(write_run(tmp_path / "other", made_records(1), targets_digest="b"))
    fewer = read_run(write_run(tmp_path / "fewer", made_records(1, 11)))
    with pytest.raises(DataError, match=r"other cannot be compared: targets_digest is a in one, b in the other"):
        compare([run, other])
    with pytest.raises(DataError, match=r"fewer: its records are of other images"):
        compare([run, fewer])
    with pytest.raises(ConfigError, match="resamples: 0"):
        compare([run], resamples=0)
    with pytest.raises(DataError, match=r"nowhere: no finished evaluation"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "run" / "metrics.json").write_text('{"schema_version": 9}')
    with pytest.raises(DataError, match="version 9, not 1"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("command", ["compare", "report"])
def test_edited_numbers_are_blamed_on_their_file(tmp_path, capsys, command):
    path = write_run(tmp_path / "run", made_records(0))
    metrics = json.loads((path / "metrics.json").read_text())
    more = ["--out", str(tmp_path / "report.html")] if command == "report" else [str(path)]
    for key, value in {"time": 5, "average_precision": {}, "by_size": [3], "reliability": [{}]}.items():
        (path / "metrics.json").write_text(json.dumps({**metrics, key: value}))
        status = main([command, str(path), *more, "--resamples", "2"])
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        assert status == 0 or (status == 2 and errors.count("ocdit: error: ") == 1)
    record = (path / "records.jsonl").read_text().splitlines()[0].replace('"areas": [', '"areas": [1, ')
    (path / "records.jsonl").write_text(record)
    (path / "metrics.json").write_text(json.dumps(metrics))
    assert main([command, str(path), *more, "--resamples", "2"]) == 2
    assert "records.jsonl: line 1 is no record (columns of different lengths)" in capsys.readouterr().err
