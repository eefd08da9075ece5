"""`ocdit synthesize` as a user types it."""

import subprocess
import sys

import pytest
import trimesh

from ocdit_core.cli import main

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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--meshes", "absent"], "no such folder of meshes"),
        (["--textures", "absent", "--objects", "6"], "absent: no such folder, or it holds no image"),
        (["--objects", "6", "--part", "test"], "split file"),
        (["--objects", "6", "--targets", "5", "3"], "targets: 5 3"),
        (["--objects", "2"], "there are 2; give more"),
        (["--objects", "6", "--size", "10", "10"], "must be 64 to 4096"),
        (["--objects", "0"], "--meshes"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    assert main(["synthesize", "--out", "out", *TINY, *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert said in lines[0]


def test_help_needs_no_heavy_package():
    code = (
        "import sys; from ocdit_core.cli import build_parser; build_parser().format_help();"
        "print([name for name in ('trimesh', 'mujoco', 'moderngl', 'ray', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
