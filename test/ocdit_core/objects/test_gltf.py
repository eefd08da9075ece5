"""glTF 2.0 by its specification, each feature in the smallest file that has it, with the value that is right."""

import json

import numpy as np
import pytest
from gltf_files import SQUARE, SQUARE_FACES, SQUARE_UV, GltfFile, colour_at

from ocdit_core.errors import MeshError
from ocdit_core.objects.meshes import read_cad
from ocdit_core.objects.surfaces import linear_from_srgb

RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)
# Red and green above, blue and yellow below; flat areas, so that nothing depends on filtering.
QUARTERS = np.kron(np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8), np.ones((16, 16, 1), np.uint8))
CENTRES = {(0.02, 0.08): RED, (0.08, 0.08): GREEN, (0.02, 0.02): BLUE, (0.08, 0.02): YELLOW}


def srgb(linear):
    linear = np.asarray(linear, float)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def textured(file, **info):
    """A material with the four quarters as its base colour."""
    sampler = info.pop("sampler", None)
    texture = {} if sampler is None else {"sampler": sampler}
    return file.material(pbrMetallicRoughness={"baseColorTexture": {"index": file.image(QUARTERS, **texture), **info}})


def check(model, colours, warnings=()):
    assert model.warnings == tuple(warnings)
    for (x, y), colour in colours.items():
        np.testing.assert_allclose(colour_at(model.mesh, x, y), colour, atol=3, err_msg=str((x, y)))


@pytest.mark.parametrize("kind", ["f4", "u1", "u2"])
@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("look", ["none", "material", "factor", "texture"])
def test_vertex_colours_times_factor_times_texture(tmp_path, kind, width, look):
    linear = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0.25, 0.25, 0.25, 1]])[:, :width]
    stored = linear.astype("f4") if kind == "f4" else np.rint(linear * np.iinfo(kind).max).astype(kind)
    file = GltfFile()
    factor = np.array([0.5, 1, 1]) if look == "factor" else np.ones(3)
    material = {
        "none": lambda: None,
        "material": lambda: file.material(),
        "factor": lambda: file.material(pbrMetallicRoughness={"baseColorFactor": [0.5, 1, 1, 1]}),
        "texture": lambda: file.material(
            pbrMetallicRoughness={"baseColorTexture": {"index": file.image(np.full((4, 4, 3), 255))}}
        ),
    }[look]()
    extra = {} if kind == "f4" else {"normalized": True}
    uv = SQUARE_UV if look == "texture" else None
    file.node(file.primitive(material=material, uv=uv, COLOR_0=file.accessor(stored, **extra)))
    model = read_cad(file.write(tmp_path / "a.glb"))
    corners = {(0.0, 0.0): 0, (0.1, 0.0): 1, (0.1, 0.1): 2, (0.0, 0.1): 3}
    check(model, {at: srgb(linear[index][:3] * factor) for at, index in corners.items()})


def test_vertex_colours_tint_a_part_of_an_atlas(tmp_path):
    file = GltfFile()
    colours = file.accessor(np.tile(np.array([[0, 1, 0]], np.float32), (4, 1)))
    yellow = file.material(pbrMetallicRoughness={"baseColorTexture": {"index": file.image(np.full((8, 8, 3), YELLOW))}})
    file.node(file.primitive(material=yellow, uv=SQUARE_UV, COLOR_0=colours))
    file.node(file.primitive(material=textured(file), uv=SQUARE_UV), translation=[0.2, 0, 0])
    shifted = {(x + 0.2, y): colour for (x, y), colour in CENTRES.items()}
    check(read_cad(file.write(tmp_path / "a.glb")), {(0.05, 0.02): GREEN, **shifted})


def test_a_material_without_a_factor_is_white_and_no_material_is_neutral_grey(tmp_path):
    file = GltfFile()
    file.node(file.primitive(material=file.material(name="plain")))
    file.node(file.primitive(), translation=[0.2, 0, 0])
    check(read_cad(file.write(tmp_path / "a.glb")), {(0.05, 0.02): WHITE, (0.25, 0.02): (165, 165, 165)})


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_normalized_texture_coordinates_of_the_second_set(tmp_path, kind):
    file = GltfFile()
    uv = (SQUARE_UV * np.iinfo(kind).max).astype(kind)
    stored = np.zeros((4, 4), kind)  # padded to four bytes
    stored[:, :2] = uv
    view = file.view(stored.tobytes(), byteStride=stored.strides[0])
    material = textured(file, texCoord=1)
    part = file.primitive(uv=SQUARE_UV * 0, material=material, TEXCOORD_1=file.accessor(uv, view, normalized=True))
    file.node(part)
    check(read_cad(file.write(tmp_path / "a.glb")), CENTRES)


