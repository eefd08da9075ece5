import json
import multiprocessing
from dataclasses import replace

import pytest
from small_sets import write_library, write_set, write_shards
from stand_in_methods import ByColourSpec

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.shards import ShardDataset
from ocdit_core.errors import ConfigError, DataError, LibraryError, OutputError
from ocdit_core.evaluation.bop_results import read_parts, read_results, write_results
from ocdit_core.evaluation.run import EvaluationTask, evaluate, evaluate_file
from ocdit_core.evaluation.targets import choose_targets, names_of_objects, require_templates
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.objects.library import ObjectLibrary

IMAGES = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write_set(folder / "set", IMAGES)
    write_library(folder / "library")
    return folder


@pytest.fixture
def task(place, tmp_path):
    return task_of(place, tmp_path / "log")


def task_of(place, log, choice="all"):
    dataset = BopFolder(place / "set", "test")
    method = ByColourSpec(
        method="by colour", weights="ocdit-small", device="cpu", settings=InferenceSettings(), threshold=0.5, log=log
    )
    return EvaluationTask(
        dataset=str(place / "set"),
        split="test",
        targets=choose_targets(dataset, choice),
        library=place / "library",
        names=names_of_objects(ObjectLibrary(place / "library"), place / "set"),
        method=method,
    )


def same_results(one, other):
    def rows(folder):
        return [replace(row, time=0) for row in read_results(folder / "results.json")]

    assert rows(one) == rows(other)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    for values in metrics:
        del values["time"]
    assert metrics[0] == metrics[1]


def test_from_a_dataset_to_metrics(task, tmp_path):
    metrics = evaluate(tmp_path / "out", task)
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["images"] == IMAGES
    assert metrics["ap50"] == 1
    assert metrics["at_threshold"]["f1"] == 1
    assert (metrics["at_threshold"]["absent"], metrics["at_threshold"]["false_masks"]) == (3, 0)
    assert metrics["time"]["stages"] == {"looking": 0.001}
    assert metrics["run"]["method"] == "by colour"
    rows = read_results(tmp_path / "out" / "results.json", objects={1, 2, 3}, size_of=lambda image: (60, 80))
    assert len(rows) == 2 * IMAGES + IMAGES // 2
    assert {row.scene_id for row in rows} == {0, 7}
    # Again: nothing is looked at twice, and another threshold is a matter of counting.
    stricter = replace(task, method=replace(task.method, threshold=0.95))
    assert evaluate(tmp_path / "out", stricter)["at_threshold"]["recall"] == 0
    assert len(task.method.log.read_text().splitlines()) == IMAGES


def _in_a_process(out, task):
    evaluate(out, task)


