"""The table of formats in docs/objects.md says what a small file of each kind really gives.

`python test/ocdit_core/objects/test_format_table.py` writes the table anew.
"""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import test_plain_formats as plain
from gltf_files import SQUARE, SQUARE_UV, GltfFile, colour_at
from test_cad import DIRECTX, FBX, step_box, usd_material, usd_square
from test_plain_formats import POINTS, QUARTERS, TEXTURED, image
from test_plain_formats import SQUARE as POSITIONS
from test_xml_formats import INPUTS, MORPH, effect, mesh_3mf, write_3mf, write_dae
from test_xml_formats import SQUARE as POLYGON

from ocdit_core.errors import MeshError
from ocdit_core.objects.meshes import read_cad

DOCUMENT = Path(__file__).parents[3] / "docs" / "objects.md"
FEATURES = (
    "texture", "vertex colour", "face or material colour", "hierarchy", "unit", "holes", "skin or morph", "lines",
    "normal, bump or displacement", "animation",
)  # fmt: skip
RED = (250, 0, 0)
HOLES = np.dstack([QUARTERS, np.kron([[255, 0], [255, 255]], np.ones((16, 16)))])


def gltf(folder, feature):
    file = GltfFile()
    holes = {"alphaMode": "MASK"} if feature == "holes" else {}
    base = {"baseColorTexture": {"index": file.image(HOLES)}} if feature in ("texture", "holes") else {}
    base |= {"baseColorFactor": [0.956, 0, 0, 1]} if feature == "face or material colour" else {}
    extra = {"uv": SQUARE_UV, "material": file.material(pbrMetallicRoughness=base, **holes)}
    if feature == "vertex colour":
        extra["COLOR_0"] = file.accessor(np.tile(np.array([[0.956, 0, 0]], np.float32), (4, 1)))
    if feature == "skin or morph":
        extra["targets"] = [{"POSITION": file.accessor(SQUARE)}]
    if feature == "normal, bump or displacement":
        extra["material"] = file.material(normalTexture={"index": file.image(QUARTERS)})
    if feature == "animation":
        file.json["animations"] = [{"channels": [{"sampler": 0, "target": {"node": 0}}]}]
    node = {"scale": [2, 2, 2]} if feature == "hierarchy" else {}
    lines = [file.primitive(mode=1)] if feature == "lines" else []
    file.node(file.primitive(**extra), *lines, mesh={"weights": [1]} if feature == "skin or morph" else {}, **node)
    return file.write(folder / "a.glb")


def obj(folder, feature):
    image(folder / "t.png")
    image(folder / "m.png", HOLES[..., 3])
    looks = {"texture": "map_Kd t.png", "holes": "map_Kd t.png\nmap_d m.png", "face or material colour": "Kd 0.98 0 0"}
    looks["normal, bump or displacement"] = "Kd 1 1 1\nmap_Bump t.png"
    coloured = "".join(f"v {x} {y} {z} 0.98 0 0\n" for x, y, z in POSITIONS) + "f 1 2 3 4\n"
    bodies = {"vertex colour": coloured, "lines": POINTS + "f 1 2 3 4\nl 1 2\n"}
    if feature not in (*looks, *bodies):
        return None
    (folder / "a.mtl").write_text(f"newmtl m\n{looks.get(feature, 'Kd 1 1 1')}\n")
    (folder / "a.obj").write_text("mtllib a.mtl\n" + bodies.get(feature, TEXTURED))
    return folder / "a.obj"


def ply(folder, feature):
    image(folder / "t.png")
    colour = [(name, "uchar") for name in ("red", "green", "blue")]
    uv = {"rows": [(0, 0), (1, 0), (1, 1), (0, 1)], "comments": ["comment TextureFile t.png"]}
    made = {
        "texture": lambda path: plain.TestPly().write(path, [("s", "float"), ("t", "float")], **uv),
        "vertex colour": lambda path: plain.TestPly().write(path, colour, rows=[RED] * 4),
        "face or material colour": lambda path: plain.TestPly().write(path, [], colour, faces=[[4, 0, 1, 2, 3, *RED]]),
        "lines": lambda path: plain.TestPly().write(path, []),
    }
    if feature not in made:
        return None
    path = made[feature](folder / "a.ply")
    if feature == "lines":
        edge = b"element edge 1\nproperty int vertex1\nproperty int vertex2\nend_header"
        path.write_bytes(path.read_bytes().replace(b"end_header", edge) + b"0 1\n")
    return path


