"""Formats that other packages read: files made by those packages, or by hand where they only read."""

import sys

import numpy as np
import pytest
from gltf_files import colour_at
from PIL import Image

from ocdit_core.errors import MeshError
from ocdit_core.objects.meshes import read_cad

RED, GREEN, BLUE, YELLOW = (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)
QUARTERS = np.kron(np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8), np.ones((16, 16, 1), np.uint8))
CENTRES = {(0.02, 0.08): RED, (0.08, 0.08): GREEN, (0.02, 0.02): BLUE, (0.08, 0.02): YELLOW}
SQUARE = [(0, 0, 0), (0.1, 0, 0), (0.1, 0.1, 0), (0, 0.1, 0)]


def check(model, colours, warnings=()):
    assert model.warnings == tuple(warnings)
    for (x, y), colour in colours.items():
        np.testing.assert_allclose(colour_at(model.mesh, x, y), colour, atol=3, err_msg=str((x, y)))


# STEP and IGES


class StepFile:
    """Rows of a STEP file; a row is given as its entity with {} for the numbers of others."""

    def __init__(self):
        self.rows = []

    def add(self, entity, *references):
        self.rows.append(entity.format(*references))
        return f"#{len(self.rows)}"

    def chain(self, *entities):
        """Rows of which each refers to the one before."""
        number = ""
        for entity in entities:
            number = self.add(entity, number)
        return number

    def write(self, path):
        body = "\n".join(f"#{number}={row};" for number, row in enumerate(self.rows, 1))
        schema = "FILE_SCHEMA(('AUTOMOTIVE_DESIGN { 1 0 10303 214 1 1 1 1 }'))"
        head = f"HEADER;\nFILE_DESCRIPTION((''),'2;1');\nFILE_NAME('','',(''),(''),'','','');\n{schema};\nENDSEC;\n"
        path.write_text(f"ISO-10303-21;\n{head}DATA;\n{body}\nENDSEC;\nEND-ISO-10303-21;\n")
        return path


def step_box(path, side, colour=None, inches=False):
    """Write a box of flat faces, one corner at the origin, in millimetres or inches."""
    file = StepFile()

    def vector(kind, values):
        return file.add(kind + "('',({},{},{}))", *(f"{value:.6E}" for value in values))

    place = np.array([[(i >> k) & 1 for k in range(3)] for i in range(8)], float)
    corners = [vector("CARTESIAN_POINT", side * point) for point in place]
    faces = []
    for quad in [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]:
        a, b, c = place[list(quad[:3])]
        normal, along = vector("DIRECTION", np.cross(b - a, c - b)), vector("DIRECTION", b - a)
        axes = file.add("AXIS2_PLACEMENT_3D('',{},{},{})", corners[quad[0]], normal, along)
        loop = file.add("POLY_LOOP('',({},{},{},{}))", *(corners[i] for i in quad))
        bound, plane = file.add("FACE_OUTER_BOUND('',{},.T.)", loop), file.add("PLANE('',{})", axes)
        faces.append(file.add("FACE_SURFACE('',({}),{},.T.)", bound, plane))
    shell = file.add("CLOSED_SHELL('',({},{},{},{},{},{}))", *faces)
    brep = file.add("FACETED_BREP('box',{})", shell)
    unit = file.add("(LENGTH_UNIT()NAMED_UNIT(*)SI_UNIT(.MILLI.,.METRE.))")
    if inches:
        dimensions = file.add("DIMENSIONAL_EXPONENTS(1.,0.,0.,0.,0.,0.,0.)")
        measure = file.add("LENGTH_MEASURE_WITH_UNIT(LENGTH_MEASURE(25.4),{})", unit)
        unit = file.add("(CONVERSION_BASED_UNIT('INCH',{})LENGTH_UNIT()NAMED_UNIT({}))", measure, dimensions)
    angle = file.add("(NAMED_UNIT(*)PLANE_ANGLE_UNIT()SI_UNIT($,.RADIAN.))")
    solid = file.add("(NAMED_UNIT(*)SI_UNIT($,.STERADIAN.)SOLID_ANGLE_UNIT())")
    context = (
        "(GEOMETRIC_REPRESENTATION_CONTEXT(3)GLOBAL_UNIT_ASSIGNED_CONTEXT(({},{},{}))REPRESENTATION_CONTEXT('',''))"
    )
    context = file.add(context, unit, angle, solid)
    shape = file.add("FACETED_BREP_SHAPE_REPRESENTATION('',({}),{})", brep, context)
    application = file.add("APPLICATION_CONTEXT('automotive design')")
    formation = file.chain(
        f"PRODUCT_CONTEXT('',{application},'mechanical')",
        "PRODUCT('box','box','',({}))",
        "PRODUCT_DEFINITION_FORMATION('','',{})",
    )
    design = file.add("PRODUCT_DEFINITION_CONTEXT('part definition',{},'design')", application)
    definition = file.add("PRODUCT_DEFINITION('','',{},{})", formation, design)
    defined = file.add("PRODUCT_DEFINITION_SHAPE('','',{})", definition)
    file.add("SHAPE_DEFINITION_REPRESENTATION({},{})", defined, shape)
    if colour is not None:
        style = file.chain(
            "COLOUR_RGB('',{},{},{})".format(*colour),
            "FILL_AREA_STYLE_COLOUR('',{})",
            "FILL_AREA_STYLE('',({}))",
            "SURFACE_STYLE_FILL_AREA({})",
            "SURFACE_SIDE_STYLE('',({}))",
            "SURFACE_STYLE_USAGE(.BOTH.,{})",
            "PRESENTATION_STYLE_ASSIGNMENT(({}))",
        )
        item = file.add("STYLED_ITEM('',({}),{})", style, brep)
        file.add("MECHANICAL_DESIGN_GEOMETRIC_PRESENTATION_REPRESENTATION('',({}),{})", item, context)
    return file.write(path)