def test_quantized_positions(tmp_path):
    file = GltfFile()
    points = np.zeros((4, 4), np.int16)
    points[:, :3] = np.rint(SQUARE / 0.1 * 32767)
    view = file.view(points.tobytes(), byteStride=8)
    part = file.primitive(uv=SQUARE_UV, material=textured(file))
    part["attributes"]["POSITION"] = file.accessor(points[:, :3], view, normalized=True)
    file.node(part, scale=[0.1, 0.1, 0.1])
    model = read_cad(file.write(tmp_path / "a.glb", extensionsRequired=["KHR_mesh_quantization"]))
    np.testing.assert_allclose(model.mesh.bounds, [[0, 0, 0], [0.1, 0.1, 0]], atol=1e-6)
    check(model, CENTRES)


@pytest.mark.parametrize(
    ("mode", "colours"),
    [
        ("repeat", {0: RED, 1: GREEN, 2: RED, 3: GREEN, 4: RED, 5: GREEN}),
        ("mirror", {0: GREEN, 1: RED, 2: RED, 3: GREEN, 4: GREEN, 5: RED}),
        ("clamp", {0: RED, 1: RED, 2: RED, 3: GREEN, 4: GREEN, 5: GREEN}),
    ],
)
@pytest.mark.parametrize("other", [False, True])
def test_what_lies_beyond_a_texture_follows_its_sampler(tmp_path, mode, colours, other):
    """The texture's upper row from u = -1 to 2, in six steps."""
    file = GltfFile()
    file.json["samplers"] = [{"wrapS": {"repeat": 10497, "mirror": 33648, "clamp": 33071}[mode], "wrapT": 33071}]
    uv = SQUARE_UV * [3, 0.5] + [-1, 0]
    file.node(file.primitive(uv=uv, material=textured(file, sampler=0)))
    if other:
        green = file.material(pbrMetallicRoughness={"baseColorFactor": [0, 1, 0, 1]})
        file.node(file.primitive(material=green), translation=[0.2, 0, 0])
    model = read_cad(file.write(tmp_path / "a.glb"))
    check(model, {((step + 0.5) * 0.1 / 6, 0.055): colour for step, colour in colours.items()})


def test_a_texture_that_repeats_very_often_keeps_its_pattern_beside_others(tmp_path):
    file = GltfFile()
    file.node(file.primitive(uv=SQUARE_UV * 20, material=textured(file)))
    file.node(file.primitive(material=file.material()), translation=[0.2, 0, 0])
    model = read_cad(file.write(tmp_path / "a.glb"))
    tile = 0.1 / 20
    check(model, {((3 + x / 0.1) * tile, (7 + y / 0.1) * tile): colour for (x, y), colour in CENTRES.items()})


def test_texture_transform(tmp_path):
    """A quarter turn counter-clockwise in texture space, half the size, moved; and the set that it names."""
    file = GltfFile()
    transform = {"scale": [0.5, 0.5], "rotation": np.pi / 2, "offset": [0.25, 0.75], "texCoord": 1}
    material = textured(file, extensions={"KHR_texture_transform": transform})
    file.node(file.primitive(uv=SQUARE_UV * 0, material=material, TEXCOORD_1=file.accessor(SQUARE_UV)))
    model = read_cad(file.write(tmp_path / "a.glb", extensionsRequired=["KHR_texture_transform"]))
    # u' = 0.5 v + 0.25, v' = -0.5 u + 0.75, both counted from the upper left.
    expected = {}
    for x, y in CENTRES:
        u, v = x / 0.1, 1 - y / 0.1
        at = (0.5 * v + 0.25, -0.5 * u + 0.75)
        expected[x, y] = QUARTERS[int(at[1] * 32), int(at[0] * 32)]
    check(model, expected)


