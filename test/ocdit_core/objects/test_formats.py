"""What each format can hold, in small real files: some by trimesh, others by hand, as other programs write them."""

import json
import struct

import numpy as np
import pytest
import trimesh
from PIL import Image

from ocdit_core.errors import MeshError
from ocdit_core.objects.meshes import read_cad
from ocdit_core.objects.sources import source_digest
from ocdit_core.objects.surfaces import surface_of

RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 180, 40), (20, 40, 220), (220, 210, 30)
# A unit square in the plane z = 0; an image with a colour in each quarter, which tells left from right, up from down.
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
FACES = np.array([[0, 1, 2], [0, 2, 3]], np.uint32)


def quarters():
    """Red and green above, blue and yellow below."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8], pixels[:8, 8:], pixels[8:, :8], pixels[8:, 8:] = RED, GREEN, BLUE, YELLOW
    return Image.fromarray(pixels)


def drawn_colour(mesh, point):
    """The colour that the renderer gives to a point of a mesh in the plane z = 0: texel times vertex colour."""
    surface = surface_of(mesh)
    corners = surface.corners.reshape(-1, 3, 12)
    for triangle in corners:
        weights = trimesh.triangles.points_to_barycentric(triangle[None, :, :3], [[*point, 0.0]])[0]
        if (weights < -1e-6).any():
            continue
        colour = weights @ triangle[:, 8:11] * 255
        if surface.texture is not None:
            u, v = weights @ triangle[:, 6:8]
            height, width = surface.texture.shape[:2]
            colour = colour * surface.texture[int((1 - v) % 1 * height), int(u % 1 * width), :3] / 255
        return np.rint(colour)
    raise AssertionError(f"no face at {point}")


def assert_quarters_in_place(mesh, scale=1.0):
    for x, y, colour in ((0.2, 0.7, RED), (0.7, 0.8, GREEN), (0.3, 0.2, BLUE), (0.8, 0.3, YELLOW)):
        np.testing.assert_allclose(drawn_colour(mesh, (x * scale, y * scale)), colour, atol=2)


def write_gltf(path, *, material=None, image=None, uv=True, nodes=None, **changes):
    """Write the square as glTF with its buffer in square.bin: what every other exporter makes."""
    texture = np.stack([CORNERS[:, 0], 1 - CORNERS[:, 1]], axis=1).astype(np.float32)
    blobs = [CORNERS.tobytes(), texture.tobytes(), FACES.tobytes()]
    offsets = np.cumsum([0, *map(len, blobs)])
    header = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": nodes or [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": material or {}}],
        "buffers": [{"byteLength": int(offsets[-1]), "uri": "square.bin"}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": int(begin), "byteLength": len(blob)}
            for begin, blob in zip(offsets, blobs, strict=False)
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
            {"bufferView": 1, "componentType": 5126, "count": 4, "type": "VEC2"},
            {"bufferView": 2, "componentType": 5125, "count": 6, "type": "SCALAR"},
        ],
    }
    if image is not None:
        header["images"], header["textures"] = [{"uri": image}], [{"source": 0}]
    path.write_text(json.dumps({**header, **changes}))
    (path.parent / "square.bin").write_bytes(b"".join(blobs))


def test_gltf_with_a_buffer_and_a_texture_beside_it(tmp_path):
    (tmp_path / "images").mkdir()
    quarters().save(tmp_path / "images" / "four quarters.png")
    write_gltf(tmp_path / "a.gltf", material={"baseColorTexture": {"index": 0}}, image="images/four%20quarters.png")
    model = read_cad(tmp_path / "a.gltf")
    assert (model.unit, model.guessed, model.warnings) == ("m", False, ())
    assert model.sources == ("a.gltf", "square.bin", "images/four quarters.png")
    assert_quarters_in_place(model.mesh)
    assert source_digest(tmp_path / "a.gltf", model.sources) == model.sha256
    (tmp_path / "square.bin").unlink()
    with pytest.raises(MeshError, match=r"needs the file square\.bin, which is missing"):
        read_cad(tmp_path / "a.gltf")
    assert source_digest(tmp_path / "a.gltf", model.sources) is None


def test_gltf_factors(tmp_path):
    linear = [0.5, 0.25, 1.0, 1.0]
    write_gltf(
        tmp_path / "a.gltf", material={"baseColorFactor": linear, "metallicFactor": 0.75, "roughnessFactor": 0.2}
    )
    mesh = read_cad(tmp_path / "a.gltf").mesh
    np.testing.assert_allclose(drawn_colour(mesh, (0.3, 0.3)), 255 * np.array(linear[:3]) ** (1 / 2.2), atol=2)
    assert mesh.metadata == pytest.approx({"metallic": 0.75, "roughness": 0.2})
    write_gltf(tmp_path / "a.gltf")
    assert read_cad(tmp_path / "a.gltf").mesh.metadata == {}
    # In a texture roughness is green, metalness blue; the factors are multiplied in.
    Image.new("RGB", (4, 4), (0, 102, 204)).save(tmp_path / "rough.png")
    material = {"metallicRoughnessTexture": {"index": 0}, "roughnessFactor": 0.5}
    write_gltf(tmp_path / "a.gltf", material=material, image="rough.png")
    assert read_cad(tmp_path / "a.gltf").mesh.metadata == pytest.approx({"metallic": 0.8, "roughness": 0.2})


def test_metallic_is_the_mean_over_the_surface(tmp_path):
    scene = trimesh.Scene()
    for side, metallic in ((0.1, 1.0), (0.2, 0.0)):
        box = trimesh.creation.box((side, side, side))
        material = trimesh.visual.material.PBRMaterial(metallicFactor=metallic, baseColorFactor=[90, 90, 90, 255])
        box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
        scene.add_geometry(box)
    scene.export(tmp_path / "a.glb")
    assert read_cad(tmp_path / "a.glb").mesh.metadata["metallic"] == pytest.approx(1 / 5)


def test_nodes_that_share_a_mesh_are_each_placed(tmp_path):
    turn = [0, 1, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]  # a quarter turn about z, column by column
    nodes = [
        {"children": [1, 2, 3], "scale": [0.5, 0.5, 0.5]},
        {"mesh": 0},
        {"mesh": 0, "translation": [2, 0, 0]},
        {"mesh": 0, "matrix": turn},
    ]
    write_gltf(tmp_path / "a.gltf", nodes=nodes)
    mesh = read_cad(tmp_path / "a.gltf").mesh
    assert len(mesh.faces) == 6
    np.testing.assert_allclose(mesh.bounds, [[-0.5, 0, 0], [1.5, 0.5, 0]], atol=1e-6)
    assert mesh.area == pytest.approx(3 * 0.25)


def test_draco(tmp_path):
    pytest.importorskip("DracoPy")
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=0.06)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=quarters())
    uv = np.stack([mesh.vertices[:, 0] / 0.12 + 0.5, mesh.vertices[:, 1] / 0.12 + 0.5], axis=1)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    mesh.export(tmp_path / "plain.glb")
    mesh.export(tmp_path / "packed.glb", extension_draco=True)
    packed = (tmp_path / "packed.glb").read_bytes()
    assert b"KHR_draco_mesh_compression" in packed
    model = read_cad(tmp_path / "packed.glb")
    assert len(model.mesh.faces) == len(mesh.faces)
    assert model.diameter == pytest.approx(0.12, rel=1e-3)
    assert model.mesh.area == pytest.approx(mesh.area, rel=1e-3)
    # Draco may reorder the points: each still has the coordinate that belongs to its place.
    np.testing.assert_allclose(model.mesh.visual.uv[:, 0], model.mesh.vertices[:, 0] / 0.12 + 0.5, atol=2e-3)
    # A packed part that is damaged would otherwise load as a heap of zeros.
    at = packed.index(b"DRACO")
    (tmp_path / "broken.glb").write_bytes(packed[:at] + b"OCARD" + packed[at + 5 :])
    with pytest.raises(MeshError, match=r"broken\.glb: damaged.*draco"):
        read_cad(tmp_path / "broken.glb")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extensionsRequired": ["EXT_unheard_of"]}, "EXT_unheard_of, which is not supported"),
        ({"asset": {"version": "1.0"}}, r"is glTF 1\.0"),
        ({"accessors": [{"count": 10**12, "componentType": 5126, "type": "VEC3"}]}, "too many"),
        ({"accessors": 5}, "damaged"),
        ({"bufferViews": [{"buffer": 0, "byteOffset": 0, "byteLength": 999}] * 3}, "damaged"),
        ({"nodes": [{"mesh": 7}]}, "damaged"),
        ({"scenes": [{"nodes": []}]}, "no faces"),
    ],
)
def test_gltf_that_cannot_be_read_is_refused(tmp_path, changes, reason):
    write_gltf(tmp_path / "a.gltf", **changes)
    with pytest.raises(MeshError, match=rf"a\.gltf: .*{reason}") as caught:
        read_cad(tmp_path / "a.gltf")
    assert "\n" not in str(caught.value)


def test_gltf_textures_that_cannot_be_read_are_named(tmp_path):
    texture = {"index": 0}
    write_gltf(
        tmp_path / "a.gltf",
        material={"baseColorTexture": texture},
        images=[{"mimeType": "image/ktx2", "uri": "a.ktx2"}],
        textures=[{"extensions": {"KHR_texture_basisu": {"source": 0}}}],
    )
    (tmp_path / "a.ktx2").write_bytes(b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(64))
    model = read_cad(tmp_path / "a.gltf")
    assert "KTX2" in model.warnings[0]
    np.testing.assert_allclose(drawn_colour(model.mesh, (0.3, 0.3)), 255)


def ply(path, *, comments=(), colours=False, uv=False, binary=False):
    """Write the square, 100 mm wide, as BOP's and MeshLab's PLY files are."""
    names = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    names += [(name, "u1") for name in ("red", "green", "blue")] if colours else []
    names += [("texture_u", "<f4"), ("texture_v", "<f4")] if uv else []
    rows = np.zeros(4, names)
    for axis, name in enumerate("xyz"):
        rows[name] = CORNERS[:, axis] * 100
    if colours:
        for name, value in zip(("red", "green", "blue"), RED, strict=True):
            rows[name] = value
    if uv:
        rows["texture_u"], rows["texture_v"] = CORNERS[:, 0], CORNERS[:, 1]
    kinds = {"<f4": "float", "u1": "uchar"}
    header = ["ply", f"format {'binary_little_endian' if binary else 'ascii'} 1.0", *comments, "element vertex 4"]
    header += [f"property {kinds[kind]} {name}" for name, kind in names]
    header += ["element face 2", "property list uchar int vertex_indices", "end_header", ""]
    if binary:
        faces = b"".join(struct.pack("<Biii", 3, *map(int, face)) for face in FACES)
        body = rows.tobytes() + faces
    else:
        lines = [" ".join(str(value) for value in row.tolist()) for row in rows]
        body = "\n".join([*lines, *(f"3 {a} {b} {c}" for a, b, c in FACES), ""]).encode()
    path.write_bytes("\n".join(header).encode() + body)


@pytest.mark.parametrize("binary", [False, True])
class TestPly:
    def test_vertex_colours(self, tmp_path, binary):
        ply(tmp_path / "a.ply", colours=True, binary=binary)
        model = read_cad(tmp_path / "a.ply")
        assert (model.unit, model.warnings, model.sources) == ("mm", (), ("a.ply",))
        np.testing.assert_allclose(drawn_colour(model.mesh, (0.03, 0.05)), RED, atol=1)

    @pytest.mark.parametrize("colours", [False, True])
    def test_the_texture_of_a_bop_model(self, tmp_path, binary, colours):
        quarters().save(tmp_path / "obj_000001.png")
        ply(
            tmp_path / "a.ply",
            comments=["comment made by hand", "comment TextureFile obj_000001.png"],
            uv=True,
            colours=colours,
            binary=binary,
        )
        model = read_cad(tmp_path / "a.ply")
        beside = ("a.ply: not drawn: colours of vertices beside a texture",)
        assert (model.warnings, model.sources) == (beside if colours else (), ("a.ply", "obj_000001.png"))
        assert_quarters_in_place(model.mesh, scale=0.1)

    def test_coordinates_without_a_texture_do_not_hide_the_colours(self, tmp_path, binary):
        ply(tmp_path / "a.ply", uv=True, colours=True, binary=binary)
        model = read_cad(tmp_path / "a.ply")
        assert model.warnings == ()
        np.testing.assert_allclose(drawn_colour(model.mesh, (0.03, 0.05)), RED, atol=1)

    def test_a_texture_that_is_missing(self, tmp_path, binary):
        ply(tmp_path / "a.ply", comments=["comment TextureFile gone.png"], uv=True, binary=binary)
        model = read_cad(tmp_path / "a.ply")
        assert model.warnings == ("a.ply: its texture gone.png is missing; drawn in neutral grey",)
        np.testing.assert_allclose(drawn_colour(model.mesh, (0.03, 0.05)), 165)


def test_stl_as_text_and_as_bytes(tmp_path):
    mesh = trimesh.creation.icosphere(subdivisions=1, radius=40)
    mesh.export(tmp_path / "bytes.stl")
    mesh.export(tmp_path / "text.stl", file_type="stl_ascii")
    for name in ("bytes", "text"):
        model = read_cad(tmp_path / f"{name}.stl")
        assert (model.unit, len(model.mesh.faces)) == ("mm", len(mesh.faces))
        np.testing.assert_allclose(model.mesh.bounds, mesh.bounds / 1000, atol=1e-6)
        np.testing.assert_allclose(surface_of(model.mesh).corners[:, 8:11] * 255, 165, atol=1)
        data = (tmp_path / f"{name}.stl").read_bytes()
        for share in (0.05, 0.5, 0.99):
            (tmp_path / f"{name}_part.stl").write_bytes(data[: int(len(data) * share)])
            with pytest.raises(MeshError, match=f"{name}_part.stl: truncated"):
                read_cad(tmp_path / f"{name}_part.stl")
    # Many a binary file begins with the word that marks a text.
    data = (tmp_path / "bytes.stl").read_bytes()
    (tmp_path / "solid.stl").write_bytes(b"solid" + data[5:])
    assert len(read_cad(tmp_path / "solid.stl").mesh.faces) == len(mesh.faces)


DAE = """<?xml version="1.0"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><unit name="centimetre" meter="0.01"/><up_axis>Z_UP</up_axis></asset>
<library_images><image id="img"><init_from>../textures/quarters.png</init_from></image></library_images>
<library_effects><effect id="fx"><profile_COMMON>
<newparam sid="surf"><surface type="2D"><init_from>img</init_from></surface></newparam>
<newparam sid="samp"><sampler2D><source>surf</source></sampler2D></newparam>
<technique sid="t"><lambert><diffuse><texture texture="samp" texcoord="UV"/></diffuse></lambert></technique>
</profile_COMMON></effect></library_effects>
<library_materials><material id="mat"><instance_effect url="#fx"/></material></library_materials>
<library_geometries><geometry id="geo"><mesh>
<source id="p"><float_array id="pa" count="12">0 0 0 10 0 0 10 10 0 0 10 0</float_array><technique_common>
<accessor source="#pa" count="4" stride="3"><param name="X" type="float"/><param name="Y" type="float"/>
<param name="Z" type="float"/></accessor></technique_common></source>
<source id="t"><float_array id="ta" count="8">0 0 1 0 1 1 0 1</float_array><technique_common>
<accessor source="#ta" count="4" stride="2"><param name="S" type="float"/><param name="T" type="float"/></accessor>
</technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#p"/></vertices>
<triangles count="2" material="m"><input semantic="VERTEX" source="#v" offset="0"/>
<input semantic="TEXCOORD" source="#t" offset="1" set="0"/><p>0 0 1 1 2 2 0 0 2 2 3 3</p></triangles>
</mesh></geometry></library_geometries>
<library_visual_scenes><visual_scene id="s"><node id="n"><matrix>1 0 0 5 0 1 0 0 0 0 1 0 0 0 0 1</matrix>
<instance_geometry url="#geo"><bind_material><technique_common><instance_material symbol="m" target="#mat"/>
</technique_common></bind_material></instance_geometry></node></visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#s"/></scene></COLLADA>
"""


def test_collada_with_its_texture_in_a_folder_beside_its_own(tmp_path):
    # As in Gazebo's models: meshes/x.dae and materials beside that folder.
    (tmp_path / "meshes").mkdir()
    (tmp_path / "textures").mkdir()
    (tmp_path / "meshes" / "a.dae").write_text(DAE)
    quarters().save(tmp_path / "textures" / "quarters.png")
    model = read_cad(tmp_path / "meshes" / "a.dae")
    assert (model.unit, model.guessed, model.warnings) == ("cm", False, ())
    assert model.sources == ("a.dae", "../textures/quarters.png")
    np.testing.assert_allclose(model.mesh.bounds, [[0.05, 0, 0], [0.15, 0.1, 0]], atol=1e-9)
    model.mesh.apply_translation([-0.05, 0, 0])
    assert_quarters_in_place(model.mesh, scale=0.1)
    (tmp_path / "textures" / "quarters.png").unlink()
    model = read_cad(tmp_path / "meshes" / "a.dae")
    assert model.warnings == ("a.dae: its texture ../textures/quarters.png is missing; drawn in neutral grey",)
    np.testing.assert_allclose(drawn_colour(model.mesh, (0.1, 0.05)), 165, atol=1)