@pytest.mark.parametrize("suffix", [".step", ".stp"])
def test_step_has_its_unit_and_its_colour(tmp_path, suffix):
    pytest.importorskip("cascadio")
    model = read_cad(step_box(tmp_path / f"a{suffix}", 100, colour=(1, 0, 0)))
    np.testing.assert_allclose(model.mesh.bounds, [[0, 0, 0], [0.1, 0.1, 0.1]], atol=1e-6)
    assert (model.guessed, model.mesh.volume) == (False, pytest.approx(1e-3))
    check(model, {(0.05, 0.02): (255, 0, 0)})


def test_step_in_inches(tmp_path):
    pytest.importorskip("cascadio")
    model = read_cad(step_box(tmp_path / "a.step", 4, inches=True))
    assert model.diameter == pytest.approx(4 * 0.0254 * 3**0.5, rel=1e-5)


def test_what_open_cascade_cannot_read_is_refused(tmp_path):
    pytest.importorskip("cascadio")
    for name in ("a.step", "a.iges"):
        (tmp_path / name).write_text("ISO-10303-21;\nnothing of the kind\n")
        with pytest.raises(MeshError, match="Open CASCADE"):
            read_cad(tmp_path / name)


def test_iges(tmp_path):
    """A cylinder of radius 30 mm and height 100 mm: a line turned about another."""
    pytest.importorskip("cascadio")
    parameters = ["110,0.,0.,0.,0.,0.,1.;", "110,30.,0.,0.,30.,0.,100.;", "120,1,3,0.,6.283185307179586;"]
    start = "made by hand"
    head = "1H,,1H;,1Ha,5Ha.igs,1Ha,1Ha,32,38,6,308,15,1Ha,1.,2,2HMM,1,0.1,15H20200101.000000,1E-6,100.,1Ha,1Ha,11,0,;"
    lines = [f"{start:<72}S{1:7d}"]
    pieces = [head[i : i + 72] for i in range(0, len(head), 72)]
    lines += [f"{piece:<72}G{number:7d}" for number, piece in enumerate(pieces, 1)]
    for number, row in enumerate(parameters):
        kind = row.split(",")[0]
        status = "00010000" if kind == "110" else "00000000"
        first = [kind, number + 1, 0, 0, 0, 0, 0, 0]
        lines.append("".join(f"{value:>8}" for value in first) + f"{status:>8}D{2 * number + 1:7d}")
        lines.append("".join(f"{value:>8}" for value in (kind, 0, 0, 1, 0, "", "", "", 0)) + f"D{2 * number + 2:7d}")
    lines += [f"{row:<64}{2 * number + 1:8d}P{number + 1:7d}" for number, row in enumerate(parameters)]
    lines.append(f"S{1:7d}G{len(pieces):7d}D{6:7d}P{3:7d}".ljust(72) + f"T{1:7d}")
    (tmp_path / "a.igs").write_text("\n".join(lines) + "\n")
    model = read_cad(tmp_path / "a.igs")
    np.testing.assert_allclose(model.mesh.bounds, [[-0.03, -0.03, 0], [0.03, 0.03, 0.1]], atol=1e-3)
    assert model.mesh.area == pytest.approx(2 * np.pi * 0.03 * 0.1, rel=0.02)
    assert not model.guessed