@pytest.mark.parametrize("mode", [5, 6])
@pytest.mark.parametrize("indexed", [False, True])
def test_strips_and_fans(tmp_path, mode, indexed):
    order = [0, 1, 3, 2] if mode == 5 else [0, 1, 2, 3]
    file = GltfFile()
    points, indices = (SQUARE, np.array(order, np.uint8)) if indexed else (SQUARE[order], None)
    file.node(file.primitive(points, indices, mode=mode))
    mesh = read_cad(file.write(tmp_path / "a.glb")).mesh
    assert mesh.area == pytest.approx(0.01)
    np.testing.assert_allclose(mesh.face_normals, [[0, 0, 1]] * 2)


def test_points_and_lines_are_named(tmp_path):
    file = GltfFile()
    file.node(file.primitive(), file.primitive(indices=None, mode=0), file.primitive(indices=None, mode=1))
    model = read_cad(file.write(tmp_path / "a.glb"))
    assert model.warnings == ("a.glb: not drawn: points, lines",)
    assert len(model.mesh.faces) == 2


def test_instances(tmp_path):
    file = GltfFile()
    place = file.accessor(np.array([[0, 0, 0], [0.2, 0, 0], [0, 0.3, 0]], np.float32))
    size = file.accessor(np.array([[1, 1, 1], [2, 2, 2], [1, 1, 1]], np.float32))
    turn = (np.array([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]]) * 32767).astype(np.int16)
    attributes = {"TRANSLATION": place, "SCALE": size, "ROTATION": file.accessor(turn, normalized=True)}
    file.node(
        file.primitive(), extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}}, translation=[0, 0, 0.1]
    )
    mesh = read_cad(file.write(tmp_path / "a.glb", extensionsUsed=["EXT_mesh_gpu_instancing"])).mesh
    assert len(mesh.faces) == 6
    assert mesh.area == pytest.approx(0.01 + 0.04 + 0.01)
    np.testing.assert_allclose(mesh.bounds, [[-0.1, 0, 0.1], [0.4, 0.3, 0.1]], atol=1e-5)


def test_a_skin_in_its_pose_ignores_its_own_node(tmp_path):
    """The upper two points belong to a joint that stands 0.3 m higher than where it was bound."""
    file = GltfFile()
    bind = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    joints = file.accessor(np.array([[0, 0, 0, 0]] * 2 + [[1, 0, 0, 0]] * 2, np.uint8))
    weights = file.accessor(np.array([[255, 0, 0, 0]] * 4, np.uint8), normalized=True)
    part = file.primitive(JOINTS_0=joints, WEIGHTS_0=weights)
    file.node(part, skin=0, translation=[50, 0, 0])
    first = file.node(translation=[0, 0, 0.2], children=[2])
    second = file.node(root=False, translation=[0, 0.3, 0])
    skin = {"joints": [first, second], "inverseBindMatrices": file.accessor(bind.reshape(2, 16))}
    mesh = read_cad(file.write(tmp_path / "a.glb", skins=[skin])).mesh
    np.testing.assert_allclose(mesh.bounds, [[0, 0, 0.2], [0.1, 0.4, 0.2]], atol=1e-6)


@pytest.mark.parametrize("place", ["mesh", "node"])
def test_default_morph_weights_and_sparse_targets(tmp_path, place):
    file = GltfFile()
    rows = file.view(np.array([2, 3], np.uint16).tobytes())
    moves = file.view(np.array([[0, 0.2, 0]] * 2, np.float32).tobytes())
    file.json["accessors"].append(
        {
            "componentType": 5126,
            "count": 4,
            "type": "VEC3",
            "sparse": {
                "count": 2,
                "indices": {"bufferView": rows, "componentType": 5123},
                "values": {"bufferView": moves},
            },
        }
    )
    part = file.primitive(targets=[{"POSITION": len(file.json["accessors"]) - 1}])
    file.node(
        part, mesh={"weights": [0.5 if place == "mesh" else 0.0]}, **({"weights": [0.5]} if place == "node" else {})
    )
    mesh = read_cad(file.write(tmp_path / "a.glb")).mesh
    np.testing.assert_allclose(mesh.bounds, [[0, 0, 0], [0.1, 0.2, 0]], atol=1e-6)


BLACK = {"baseColorFactor": [0, 0, 0, 1]}


