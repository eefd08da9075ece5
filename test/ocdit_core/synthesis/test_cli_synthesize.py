"""`ocdit synthesize` as a user types it."""

import json
import subprocess
import sys

import pytest
import trimesh

from ocdit_core.cli import main
from ocdit_core.data.bop import BopFolder
from ocdit_core.synthesis.generation import command_of
from ocdit_core.synthesis.plan import SynthesisSettings

TINY = ["--images", "3", "--size", "96", "128", "--targets", "2", "3", "--distractors", "0", "1"]
TINY += ["--views-per-scene", "2", "3", "--jobs", "1"]


def test_from_a_folder_of_meshes_to_a_dataset_that_is_sound(tmp_path, capsys):
    cad = tmp_path / "cad"
    cad.mkdir()
    for number in range(5):
        trimesh.creation.box((0.05 + 0.02 * number, 0.08, 0.06)).export(cad / f"box_{number}.glb")
    (cad / "cut.glb").write_bytes(b"glTF\x02\x00\x00\x00")
    out = tmp_path / "made"
    command = ["synthesize", "--out", str(out), "--meshes", str(cad), "--no-depth", *TINY]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "3 images, 5 objects (1 left out)" in said.out
    assert [line for line in said.err.splitlines() if "left out" in line] == [
        line for line in said.err.splitlines() if "cut.glb" in line
    ]
    assert not list(out.rglob("depth"))
    assert main(["inspect", str(out), "--thorough", "--samples", "1"]) == 0
    assert "0 damaged" in capsys.readouterr().out
    assert main(command) == 0
    assert "3 images (3 were there)" in capsys.readouterr().out
    assert main([*command[:-2], "--seed", "7", "--jobs", "1"]) == 2
    assert "begun with settings.seed 0, not 7" in capsys.readouterr().err


def test_a_split_file_is_written_once_and_kept_to(tmp_path, capsys):
    split = tmp_path / "split.json"
    command = ["synthesize", "--objects", "16", "--split", str(split), "--test-share", "0.4", *TINY]
    assert main([*command, "--out", str(tmp_path / "train")]) == 0
    parts = json.loads(split.read_text())
    assert f"{len(parts['train'])} objects for training, {len(parts['test'])} for test" in capsys.readouterr().out
    before = split.read_bytes()
    assert main([*command, "--out", str(tmp_path / "test"), "--part", "test"]) == 0
    assert split.read_bytes() == before
    used = {
        part: set(json.loads((tmp_path / part / "objects.json").read_text())["objects"].values())
        for part in ("train", "test")
    }
    assert used == {part: set(names) for part, names in parts.items()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--meshes", "absent"], "no such folder of meshes"),
        (["--textures", "absent", "--objects", "6"], "no such folder of images"),
        (["--objects", "6", "--part", "test"], "split file"),
        (["--objects", "6", "--test-share", "0.1"], "--split"),
        (["--objects", "6", "--targets", "5", "3"], "targets: 5 3"),
        (["--objects", "2"], "there are 2; give more"),
        (["--objects", "6", "--size", "10", "10"], "at least 64"),
        (["--objects", "0"], "--meshes"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    assert main(["synthesize", "--out", "out", *TINY, *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert said in lines[0]


def test_the_command_of_the_description_makes_the_same_plan(tmp_path):
    settings = SynthesisSettings(
        images=3, seed=4, objects=6, size=(96, 128), targets=(2, 3), repeats=0.2, distractors=(0, 1), views=(2, 3),
        depth=False, bop_split="val",
    )  # fmt: skip
    words = command_of(settings, str(tmp_path / "made")).split()
    assert words[0] == "ocdit"
    assert main([*words[1:], "--jobs", "1"]) == 0
    stored = json.loads((tmp_path / "made" / "plan.json").read_text())["settings"]
    assert SynthesisSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}) == settings
    assert len(BopFolder(tmp_path / "made", "val")) == 3


def test_help_needs_no_heavy_package():
    code = (
        "import sys; from ocdit_core.cli import build_parser; build_parser().format_help();"
        "print([name for name in ('trimesh', 'mujoco', 'moderngl', 'ray', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