# USD


@pytest.fixture
def stage(tmp_path):
    usd = pytest.importorskip("pxr.Usd")
    geom = pytest.importorskip("pxr.UsdGeom")
    made = usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    geom.SetStageMetersPerUnit(made, 0.01)
    return made


def usd_square(stage, path="/square", scale=100.0):
    from pxr import Gf, UsdGeom, Vt

    mesh = UsdGeom.Mesh.Define(stage, path)
    mesh.CreatePointsAttr(Vt.Vec3fArray([Gf.Vec3f(*(scale * value for value in point)) for point in SQUARE]))
    mesh.CreateFaceVertexCountsAttr([4])
    mesh.CreateFaceVertexIndicesAttr([0, 1, 2, 3])
    return mesh


def usd_material(stage, mesh, texture=None, **inputs):
    """Bind a UsdPreviewSurface."""
    from pxr import Sdf, UsdGeom, UsdShade

    material = UsdShade.Material.Define(stage, f"{mesh.GetPath()}_look")
    shader = UsdShade.Shader.Define(stage, f"{mesh.GetPath()}_look/surface")
    shader.CreateIdAttr("UsdPreviewSurface")
    for name, value in inputs.items():
        kind = Sdf.ValueTypeNames.Color3f if isinstance(value, tuple) else Sdf.ValueTypeNames.Float
        shader.CreateInput(name, kind).Set(value)
    if texture is not None:
        sampler = UsdShade.Shader.Define(stage, f"{mesh.GetPath()}_look/texture")
        sampler.CreateIdAttr("UsdUVTexture")
        sampler.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(texture)
        sampler.CreateOutput("rgb", Sdf.ValueTypeNames.Float3)
        shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).ConnectToSource(sampler.ConnectableAPI(), "rgb")
        coordinates = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, "faceVarying")
        coordinates.Set([(0, 0), (1, 0), (1, 1), (0, 1)])
    material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)


@pytest.mark.parametrize("packed", [False, True])
def test_usd_texture_in_a_file_beside_it_or_in_its_archive(tmp_path, stage, packed):
    Image.fromarray(QUARTERS).save(tmp_path / "t.png")
    usd_material(stage, usd_square(stage), "./t.png")
    stage.Save()
    path = tmp_path / "a.usda"
    if packed:
        from pxr import Sdf, UsdUtils

        path = tmp_path / "a.usdz"
        assert UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(str(tmp_path / "a.usda")), str(path))
        (tmp_path / "t.png").unlink()
    model = read_cad(path)
    assert (model.unit, model.guessed) == ("cm", False)
    assert packed or model.sources == ("a.usda", "t.png")
    check(model, CENTRES)


