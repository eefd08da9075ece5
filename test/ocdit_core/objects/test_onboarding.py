import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from ocdit_core.cli import main
from ocdit_core.data.dataset import megapose_names
from ocdit_core.data.templates import TemplateCache
from ocdit_core.errors import ConfigError, DataError, LibraryError, MeshError
from ocdit_core.evaluation.targets import names_of_objects
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.onboarding import _fitting_jobs, add_objects, object_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Meshes: a red L-shaped block in millimetres, a blue ball in metres, a flat sheet, and a broken file."""
    folder = tmp_path_factory.mktemp("cad")
    block = trimesh.util.concatenate(
        [
            trimesh.creation.box(bounds=[[0, 0, 0], [90, 30, 30]]),
            trimesh.creation.box(bounds=[[0, 0, 30], [30, 30, 70]]),
        ]
    )
    block.visual.vertex_colors = np.tile([220, 30, 30, 255], (len(block.vertices), 1))
    block.export(folder / "block.ply")
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.06)
    ball.visual.vertex_colors = np.tile([30, 30, 220, 255], (len(ball.vertices), 1))
    ball.export(folder / "ball.glb")
    sheet = trimesh.Trimesh([[0, 0, 0], [0, 0.1, 0], [0, 0.1, 0.1], [0, 0, 0.1]], [[0, 1, 2], [0, 2, 3]])
    sheet.export(folder / "sheet.stl")
    (folder / "broken.glb").write_bytes((folder / "ball.glb").read_bytes()[:500])
    return folder


def test_meshes_become_a_library(folder, tmp_path):
    added = add_objects(tmp_path / "lib", [folder / "block.ply", folder / "ball.glb"])
    assert (added.rendered, added.unchanged) == (("block", "ball"), ())
    library = ObjectLibrary(tmp_path / "lib")
    block, ball = library.select(["block", "ball"])
    assert block.unit == "mm"
    assert ball.unit == "m"
    assert block.diameter == pytest.approx(np.linalg.norm([0.09, 0.03, 0.03]), rel=0.3)
    assert ball.diameter == pytest.approx(0.12, rel=0.01)
    np.testing.assert_allclose(block.points.min(axis=0), 0, atol=2e-3)
    np.testing.assert_allclose(block.points.max(axis=0), [0.09, 0.03, 0.07], atol=2e-3)
    for templates, strongest in ((block, 0), (ball, 2)):
        inside = templates.rgb[templates.mask]
        assert (inside.argmax(axis=1) == strongest).mean() > 0.99
        assert templates.rgb[~templates.mask].mean() < 2  # black but for the edge's half-covered pixels
        assert templates.mask.mean() > 0.2


def test_stored_cameras_project_the_points_onto_the_mask(folder, tmp_path):
    add_objects(tmp_path, [folder / "block.ply"])
    block = ObjectLibrary(tmp_path)["block"]
    for view in range(len(block)):
        seen = block.points @ block.pose[view, :3, :3].T + block.pose[view, :3, 3]
        assert (seen[:, 2] > 0).all()
        pixel = seen @ block.K[view].T
        column, row = np.floor(pixel[:, :2] / pixel[:, 2:]).astype(int).T
        assert block.mask[view][row, column].mean() > 0.98
        # and the mask is no larger than what the points span
        rows, columns = np.nonzero(block.mask[view])
        assert abs(columns.min() - column.min()) <= 2
        assert abs(rows.max() - row.max()) <= 2


def test_one_bad_mesh_does_not_stop_the_others(folder, tmp_path):
    failed = []
    meshes = [folder / "ball.glb", folder / "broken.glb", folder / "absent.stl", folder / "block.ply"]
    added = add_objects(tmp_path, meshes, on_error=lambda path, error: failed.append((path.name, error)))
    assert added.rendered == ("ball", "block")
    assert [name for name, _ in failed] == ["broken.glb", "absent.stl"]
    assert all(isinstance(error, MeshError) for _, error in failed)
    with pytest.raises(MeshError):
        add_objects(tmp_path, meshes)


def test_names_and_replacement(folder, tmp_path):
    add_objects(tmp_path, [folder / "ball.glb"], names=["thing"])
    before = ObjectLibrary(tmp_path)["thing"].rgb
    add_objects(tmp_path, [folder / "block.ply"], names=["thing"])
    assert ObjectLibrary(tmp_path).object_ids == ("thing",)
    assert not np.array_equal(ObjectLibrary(tmp_path)["thing"].rgb, before)
    with pytest.raises(ConfigError, match="2 names were given for 1"):
        add_objects(tmp_path, [folder / "ball.glb"], names=["a", "b"])
    with pytest.raises(ConfigError, match="both be called 'a'"):
        add_objects(tmp_path, [folder / "ball.glb", folder / "block.ply"], names=["a", "a"])
    for name in ("../ball", "x" * 300, "名" * 90):
        with pytest.raises(ConfigError, match="object name"):
            add_objects(tmp_path, [folder / "ball.glb"], names=[name])
    with pytest.raises(ConfigError, match="jobs: -1"):
        add_objects(tmp_path, [folder / "ball.glb"], jobs=-1)
    with pytest.raises(ConfigError, match="no mesh"):
        add_objects(tmp_path, [])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/drill.glb", "a/mug.ply"], ["drill", "mug"]),
        (
            ["ycb/002_can/google_16k/textured.obj", "ycb/003_box/google_16k/textured.obj", "mug.glb"],
            ["002_can", "003_box", "mug"],
        ),
        (["gso/Red Cup/meshes/model.obj"], ["Red Cup"]),
        (["a/Cup/meshes/model.obj", "b/Cup/meshes/model.obj", "Cup.glb"], ["a_Cup", "b_Cup", "Cup"]),
        (["gso/Red Cup/meshes/model.obj", "gso/Toy/meshes/model.obj"], ["Red Cup", "Toy"]),
        (
            ["shapenet/0289/a1/models/model_normalized.obj", "shapenet/0289/b2/models/model_normalized.obj"],
            ["a1", "b2"],
        ),
        (["s/02/a/models/model.obj", "s/02/b/models/model.obj", "s/03/a/models/model.obj"], ["02_a", "02_b", "03"]),
        (["left/wheel.stl", "right/wheel.stl", "left/door.stl"], ["left_wheel", "right_wheel", "door"]),
        (["wheel.stl", "spare/wheel.stl"], ["wheel", "spare_wheel"]),
        (["textured.obj", "b/textured.obj"], ["textured", "b"]),
        (["a/mug.obj", "a/mug.glb"], [None, None]),
        (["a#1/model.obj", "b?2/model.obj"], ["a_1", "b_2"]),
    ],
)
def test_files_of_one_name_are_told_apart_by_their_folders(paths, names):
    assert object_names(paths) == names


def test_only_true_conflicts_are_refused_and_replacing_is_said(folder, tmp_path, caplog):
    layout = tmp_path / "ycb"
    for name, source in (("002_block", "block.ply"), ("003_ball", "block.ply"), ("004_sheet", "block.ply")):
        (layout / name / "google_16k").mkdir(parents=True)
        shutil.copy(folder / source, layout / name / "google_16k" / "textured.ply")
    shutil.copy(folder / "ball.glb", layout / "ball.glb")
    shutil.copy(folder / "block.ply", layout / "ball.ply")
    failed = []
    meshes = [*sorted(layout.rglob("textured.ply")), layout / "ball.glb", layout / "ball.ply", layout / "ball.glb"]
    added = add_objects(tmp_path / "lib", meshes, on_error=lambda path, error: failed.append(str(error)))
    assert added.rendered == ("002_block", "003_ball", "004_sheet")
    assert len(failed) == 2
    assert f"would be called 'ball', as {layout / 'ball.ply'} would" in failed[0]
    caplog.clear()
    add_objects(tmp_path / "lib", [folder / "ball.glb"], names=["002_block"])
    assert "002_block: replaces an object that was made of another textured.ply; --name keeps both" in caplog.text
    caplog.clear()
    add_objects(tmp_path / "lib", [folder / "ball.glb"], names=["002_block"], force=True)
    assert "replaces" not in caplog.text


def test_more_views_and_their_best_twelve(folder, tmp_path):
    add_objects(tmp_path, [folder / "ball.glb"], views=42)
    ball = ObjectLibrary(tmp_path)["ball"]
    assert len(ball) == 42
    directions = ball.best_views(12).directions()
    angles = np.degrees(np.arccos(np.clip(directions @ directions.T - 2 * np.eye(12), -1, 1)))
    assert angles.min(axis=1).max() < 64
    assert np.sort(angles, axis=1)[:, 0].min() > 30
    with pytest.raises(ConfigError, match="13"):
        add_objects(tmp_path, [folder / "ball.glb"], views=13)


def test_a_thin_sheet_has_an_image_in_every_view(folder, tmp_path):
    # Some icosphere directions look at it exactly edge-on.
    add_objects(tmp_path, [folder / "sheet.stl"])
    assert ObjectLibrary(tmp_path)["sheet"].mask.any(axis=(1, 2)).all()


def test_the_same_mesh_gives_the_same_views(folder, tmp_path):
    for name in ("a", "b"):
        add_objects(tmp_path / name, [folder / "block.ply"])
    first, second = (ObjectLibrary(tmp_path / name)["block"] for name in ("a", "b"))
    np.testing.assert_array_equal(first.rgb, second.rgb)
    np.testing.assert_array_equal(first.points, second.points)


def stamps(library):
    return {path.name: path.stat().st_mtime_ns for path in library.glob("*.npz")}


def test_only_what_has_changed_is_rendered_again(folder, tmp_path):
    meshes = []
    for name in ("block.ply", "ball.glb"):
        meshes.append(tmp_path / name)
        meshes[-1].write_bytes((folder / name).read_bytes())
    library = tmp_path / "lib"
    add_objects(library, meshes)
    first = stamps(library)
    again = add_objects(library, meshes)
    assert (again.rendered, again.unchanged) == ((), ("block", "ball"))
    assert stamps(library) == first

    meshes[0].write_bytes((folder / "block.ply").read_bytes().replace(b"ply\n", b"ply\ncomment changed\n", 1))
    assert add_objects(library, meshes).rendered == ("block",)
    assert add_objects(library, meshes, views=42).rendered == ("block", "ball")
    assert len(ObjectLibrary(library)["ball"]) == 42
    assert add_objects(library, meshes[:1], unit="cm").rendered == ("block",)
    assert add_objects(library, meshes[:1], unit="cm").rendered == ()
    assert add_objects(library, meshes[:1], unit="cm", force=True).rendered == ("block",)
    # A damaged archive is no longer what was rendered, whatever it says of itself.
    archive = library / "ball.npz"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data)
    assert add_objects(library, meshes, views=42).rendered == ("block", "ball")
    assert len(ObjectLibrary(library)["ball"]) == 42


def test_a_changed_material_file_renders_the_object_again(tmp_path):
    trimesh.creation.box((0.1, 0.1, 0.1)).export(tmp_path / "box.obj")
    text = (tmp_path / "box.obj").read_text()
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("mtllib", "usemtl")))
    (tmp_path / "box.obj").write_text("mtllib paint.mtl\nusemtl paint\n" + text)

    def paint(colour):
        (tmp_path / "paint.mtl").write_text(f"newmtl paint\nKd {colour}\n")
        return add_objects(tmp_path / "lib", [tmp_path / "box.obj"]).rendered

    for colour, channel in (("1 0 0", 0), ("0 0 1", 2)):
        assert paint(colour) == ("box",)
        box = ObjectLibrary(tmp_path / "lib")["box"]
        assert box.sources == ("box.obj", "paint.mtl")
        assert (box.rgb[box.mask].argmax(axis=1) == channel).all()
    assert paint("0 0 1") == ()


def test_several_processes_make_the_same_library_as_one(folder, tmp_path, caplog):
    meshes = [folder / name for name in ("ball.glb", "broken.glb", "block.ply", "absent.stl", "sheet.stl")]
    results = []
    for jobs in (1, 2):
        caplog.clear()
        failed = []
        with caplog.at_level(logging.INFO, "ocdit_core"):
            added = add_objects(
                tmp_path / str(jobs), meshes, jobs=jobs, on_error=lambda path, error, to=failed: to.append(str(error))
            )
        results.append((added, failed, caplog.messages))
    assert results[0] == results[1]
    assert results[0][0].rendered == ("ball", "block", "sheet")
    assert len(results[0][1]) == 2
    assert any("block.ply: unit mm" in message for message in results[0][2])
    one, two = (ObjectLibrary(tmp_path / str(jobs)) for jobs in (1, 2))
    for name in one:
        np.testing.assert_array_equal(one[name].mask, two[name].mask)
        # The software renderer may round otherwise with another number of threads.
        assert np.abs(one[name].rgb.astype(int) - two[name].rgb).max() <= 2
    assert one.manifest == two.manifest
    assert add_objects(tmp_path / "2", meshes[:1], jobs=2).unchanged == ("ball",)


def test_an_error_without_a_callback_ends_the_work_and_leaves_a_sound_library(folder, tmp_path):
    for jobs in (1, 2):
        library = tmp_path / str(jobs)
        with pytest.raises(MeshError, match=r"broken\.glb"):
            add_objects(library, [folder / "ball.glb", folder / "broken.glb", folder / "block.ply"], jobs=jobs)
        assert "ball" in json.loads((library / "manifest.json").read_text())["objects"]
        for name in ObjectLibrary(library):
            assert len(ObjectLibrary(library)[name]) == 12
        assert not [path for path in library.iterdir() if ".part" in path.name]


def test_a_damaged_manifest_or_a_closed_folder_is_met_before_any_work(folder, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(LibraryError, match=r"manifest\.json: damaged"):
        add_objects(tmp_path, [folder / "ball.glb"])
    assert not list(tmp_path.glob("*.npz"))
    with pytest.raises(LibraryError, match="is a file"):
        add_objects(folder / "ball.glb", [folder / "ball.glb"])
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(LibraryError, match="cannot be written"):
            add_objects(tmp_path / "closed", [folder / "ball.glb"])


def test_a_folder_of_bop_models_becomes_numbered_objects(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for number in (2, 7):
        trimesh.creation.box((90, 60, 10 * number)).export(models / f"obj_{number:06d}.ply")
    turned = np.diag([-1.0, -1, 1, 1]).ravel().tolist()
    axis = {"axis": [0, 0, 1], "offset": [0, 0, 50]}
    info = {
        "2": {"diameter": 110.0, "symmetries_discrete": [turned]},
        "7": {"diameter": 129.0, "symmetries_continuous": [axis]},
    }
    (models / "models_info.json").write_text(json.dumps(info))
    failed = []
    added = add_objects(tmp_path / "lib", [models, tmp_path], on_error=lambda path, error: failed.append(str(error)))
    assert added.rendered == ("obj_000002", "obj_000007")
    assert len(failed) == 1
    assert "no known layout" in failed[0]
    library = ObjectLibrary(tmp_path / "lib")
    assert {name: entry.id for name, entry in library.manifest.items()} == {"obj_000002": 2, "obj_000007": 7}
    two, seven = library.select(["obj_000002", "obj_000007"])
    assert two.diameter == pytest.approx(0.11, abs=1e-3)
    np.testing.assert_array_equal(two.symmetries_discrete, [np.diag([-1.0, -1, 1, 1])])
    np.testing.assert_allclose(seven.symmetries_continuous, [[[0, 0, 1], [0, 0, 0.05]]])
    assert seven.sources == ("obj_000007.ply", "models_info.json")
    info["7"] = {"diameter": 129.0}
    (models / "models_info.json").write_text(json.dumps(info))
    assert add_objects(tmp_path / "lib", [models / "obj_000007.ply"]).rendered == ("obj_000007",)
    assert len(ObjectLibrary(tmp_path / "lib")["obj_000007"].symmetries_continuous) == 0


def test_the_number_of_processes_follows_the_work(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert _fitting_jobs(12) == 1
    assert _fitting_jobs(240) == 1
    assert _fitting_jobs(600) == 2
    assert _fitting_jobs(12_000) == 8
    assert _fitting_jobs(972) == 4


def make_scanned(folder: Path, names: list[str]) -> None:
    """Write boxes as Google Scanned Objects are downloaded, each with a texture of its own colour."""
    for index, name in enumerate(names):
        box = trimesh.creation.box((0.1, 0.08, 0.06 + 0.01 * (index % 5)))
        uv = np.tile([[0.2, 0.2], [0.8, 0.8]], (4, 1))
        box.visual = trimesh.visual.TextureVisuals(uv, image=Image.new("RGB", (8, 8), (200, 40 + 5 * index, 40)))
        for part in ("meshes", "materials/textures"):
            (folder / name / part).mkdir(parents=True)
        meshes = folder / name / "meshes"
        box.export(meshes / "model.obj")
        material = next(meshes.glob("*.mtl")).read_text()
        texture = next(path for path in meshes.iterdir() if path.suffix in (".png", ".jpg", ".jpeg"))
        texture.rename(folder / name / "materials" / "textures" / "texture.png")
        assert texture.name in material
        next(meshes.glob("*.mtl")).write_text(material.replace(texture.name, "texture.png"))


def test_raw_scans_keep_their_names_textures_and_megapose_ids(tmp_path, caplog, capsys):
    names = ["Red_Cup", "Toy_Car", "Shoe", "Unused"]
    make_scanned(tmp_path / "gso", names)
    (tmp_path / "list.json").write_text(json.dumps(names[:3]))
    command = ["render", str(tmp_path / "gso"), "--out", str(tmp_path / "lib"), "--only", str(tmp_path / "list.json")]
    assert main(command) == 0
    library = ObjectLibrary(tmp_path / "lib")
    assert sorted(library.object_ids) == sorted(names[:3])
    for name in names[:3]:
        pixels = library[name].rgb[library[name].mask]
        red, green, _ = np.median(pixels, axis=0)
        assert red > 2 * green > 40, name
        assert "../materials/textures/texture.png" in library[name].sources
    assert "missing" not in caplog.text
    shards = tmp_path / "megapose" / "train_pbr_web"
    shards.mkdir(parents=True)
    entries = [{"obj_id": number, "gso_id": name} for number, name in enumerate(names)]
    (tmp_path / "megapose" / "gso_models.json").write_text(json.dumps(entries))
    stated = dict(enumerate(names[:3]))
    assert names_of_objects(library, shards) == stated
    cache = TemplateCache(library, names=megapose_names(shards))
    assert cache.object_ids == (0, 1, 2)
    drawn = cache.draw(np.random.default_rng(0), 2, 1)[0, ..., :3]
    assert any(np.array_equal(drawn, view) for view in library["Shoe"].rgb)
    (tmp_path / "list.json").write_text("Red_Cup\nnobody\n")
    assert main(command) == 2
    assert "list.json: 1 of its 2 objects are not among the meshes, such as ['nobody']" in capsys.readouterr().err
    (tmp_path / "megapose" / "gso_models.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"gso_models\.json: is not a list of entries"):
        megapose_names(shards)