def test_emission_is_added_to_the_base_colour(tmp_path):
    file = GltfFile()
    glow = {"index": file.image(QUARTERS)}
    image = {"index": file.image(np.full((32, 32, 3), RED))}
    file.node(file.primitive(material=file.material(pbrMetallicRoughness=BLACK, emissiveFactor=[1, 0.8, 0])))
    part = file.material(pbrMetallicRoughness=BLACK, emissiveFactor=[1, 1, 1], emissiveTexture=glow)
    file.node(file.primitive(material=part, uv=SQUARE_UV), translation=[0.2, 0, 0])
    both = file.material(
        pbrMetallicRoughness={"baseColorTexture": image}, emissiveFactor=[1, 1, 1], emissiveTexture=glow
    )
    file.node(file.primitive(material=both, uv=SQUARE_UV), translation=[0.4, 0, 0])
    dim = {"KHR_materials_emissive_strength": {"emissiveStrength": 0.5}}
    strong = file.material(pbrMetallicRoughness=BLACK, emissiveFactor=[0, 0, 1], extensions=dim)
    file.node(file.primitive(material=strong), translation=[0.6, 0, 0])
    added = {at: np.maximum(colour, RED) for at, colour in CENTRES.items()}
    check(
        read_cad(file.write(tmp_path / "a.glb")),
        {
            (0.05, 0.02): srgb([1, 0.8, 0]),
            **{(x + 0.2, y): colour for (x, y), colour in CENTRES.items()},
            **{(x + 0.4, y): colour for (x, y), colour in added.items()},
            (0.65, 0.02): srgb([0, 0, 0.5]),
        },
    )


def test_unlit_has_its_base_colour(tmp_path):
    file = GltfFile()
    material = textured(file)
    file.json["materials"][material]["extensions"] = {"KHR_materials_unlit": {}}
    file.node(file.primitive(uv=SQUARE_UV, material=material))
    check(read_cad(file.write(tmp_path / "a.glb", extensionsRequired=["KHR_materials_unlit"])), CENTRES)


LATTICE = np.dstack([QUARTERS, np.kron(np.array([[255, 128], [60, 0]]), np.ones((16, 16)))]).astype(np.uint8)


@pytest.mark.parametrize(
    ("cutoff", "factor", "solid"),
    [
        (None, 1.0, {RED, GREEN}),
        (0.2, 1.0, {RED, GREEN, BLUE}),
        (0.0, 1.0, {RED, GREEN, BLUE, YELLOW}),
        (0.5, 0.9, {RED}),
    ],
)
@pytest.mark.parametrize("other", [False, True])
def test_holes_of_a_mask(tmp_path, cutoff, factor, solid, other):
    """Alpha of the texture times that of the factor against the cut-off; beside an opaque part too."""
    file = GltfFile()
    extra = {} if cutoff is None else {"alphaCutoff": cutoff}
    base = {"baseColorTexture": {"index": file.image(LATTICE)}, "baseColorFactor": [1, 1, 1, factor]}
    file.node(
        file.primitive(uv=SQUARE_UV, material=file.material(pbrMetallicRoughness=base, alphaMode="MASK", **extra))
    )
    if other:  # opaque: its alpha means nothing
        opaque = file.material(pbrMetallicRoughness={"baseColorTexture": {"index": file.image(LATTICE)}})
        file.node(file.primitive(uv=SQUARE_UV, material=opaque), translation=[0.2, 0, 0])
    mesh = read_cad(file.write(tmp_path / "a.glb")).mesh
    for (x, y), colour in CENTRES.items():
        seen = colour_at(mesh, x, y)
        assert (seen is not None) == (colour in solid)
        if other:
            np.testing.assert_allclose(colour_at(mesh, x + 0.2, y), colour, atol=3)


def test_a_mask_by_its_factor_or_its_vertices_alone(tmp_path):
    file = GltfFile()
    for step, (factor, alpha) in enumerate([(1.0, None), (0.3, None), (1.0, 0.3), (1.0, 0.7)]):
        material = file.material(pbrMetallicRoughness={"baseColorFactor": [1, 1, 1, factor]}, alphaMode="MASK")
        colours = {} if alpha is None else {"COLOR_0": file.accessor(np.full((4, 4), alpha, np.float32))}
        file.node(file.primitive(material=material, **colours), translation=[0.2 * step, 0, 0])
    mesh = read_cad(file.write(tmp_path / "a.glb")).mesh
    assert len(mesh.faces) == 4
    np.testing.assert_allclose(mesh.bounds[:, 0], [0, 0.7], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.2])
