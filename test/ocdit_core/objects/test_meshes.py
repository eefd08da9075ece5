import os
import struct
import tracemalloc

import numpy as np
import pytest
import trimesh
from PIL import Image

from ocdit_core.errors import ConfigError, MeshError
from ocdit_core.objects.meshes import diameter, load_mesh, read_cad
from ocdit_core.objects.sources import MAX_FACES


def textured_box(colour=(200, 40, 40), side=0.1, at=0.0):
    """A box with a plain texture and coordinates in the texture's middle."""
    box = trimesh.creation.box((side, side, side))
    box.apply_translation((at, 0, 0))
    image = Image.fromarray(np.full((8, 8, 3), colour, np.uint8))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    box.visual = trimesh.visual.TextureVisuals(uv=np.full((len(box.vertices), 2), 0.5), material=material)
    return box


@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".obj", ".ply", ".stl", ".off"])
def test_common_formats_are_read_in_metres(tmp_path, suffix):
    mesh = trimesh.creation.capsule(height=0.1, radius=0.03, count=[12, 12])
    path = tmp_path / f"part{suffix}"
    if suffix == ".gltf":
        for name, data in trimesh.exchange.gltf.export_gltf(trimesh.Scene(mesh)).items():
            (tmp_path / name.replace("model", "part")).write_bytes(data)
    else:
        mesh.export(path)
    model = read_cad(path)
    np.testing.assert_allclose(model.diameter, 0.16, atol=2e-3)
    np.testing.assert_allclose(model.mesh.bounds, mesh.bounds, atol=1e-5)
    assert (model.unit, model.guessed, len(model.sha256)) == ("m", suffix not in (".glb", ".gltf"), 64)


@pytest.mark.parametrize(
    ("suffix", "scale", "unit"),
    [(".ply", 1, "m"), (".ply", 1000, "mm"), (".ply", 100, "cm"), (".glb", 30, "m"), (".stl", 30, "cm")],
)
def test_the_unit_is_concluded_and_logged(tmp_path, suffix, scale, unit, caplog):
    mesh = trimesh.creation.box((0.05, 0.06, 0.09))
    mesh.apply_scale(scale)
    mesh.export(tmp_path / f"a{suffix}")
    with caplog.at_level("INFO"):
        model = read_cad(tmp_path / f"a{suffix}")
    assert model.unit == unit
    assert f"unit {unit} (" in caplog.text


def test_a_stated_unit_is_obeyed_and_absurd_sizes_are_refused(tmp_path):
    trimesh.creation.box((4, 4, 4)).export(tmp_path / "a.ply")
    assert read_cad(tmp_path / "a.ply", "in").diameter == pytest.approx(4 * 3**0.5 * 0.0254)
    for side, unit, size in ((4, "m", "6.93 m"), (1, "mm", "0.00173 m")):
        trimesh.creation.box((side, side, side)).export(tmp_path / "a.ply")
        (warning,) = read_cad(tmp_path / "a.ply", unit).warnings
        assert warning.startswith(f"a.ply: is {size} wide, the unit being {unit} (given), which is outside 5 mm .. 5 m")
    trimesh.creation.box((40, 40, 40)).export(tmp_path / "a.ply")
    with pytest.raises(MeshError, match=r"69\.3 m .*--unit"):
        read_cad(tmp_path / "a.ply", "m")
    with pytest.raises(ConfigError, match="furlong"):
        read_cad(tmp_path / "a.ply", "furlong")
    trimesh.creation.box((1e5, 1, 1)).export(tmp_path / "huge.ply")
    with pytest.raises(MeshError, match=r"guessed.*--unit"):
        read_cad(tmp_path / "huge.ply")


def test_diameter_is_the_largest_distance():
    assert diameter([[0, 0, 0], [1, 0, 0], [0, 0, 2]]) == pytest.approx(5**0.5)
    rng = np.random.default_rng(0)
    flat = np.concatenate([rng.uniform(size=(200, 2)), np.zeros((200, 1))], axis=1)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    assert diameter(flat) == pytest.approx(distances.max(), rel=1e-6)
    assert diameter([[1, 2, 3]]) == 0


