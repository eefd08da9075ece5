"""What a file holds and is not drawn is named in one warning line, whatever it is."""

import numpy as np
import pytest
import test_cad
from gltf_files import SQUARE_UV, GltfFile
from test_cad import usd_material, usd_square
from test_plain_formats import POINTS, QUARTERS, TEXTURED, TestPly, image
from test_xml_formats import SQUARE, effect, mesh_3mf, write_3mf, write_dae

from ocdit_core.objects.meshes import read_cad

stage = test_cad.stage


def undrawn(path):
    """Read a file and return what its one warning line names."""
    warnings = read_cad(path).warnings
    if not warnings:
        return []
    (line,) = warnings
    head = f"{path.name}: not drawn: "
    assert line.startswith(head)
    return line.removeprefix(head).split(", ")


def gltf(tmp_path, material=None, attributes=(), **document):
    file = GltfFile()
    number = file.material(**(material(file) if material else {}))
    values = {name: file.accessor(np.full((4, width), 0.5, np.float32)) for name, width in attributes}
    file.node(file.primitive(uv=SQUARE_UV, material=number, **values))
    return file.write(tmp_path / "a.glb", **document)


@pytest.mark.parametrize(
    ("extension", "values", "named"),
    [
        ("KHR_materials_clearcoat", {"clearcoatFactor": 0.5}, ["clearcoat"]),
        ("KHR_materials_clearcoat", {"clearcoatFactor": 0}, []),
        ("KHR_materials_transmission", {"transmissionFactor": 1}, ["transmission"]),
        ("KHR_materials_diffuse_transmission", {"diffuseTransmissionFactor": 1}, ["diffuse transmission"]),
        ("KHR_materials_sheen", {"sheenColorFactor": [0, 0, 0.3]}, ["sheen"]),
        ("KHR_materials_sheen", {}, []),
        ("KHR_materials_iridescence", {"iridescenceFactor": 1}, ["iridescence"]),
        ("KHR_materials_anisotropy", {"anisotropyStrength": 0.5}, ["anisotropy"]),
        ("KHR_materials_volume", {"thicknessFactor": 0.1}, ["volume"]),
        ("KHR_materials_ior", {"ior": 1.4}, ["ior"]),
        ("KHR_materials_unlit", {}, []),
        ("KHR_materials_not_invented_yet", {}, ["not invented yet"]),
        ("ACME_paint", {}, ["ACME_paint"]),
    ],
)
def test_gltf_material_extensions(tmp_path, extension, values, named):
    assert undrawn(gltf(tmp_path, lambda file: {"extensions": {extension: values}})) == named


def test_gltf_maps_animations_variants_and_attributes(tmp_path):
    def material(file):
        number = {"index": file.image(QUARTERS)}
        packed = {"metallicRoughnessTexture": number, "baseColorTexture": number}
        return {"normalTexture": number, "occlusionTexture": number, "pbrMetallicRoughness": packed}

    animation = {"channels": [{"sampler": 0, "target": {"node": 0, "path": "rotation"}}], "samplers": [{}]}
    used = ["KHR_materials_variants", "KHR_lights_punctual", "KHR_texture_transform", "EXT_gaussian_fog"]
    attributes = [("TEXCOORD_1", 2), ("COLOR_1", 3), ("_WEAR", 1), ("NORMAL", 3), ("TANGENT", 4)]
    path = gltf(tmp_path, material, attributes, animations=[animation], extensionsUsed=used)
    assert undrawn(path) == [
        "animations (drawn at rest)", "material variants (the default is drawn)", "the extension EXT_gaussian_fog",
        "metalness and roughness maps (their means are drawn)", "normal maps", "occlusion maps",
        "the vertex attribute TEXCOORD_1", "the vertex attribute COLOR_1", "the vertex attribute _WEAR",
    ]  # fmt: skip


def test_what_is_drawn_is_not_named(tmp_path):
    def material(file):
        return {"pbrMetallicRoughness": {"baseColorTexture": {"index": file.image(QUARTERS)}, "roughnessFactor": 0.3}}

    assert undrawn(gltf(tmp_path, material, [("NORMAL", 3)])) == []


def test_gltf_nodes_and_meshes_that_no_scene_shows(tmp_path):
    file = GltfFile()
    file.node(file.primitive())
    file.node(file.primitive(), root=False)
    file.json["meshes"].append({"primitives": [file.primitive()]})
    assert undrawn(file.write(tmp_path / "a.glb")) == ["nodes outside of its scenes", "1 meshes that no node has"]


def test_textures_that_nothing_names(tmp_path):
    image(tmp_path / "t.png")
    comments = ["comment TextureFile t.png", "comment TextureFile t.png"]
    uv = {"rows": [(0, 0), (1, 0), (1, 1), (0, 1)], "comments": comments}
    assert undrawn(TestPly().write(tmp_path / "a.ply", [("s", "float"), ("t", "float")], **uv)) == ["further textures"]
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 1 0 0\nmap_d t.png\n")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED)
    assert undrawn(tmp_path / "a.obj") == ["opacity maps"]


