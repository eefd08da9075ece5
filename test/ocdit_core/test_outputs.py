"""No command replaces, changes or deletes a file that ocdit did not write, whatever it is called."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import make_mesh

from ocdit_core.cli import main
from ocdit_core.files import OWN_FILES
from ocdit_core.images import write_image

sys.path += [str(Path(__file__).parent / name) for name in ("evaluation", "objects")]
from photographs import photo
from small_sets import write_library, write_set

# What each command line writes goes to {out}; its inputs are in {in}.
COMMANDS = {
    "render": "render {in}/box.ply --out {out}/lib --sheet {out}/sheet.png --html {out}/page.html",
    "capture": "capture {in}/photo.png --masks {in}/mask.png --name toy --out {out}/lib --sheet {out}/sheet.png",
    "objects": "objects {in}/lib --sheet {out}/sheet.png --html {out}/page.html",
    "segment": "segment {in}/photo.png --objects {in}/lib --weights {in}/model --threshold 0 --uncertainty --out {out}",
    "evaluate": "evaluate --dataset {in}/set --split test --objects {in}/blocks --method colour --out {out}/run",
    "evaluate a file": "evaluate --dataset {in}/set --split test --results {in}/run/results.json --out {out}/run",
    "ablate": "ablate --config {in}/grid.yaml --dataset {in}/set --split test --objects {in}/blocks "
    "--weights {in}/model --out {out}/grid",
    "report": "report {in}/run --resamples 2 --out {out}/report.html --plot {out}/reliability.png",
    "inspect": "inspect {in}/set --split test --html {out}/page.html",
    "benchmark": "benchmark --sizes small --objects 1 --ensembles 1 --image-sizes 64x96 --repeats 1 "
    "--set sampler.steps=2 --json {out}/times.json",
    "synthesize": "synthesize --out {out}/set --images 1 --objects 3 --size 96 128 --targets 2 2 --distractors 0 0 "
    "--views-per-scene 1 1 --jobs 1 --format both",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, untrained_model, rendered_library):
    folder = tmp_path_factory.mktemp("inputs")
    make_mesh(folder / "box.ply")
    image, mask = photo(0)
    write_image(folder / "photo.png", image)
    write_image(folder / "mask.png", mask)
    shutil.copytree(rendered_library, folder / "lib")
    shutil.copytree(untrained_model, folder / "model")
    write_set(folder / "set", 2)
    write_library(folder / "blocks")
    (folder / "grid.yaml").write_text("title: Steps\ngrids: [{sampler.steps: [1]}]\n")
    evaluate = COMMANDS["evaluate"].format(**{"in": folder, "out": folder})
    assert main(evaluate.split()) == 0
    return folder


def files_of(*folders):
    """The time of change and the content of all files but locks and our own lists."""
    return {
        path: (path.lstat().st_mtime_ns, os.readlink(path) if path.is_symlink() else path.read_bytes())
        for folder in folders
        for path in folder.rglob("*")
        if not path.is_dir() and path.name != OWN_FILES and "lock" not in path.name
    }


def run(name, inputs, out, capfd):
    """Return the exit status; a traceback or several lines for one problem fail the test."""
    status = main(COMMANDS[name].format(**{"in": inputs, "out": out}).split())
    assert "Traceback" not in capfd.readouterr().err
    return status


@pytest.mark.parametrize("name", COMMANDS)
def test_files_of_others_stay_as_they_are(name, inputs, tmp_path, capfd):
    clean, full = tmp_path / "clean", tmp_path / "full"
    clean.mkdir()
    given = files_of(inputs)
    assert run(name, inputs, clean, capfd) == 0
    written = sorted((path for path in files_of(clean)), key=lambda path: path.stat().st_mtime_ns)
    assert written
    # Our own files are replaced by the same command.
    assert run(name, inputs, clean, capfd) == 0
    assert files_of(clean).keys() == set(written)
    # Files of others under all the names that the command uses; then under the last one alone, late in its work.
    for names in (written, written[-1:]):
        shutil.rmtree(full, ignore_errors=True)
        for number, path in enumerate(names):
            theirs = full / path.relative_to(clean)
            theirs.parent.mkdir(parents=True, exist_ok=True)
            theirs.write_text(f"mine {number}")
        before = files_of(full)
        assert run(name, inputs, full, capfd) == 2
        assert {path: content for path, content in files_of(full).items() if path in before} == before
    assert files_of(inputs) == given


def test_what_lies_beside_the_results_stays(inputs, tmp_path, capfd):
    """Ground-truth masks and labels of annotation tools beside the images, in the folder of the results."""
    for name in ("photo/mask_000000.png", "photo/mask_1.png", "photo/mask_7_box.png", "photo.jpg.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    shutil.copy(inputs / "photo.png", tmp_path)
    before = files_of(tmp_path)
    command = COMMANDS["segment"].format(**{"in": inputs, "out": tmp_path})
    command = command.replace(f"{inputs}/photo.png", f"{tmp_path}/photo.png").split()
    for _ in range(2):
        assert main(command) == 0
        assert files_of(tmp_path).items() >= before.items()
    masks = {path.name for path in (tmp_path / "photo").glob("mask_*_*.png")}
    assert len(masks) > 1
    # Masks of an earlier run go when they are no longer found.
    assert main([*command, "--threshold", "1"]) == 0
    assert files_of(tmp_path).items() >= before.items()
    assert {path.name for path in (tmp_path / "photo").glob("mask_*_*.png")} == {"mask_7_box.png"}


def test_a_result_that_is_an_input_is_not_replaced(inputs, tmp_path, capfd):
    command = COMMANDS["segment"].format(**{"in": inputs, "out": tmp_path}).split()
    assert main(command) == 0
    before = files_of(tmp_path)
    both = [command[0], command[1], f"{tmp_path}/photo_overlay.png", *command[2:]]
    assert main(both) == 2
    assert "photo_overlay.png: is an input of this command" in capfd.readouterr().err
    assert files_of(tmp_path) == before
    assert main(["report", f"{inputs}/run", "--resamples", "2", "--out", f"{inputs}/run/metrics.json"]) == 2
    assert "metrics.json: is an input of this command" in capfd.readouterr().err


def test_only_archives_are_removed_from_a_library(inputs, tmp_path, capfd):
    shutil.copytree(inputs / "lib", tmp_path / "lib")
    (tmp_path / "lib" / "scan.npz").write_bytes(b"PK, but mine")
    assert main(["objects", f"{tmp_path}/lib", "--remove", "scan"]) == 2
    assert "scan.npz: is not an object's archive" in capfd.readouterr().err
    assert (tmp_path / "lib" / "scan.npz").read_bytes() == b"PK, but mine"
    assert main(["objects", f"{tmp_path}/lib", "--remove", "box", "can"]) == 2, "scan.npz is no object"
    assert sorted(path.name for path in (tmp_path / "lib").glob("*.npz")) == ["mug.npz", "scan.npz"]


def test_removing_an_object_leaves_what_is_called_like_it(inputs, tmp_path, capfd):
    library = tmp_path / "lib"
    shutil.copytree(inputs / "lib", library)
    for name in ("box.json", "box.png", "box", "boxes.npz", "box.npz.bak", ".box.npz", "Box.npz", "box/mask_1_box.png"):
        (library / name).mkdir() if name == "box" else (library / name).write_text(name)
    before = files_of(library)
    assert main(["objects", str(library), "--remove", "box"]) in (0, 2), "2: boxes.npz is no object"
    gone = {path.name for path in before.keys() - files_of(library).keys()}
    assert gone == {"box.npz"}
    kept = {path: content for path, content in before.items() if path.name not in ("box.npz", "manifest.json")}
    assert files_of(library).items() >= kept.items()


def test_names_that_are_not_utf8_are_segmented(inputs, tmp_path, capfd):
    name = os.fsdecode(b"bild\xff")
    shutil.copy(inputs / "photo.png", tmp_path / f"{name}.png")
    command = COMMANDS["segment"].format(**{"in": inputs, "out": tmp_path / name})
    assert main(command.replace(f"{inputs}/photo.png", f"{tmp_path}/{name}.png").split()) == 0
    out = tmp_path / name
    assert (out / f"{name}_overlay.png").stat().st_size > 100
    assert list((out / name).glob("mask_1_*.png"))
    assert "bild" in capfd.readouterr().out


def test_a_name_with_a_line_break_costs_one_line(inputs, tmp_path, capfd):
    command = COMMANDS["segment"].format(**{"in": inputs, "out": tmp_path}).split()
    assert main([command[0], f"{tmp_path}/a\nb.png", *command[2:]]) == 2
    assert capfd.readouterr().err == f"ocdit: error: {tmp_path}/a\\nb.png: no such file\n"


@pytest.mark.slow
def test_names_that_an_ascii_locale_lacks(inputs, tmp_path):
    shutil.copy(inputs / "photo.png", tmp_path / "名.png")
    command = COMMANDS["segment"].format(**{"in": inputs, "out": tmp_path / "out"})
    command = command.replace(f"{inputs}/photo.png", f"{tmp_path}/名.png").split()
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "ocdit_core.cli", *command], env=environment, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "out" / "名_overlay.png").stat().st_size > 100
    assert list((tmp_path / "out" / "名").glob("mask_1_*.png"))


@pytest.mark.parametrize(
    "command",
    [
        "capture {in}/photo.png --masks {in}/mask.png --out {out} --name " + 300 * "n",
        "render {in}/box.ply --out {out} --name " + 300 * "n",
        "capture {in}/photo.png --masks {in}/mask.png --name toy --out {out}/" + 300 * "n",
        "objects {in}/lib --html {out}/" + 300 * "n",
        "segment {in}/photo.png --objects {in}/lib --weights {in}/model --out {in}/photo.png/out",
    ],
)
def test_an_output_that_cannot_be_written_costs_one_line(command, inputs, tmp_path, capfd):
    assert main(command.format(**{"in": inputs, "out": tmp_path}).split()) == 2
    problems = [line for line in capfd.readouterr().err.splitlines() if line.startswith("ocdit: error: ")]
    assert len(problems) == 1
