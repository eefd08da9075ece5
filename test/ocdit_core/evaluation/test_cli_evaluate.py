"""`ocdit evaluate` from files to files."""

import json

import pytest
from small_sets import write_library, write_set

from ocdit_core.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    write_set(folder / "set", 4)
    write_library(folder / "library")
    rows = [
        {"scene_id": 7, "im_id": 1, "obj_id": number, "inst_count": count} for number, count in ((1, 1), (2, 1), (3, 1))
    ]
    (folder / "set" / "targets.json").write_text(json.dumps([*rows, {**rows[0], "im_id": 0}]))
    return folder


def evaluate(place, out, *more):
    dataset = ["--dataset", f"{place}/set", "--split", "test", "--out", str(out)]
    return main(["evaluate", *dataset, *more])


def objects(place):
    return ["--objects", f"{place}/library"]


def test_the_colour_baseline_on_a_targets_file(place, tmp_path, capsys):
    more = ["--targets", "targets.json", "--method", "colour", "--threshold", "0.3"]
    assert evaluate(place, tmp_path, *objects(place), *more) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["images"] == 2
    assert metrics["score_threshold"] == 0.3
    assert metrics["at_threshold"]["mean_iou"] > 0.5, "blocks of one colour each"
    assert f"{100 * metrics['ap']:.1f}" in printed.splitlines()[1]
    assert {row["category_id"] for row in json.loads((tmp_path / "results.json").read_text())} <= {1, 2, 3}

    # The file that was written, as that of another program.
    again = tmp_path / "again"
    more = ["--targets", "targets.json", "--results", f"{tmp_path}/results.json", "--threshold", "0.3"]
    assert evaluate(place, again, *more) == 0
    assert json.loads((again / "metrics.json").read_text())["by_object"] == metrics["by_object"]


def test_the_embedded_model(place, tmp_path):
    more = ["--targets", "targets.json", "--device", "cpu", "--preset", "fast", "--set", "image_size=[96,128]"]
    assert evaluate(place, tmp_path, *objects(place), *more) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["run"]["weights"] == "ocdit-small"
    assert metrics["run"]["settings"]["image_size"] == [96, 128]
    assert metrics["run"]["settings"]["score_threshold"] == 0, "all results are ranked"
    assert metrics["at_threshold"]["instances"] == 4
    assert metrics["time"]["median"] > 0
    assert metrics["time"]["stages"]["backbone"] > 0


def test_the_cnos_like_baseline(place, tmp_path):
    more = ["--targets", "targets.json", "--method", "cnos", "--device", "cpu"]
    assert evaluate(place, tmp_path, *objects(place), *more) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["run"]["weights"] == "ocdit-small"
    assert metrics["at_threshold"]["instances"] == 4


def test_regions_of_the_truth_and_of_another_program_are_labelled(place, tmp_path):
    shared = [*objects(place), "--targets", "targets.json", "--device", "cpu", "--set", "refine.image_size=[96,96]"]
    found = {}
    for name, more in (("any", ["--regions", "truth"]), ("named", ["--regions", "truth", "--labels"])):
        assert evaluate(place, tmp_path / name, *shared, *more) == 0
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())
        assert found[name]["run"]["regions"] == "truth"
        assert found[name]["run"]["labels"] == (name == "named")
        rows = json.loads((tmp_path / name / "results.json").read_text())
        # Image 0 of scene 7 has one target, but two regions; image 1 three of each.
        assert {(row["scene_id"], row["image_id"]) for row in rows} <= {(7, 0), (7, 1)}
        assert len(rows) <= 5
    assert found["named"]["ap"] >= found["any"]["ap"]
    assert found["named"]["at_threshold"]["instances"] == 4
    # The results, as regions of another program: each has one.
    file = tmp_path / "named" / "results.json"
    assert evaluate(place, tmp_path / "file", *shared, "--regions", str(file)) == 0
    assert len(json.loads((tmp_path / "file" / "results.json").read_text())) <= len(json.loads(file.read_text()))
    assert evaluate(place, tmp_path / "file", *shared, "--regions", "truth") == 2


def test_prompts_of_the_truth_place_the_masks(place, tmp_path):
    shared = [*objects(place), "--targets", "targets.json", "--device", "cpu", "--set", "image_size=[96,128]"]
    assert evaluate(place, tmp_path, *shared, "--prompts", "box", "--threshold", "0") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["run"]["prompts"] == "box"
    # Blocks of one colour: GrabCut has it easy.
    assert metrics["at_threshold"]["mean_iou"] > 0.9
    assert metrics["at_threshold"]["points_in_masks"] == 1
    assert evaluate(place, tmp_path, *shared, "--prompts", "point", "--threshold", "0") == 2


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--regions", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--regions", "truth", "--method", "colour"], "--regions: is for --method ocdit alone"),
        (["--prompts", "box", "--method", "colour"], "--prompts: is for --method ocdit alone"),
        (["--prompts", "box", "--regions", "truth"], "--regions and --prompts: give one of them"),
        (["--labels"], "--labels: keeps the objects of regions; give --regions, too"),
        ([], "--objects is missing"),
        (["--objects", "nowhere"], "nowhere"),
        (["--method", "magic"], "method: 'magic' is unknown; use ocdit, colour, cnos"),
        (["--preset", "hasty"], "preset: 'hasty' is not one of fast"),
        (["--method", "colour", "--preset", "fast"], "colour has no settings"),
        (["--set", "ensembel=4"], "ensembel: unknown setting; did you mean 'ensemble'?"),
        (["--weights", "no-such-model"], "no-such-model"),
        (["--targets", "nowhere.json"], "nowhere.json"),
        (["--results", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_invalid_arguments_are_one_line_and_status_2(place, tmp_path, capsys, more, reason):
    library = [] if not more or more[0] in ("--objects", "--results") else objects(place)
    assert evaluate(place, tmp_path / "out", *library, *more) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("ocdit: error: ")]) == 1
    assert reason in lines[-1]
    assert not (tmp_path / "out").exists()


def test_shards_are_counted_from_0(place, tmp_path, capsys):
    more = [*objects(place), "--method", "colour", "--targets", "targets.json"]
    assert evaluate(place, tmp_path, *more, "--shard", "1/2") == 0
    assert "this shard is done" in capsys.readouterr().out
    assert not (tmp_path / "metrics.json").exists()
    assert evaluate(place, tmp_path, *more, "--shard", "0/2") == 0
    assert (tmp_path / "metrics.json").exists()
    with pytest.raises(SystemExit):
        evaluate(place, tmp_path, *more, "--shard", "2/2")
    assert "shards of 2 are counted from 0 to 1" in capsys.readouterr().err