def test_obj_maps_and_lines(tmp_path):
    image(tmp_path / "t.png")
    maps = (
        "map_Kd -mm 0.2 2 t.png\nmap_Bump t.png\nnorm t.png\ndisp t.png\nmap_Ke t.png\nmap_Pr t.png\naniso 0.0\nPc 0.4"
    )
    (tmp_path / "a.mtl").write_text(f"newmtl m\n{maps}\n")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED + "l 1 2\np 1\ncurv 0 1 1 2\n")
    assert undrawn(tmp_path / "a.obj") == [
        "1 lines", "1 points", "1 curved surfaces", "bump maps", "normal maps", "displacement maps", "emissive maps",
        "roughness maps", "clearcoat", "the texture option -mm",
    ]  # fmt: skip


def test_colours_beside_a_texture(tmp_path):
    image(tmp_path / "t.png")
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd t.png\n")
    coloured = TEXTURED.replace(POINTS, POINTS.replace("\n", " 1 0 0\n"))
    (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + coloured)
    assert undrawn(tmp_path / "a.obj") == ["colours of vertices beside a texture"]


def test_ply_elements_and_opacity(tmp_path):
    vertex = [(name, "uchar") for name in ("red", "green", "blue", "alpha")]
    path = TestPly().write(tmp_path / "a.ply", vertex, rows=[(250, 0, 0, 100)] * 4)
    edge = b"element edge 1\nproperty int vertex1\nproperty int vertex2\nend_header"
    path.write_bytes(path.read_bytes().replace(b"end_header", edge) + b"0 1\n")
    assert undrawn(path) == ["1 edge elements", "the opacity of its vertices"]


def test_dae_animations_maps_and_axes(tmp_path):
    image(tmp_path / "t.png")
    bump = (
        '<extra><technique profile="FCOLLADA"><bump><texture texture="t.png" texcoord="UV"/></bump></technique></extra>'
    )
    shine = '<diffuse><color>1 0 0 1</color></diffuse><specular><texture texture="t.png" texcoord="UV"/></specular>'
    path = write_dae(tmp_path / "a.dae", SQUARE, materials=effect(shine + bump))
    animation = "<library_animations><animation id='a'/></library_animations>"
    text = path.read_text()
    path.write_text(text.replace("Z_UP", "X_UP").replace("</asset>", "</asset>" + animation))
    assert undrawn(path) == [
        "its up axis X_UP (poses are in the file's own coordinates)", "animations (drawn at rest)", "bump maps",
        "specular maps",
    ]  # fmt: skip
    path.write_text(text)
    assert undrawn(path) == ["bump maps", "specular maps"]
    path.write_text(text.replace("</library_visual_scenes>", "<visual_scene id='t'/></library_visual_scenes>"))
    assert undrawn(path) == ["bump maps", "specular maps", "1 of its 2 scenes"]


def test_3mf_resources(tmp_path):
    base = '<basematerials id="5"><base displaycolor="#FA000080"/><base displaycolor="#FA0000FF"/></basematerials>'
    resources = f'{base}<slicestack id="8"/><object id="1">{mesh_3mf()}</object>'
    assert undrawn(write_3mf(tmp_path / "a.3mf", resources)) == ["the opacity of its colours", "slicestack"]


def test_usd_maps_variants_subdivision_and_animation(tmp_path, stage):
    from pxr import Gf, Sdf, UsdShade

    image(tmp_path / "t.png")
    mesh = usd_square(stage)
    mesh.CreateSubdivisionSchemeAttr("catmullClark")
    mesh.AddTranslateOp().Set(Gf.Vec3d(0, 0, 1), 10)
    stage.SetStartTimeCode(0)
    stage.SetEndTimeCode(10)
    usd_material(stage, mesh, diffuseColor=(1.0, 0.0, 0.0), clearcoat=0.5)
    surface = UsdShade.Shader.Get(stage, "/square_look/surface")
    sampler = UsdShade.Shader.Define(stage, "/square_look/bumps")
    sampler.CreateInput("file", Sdf.ValueTypeNames.Asset).Set("./t.png")
    sampler.CreateOutput("rgb", Sdf.ValueTypeNames.Float3)
    for name in ("normal", "roughness"):
        surface.CreateInput(name, Sdf.ValueTypeNames.Float3).ConnectToSource(sampler.ConnectableAPI(), "rgb")
    mesh.GetPrim().GetVariantSets().AddVariantSet("paint").AddVariant("red")
    stage.Save()
    assert undrawn(tmp_path / "a.usda") == [
        "animations (drawn at rest)", "variants (the selected ones are drawn)", "subdivision of surfaces",
        "normal maps", "metalness and roughness maps", "clearcoat",
    ]  # fmt: skip
