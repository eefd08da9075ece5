import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
import trimesh

from ocdit_core import ObjectLibrary, __version__, cli
from ocdit_core.cli import main
from ocdit_core.commands.segment import table_rows, write_result
from ocdit_core.errors import OcditError
from ocdit_core.images import read_image, write_image
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.masks import decode_mask, tight_box


@pytest.fixture
def cad(tmp_path):
    trimesh.creation.box((0.1, 0.05, 0.02)).export(tmp_path / "plate.ply")
    trimesh.creation.cylinder(radius=20, height=80).export(tmp_path / "rod.stl")
    (tmp_path / "broken.glb").write_bytes(b"glTF no more")
    return tmp_path


def errors(capsys):
    """Lines on stderr that state an error, and all of stdout."""
    caught = capsys.readouterr()
    assert "Traceback" not in caught.err
    return [line for line in caught.err.splitlines() if "error" in line], caught.out


def test_render_then_list(cad, capsys):
    library = cad / "lib"
    status = main(
        ["render", f"{cad}/plate.ply", f"{cad}/rod.stl", "--out", str(library), "--sheet", str(cad / "views.png")]
    )
    bad, out = errors(capsys)
    assert (status, bad) == (0, [])
    assert "2 objects rendered: plate, rod" in out
    assert ObjectLibrary(library)["rod"].unit == "mm"
    assert read_image(cad / "views.png").shape == (2 * 118, 12 * 96, 3)
    assert main(["objects", str(library)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["object", "id", "views", "diameter", "unit", "origin", "symmetries", "source"]
    assert out[1].split() == ["plate", "1", "12", "11.4", "cm", "m", "cad", "-", "plate.ply"]
    assert out[2].split()[5] == "mm"


def test_one_bad_mesh_leaves_the_others_and_the_status_2(cad, capsys):
    status = main(["render", f"{cad}/broken.glb", f"{cad}/plate.ply", f"{cad}/none.obj", "--out", f"{cad}/lib"])
    bad, out = errors(capsys)
    assert status == 2
    assert len(bad) == 2
    assert bad[0].startswith("ocdit: error: ")
    assert "broken.glb" in bad[0]
    assert "none.obj: no such mesh file" in bad[1]
    assert "1 object rendered: plate; 2 failed" in out
    assert ObjectLibrary(cad / "lib").object_ids == ("plate",)


def test_unit_name_and_views_are_obeyed(cad, capsys):
    assert (
        main(["render", f"{cad}/rod.stl", "--out", f"{cad}/lib", "--unit", "cm", "--name", "pole", "--views", "42"])
        == 0
    )
    pole = ObjectLibrary(cad / "lib")["pole"]
    assert len(pole) == 42
    assert pole.diameter == pytest.approx(0.894, abs=0.01)
    assert "guessed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["objects", "{}/absent"], "no such folder"),
        (["objects", "{}/plate.ply"], "is a file"),
        (["objects", "{}"], "holds no object"),
        (["render", "{}/plate.ply", "--out", "{}/lib", "--unit", "m", "--name", "a/b"], "object name 'a/b'"),
        (["render", "{}/plate.ply", "{}/rod.stl", "--out", "{}/lib", "--name", "x"], "--name names one object"),
        (["render", "{}/plate.ply", "--out", "{}/lib", "--unit", "mm"], "--unit"),
        (["render", "{}/plate.ply", "--out", "{}/rod.stl"], "rod.stl: is a file"),
        (["render", "{}/plate.ply", "--out", "{}/lib", "--sheet", "{}/sheet.gif2"], "--sheet needs"),
        (["render", "{}", "--out", "{}/lib"], "no known layout"),
        (["segment", "{}/a.png", "{}/b/a.jpg", "--objects", "{}", "--out", "{}/o"], "are called 'a'"),
        (["segment", "{}/a.png", "--objects", "{}/absent", "--out", "{}/o"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(cad, capsys, arguments, reason):
    assert main([argument.format(cad) for argument in arguments]) == 2
    bad, _ = errors(capsys)
    assert len(bad) == 1
    assert bad[0].startswith("ocdit: error: ")
    assert reason in bad[0]


def test_a_damaged_object_is_reported_and_the_rest_is_listed(cad, capsys):
    main(["render", f"{cad}/plate.ply", "--out", f"{cad}/lib"])
    (cad / "lib" / "junk.npz").write_bytes(b"junk")
    capsys.readouterr()
    assert main(["objects", f"{cad}/lib"]) == 2
    bad, out = errors(capsys)
    assert "junk.npz" in bad[0]
    assert "plate" in out


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["render", "a.ply"], ["render", "a.ply", "--out", "l", "--unit", "mile"],
                  ["segment", "a.png", "--objects", "l", "--out", "o", "--threshold", "3"]]
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: ocdit" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["render", "objects", "segment"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert f"ocdit {command}" in out


@pytest.mark.parametrize(
    ("error", "verbose", "status", "line"),
    [
        (KeyboardInterrupt(), False, 130, "ocdit: interrupted"),
        (OSError(28, "No space left on device", "out/a.png"), False, 2, "out/a.png: No space left on device"),
        (OcditError("no library"), True, 2, "ocdit: error: no library"),
    ],
)
def test_what_ends_a_command_is_one_line(monkeypatch, capsys, error, verbose, status, line):
    def run(_):
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=run, verbose=verbose)
    monkeypatch.setattr(cli, "build_parser", lambda: parser)
    assert main([]) == status
    caught = capsys.readouterr().err
    assert line in caught.splitlines()[-1]
    assert ("Traceback" in caught) is verbose


def test_version_and_help_load_no_heavy_package():
    script = (
        "import sys\nfrom ocdit_core.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('numpy', 'torch', 'trimesh', 'moderngl', 'cv2', 'PIL', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"ocdit {__version__}", "[]"]


def test_the_files_of_a_result(tmp_path):
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    other = np.roll(mask, 20, axis=0)
    result = Segmentation(
        instances=(
            Instance(object_id="drill", score=0.91, box=tight_box(mask), mask=mask),
            Instance(object_id="drill", score=0.2, box=tight_box(other), mask=other),
        ),
        image_size=(60, 80),
        target_ids=("drill", "mug"),
        timings={"total": 1.25},
    )
    image = np.full((60, 80, 3), 100, np.uint8)
    write_image(tmp_path / "out" / "table" / "mask_9_old.png", mask)
    write_result(tmp_path / "out", tmp_path / "table.jpg", image, result, model="ocdit-small")
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("[!.]*.*"))
    assert names == ["table.json", "table/mask_1_drill.png", "table/mask_2_drill.png", "table_overlay.png"]
    stored = read_image(tmp_path / "out" / "table" / "mask_1_drill.png")
    np.testing.assert_array_equal(stored[..., 0], mask * np.uint8(255))
    data = json.loads((tmp_path / "out" / "table.json").read_text())
    assert (data["image"], data["width"], data["height"], data["model"]) == ("table.jpg", 80, 60, "ocdit-small")
    assert data["targets"] == ["drill", "mug"]
    assert data["timings"] == {"total": 1.25}
    first = data["instances"][0]
    assert (first["object_id"], first["score"], first["box"], first["area"]) == ("drill", 0.91, [20, 10, 30, 20], 600)
    np.testing.assert_array_equal(decode_mask(first["segmentation"]), mask)
    rows = table_rows(tmp_path / "table.jpg", result)
    assert [row[1:3] for row in rows] == [["drill", "0.91"], ["drill", "0.20"], ["mug", "not found"]]
