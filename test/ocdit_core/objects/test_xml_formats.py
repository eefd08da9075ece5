"""3MF and COLLADA as other programs write them, each with the value that is right."""

import io
import zipfile

import numpy as np
import pytest
from gltf_files import colour_at
from PIL import Image

from ocdit_core.errors import MeshError
from ocdit_core.objects.meshes import read_cad

RED, GREEN, BLUE, YELLOW, GREY = (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (165, 165, 165)
QUARTERS = np.kron(np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8), np.ones((16, 16, 1), np.uint8))
CENTRES = {(0.02, 0.08): RED, (0.08, 0.08): GREEN, (0.02, 0.02): BLUE, (0.08, 0.02): YELLOW}


def check(model, colours, warnings=()):
    assert model.warnings == tuple(warnings)
    for (x, y), colour in colours.items():
        np.testing.assert_allclose(colour_at(model.mesh, x, y), colour, atol=3, err_msg=str((x, y)))


# 3MF

RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r" '
    'Target="/3D/3dmodel.model" Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>'
)
NAMES = (
    'xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02" '
    'xmlns:m="http://schemas.microsoft.com/3dmanufacturing/material/2015/02" '
    'xmlns:p="http://schemas.microsoft.com/3dmanufacturing/production/2015/06"'
)
VERTICES = "".join(f'<vertex x="{x}" y="{y}" z="0"/>' for x, y in ((0, 0), (100, 0), (100, 100), (0, 100)))


def mesh_3mf(first="", second=""):
    return (
        f"<mesh><vertices>{VERTICES}</vertices><triangles>"
        f'<triangle v1="0" v2="1" v3="2" {first}/><triangle v1="0" v2="2" v3="3" {second}/></triangles></mesh>'
    )


def write_3mf(path, resources, build='<item objectid="1"/>', unit='unit="millimeter"', **others):
    model = f"<model {unit} {NAMES}><resources>{resources}</resources><build>{build}</build></model>"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("_rels/.rels", RELATIONS)
        archive.writestr("3D/3dmodel.model", model)
        for name, data in others.items():
            archive.writestr(f"3D/{name.replace('_', '.')}", data)
    return path


@pytest.mark.parametrize(
    ("unit", "metres", "name"),
    [("micron", 1e-6, "um"), ("millimeter", 1e-3, "mm"), ("centimeter", 0.01, "cm"), ("inch", 0.0254, "in"),
     ("foot", 0.3048, "ft"), ("meter", 1.0, "m"), (None, 1e-3, "mm")],
)  # fmt: skip
def test_3mf_units(tmp_path, unit, metres, name):
    stated = "" if unit is None else f'unit="{unit}"'
    scale = 0.001 / metres  # 0.1 m in each
    build = f'<item objectid="1" transform="{scale} 0 0 0 {scale} 0 0 0 {scale} 0 0 0"/>'
    model = read_cad(write_3mf(tmp_path / "a.3mf", f'<object id="1">{mesh_3mf()}</object>', build, stated))
    assert (model.unit, model.guessed, model.warnings) == (name, False, ())
    np.testing.assert_allclose(model.mesh.bounds, [[0, 0, 0], [0.1, 0.1, 0]], atol=1e-9)


def test_3mf_base_materials_of_objects_and_of_faces(tmp_path):
    base = '<base name="a" displaycolor="#FA0000"/><base name="b" displaycolor="#0000FAFF"/>'
    materials = f'<basematerials id="5">{base}</basematerials>'
    mesh = mesh_3mf("", 'pid="5" p1="0"')
    item = f'<object id="1" pid="5" pindex="1">{mesh}</object>'
    check(read_cad(write_3mf(tmp_path / "a.3mf", materials + item)), {(0.08, 0.02): BLUE, (0.02, 0.08): RED})


def test_3mf_colour_groups(tmp_path):
    colours = "".join(f'<m:color color="#{bytes(colour).hex()}"/>' for colour in (RED, GREEN, BLUE))
    group = f'<m:colorgroup id="5">{colours}</m:colorgroup>'
    mesh = mesh_3mf('pid="5" p1="0" p2="1" p3="2"', 'pid="5" p1="1"')
    item = f'<object id="1">{mesh}</object>'
    model = read_cad(write_3mf(tmp_path / "a.3mf", group + item))
    check(model, {(0.1, 0.0): GREEN, (0.05, 0.0): (125, 125, 0), (0.1, 0.05): (0, 125, 125), (0.02, 0.08): GREEN})