def test_a_killed_run_goes_on_where_it_was(place, task, tmp_path):
    evaluate(tmp_path / "whole", replace(task, method=replace(task.method, log=tmp_path / "other_log")))
    dying = replace(task, method=replace(task.method, die_at=4))
    process = multiprocessing.get_context("spawn").Process(target=_in_a_process, args=(tmp_path / "out", dying))
    process.start()
    process.join()
    assert process.exitcode == -9
    assert len(read_parts(tmp_path / "out")) == 3
    assert not (tmp_path / "out" / "metrics.json").exists()
    # The last line was not yet on the disk as a whole.
    (part,) = (tmp_path / "out" / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    evaluate(tmp_path / "out", task)
    # Three images and the deadly one; then what was missing.
    assert len(task.method.log.read_text().splitlines()) == 4 + IMAGES - 2
    same_results(tmp_path / "out", tmp_path / "whole")


def test_shares_and_processes_give_the_same(task, tmp_path):
    evaluate(tmp_path / "whole", task)
    assert evaluate(tmp_path / "out", task, shard=(1, 2)) is None
    assert len(read_parts(tmp_path / "out")) == IMAGES // 2
    assert evaluate(tmp_path / "out", task, shard=(0, 2)) is not None
    same_results(tmp_path / "out", tmp_path / "whole")
    evaluate(tmp_path / "two", task, jobs=2)
    same_results(tmp_path / "two", tmp_path / "whole")
    with pytest.raises(ConfigError, match="shard: 2/2 is not one of 0/2 to 1/2"):
        evaluate(tmp_path / "out", task, shard=(2, 2))


def test_a_folder_holds_one_evaluation(place, task, tmp_path):
    evaluate(tmp_path / "out", task)
    other = replace(task.method, settings=InferenceSettings(ensemble=4))
    with pytest.raises(DataError, match=r"settings\.ensemble 1, not 4"):
        evaluate(tmp_path / "out", replace(task, method=other))
    with pytest.raises(DataError, match="targets 18, not 15"):
        evaluate(tmp_path / "out", task_of(place, tmp_path / "log", "present"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/evaluation\.json: cannot be written"):
        evaluate(tmp_path / "file", task)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text("mine")
    with pytest.raises(DataError, match=r"mine: holds results\.json but no evaluation\.json"):
        evaluate(tmp_path / "mine", task)
    part = next((tmp_path / "out" / "parts").iterdir())
    part.write_text('{"scene_id": 0}\n')
    with pytest.raises(DataError, match=r"line 1 is no result .*; delete the file"):
        evaluate(tmp_path / "out", task)


def test_shards_give_the_same_as_the_folder(place, task, tmp_path):
    shards = write_shards(tmp_path / "shards", IMAGES)
    sharded = replace(task, dataset=str(shards), split=None, targets=choose_targets(ShardDataset(shards), "all"))
    assert sharded.targets == task.targets
    evaluate(tmp_path / "whole", task)
    evaluate(tmp_path / "half", sharded, shard=(0, 2))
    evaluate(tmp_path / "half", sharded)
    rows = [replace(row, time=0) for row in read_results(tmp_path / "half" / "results.json")]
    assert rows == [replace(row, time=0) for row in read_results(tmp_path / "whole" / "results.json")]
    assert len(task.method.log.read_text().splitlines()) == 2 * IMAGES


def test_a_file_of_another_program(place, task, tmp_path):
    metrics = evaluate(tmp_path / "out", task)
    dataset = BopFolder(place / "set", "test")
    path = tmp_path / "out" / "results.json"
    again = evaluate_file(tmp_path / "again", path, dataset, task.targets, threshold=0.5)
    for key in ("ap", "ar", "by_area", "by_object", "at_threshold"):
        assert again[key] == metrics[key]
    rows = read_results(path)
    write_results(tmp_path / "bad.json", [*rows, replace(rows[0], category_id=9)])
    with pytest.raises(DataError, match=f"row {len(rows)}: category_id is 9"):
        evaluate_file(tmp_path / "bad", tmp_path / "bad.json", dataset, task.targets, threshold=0.5)
    # An image that is no target counts for nothing.
    fewer = dict(list(task.targets.items())[:2])
    assert evaluate_file(tmp_path / "few", path, dataset, fewer, threshold=0.5)["images"] == 2


def test_targets(place, tmp_path):
    dataset = BopFolder(place / "set", "test")
    everything = choose_targets(dataset, "all")
    assert everything == {(scene, image): (1, 2, 3) for scene in (0, 7) for image in range(3)}
    assert choose_targets(dataset, "present")[0, 0] == (1, 2)
    path = tmp_path / "targets.json"
    rows = [
        {"scene_id": 7, "im_id": 1, "obj_id": 2, "inst_count": 1},
        {"scene_id": 0, "im_id": 2, "obj_id": 3, "inst_count": 0},
        {"scene_id": 0, "im_id": 2, "obj_id": 1, "inst_count": 1},
    ]
    path.write_text(json.dumps(rows))
    assert choose_targets(dataset, path) == {(0, 2): (1, 3), (7, 1): (2,)}
    path.write_text(json.dumps([{"scene_id": 0, "im_id": 2}]))
    assert choose_targets(dataset, path) == {(0, 2): (1, 2, 3)}
    path.write_text(json.dumps([{**rows[0], "im_id": 99}]))
    with pytest.raises(DataError, match="no image 000007/000099"):
        choose_targets(dataset, path)


def test_objects_and_their_templates(place, tmp_path):
    library = ObjectLibrary(place / "library")
    assert names_of_objects(library, place) == {n: f"obj_{n:06d}" for n in (1, 2, 3)}
    with pytest.raises(LibraryError, match=r"no templates of 2 of the 3 target objects: obj_id 4, 9"):
        require_templates(library, {(0, 0): (1, 4), (0, 1): (9,)}, names_of_objects(library, place))

    named = ObjectLibrary(write_library(tmp_path / "named", ("cup", "mug")))
    with pytest.raises(LibraryError, match="the obj_ids of its objects are unknown"):
        names_of_objects(named, tmp_path)
    (tmp_path / "objects.json").write_text(json.dumps({"objects": {"5": "mug", "6": "jar"}}))
    assert names_of_objects(named, tmp_path) == {5: "mug"}
    (tmp_path / "objects.json").write_text(json.dumps({"objects": ["mug"]}))
    with pytest.raises(DataError, match=r"objects\.json: holds no names of objects by number"):
        names_of_objects(named, tmp_path)