def test_a_nearly_transparent_hull_is_left_out_and_named(tmp_path, alpha):
    file = GltfFile()
    hull = file.material(pbrMetallicRoughness={"baseColorFactor": [1, 1, 1, alpha]}, alphaMode="BLEND")
    red = file.material(pbrMetallicRoughness={"baseColorFactor": [1, 0, 0, 1]})
    file.node(file.primitive(material=hull), scale=[3, 3, 3])
    file.node(file.primitive(material=red))
    model = read_cad(file.write(tmp_path / "a.glb"))
    np.testing.assert_allclose(model.mesh.bounds, [[0, 0, 0], [0.1, 0.1, 0]], atol=1e-6)
    assert model.warnings == ("a.glb: not drawn: 1 nearly transparent surface (opacity below 0.25)",)


def test_glass_alone_is_drawn_and_named(tmp_path):
    file = GltfFile()
    glass = file.material(pbrMetallicRoughness={"baseColorFactor": [0, 0, 1, 0.1]}, alphaMode="BLEND")
    file.node(file.primitive(material=glass))
    check(
        read_cad(file.write(tmp_path / "a.glb")),
        {(0.05, 0.02): BLUE},
        ["a.glb: not drawn: semi-transparency (drawn opaque)"],
    )


def test_specular_glossiness(tmp_path):
    """A plastic shows its diffuse texture, a metal what it mirrors."""
    file = GltfFile()
    name = "KHR_materials_pbrSpecularGlossiness"
    plastic = {"diffuseTexture": {"index": file.image(QUARTERS)}, "specularFactor": [0.04, 0.04, 0.04]}
    gold = {"diffuseFactor": [0, 0, 0, 1], "specularFactor": [1, 0.76, 0.33], "glossinessFactor": 0.75}
    file.node(file.primitive(uv=SQUARE_UV, material=file.material(extensions={name: plastic})))
    file.node(file.primitive(material=file.material(extensions={name: gold})), translation=[0.2, 0, 0])
    model = read_cad(file.write(tmp_path / "a.glb"))
    check(model, {**CENTRES, (0.25, 0.02): srgb([1, 0.76, 0.33])})
    assert model.mesh.metadata["metallic"] == pytest.approx(0.5, abs=0.02)
    assert model.mesh.metadata["roughness"] == pytest.approx((0 + 0.25) / 2)


def test_a_bright_specular_colour_does_not_hide_the_diffuse_texture(tmp_path):
    file = GltfFile()
    values = {"diffuseTexture": {"index": file.image(QUARTERS)}, "specularFactor": [0.4, 0.4, 0.4]}
    material = file.material(extensions={"KHR_materials_pbrSpecularGlossiness": {**values, "glossinessFactor": 0.3}})
    file.node(file.primitive(uv=SQUARE_UV, material=material))
    lit = {at: srgb(0.6 * linear_from_srgb(np.array(colour) / 255) + 0.4) for at, colour in CENTRES.items()}
    check(read_cad(file.write(tmp_path / "a.glb")), lit)


def test_cameras_lights_and_other_scenes(tmp_path):
    file = GltfFile()
    file.node(file.primitive())
    file.node(camera=0, extensions={"KHR_lights_punctual": {"light": 0}})
    file.json["scenes"].append({"nodes": [0, 1]})
    lights = {"KHR_lights_punctual": {"lights": [{"type": "directional"}]}}
    cameras = [{"type": "perspective", "perspective": {"yfov": 1, "znear": 0.1}}]
    model = read_cad(file.write(tmp_path / "a.glb", cameras=cameras, extensions=lights))
    assert len(model.mesh.faces) == 2
    assert model.warnings == ("a.glb: not drawn: 1 of its 2 scenes",)


def test_without_scenes_all_that_is_a_root_is_drawn(tmp_path):
    file = GltfFile()
    child = file.node(file.primitive(), root=False, translation=[0.1, 0, 0])
    file.node(file.primitive(), children=[child], translation=[0.1, 0, 0])
    mesh = read_cad(file.write(tmp_path / "a.glb", scene=None, scenes=None)).mesh
    assert len(mesh.faces) == 4
    np.testing.assert_allclose(mesh.bounds[:, 0], [0.1, 0.3], atol=1e-6)


