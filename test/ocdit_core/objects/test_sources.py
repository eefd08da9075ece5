import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from ocdit_core.errors import MeshError
from ocdit_core.objects.meshes import load_mesh, read_cad
from ocdit_core.objects.sources import source_digest
from ocdit_core.objects.surfaces import surface_of

SQUARE = "v 0 0 0\nv 0.1 0 0\nv 0.1 0.1 0\nv 0 0.1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACES = "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"
GREY = 165


def write_obj(folder, *, material="wood.mtl", lines="newmtl wood\nKd 0 0 0\nmap_Kd wood.png\n", texture=True):
    """A textured square of 10 cm: square.obj, wood.mtl, wood.png; left as the file says where a part is None."""
    folder.mkdir(exist_ok=True)
    (folder / "square.obj").write_text(f"mtllib {material}\n{SQUARE}usemtl wood\n{FACES}")
    if lines is not None:
        (folder / "wood.mtl").write_text(lines)
    if texture:
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:4, :4], pixels[:4, 4:], pixels[4:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
        Image.fromarray(pixels).save(folder / "wood.png")
    return folder / "square.obj"


def colours(mesh):
    """Mean colour of the renderer's texture, or of its vertex colours."""
    surface = surface_of(mesh)
    if surface.texture is not None:
        return surface.texture[..., :3].reshape(-1, 3).mean(axis=0)
    return surface.corners[:, 8:11].mean(axis=0) * 255


def test_materials_and_textures_are_sources(tmp_path):
    path = write_obj(tmp_path)
    model = read_cad(path)
    assert model.sources == ("square.obj", "wood.mtl", "wood.png")
    assert model.warnings == ()
    joined = b"".join((tmp_path / name).read_bytes() for name in model.sources)
    assert model.sha256 == hashlib.sha256(joined).hexdigest()
    assert source_digest(path, model.sources) == model.sha256
    # The image's first row is its top, v = 0 its bottom: red at the upper left, blue below.
    image, uv = np.asarray(model.mesh.visual.material.baseColorTexture), model.mesh.visual.uv
    for place, colour in (((0, 0.1), (250, 0, 0)), ((0.1, 0.1), (0, 250, 0)), ((0, 0), (0, 0, 250))):
        at = np.abs(model.mesh.vertices[:, :2] - place).sum(axis=1).argmin()
        u, v = np.clip(uv[at], 0.01, 0.99)
        assert tuple(image[int((1 - v) * 8), int(u * 8)]) == colour


@pytest.mark.parametrize("changed", ["square.obj", "wood.mtl", "wood.png"])
def test_the_digest_changes_with_every_source(tmp_path, changed):
    path = write_obj(tmp_path)
    model = read_cad(path)
    with (tmp_path / changed).open("ab") as file:
        file.write(b"\n")
    assert source_digest(path, model.sources) not in (None, model.sha256)
    assert source_digest(path, model.sources) == read_cad(path).sha256
    (tmp_path / changed).unlink()
    assert source_digest(path, model.sources) is None


def test_no_digest_of_nothing_and_of_a_folder(tmp_path):
    path = write_obj(tmp_path)
    assert source_digest(path, ()) is None
    assert source_digest(tmp_path, (tmp_path.name,)) is None
    assert source_digest(path, ("square.obj", ".")) is None


def test_a_material_file_that_is_missing(tmp_path):
    path = write_obj(tmp_path, lines=None)
    model = read_cad(path)
    assert model.warnings == ("square.obj: its material file wood.mtl is missing; drawn in neutral grey",)
    np.testing.assert_allclose(colours(model.mesh), GREY)
    # It stays a source: as long as it is missing, nobody can say that nothing has changed.
    assert model.sources == ("square.obj", "wood.mtl")
    assert source_digest(path, model.sources) is None
    write_obj(tmp_path)
    assert read_cad(path).warnings == ()


def test_a_texture_that_is_missing(tmp_path, caplog):
    path = write_obj(tmp_path, texture=False)
    model = read_cad(path)
    assert model.warnings == ("square.obj: its texture wood.png is missing; drawn in neutral grey",)
    np.testing.assert_allclose(colours(model.mesh), GREY)  # not the black of Kd, which only tints
    with caplog.at_level("WARNING", logger="ocdit_core"):
        load_mesh(path)
    assert "wood.png is missing" in caplog.text


def test_colours_without_a_texture(tmp_path):
    path = write_obj(tmp_path, lines="newmtl wood\nKd 1 0.5 0\n", texture=False)
    model = read_cad(path)
    assert model.warnings == ()
    np.testing.assert_allclose(colours(model.mesh), (255, 128, 0), atol=1)
    write_obj(tmp_path, lines="newmtl wood\nKd 0.4 0.4 0.4\n", texture=False)
    np.testing.assert_allclose(colours(read_cad(path).mesh), 102, atol=1)  # trimesh's own default, but meant
    write_obj(tmp_path, lines="newmtl wood\nNs 10\n", texture=False)
    np.testing.assert_allclose(colours(read_cad(path).mesh), GREY)


@pytest.mark.parametrize(
    "name", ["./wood.png", r"C:\models\wood.png", "/home/somebody/wood.png", "-s 1 1 1 wood.png", "maps/wood.png"]
)
def test_textures_are_found_under_the_names_other_machines_gave_them(tmp_path, name):
    path = write_obj(tmp_path, lines=f"newmtl wood\nmap_Kd {name}\n")
    model = read_cad(path)
    assert (model.sources, model.warnings) == (("square.obj", "wood.mtl", "wood.png"), ())


def test_a_texture_in_another_folder(tmp_path):
    path = write_obj(tmp_path / "meshes", lines="newmtl wood\nmap_Kd ../textures/wood.png\n")
    (tmp_path / "textures").mkdir()
    (tmp_path / "meshes" / "wood.png").rename(tmp_path / "textures" / "wood.png")
    model = read_cad(path)
    assert model.sources == ("square.obj", "wood.mtl", "../textures/wood.png")
    assert model.warnings == ()
    assert source_digest(path, model.sources) == model.sha256


def test_a_texture_that_is_no_image_is_refused(tmp_path):
    path = write_obj(tmp_path)
    (tmp_path / "wood.png").write_text("oak")
    with pytest.raises(MeshError, match=r"square\.obj: its texture wood\.png is damaged or no image") as caught:
        read_cad(path)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_a_texture_too_large_to_read_is_refused_unread(tmp_path):
    path = write_obj(tmp_path)
    os.truncate(tmp_path / "wood.png", 3 << 30)
    with pytest.raises(MeshError, match=r"square\.obj: needs a file .*wood\.png: 3,072 MiB is over the limit"):
        read_cad(path)


def test_two_materials_share_one_texture_file(tmp_path):
    path = write_obj(tmp_path, lines="newmtl wood\nmap_Kd wood.png\nnewmtl other\nmap_Kd wood.png\n")
    path.write_text(path.read_text() + "usemtl other\nf 1/1 2/2 4/4\n")
    model = read_cad(path)
    assert model.sources == ("square.obj", "wood.mtl", "wood.png")
    assert len(model.mesh.faces) == 3


@pytest.mark.parametrize("libraries", ["mtllib a.mtl\nmtllib b c.mtl", "mtllib a.mtl gone.mtl b.mtl"])
def test_several_material_files(tmp_path, libraries):
    (tmp_path / "a.mtl").write_text("newmtl left\nKd 1 0 0")
    for name in ("b c.mtl", "b.mtl"):
        (tmp_path / name).write_text("newmtl right\nKd 0 1 0\n")
    text = f"{libraries}\n{SQUARE}usemtl left\nf 1/1 2/2 3/3\nusemtl right\nf 1/1 3/3 4/4\n"
    (tmp_path / "two.obj").write_text(text)
    model = read_cad(tmp_path / "two.obj")
    np.testing.assert_allclose(colours(model.mesh), (127.5, 127.5, 0), atol=1)
    if "gone" in libraries:
        assert set(model.sources) == {"two.obj", "a.mtl", "gone.mtl", "b.mtl"}
        assert model.warnings == ("two.obj: its material file gone.mtl is missing; drawn in neutral grey",)
    else:
        assert (model.sources, model.warnings) == (("two.obj", "a.mtl", "b c.mtl"), ())
        assert source_digest(tmp_path / "two.obj", model.sources) == model.sha256


def test_texture_coordinates_without_a_material_do_not_hide_the_colours(tmp_path):
    text = "".join(f"{line} 1 0 0\n" if line.startswith("v ") else f"{line}\n" for line in SQUARE.splitlines())
    (tmp_path / "a.obj").write_text(text + FACES)
    np.testing.assert_allclose(colours(read_cad(tmp_path / "a.obj").mesh), (255, 0, 0))