def test_3mf_textures_composites_and_what_is_not_drawn(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(QUARTERS).save(stream, "PNG")
    texture = '<m:texture2d id="7" path="/3D/t.png" contenttype="image/png" tilestyleu="clamp"/>'
    corners = "".join(f'<m:tex2coord u="{u}" v="{v}"/>' for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)))
    group = f'<m:texture2dgroup id="5" texid="7">{corners}</m:texture2dgroup>'
    painted = mesh_3mf("pid='5' p1='0' p2='1' p3='2'", "pid='5' p1='0' p2='2' p3='3' paint_color='4'")
    support = f'<object id="2" type="support">{mesh_3mf()}</object>'
    build = '<item objectid="1"/><item objectid="2"/>'
    resources = texture + group + f'<object id="1">{painted}</object>' + support
    model = read_cad(write_3mf(tmp_path / "a.3mf", resources, build, t_png=stream.getvalue()))
    warnings = ["a.3mf: not drawn: colours painted in a slicer, support structures"]
    check(model, CENTRES, warnings)
    base = '<base name="a" displaycolor="#FA0000"/><base name="b" displaycolor="#0000FA"/>'
    base = f'<basematerials id="5">{base}</basematerials>'
    mix = (
        '<m:compositematerials id="6" matid="5" matindices="0 1"><m:composite values="0.5 0.5"/></m:compositematerials>'
    )
    item = f'<object id="1" pid="6" pindex="0">{mesh_3mf()}</object>'
    check(read_cad(write_3mf(tmp_path / "b.3mf", base + mix + item)), {(0.05, 0.02): (125, 0, 125)})
    several = '<m:multiproperties id="6" pids="5 9"><m:multi pindices="1 0"/></m:multiproperties>'
    model = read_cad(write_3mf(tmp_path / "c.3mf", base + several + item))
    check(model, {(0.05, 0.02): (0, 0, 250)}, ["c.3mf: not drawn: layers of properties other than colours"])


def test_3mf_components_in_another_file(tmp_path):
    other = (
        f'<model unit="millimeter" {NAMES}><resources><object id="9">{mesh_3mf()}</object></resources><build/></model>'
    )
    move = 'transform="1 0 0 0 1 0 0 0 1 200 0 0"'
    item = f'<object id="1"><components><component objectid="9" p:path="/3D/other.model" {move}/></components></object>'
    build = '<item objectid="1" transform="2 0 0 0 2 0 0 0 2 0 0 50"/>'
    model = read_cad(write_3mf(tmp_path / "a.3mf", item, build, other_model=other))
    np.testing.assert_allclose(model.mesh.bounds, [[0.4, 0, 0.05], [0.6, 0.2, 0.05]], atol=1e-9)
    loop = '<object id="1"><components><component objectid="1"/></components></object>'
    with pytest.raises(MeshError, match="contain themselves"):
        read_cad(write_3mf(tmp_path / "b.3mf", loop))


# COLLADA

SOURCES = """
<source id="p"><float_array id="pa" count="12">0 0 0 0.1 0 0 0.1 0.1 0 0 0.1 0</float_array><technique_common>
<accessor source="#pa" count="4" stride="3"/></technique_common></source>
<source id="t"><float_array id="ta" count="8">0 0 1 0 1 1 0 1</float_array><technique_common>
<accessor source="#ta" count="4" stride="2"/></technique_common></source>
<source id="c"><float_array id="ca" count="12">0.98 0 0 0 0.98 0 0 0 0.98 0.98 0.98 0</float_array><technique_common>
<accessor source="#ca" count="4" stride="3"/></technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#p"/></vertices>"""
INPUTS = '<input semantic="VERTEX" source="#v" offset="0"/>'
SQUARE = f'<polylist count="1" material="m">{INPUTS}<vcount>4</vcount><p>0 1 2 3</p></polylist>'


def effect(channels, params=""):
    return (
        f'<library_effects><effect id="fx"><profile_COMMON>{params}<technique sid="t"><phong>{channels}</phong>'
        '</technique></profile_COMMON></effect></library_effects><library_materials><material id="mat">'
        '<instance_effect url="#fx"/></material></library_materials>'
    )


def write_dae(
    path, primitives=SQUARE, *, materials="", controllers="", nodes=None, unit='<unit meter="1"/>', sources=SOURCES
):
    bound = '<instance_material symbol="m" target="#mat"/>'
    bound = f"<bind_material><technique_common>{bound}</technique_common></bind_material>"
    nodes = nodes or f'<node><instance_geometry url="#geo">{bound if materials else ""}</instance_geometry></node>'
    path.write_text(
        '<?xml version="1.0"?><COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">'
        f'<asset>{unit}<up_axis>Z_UP</up_axis></asset>{materials}<library_geometries><geometry id="geo"><mesh>'
        f"{sources}{primitives}</mesh></geometry></library_geometries>{controllers}<library_visual_scenes>"
        f'<visual_scene id="s">{nodes}</visual_scene></library_visual_scenes><scene>'
        '<instance_visual_scene url="#s"/></scene></COLLADA>'
    )
    return path


