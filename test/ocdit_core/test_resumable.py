import json

import pytest

from ocdit_core.errors import ConfigError, DataError, OutputError
from ocdit_core.resumable import keep_plan, take_shard


def test_a_folder_is_continued_by_the_same_plan_only(tmp_path):
    path = tmp_path / "out" / "plan.json"
    plan = {"settings": {"steps": 9, "size": (3, 4)}, "objects": ["a", "b"], "versions": {"torch": "2.4"}}
    keep_plan(path, plan)
    assert json.loads(path.read_text())["settings"] == {"steps": 9, "size": [3, 4]}
    keep_plan(path, {**plan, "versions": {"torch": "2.5"}}, may_differ=("versions",))
    assert json.loads(path.read_text())["versions"] == {"torch": "2.5"}
    for change, message in (
        ({"settings": {"steps": 9, "size": (3, 5)}}, r"out: was begun with settings\.size\.1 4, not 5; repeat"),
        ({"objects": ["a", "c"]}, r"objects\.1 b, not c"),
        ({"more": 1}, "more null, not 1"),
    ):
        with pytest.raises(DataError, match=message):
            keep_plan(path, {**plan, **change}, may_differ=("versions",))
    path.write_text("{")
    with pytest.raises(DataError, match=r"plan\.json: damaged"):
        keep_plan(path, plan)


def test_files_of_others_are_not_taken_for_ones_own(tmp_path):
    (tmp_path / "results.json").write_text("mine")
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(DataError, match=r"holds results\.json but no plan\.json"):
        keep_plan(tmp_path / "plan.json", {})
    with pytest.raises(DataError, match=r"holds results\.json"):
        keep_plan(tmp_path / "plan.json", {}, outputs=("results.json", "metrics.json"))
    keep_plan(tmp_path / "plan.json", {}, outputs=("metrics.json",))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"plan\.json: cannot be written"):
        keep_plan(tmp_path / "file" / "plan.json", {})


def test_shards_share_the_work_out():
    shards = [take_shard(range(7), (index, 3)) for index in range(3)]
    assert sorted(item for items in shards for item in items) == list(range(7))
    assert max(map(len, shards)) - min(map(len, shards)) == 1
    with pytest.raises(ConfigError, match="shard: 3/3 is not one of 0/3 to 2/3"):
        take_shard(range(7), (3, 3))