def test_damaged_and_useless_files_are_refused_in_one_line(tmp_path):
    good = trimesh.creation.icosphere(subdivisions=2, radius=0.1)
    (tmp_path / "folder.ply").mkdir()
    (tmp_path / "empty.ply").touch()
    (tmp_path / "words.txt").write_text("a drill")
    (tmp_path / "words.stl").write_text("a drill, a drill")
    (tmp_path / "words.glb").write_text("a drill, a drill")
    (tmp_path / "words.obj").write_text("a drill, a drill")
    (tmp_path / "bytes.ply").write_bytes(bytes(range(256)) * 4)
    for suffix in ("glb", "stl", "ply"):
        good.export(tmp_path / f"good.{suffix}")
        data = (tmp_path / f"good.{suffix}").read_bytes()
        (tmp_path / f"half.{suffix}").write_bytes(data[: len(data) // 2])
        (tmp_path / f"stub.{suffix}").write_bytes(data[:60])
    (tmp_path / "points.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
        "0 0 0\n1 1 1\n"
    )
    (tmp_path / "nan.obj").write_text("v 0 0 0\nv nan 0 0\nv 0 0.1 0\nf 1 2 3\n")
    (tmp_path / "infinite.obj").write_text("v 0 0 0\nv inf 0 0\nv 0 0.1 0\nf 1 2 3\n")
    (tmp_path / "point.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    (tmp_path / "index.obj").write_text("v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nf 1 2 9\n")
    header = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n0.1 0 0\n0 0.1 0\n"
    (tmp_path / "index.ply").write_text(header + "3 0 1 7\n")
    (tmp_path / "negative.ply").write_text(header + "3 0 1 -1\n")
    (tmp_path / "nan.ply").write_text(header.replace("0.1 0 0", "nan 0 0") + "3 0 1 2\n")
    (tmp_path / "endless.ply").write_text(header.split("end_header")[0])
    (tmp_path / "index.off").write_text("OFF\n3 1 0\n0 0 0\n0.1 0 0\n0 0.1 0\n3 0 1 7\n")
    (tmp_path / "line.obj").write_text("v 0 0 0\nv 0.1 0 0\nv 0.2 0 0\nf 1 2 3\nf 1 1 2\n")
    (tmp_path / "words.gltf").write_text("a drill, a drill")
    (tmp_path / "words.dae").write_text("a drill, a drill")
    (tmp_path / "words.3mf").write_text("a drill, a drill")
    os.mkfifo(tmp_path / "pipe.stl")
    expected = {
        "missing.ply": "no such", "folder.ply": "folder", "empty.ply": "empty", "words.txt": "unknown mesh format",
        "words.stl": "", "words.glb": "", "words.obj": "no faces", "bytes.ply": "damaged", "half.glb": "truncated",
        "half.stl": "", "half.ply": "", "stub.glb": "truncated", "stub.stl": "", "stub.ply": "",
        "points.ply": "no faces", "nan.obj": "not finite", "infinite.obj": "not finite", "point.obj": "one place",
        "index.obj": "damaged", "index.ply": "vertex 7 of 3", "negative.ply": "vertex -1 of 3",
        "nan.ply": "1 of 3 vertices are not finite", "endless.ply": "header does not end", "index.off": "damaged",
        "line.obj": "none of its 2 faces has an area", "words.gltf": "damaged", "words.dae": "damaged",
        "words.3mf": "damaged", "pipe.stl": "not a regular file",
    }  # fmt: skip
    for name, reason in expected.items():
        with pytest.raises(MeshError) as caught:
            read_cad(tmp_path / name)
        message = str(caught.value)
        assert name in message, message
        assert reason in message, message
        assert "\n" not in message


@pytest.mark.parametrize("gigabytes", [2, 8])
def test_a_huge_file_is_refused_by_its_size(tmp_path, gigabytes):
    for name in ("huge.glb", "huge.ply", "huge.obj"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, gigabytes << 30)
        tracemalloc.start()
        with pytest.raises(MeshError, match=rf"{name}: {gigabytes},\d\d\d MiB is over the limit of 1024 MiB"):
            read_cad(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_faces_without_an_area_are_left_out(tmp_path):
    box = trimesh.creation.box((0.1, 0.1, 0.1))
    far = [[9, 9, 9]]  # only a face without an area goes there, and it must not count for the size
    faces = np.concatenate([box.faces, [[0, 0, 1], [8, 8, 8], [0, 8, 8]]])
    trimesh.Trimesh(np.concatenate([box.vertices, far]), faces, process=False).export(tmp_path / "a.ply")
    model = read_cad(tmp_path / "a.ply")
    assert len(model.mesh.faces) == 12
    assert model.diameter == pytest.approx(0.1 * 3**0.5)
    image = textured_box().export(file_type="glb")
    (tmp_path / "b.glb").write_bytes(image)
    whole = read_cad(tmp_path / "b.glb").mesh
    assert len(whole.visual.uv) == len(whole.vertices)


def test_inverted_and_mixed_winding_are_no_fault(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=1, radius=0.1)
    ball.faces[::2] = ball.faces[::2, ::-1]
    ball.export(tmp_path / "a.stl")
    model = read_cad(tmp_path / "a.stl")
    assert (len(model.mesh.faces), model.warnings) == (len(ball.faces), ())


def test_too_many_faces_are_refused(tmp_path):
    # A binary PLY by hand: two million faces would take trimesh long to make.
    count = MAX_FACES + 1
    header = (
        "ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {count}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    vertices = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]], "<f4").tobytes()
    (tmp_path / "many.ply").write_bytes(header.encode() + vertices + struct.pack("<Biii", 3, 0, 1, 2) * count)
    with pytest.raises(MeshError, match="2,000,001 faces"):
        read_cad(tmp_path / "many.ply")


def test_a_truncated_texture_is_refused(tmp_path):
    textured_box().export(tmp_path / "a.obj")
    photo = next(path for path in tmp_path.iterdir() if path.suffix in (".png", ".jpg", ".jpeg"))
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(photo)
    photo.write_bytes(photo.read_bytes()[:2000])
    with pytest.raises(MeshError, match=r"a\.obj"):
        load_mesh(tmp_path / "a.obj")


def test_the_parts_of_a_scene_are_placed_and_joined(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(
        trimesh.creation.box((0.1, 0.1, 0.1)), transform=trimesh.transformations.translation_matrix([0.5, 0, 0])
    )
    scene.add_geometry(trimesh.creation.box((0.1, 0.1, 0.1)))
    scene.export(tmp_path / "two.glb")
    mesh = load_mesh(tmp_path / "two.glb")
    np.testing.assert_allclose(mesh.bounds, [[-0.05, -0.05, -0.05], [0.55, 0.05, 0.05]], atol=1e-6)
    assert len(mesh.faces) == 24


def test_colours_of_a_ply_are_kept(tmp_path):
    box = trimesh.creation.box((0.1, 0.1, 0.1))
    box.visual.vertex_colors = np.tile([10, 120, 240, 255], (len(box.vertices), 1))
    box.export(tmp_path / "a.ply")
    assert (load_mesh(tmp_path / "a.ply").visual.vertex_colors[:, :3] == [10, 120, 240]).all()
    box.export(tmp_path / "a.glb")
    assert (load_mesh(tmp_path / "a.glb").visual.vertex_colors[:, :3] == [10, 120, 240]).all()
    # The same file by anyone else holds linear colours, by glTF's rule.
    data = (tmp_path / "a.glb").read_bytes().replace(b"github.com/mikedh/trimesh", b"github.com/someone/else!!")
    (tmp_path / "b.glb").write_bytes(data)
    np.testing.assert_allclose(load_mesh(tmp_path / "b.glb").visual.vertex_colors[0, :3], [56, 182, 248], atol=1)