@pytest.mark.parametrize(
    "primitives",
    [
        SQUARE,
        f'<triangles count="2">{INPUTS}<p>0 1 2 0 2 3</p></triangles>',
        f"<polygons>{INPUTS}<p>0 1 2 3</p></polygons>",
        f'<tristrips count="1">{INPUTS}<p>0 1 3 2</p></tristrips>',
        f'<trifans count="1">{INPUTS}<p>0 1 2 3</p></trifans>',
    ],
)
def test_dae_primitives(tmp_path, primitives):
    mesh = read_cad(write_dae(tmp_path / "a.dae", primitives)).mesh
    assert mesh.area == pytest.approx(0.01)
    np.testing.assert_allclose(mesh.face_normals, [[0, 0, 1]] * 2)


@pytest.mark.parametrize(("meter", "name"), [("0.5", "0.5 m"), ("0.3048", "ft"), ("0.1", "0.1 m"), ("0,01", "cm")])
def test_dae_units(tmp_path, meter, name):
    scale = 1 / float(meter.replace(",", "."))
    nodes = f'<node><scale>{scale} {scale} {scale}</scale><instance_geometry url="#geo"/></node>'
    model = read_cad(write_dae(tmp_path / "a.dae", nodes=nodes, unit=f'<unit name="x" meter="{meter}"/>'))
    assert (model.unit, model.guessed, model.warnings) == (name, False, ())
    assert model.diameter == pytest.approx(0.1 * 2**0.5)


def test_dae_decimal_commas(tmp_path):
    sources = SOURCES.replace("0.1", "0,1")
    assert read_cad(write_dae(tmp_path / "a.dae", sources=sources)).mesh.area == pytest.approx(0.01)


@pytest.mark.parametrize("materials", ["", effect("<diffuse><color>0.5 0.5 0.5 1</color></diffuse>")])
def test_dae_vertex_colours_beside_a_material(tmp_path, materials):
    coloured = SQUARE.replace(INPUTS, INPUTS + '<input semantic="COLOR" source="#c" offset="1"/>')
    coloured = coloured.replace("0 1 2 3", "0 0 1 1 2 2 3 3")
    model = read_cad(write_dae(tmp_path / "a.dae", coloured, materials=materials))
    check(model, {(0.0, 0.0): RED, (0.1, 0.0): GREEN, (0.1, 0.1): BLUE, (0.0, 0.1): YELLOW})


def test_dae_colours_emission_and_transparency(tmp_path):
    look = effect("<emission><color>0 0 1 1</color></emission><diffuse><color>0.5 0 0 1</color></diffuse>")
    check(read_cad(write_dae(tmp_path / "a.dae", materials=look)), {(0.05, 0.02): (128, 0, 255)})
    glass = (
        '<diffuse><color>0 1 0 1</color></diffuse><transparent opaque="A_ONE"><color>1 1 1 0.2</color></transparent>'
    )
    check(
        read_cad(write_dae(tmp_path / "b.dae", materials=effect(glass))),
        {(0.05, 0.02): (0, 255, 0)},
        ["b.dae: not drawn: transparency"],
    )


def test_dae_texture_wraps_and_chosen_coordinates(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "t.png")
    params = '<newparam sid="s"><surface type="2D"><init_from>img</init_from></surface></newparam>'
    params += '<newparam sid="q"><sampler2D>'
    params += "<source>s</source><wrap_s>CLAMP</wrap_s><wrap_t>MIRROR</wrap_t></sampler2D></newparam>"
    images = '<library_images><image id="img"><init_from>file:///C:/old/T.PNG</init_from></image></library_images>'
    look = images + effect('<diffuse><texture texture="q" texcoord="UV1"/></diffuse>', params)
    inputs = INPUTS + '<input semantic="TEXCOORD" source="#c" offset="0" set="0"/>'
    inputs += '<input semantic="TEXCOORD" source="#t" offset="0" set="1"/>'
    bind = '<bind_vertex_input semantic="UV1" input_semantic="TEXCOORD" input_set="1"/></instance_material>'
    material = f'<instance_material symbol="m" target="#mat">{bind}'
    bound = f"<bind_material><technique_common>{material}</technique_common></bind_material>"
    nodes = f'<node><instance_geometry url="#geo">{bound}</instance_geometry></node>'
    wide = SOURCES.replace("0 0 1 0 1 1 0 1", "-1 0 2 0 2 1 -1 1")
    square = SQUARE.replace(INPUTS, inputs)
    path = write_dae(tmp_path / "a.dae", square, materials=look, nodes=nodes)
    check(read_cad(path), CENTRES, ["a.dae: not drawn: further sets of texture coordinates"])
    model = read_cad(write_dae(tmp_path / "b.dae", square, materials=look, nodes=nodes, sources=wide))
    colours = {(0.01, 0.08): RED, (0.04, 0.08): RED, (0.06, 0.08): GREEN, (0.09, 0.08): GREEN}
    check(model, colours, ["b.dae: not drawn: further sets of texture coordinates"])