def test_hidden_nodes_are_not_drawn(tmp_path):
    file = GltfFile()
    file.node(file.primitive())
    file.node(file.primitive(), translation=[1, 0, 0], extensions={"KHR_node_visibility": {"visible": False}})
    assert len(read_cad(file.write(tmp_path / "a.glb")).mesh.faces) == 2


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_an_old_version_is_named(tmp_path, suffix):
    path = GltfFile().write(tmp_path / f"a{suffix}", asset={"version": "1.0"}, meshes={"box": {}})
    with pytest.raises(MeshError, match=r"is glTF 1\.0, only 2\.0 can be read"):
        read_cad(path)


def test_meshopt_compression(tmp_path):
    meshoptimizer = pytest.importorskip("meshoptimizer")
    file = GltfFile()
    part = file.primitive(uv=SQUARE_UV, material=textured(file))
    file.node(part)

    def pack(number, values, mode):
        """Replace an accessor's view by a compressed one."""
        view = file.json["bufferViews"][file.json["accessors"][number]["bufferView"]]
        stride = values.dtype.itemsize * (values.shape[1] if values.ndim > 1 else 1)
        if mode == "TRIANGLES":
            data = meshoptimizer.encode_index_buffer(values.astype(np.uint32), len(values), len(SQUARE))
        else:
            data = meshoptimizer.encode_vertex_buffer(values, len(values), stride)
        packed = file.json["bufferViews"][file.view(bytes(data))]
        view["extensions"] = {
            "EXT_meshopt_compression": {**packed, "byteStride": stride, "count": len(values), "mode": mode}
        }
        view["buffer"] = 1

    pack(part["attributes"]["POSITION"], SQUARE, "ATTRIBUTES")
    pack(part["attributes"]["TEXCOORD_0"], SQUARE_UV, "ATTRIBUTES")
    pack(part["indices"], SQUARE_FACES, "TRIANGLES")
    fallback = {"byteLength": 1000, "extensions": {"EXT_meshopt_compression": {"fallback": True}}}
    buffers = [{"byteLength": len(file.blob)}, fallback]
    path = file.write(tmp_path / "a.glb", buffers=buffers, extensionsRequired=["EXT_meshopt_compression"])
    model = read_cad(path)
    assert model.mesh.area == pytest.approx(0.01)
    check(model, CENTRES)


@pytest.mark.parametrize(("package", "extension"), [("DracoPy", "KHR_draco"), ("meshoptimizer", "EXT_meshopt")])
def test_a_missing_decoder_is_named(tmp_path, monkeypatch, package, extension):
    import sys

    file = GltfFile()
    part = file.primitive()
    file.node(part)
    if package == "DracoPy":
        part["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    else:
        packed = {"buffer": 0, "byteLength": 48, "byteStride": 12, "count": 4, "mode": "ATTRIBUTES"}
        file.json["bufferViews"][0]["extensions"] = {"EXT_meshopt_compression": packed}
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MeshError, match=f"pip install {package}"):
        read_cad(file.write(tmp_path / "a.glb"))


def test_a_node_that_is_its_own_ancestor_is_refused(tmp_path):
    file = GltfFile()
    file.node(file.primitive(), children=[1])
    file.node(root=False, children=[0])
    with pytest.raises(MeshError, match="its own ancestor"):
        read_cad(file.write(tmp_path / "a.glb"))


def test_a_text_file_with_its_buffer_inside(tmp_path):
    file = GltfFile()
    file.node(file.primitive(uv=SQUARE_UV, material=textured(file)))
    path = file.write(tmp_path / "a.gltf")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert json.loads(path.read_bytes().decode("utf-8-sig"))
    check(read_cad(path), CENTRES)


def test_a_surface_that_is_all_hole_is_refused(tmp_path):
    file = GltfFile()
    file.node(file.primitive(material=file.material(alphaMode="MASK", alphaCutoff=1.1)))
    with pytest.raises(MeshError, match="its whole surface is a hole"):
        read_cad(file.write(tmp_path / "a.glb"))


def test_blended_vertices_alone_are_drawn(tmp_path):
    file = GltfFile()
    colours = file.accessor(np.array([[1, 0, 0, alpha] for alpha in (0.2, 0.2, 0.6, 0.2)], np.float32))
    file.node(file.primitive(material=file.material(alphaMode="BLEND"), COLOR_0=colours))
    model = read_cad(file.write(tmp_path / "a.glb"))
    check(model, {(0.05, 0.02): RED}, ["a.glb: not drawn: semi-transparency (drawn opaque)"])
