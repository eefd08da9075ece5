"""`ocdit render` and `ocdit objects` on bad files, broken off, at once, and what they write beside the library."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import trimesh

from ocdit_core import ObjectLibrary
from ocdit_core.cli import main
from ocdit_core.files import OWN_FILES

OCDIT = [sys.executable, "-m", "ocdit_core.cli"]


def box(path, size=0.1):
    trimesh.creation.box((size, size, size / 2)).export(path)
    return path


def with_nan(path):
    """A binary STL whose first vertex is no number."""
    data = bytearray(box(path).read_bytes())
    data[96:100] = struct.pack("<f", float("nan"))
    path.write_bytes(data)


def bad_files(folder):
    """Files that cannot be used, by name, and what has to be said of each."""
    box(folder / "cut.glb")
    data = (folder / "cut.glb").read_bytes()
    (folder / "cut.glb").write_bytes(data[: len(data) // 2])
    (folder / "empty.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        "element face 0\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n"
    )
    with_nan(folder / "nan.stl")
    (folder / "folder").mkdir()
    with (folder / "huge.stl").open("wb") as file:
        file.truncate(2 << 30)
    return {
        "cut.glb": "truncated",
        "empty.ply": "no faces",
        "nan.stl": "not finite",
        "folder": "is a folder",
        "huge.stl": "2,048 MiB is over the limit",
        "absent.obj": "no such mesh file",
    }


def without_material(folder):
    """An OBJ that names a material file that is not there."""
    text = trimesh.exchange.obj.export_obj(trimesh.creation.box((0.1, 0.1, 0.1)))
    lines = [line for line in text.splitlines() if not line.startswith(("mtllib", "usemtl"))]
    (folder / "bottle.obj").write_text("\n".join(["mtllib bottle.mtl", "usemtl glass", *lines]))
    return folder / "bottle.obj"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_every_bad_file_is_one_line_and_the_others_render(tmp_path, jobs):
    expected = bad_files(tmp_path)
    meshes = [box(tmp_path / "good.glb"), *(tmp_path / name for name in expected), without_material(tmp_path)]
    started = time.monotonic()
    done = subprocess.run(
        [*OCDIT, "render", *map(str, meshes), "--out", str(tmp_path / "lib"), "--jobs", jobs],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert time.monotonic() - started < 30
    assert done.returncode == 2
    assert "2 objects rendered: good, bottle; 6 failed" in done.stdout
    problems = [line for line in done.stderr.splitlines() if "ocdit: error:" in line]
    assert len(problems) == len(expected), done.stderr
    for line, (name, reason) in zip(problems, expected.items(), strict=True):
        assert name in line
        assert reason in line
    notes = [line for line in done.stderr.splitlines() if line not in problems]
    assert [line for line in notes if "bottle.mtl" in line and "grey" in line], done.stderr
    assert all(re.match(r"ocdit: (good\.glb|bottle\.obj): ", line) for line in notes), notes
    left = sorted(path.name for path in (tmp_path / "lib").iterdir() if path.name != OWN_FILES)
    assert left == [".manifest.lock", "bottle.npz", "good.npz", "manifest.json"]
    bottle = ObjectLibrary(tmp_path / "lib")["bottle"]
    assert np.ptp(bottle.rgb[bottle.mask].astype(int), axis=1).max() <= 3, "not grey"


def test_broken_off_by_ctrl_c_it_leaves_a_sound_library(tmp_path):
    meshes = []
    for number in range(16):
        # Enough to draw that not all are done when the first is.
        meshes.append(tmp_path / f"ball_{number:02d}.ply")
        trimesh.creation.icosphere(subdivisions=3, radius=0.05 + number / 1000).export(meshes[-1])
    library = tmp_path / "lib"
    command = [*OCDIT, "render", *map(str, meshes), "--out", str(library), "--views", "42", "--jobs", "2"]
    running = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what runs in its background with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(library.glob("*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    # As a terminal does it: to all processes of the group.
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.splitlines()[-1] == "ocdit: interrupted"
    assert "Traceback" not in said
    done = {path.stem for path in library.glob("*.npz")}
    assert 0 < len(done) < 16
    assert not [path.name for path in library.iterdir() if ".part" in path.name]
    assert set(json.loads((library / "manifest.json").read_text())["objects"]) == done
    before = {name: entry.id for name, entry in ObjectLibrary(library).manifest.items()}
    for name in done:
        assert len(ObjectLibrary(library)[name]) == 42

    assert main(command[3:]) == 0
    after = {name: entry.id for name, entry in ObjectLibrary(library).manifest.items()}
    assert len(after) == 16
    assert all(after[name] == number for name, number in before.items())


def test_two_renderings_at_once_lose_nothing(tmp_path):
    running = []
    for letter in "ab":
        meshes = [box(tmp_path / f"{letter}{number}.ply", 0.1 + number / 100) for number in range(6)]
        command = [*OCDIT, "render", *map(str, meshes), "--out", str(tmp_path / "lib"), "--jobs", "1"]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    assert [process.wait(60) for process in running] == [0, 0]
    stored = json.loads((tmp_path / "lib" / "manifest.json").read_text())["objects"]
    assert set(stored) == {f"{letter}{number}" for letter in "ab" for number in range(6)}
    assert sorted(entry["id"] for entry in stored.values()) == list(range(1, 13))
    assert {entry["source"] for entry in stored.values()} == {f"{name}.ply" for name in stored}


def test_unchanged_objects_are_counted_and_shown(tmp_path, capsys):
    meshes = [str(box(tmp_path / "plate.ply")), str(box(tmp_path / "slab.ply", 0.2))]
    library = str(tmp_path / "lib")
    assert main(["render", *meshes, "--out", library]) == 0
    page = tmp_path / "page.html"
    assert main(["render", *meshes, "--out", library, "--html", str(page), "--sheet", str(tmp_path / "s.png")]) == 0
    out = capsys.readouterr().out
    assert "0 objects rendered; 2 unchanged" in out
    assert page.read_text().count("<img") == 24
    assert (tmp_path / "s.png").is_file()
    assert main(["render", *meshes, "--out", library, "--force", "--views", "42"]) == 0
    assert "2 objects rendered: plate, slab" in capsys.readouterr().out
    assert len(ObjectLibrary(library)["slab"]) == 42


def test_objects_are_removed_by_name(tmp_path, capsys):
    library = str(tmp_path / "lib")
    main(["render", *(str(box(tmp_path / f"{name}.ply")) for name in "abc"), "--out", library])
    capsys.readouterr()
    assert main(["objects", library, "--remove", "a", "x"]) == 2
    assert "unknown object 'x'" in capsys.readouterr().err
    assert main(["objects", library, "--remove", "b", "c"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("removed b, c")
    assert [line.split()[:2] for line in out[2:]] == [["a", "1"]]
    assert main(["objects", library, "--remove", "a"]) == 0
    assert "holds no object now" in capsys.readouterr().out


def test_views_that_are_not_right_are_named_and_give_status_2(tmp_path, capsys):
    library = tmp_path / "lib"
    main(["render", *(str(box(tmp_path / f"{name}.ply")) for name in ("good", "dark")), "--out", str(library)])
    with np.load(library / "dark.npz") as archive:
        fields = dict(archive)
    fields["rgb"][3] //= 30
    np.savez_compressed(library / "dark.npz", **fields)
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert main(["objects", str(library), "--html", str(page)]) == 2
    caught = capsys.readouterr()
    assert caught.err.splitlines() == ["ocdit: error: dark: view 4 of 12: black (brightness below 20)"]
    assert "good" in caught.out
    assert page.read_text().count('class="problem"') == 1


def test_a_damaged_manifest_is_named_and_the_objects_are_listed(tmp_path, capsys):
    main(["render", str(box(tmp_path / "plate.ply")), "--out", f"{tmp_path}/lib"])
    (tmp_path / "lib" / "manifest.json").write_text("junk")
    capsys.readouterr()
    assert main(["objects", f"{tmp_path}/lib"]) == 2
    caught = capsys.readouterr()
    assert "manifest.json: damaged" in caught.err
    assert caught.out.splitlines()[1].split()[:3] == ["plate", "-", "12"]