MATRIX = "1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"


@pytest.mark.parametrize("found", [True, False])
def test_dae_skin_in_its_pose(tmp_path, found):
    """The upper two points belong to a joint that stands 0.3 m above where it was bound."""
    controllers = f"""<library_controllers><controller id="skin"><skin source="#geo"><bind_shape_matrix>{MATRIX}
</bind_shape_matrix><source id="j"><Name_array count="2">low high</Name_array></source><source id="b"><float_array>
{MATRIX} {MATRIX}</float_array><technique_common><accessor count="2" stride="16"/></technique_common></source>
<source id="w"><float_array>1 0.5</float_array><technique_common><accessor count="2" stride="1"/></technique_common>
</source><joints><input semantic="JOINT" source="#j"/><input semantic="INV_BIND_MATRIX" source="#b"/></joints>
<vertex_weights count="4"><input semantic="JOINT" source="#j" offset="0"/>
<input semantic="WEIGHT" source="#w" offset="1"/>
<vcount>1 1 2 2</vcount><v>0 0 0 0 1 1 1 1 1 1 1 1</v></vertex_weights></skin></controller></library_controllers>"""
    high = f'<node id="x" sid="{"high" if found else "other"}" type="JOINT"><translate>0 0.3 0</translate></node>'
    nodes = f'<node sid="low" type="JOINT">{high}</node><node><translate>5 0 0</translate>'
    nodes += '<instance_controller url="#skin"/></node>'
    model = read_cad(write_dae(tmp_path / "a.dae", controllers=controllers, nodes=nodes))
    np.testing.assert_allclose(model.mesh.bounds, [[0, 0, 0], [0.1, 0.4 if found else 0.1, 0]], atol=1e-9)
    assert len(model.warnings) == (not found)


MORPH = """<library_controllers><controller id="morph"><morph source="#geo" method="NORMALIZED">
<source id="mt"><IDREF_array count="1">geo2</IDREF_array></source><source id="mw"><float_array>0.5</float_array>
<technique_common><accessor count="1" stride="1"/></technique_common></source><targets>
<input semantic="MORPH_TARGET" source="#mt"/>
<input semantic="MORPH_WEIGHT" source="#mw"/></targets></morph></controller>
</library_controllers><library_geometries><geometry id="geo2"><mesh><source id="p2"><float_array>0 0 0 0.1 0 0 0.1 0.3 0
0 0.3 0</float_array><technique_common><accessor count="4" stride="3"/></technique_common></source><vertices id="v2">
<input semantic="POSITION" source="#p2"/></vertices></mesh></geometry></library_geometries>"""


def test_dae_morph_and_nested_nodes(tmp_path):
    inner = '<node><translate>0.5 0 0</translate><instance_controller url="#morph"/></node>'
    nodes = f"<node><rotate>0 0 1 90</rotate>{inner}</node>"
    mesh = read_cad(write_dae(tmp_path / "a.dae", controllers=MORPH, nodes=nodes)).mesh
    np.testing.assert_allclose(mesh.bounds, [[-0.2, 0.5, 0], [0, 0.6, 0]], atol=1e-9)


def test_dae_lines_and_other_geometry_are_named(tmp_path):
    lines = f'<lines count="1">{INPUTS}<p>0 1</p></lines>'
    check(read_cad(write_dae(tmp_path / "a.dae", SQUARE + lines)), {(0.05, 0.02): GREY}, ["a.dae: not drawn: lines"])


def test_dae_without_its_material_or_its_unit(tmp_path):
    nodes = '<node><instance_geometry url="#geo"><bind_material><technique_common>'
    nodes += (
        '<instance_material symbol="m" target="#gone"/></technique_common></bind_material></instance_geometry></node>'
    )
    model = read_cad(write_dae(tmp_path / "a.dae", nodes=nodes, unit=""))
    assert model.guessed
    check(model, {(0.05, 0.02): GREY}, ["a.dae: its material #gone is missing; drawn in neutral grey"])
