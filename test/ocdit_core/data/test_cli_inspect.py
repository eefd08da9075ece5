"""`ocdit inspect`: the numbers of data written by hand, damage by file and key, the page."""

import json
import re

import numpy as np
import pytest
from layouts import encoded, shard_members, write_bop_scene, write_tar

from ocdit_core.cli import main
from ocdit_core.commands.datasets import draw_frame
from ocdit_core.data.bop import BopFolder, spread
from ocdit_core.data.dataset import open_dataset
from ocdit_core.data.shards import ShardDataset
from ocdit_core.data.statistics import MAX_PROBLEMS, DatasetStatistics
from ocdit_core.errors import DataError


def rows(text: str, title: str) -> dict[str, int]:
    """The counts of one of the printed tables."""
    table = text.split(f"{title}  ", 1)[1].split("\n\n")[0].splitlines()[1:]
    found = [re.match(r"\s*(.*?)\s{2,}(\d+)  ", line) for line in table]
    return {match[1]: int(match[2]) for match in found if match}


def test_numbers_of_a_folder(tmp_path, capsys):
    write_bop_scene(tmp_path / "ycbv", scene=1, images=(0, 1, 2))
    write_bop_scene(tmp_path / "ycbv", scene=2)
    assert main(["inspect", str(tmp_path / "ycbv")]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == (
        "ycbv test: 5 images of 8 x 6, 2 scenes, 2 objects, 10 instances (2.0 per image), 0 damaged"
    )
    # Object 3 is seen to 7/9, object 7 entirely.
    visible = rows(text, "visible")
    assert {key: count for key, count in visible.items() if count} == {"70% .. 80%": 5, "90% and more": 5}
    assert len(visible) == 10
    # Their longer sides are 3 and 4 pixels, of 6 on the shorter side of the image: 50% and 67%.
    assert rows(text, "size in pixels")["0 .. 16"] == 10
    assert rows(text, "size / shorter side")["50% .. 75%"] == 10


def test_numbers_of_shards_and_a_limit(tmp_path, capsys):
    write_tar(tmp_path / "gso" / "shard-000000.tar", {f"00000{i}_000001": shard_members() for i in range(4)})
    write_tar(tmp_path / "gso" / "shard-000001.tar", {"000009_000001": shard_members()})
    assert main(["inspect", str(tmp_path / "gso")]) == 0
    assert "gso, 2 shards: 5 images of 8 x 6, 5 scenes, 2 objects, 10 instances" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "gso"), "--limit", "3"]) == 0
    assert "3 images" in capsys.readouterr().out


def test_damage_is_listed_with_file_and_key_and_the_rest_is_counted(tmp_path, capsys):
    scene = write_bop_scene(tmp_path, images=(0, 1, 2, 3))
    (scene / "mask_visib" / "000001_000000.png").unlink()
    (scene / "rgb" / "000003.png").write_bytes(encoded(np.zeros((6, 8, 3), np.uint8))[:40])
    broken = write_bop_scene(tmp_path, scene=7)
    (broken / "scene_camera.json").write_text("{")
    assert main(["inspect", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "2 images" in captured.out
    assert "3 damaged" in captured.out
    assert re.search(r"missing mask\s+1", captured.out)
    for name in ("000001_000000.png", "rgb/000003.png", "000007/scene_camera.json"):
        assert f"ocdit: error: {tmp_path}" in captured.err
        assert name in captured.err


def test_only_samples_are_decoded_unless_asked_for(tmp_path, capsys):
    scene = write_bop_scene(tmp_path, images=(0, 1, 2, 3))
    (scene / "mask_visib" / "000003_000000.png").unlink()
    assert main(["inspect", str(tmp_path), "--samples", "1"]) == 0  # that is image 2
    assert main(["inspect", str(tmp_path), "--samples", "1", "--thorough"]) == 2
    assert "000003_000000.png" in capsys.readouterr().err


def test_masks_that_contradict_boxes_are_found(tmp_path, capsys):
    members = shard_members()
    info = json.loads(members["gt_info.json"])
    info[1]["bbox_visib"] = [-1, -1, -1, -1]
    members["gt_info.json"] = json.dumps(info).encode()
    path = write_tar(tmp_path / "shard-000000.tar", {"a": members, "b": shard_members()})
    assert main(["inspect", str(path)]) == 2
    captured = capsys.readouterr()
    assert f"{path}: a: the mask of object 1 is not empty, and it has no box" in captured.err
    assert "1 images" not in captured.out
    assert "1 image of" in captured.out


def test_the_page(tmp_path, capsys):
    write_bop_scene(tmp_path / "<data>", images=tuple(range(12)))
    page = tmp_path / "page.html"
    arguments = ["--samples", "7", "--html", str(page)]
    assert main(["inspect", str(tmp_path / "<data>"), "--split", "test", *arguments]) == 0
    text = page.read_text()
    assert text.count("<figure>") == 7
    assert text.count("data:image/webp;base64,") == 7
    assert "<title>&lt;data&gt; test</title>" in text
    assert "http" not in text.replace("http-equiv", "")  # nothing is loaded from elsewhere
    drawing = draw_frame(next(iter(BopFolder(tmp_path / "<data>", "test"))), 400)
    assert drawing.shape == (300, 400, 3)
    # The masks are drawn: object 7 (columns 4-5) and the rest of the image beside it differ in hue.
    inside, outside = drawing[200, 250].astype(int), drawing[200, 30].astype(int)
    assert np.abs((inside - inside.mean()) - (outside - outside.mean())).max() > 25
    assert "page with 7 samples" in capsys.readouterr().out


def test_wrong_arguments(tmp_path, capsys):
    write_bop_scene(tmp_path / "d", split="test")
    write_bop_scene(tmp_path / "d", split="train_pbr")
    for arguments, message in (
        ([str(tmp_path / "d")], "has the splits test, train_pbr; say which"),
        ([str(tmp_path / "d"), "--split", "val"], "val: no such split"),
        ([str(tmp_path / "none")], "none: no such folder"),
        ([str(tmp_path)], "holds neither BOP scenes nor shards"),
    ):
        assert main(["inspect", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_datasets_are_opened_by_their_path(tmp_path):
    write_bop_scene(tmp_path / "d", split="train_pbr")
    for opened in (open_dataset(tmp_path / "d"), open_dataset(tmp_path / "d" / "train_pbr")):
        assert isinstance(opened, BopFolder)
        assert (opened.name, opened.split) == ("d", "train_pbr")
    shard = write_tar(tmp_path / "d" / "web" / "shard-000000.tar", {"a": shard_members()})
    for path, split in ((shard, None), (shard.parent, None), (tmp_path / "d", "web")):
        opened = open_dataset(path, split)
        assert isinstance(opened, ShardDataset)
        assert opened.shards == (str(shard),)


def test_samples_are_spread():
    assert spread(3, 5) == [0, 1, 2]
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(7, None) == list(range(7))


def test_only_the_first_problems_are_kept():
    statistics = DatasetStatistics()
    for number in range(MAX_PROBLEMS + 3):
        statistics.note(DataError(f"file {number}", kind="missing mask"))
    assert statistics.problems == [f"file {number}" for number in range(MAX_PROBLEMS)]
    assert statistics.damaged["missing mask"] == MAX_PROBLEMS + 3


@pytest.mark.parametrize("option", ["--samples", "--limit"])
def test_counts_are_above_0(option, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "x", option, "0"])
    assert "is not above 0" in capsys.readouterr().err