def stl(folder, feature):
    red = 1 << 15 | 31 << 10
    coloured = feature == "face or material colour"
    return plain.TestStl().binary(folder / "a.stl", attributes=(red, red)) if coloured else None


def off(folder, feature):
    corners = (" 250 0 0",) * 4
    if feature == "vertex colour":
        return plain.TestOff().write(folder / "a.off", "COFF", corners)
    return plain.TestOff().write(folder / "a.off", face=" 250 0 0") if feature == "face or material colour" else None


def dae(folder, feature):
    image(folder / "t.png", HOLES if feature == "holes" else QUARTERS)
    textured = POLYGON.replace(INPUTS, INPUTS + '<input semantic="TEXCOORD" source="#t" offset="0"/>')
    textured_effect = '<diffuse><texture texture="t.png" texcoord="UV"/></diffuse>'
    masked = textured_effect + '<transparent><texture texture="t.png" texcoord="UV"/></transparent>'
    red = "<diffuse><color>0.98 0 0 1</color></diffuse>"
    made = {
        "texture": (textured, {"materials": effect(textured_effect)}),
        "holes": (textured, {"materials": effect(masked)}),
        "vertex colour": (POLYGON.replace(INPUTS, INPUTS + '<input semantic="COLOR" source="#r" offset="0"/>'), {}),
        "face or material colour": (POLYGON, {"materials": effect(red)}),
        "hierarchy": (POLYGON, {"nodes": '<node><scale>2 2 2</scale><instance_geometry url="#geo"/></node>'}),
        "unit": (POLYGON, {}),
        "normal, bump or displacement": (POLYGON, {"materials": effect(red + "<extra><bump/></extra>")}),
        "animation": (POLYGON, {"controllers": "<library_animations><animation/></library_animations>"}),
        "lines": (POLYGON + f'<lines count="1">{INPUTS}<p>0 1</p></lines>', {}),
    }
    if feature == "skin or morph":
        nodes = '<node><scale>2 1 1</scale><instance_controller url="#morph"/></node>'
        return write_dae(folder / "a.dae", controllers=MORPH, nodes=nodes)
    primitives, extra = made[feature]
    path = write_dae(folder / "a.dae", primitives, **extra)
    source = '<source id="r"><float_array>0.98 0 0 0.98 0 0 0.98 0 0 0.98 0 0</float_array><technique_common>'
    source += '<accessor stride="3"/></technique_common></source><vertices'
    path.write_text(path.read_text().replace("<vertices", source, 1))
    return path


def threemf(folder, feature):
    image(folder / "t.png")
    corners = "".join(f'<m:tex2coord u="{u}" v="{v}"/>' for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)))
    texture = f'<m:texture2d id="7" path="/3D/t.png"/><m:texture2dgroup id="5" texid="7">{corners}</m:texture2dgroup>'
    colours = '<m:colorgroup id="5"><m:color color="#FA0000"/></m:colorgroup>'
    base = '<basematerials id="5"><base name="a" displaycolor="#FA0000"/></basematerials>'
    red = 'pid="5" p1="0"'
    corner = mesh_3mf('pid="5" p1="0" p2="1" p3="2"', 'pid="5" p1="0" p2="2" p3="3"')
    made = {
        "texture": f'{texture}<object id="1">{corner}</object>',
        "vertex colour": f'{colours}<object id="1">{mesh_3mf(red, red)}</object>',
        "face or material colour": f'{base}<object id="1">{mesh_3mf(red, red)}</object>',
        "hierarchy": f'<object id="1">{mesh_3mf()}</object>',
        "unit": f'<object id="1">{mesh_3mf()}</object>',
    }
    if feature not in made:
        return None
    twice = '<item objectid="1" transform="2 0 0 0 2 0 0 0 2 0 0 0"/>'
    build = {"build": twice} if feature == "hierarchy" else {}
    return write_3mf(folder / "a.3mf", made[feature], t_png=(folder / "t.png").read_bytes(), **build)