def test_usd_hierarchy_visibility_primitives_and_colours(tmp_path, stage):
    from pxr import Gf, Sdf, UsdGeom

    group = UsdGeom.Xform.Define(stage, "/group")
    group.AddTranslateOp().Set(Gf.Vec3d(20, 0, 0))
    mesh = usd_square(stage, "/group/square")
    colours = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("displayColor", Sdf.ValueTypeNames.Color3fArray, "vertex")
    colours.Set([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
    usd_square(stage, "/hidden", 900).CreateVisibilityAttr("invisible")
    usd_square(stage, "/guide", 900).CreatePurposeAttr("guide")
    cylinder = UsdGeom.Cylinder.Define(stage, "/cylinder")
    cylinder.CreateAxisAttr("X")
    cylinder.CreateRadiusAttr(2.0)
    cylinder.CreateHeightAttr(10.0)
    cylinder.CreateDisplayColorAttr([(0, 0, 1)])
    stage.Save()
    model = read_cad(tmp_path / "a.usda")
    np.testing.assert_allclose(model.mesh.bounds, [[-0.05, -0.02, -0.02], [0.3, 0.1, 0.02]], atol=1e-3)
    check(model, {(0.3, 0.0): (0, 255, 0), (0.3, 0.1): (0, 0, 255), (0.0, 0.001): (0, 0, 255)})


def test_usd_materials_by_subset_and_what_is_not_drawn(tmp_path, stage):
    from pxr import UsdGeom, UsdShade, Vt

    mesh = usd_square(stage)
    mesh.CreateFaceVertexCountsAttr().Set(Vt.IntArray([3, 3]))
    mesh.CreateFaceVertexIndicesAttr().Set(Vt.IntArray([0, 1, 2, 0, 2, 3]))
    usd_material(stage, mesh, diffuseColor=(0.0, 0.0, 0.0), emissiveColor=(0.0, 1.0, 0.0), metallic=1.0, roughness=0.25)
    red = usd_square(stage, "/other")
    red.CreateVisibilityAttr("invisible")
    usd_material(stage, red, diffuseColor=(0.5, 0.0, 0.0))
    subset = UsdGeom.Subset.CreateGeomSubset(mesh, "upper", "face", Vt.IntArray([1]), "materialBind")
    UsdShade.MaterialBindingAPI.Apply(subset.GetPrim()).Bind(UsdShade.Material.Get(stage, "/other_look"))
    UsdGeom.PointInstancer.Define(stage, "/many")
    UsdGeom.BasisCurves.Define(stage, "/curve")
    stage.Save()
    model = read_cad(tmp_path / "a.usda")
    warnings = ["a.usda: not drawn: point instancers, BasisCurves prims"]
    check(model, {(0.08, 0.02): (0, 255, 0), (0.02, 0.08): (188, 0, 0)}, warnings)
    assert model.mesh.metadata["metallic"] == pytest.approx(0.5, abs=0.5)


# assimp

DIRECTX = """xof 0303txt 0032
Frame Root { FrameTransformMatrix { 1.0,0.0,0.0,0.0, 0.0,1.0,0.0,0.0, 0.0,0.0,1.0,0.0, 0.2,0.0,0.0,1.0;; }
Mesh { 4; 0.0;0.0;0.0;, 0.1;0.0;0.0;, 0.1;0.1;0.0;, 0.0;0.1;0.0;; 1; 4;0,1,2,3;;
MeshTextureCoords { 4; 0.0;1.0;, 1.0;1.0;, 1.0;0.0;, 0.0;0.0;; }
MeshMaterialList { 1;1;0; Material { 0.5;0.25;1.0;1.0;; 1.0; 0.0;0.0;0.0;; 0.0;0.0;0.0;; TEXTURE } } } }
"""


def test_directx_with_a_texture_and_a_frame(tmp_path):
    pytest.importorskip("assimp_py")
    Image.fromarray(QUARTERS).save(tmp_path / "t.png")
    (tmp_path / "a.x").write_text(DIRECTX.replace("TEXTURE", 'TextureFilename { "t.png"; }'))
    model = read_cad(tmp_path / "a.x", "m")
    check(model, {(x + 0.2, y): colour for (x, y), colour in CENTRES.items()})
    assert model.sources == ("a.x", "t.png")
    (tmp_path / "b.x").write_text(DIRECTX.replace("TEXTURE", ""))
    check(read_cad(tmp_path / "b.x", "m"), {(0.25, 0.02): (128, 64, 255)})


def test_skins_that_are_not_applied_are_named(tmp_path):
    pytest.importorskip("assimp_py")
    matrix = ", ".join(f"{value:.1f}" for value in np.eye(4).ravel())
    skin = f'SkinWeights {{ "Root"; 1; 0; 1.0; {matrix};; }}\nMeshMaterialList'
    template = "template SkinWeights { <6f0d123b-bad2-4167-a0d0-80224f25fabb> STRING transformNodeName; }\nFrame Root"
    (tmp_path / "a.x").write_text(DIRECTX.replace("TEXTURE", "").replace("MeshMaterialList", skin))
    (tmp_path / "b.x").write_text(DIRECTX.replace("TEXTURE", "").replace("Frame Root", template))
    assert read_cad(tmp_path / "a.x", "m").warnings == ("a.x: not drawn: skins (drawn where they were bound)",)
    assert read_cad(tmp_path / "b.x", "m").warnings == ()


FBX = """; FBX 7.4.0 project file
FBXHeaderExtension:  {
	FBXHeaderVersion: 1003
	FBXVersion: 7400
}
GlobalSettings:  {
	Version: 1000
	Properties70:  {
		P: "UnitScaleFactor", "double", "Number", "",1
	}
}
Objects:  {
	Geometry: 1, "Geometry::square", "Mesh" {
		Vertices: *12 {
			a: 0,0,0,10,0,0,10,10,0,0,10,0
		}
		PolygonVertexIndex: *4 {
			a: 0,1,2,-4
		}
		GeometryVersion: 124
		LayerElementMaterial: 0 {
			Version: 101
			Name: ""
			MappingInformationType: "AllSame"
			ReferenceInformationType: "IndexToDirect"
			Materials: *1 {
				a: 0
			}
		}
		Layer: 0 {
			Version: 100
			LayerElement:  {
				Type: "LayerElementMaterial"
				TypedIndex: 0
			}
		}
	}
	Model: 2, "Model::square", "Mesh" {
		Version: 232
	}
	Material: 3, "Material::red", "" {
		Version: 102
		ShadingModel: "phong"
		Properties70:  {
			P: "DiffuseColor", "Color", "", "A",1,0,0
		}
	}
}
Connections:  {
	C: "OO",2,0
	C: "OO",1,2
	C: "OO",3,2
}
"""


def test_fbx_has_its_unit_and_its_colour(tmp_path):
    pytest.importorskip("assimp_py")
    (tmp_path / "a.fbx").write_text(FBX)
    model = read_cad(tmp_path / "a.fbx")
    np.testing.assert_allclose(model.mesh.bounds, [[0, 0, 0], [0.1, 0.1, 0]], atol=1e-6)
    assert not model.guessed
    check(model, {(0.05, 0.02): (255, 0, 0)})
    (tmp_path / "b.fbx").write_text("nothing of the kind")
    with pytest.raises(MeshError, match=r"b\.fbx: damaged"):
        read_cad(tmp_path / "b.fbx")


@pytest.mark.parametrize(
    ("suffix", "module", "package"),
    [(".step", "cascadio", "cascadio"), (".igs", "cascadio", "cascadio"), (".usdz", "pxr.Usd", "usd-core"),
     (".fbx", "assimp_py", "assimp-py")],
)  # fmt: skip
def test_a_missing_package_is_named(tmp_path, monkeypatch, suffix, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / f"a{suffix}").write_text("x")
    with pytest.raises(MeshError, match=f"needs the package {package}: pip install {package}"):
        read_cad(tmp_path / f"a{suffix}")