def step(folder, feature):
    if feature not in ("face or material colour", "unit"):
        return None
    return step_box(folder / "a.step", 100, colour=(0.98, 0, 0))


def usd(folder, feature):
    from pxr import Sdf, Usd, UsdGeom

    image(folder / "t.png")
    stage = Usd.Stage.CreateNew(str(folder / "a.usda"))
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    mesh = usd_square(stage)
    if feature in ("holes", "skin or morph"):
        return None
    if feature == "texture":
        usd_material(stage, mesh, "./t.png")
    elif feature == "face or material colour":
        usd_material(stage, mesh, diffuseColor=(0.956, 0.0, 0.0))
    elif feature == "vertex colour":
        kind = Sdf.ValueTypeNames.Color3fArray
        UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("displayColor", kind, "vertex").Set([(0.956, 0, 0)] * 4)
    elif feature == "normal, bump or displacement":
        usd_material(stage, mesh, displacement=0.5)
    elif feature == "animation":
        stage.SetEndTimeCode(10)
    elif feature == "hierarchy":
        mesh.AddScaleOp().Set((2, 2, 2))
    elif feature == "lines":
        UsdGeom.BasisCurves.Define(stage, "/curve")
    stage.Save()
    return folder / "a.usda"


def fbx(folder, feature):
    if feature in ("texture", "hierarchy"):  # in DirectX's format, which the same package reads
        image(folder / "t.png")
        text = DIRECTX.replace("TEXTURE", 'TextureFilename { "t.png"; }').replace("0.2,0.0,0.0,1.0", "0.0,0.0,0.0,1.0")
        scaled = text.replace("{ 1.0,0.0,0.0,0.0", "{ 2.0,0.0,0.0,0.0") if feature == "hierarchy" else text
        (folder / "a.x").write_text(scaled)
        return folder / "a.x"
    if feature not in ("face or material colour", "unit"):
        return None
    (folder / "a.fbx").write_text(FBX.replace('"A",1,0,0', '"A",0.98,0,0'))
    return folder / "a.fbx"


FORMATS = {
    "GLB, glTF": gltf, "OBJ": obj, "PLY": ply, "STL": stl, "OFF": off, "COLLADA (DAE)": dae, "3MF": threemf,
    "STEP, IGES (`cascadio`)": step, "USD, USDZ (`usd-core`)": usd, "FBX, 3DS, X (`assimp-py`)": fbx,
}  # fmt: skip


def outcome(folder, make, feature):
    """Return "works", "warns", "refused" or, where the format has no such thing, "-"."""
    path = make(folder, feature)
    if path is None:
        return "-"
    try:
        model = read_cad(path)
    except MeshError:
        return "refused"
    if feature in ("texture", "holes", "vertex colour", "face or material colour"):
        assert np.abs(colour_at(model.mesh, 0.02, 0.08) - RED).max() < 8, (path.suffix, feature)
    if feature == "holes":
        assert colour_at(model.mesh, 0.08, 0.08) is None
    if feature in ("hierarchy", "skin or morph"):
        assert model.mesh.bounds[1, 0] == pytest.approx(0.2, rel=1e-4), (path.suffix, feature)
    if feature == "unit":
        assert not model.guessed
        assert model.mesh.bounds[1, 0] == pytest.approx(0.1, rel=1e-4)
    return "warns" if model.warnings else "works"


def table():
    rows = ["| format | " + " | ".join(FEATURES) + " |", "|---" * (len(FEATURES) + 1) + "|"]
    for name, make in FORMATS.items():
        cells = []
        for feature in FEATURES:
            with tempfile.TemporaryDirectory() as folder:
                cells.append(outcome(Path(folder), make, feature))
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def test_the_documented_table_of_formats_is_true():
    for package in ("cascadio", "pxr", "assimp_py"):
        pytest.importorskip(package)
    assert table() in DOCUMENT.read_text()


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    begin, end = text.index("| format | texture |"), text.index("\n\n", text.index("| format | texture |"))
    DOCUMENT.write_text(text[:begin] + table() + text[end:])
