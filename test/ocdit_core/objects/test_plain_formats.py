"""OBJ, PLY, STL and OFF as other programs write them, each with the value that is right."""

import os
import struct

import numpy as np
import pytest
from gltf_files import colour_at
from PIL import Image

from ocdit_core.errors import MeshError
from ocdit_core.objects.meshes import read_cad
from ocdit_core.objects.parts import triangulated

RED, GREEN, BLUE, YELLOW, WHITE, GREY = (
    (250, 0, 0),
    (0, 250, 0),
    (0, 0, 250),
    (250, 250, 0),
    (255, 255, 255),
    (165,) * 3,
)
QUARTERS = np.kron(np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8), np.ones((16, 16, 1), np.uint8))
CENTRES = {(0.02, 0.08): RED, (0.08, 0.08): GREEN, (0.02, 0.02): BLUE, (0.08, 0.02): YELLOW}
CORNERS = {(0.0, 0.0): RED, (0.1, 0.0): GREEN, (0.1, 0.1): BLUE, (0.0, 0.1): YELLOW}
SQUARE = [(0, 0, 0), (0.1, 0, 0), (0.1, 0.1, 0), (0, 0.1, 0)]
POINTS = "v 0 0 0\nv 0.1 0 0\nv 0.1 0.1 0\nv 0 0.1 0\n"
UV = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
TEXTURED = POINTS + UV + "usemtl m\nf 1/1 2/2 3/3 4/4\n"


def image(path, pixels=QUARTERS):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def check(model, colours, warnings=()):
    assert model.warnings == tuple(warnings)
    for (x, y), colour in colours.items():
        np.testing.assert_allclose(colour_at(model.mesh, x, y), colour, atol=3, err_msg=str((x, y)))


class TestObj:
    def coloured(self, scale=255.0):
        rows = [
            "v " + " ".join(map(str, (*point, *(value / scale for value in colour))))
            for point, colour in zip(SQUARE, (RED, GREEN, BLUE, YELLOW), strict=True)
        ]
        return "\n".join(rows) + "\n"

    @pytest.mark.parametrize("scale", [255.0, 1])
    @pytest.mark.parametrize("kd", [None, "Kd 1 1 1", "Kd 0.75 0.75 0.75"])
    def test_vertex_colours_count_more_than_a_plain_material(self, tmp_path, scale, kd):
        head = "" if kd is None else "mtllib a.mtl\nusemtl m\n"
        (tmp_path / "a.obj").write_text(head + self.coloured(scale) + "f 1 2 3\nf 1 3 4\n")
        (tmp_path / "a.mtl").write_text(f"newmtl m\n{kd}\n")
        check(read_cad(tmp_path / "a.obj"), CORNERS)

    @pytest.mark.parametrize("uv", [False, True])
    def test_vertex_colours_stand_in_for_a_material_file_that_is_missing(self, tmp_path, uv):
        faces = "usemtl m\nf 1/1 2/2 3/3 4/4\n" if uv else "usemtl m\nf 1 2 3 4\n"
        (tmp_path / "a.obj").write_text("mtllib gone.mtl\n" + self.coloured() + UV * uv + faces)
        warning = "a.obj: its material file gone.mtl is missing; drawn in the colours of its vertices"
        check(read_cad(tmp_path / "a.obj"), CORNERS, [warning])

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("indent", ["", "  ", "\t"])
    def test_line_ends_tabs_and_indentation(self, tmp_path, end, indent):
        image(tmp_path / "t.png")
        text = "mtllib\ta.mtl\n" + TEXTURED.replace(" ", "\t")
        (tmp_path / "a.obj").write_bytes(end.join(indent + row for row in text.split("\n")).encode())
        (tmp_path / "a.mtl").write_bytes(end.join([f"{indent}newmtl m", f"{indent}map_Kd\tt.png"]).encode())
        check(read_cad(tmp_path / "a.obj"), CENTRES)

    def test_a_material_file_in_a_folder_finds_its_texture_beside_itself(self, tmp_path):
        image(tmp_path / "materials" / "maps" / "t.png")
        (tmp_path / "a.obj").write_text("mtllib materials/a.mtl\n" + TEXTURED)
        (tmp_path / "materials" / "a.mtl").write_text("newmtl m\nmap_Kd maps/t.png\n")
        model = read_cad(tmp_path / "a.obj")
        check(model, CENTRES)
        assert model.sources == ("a.obj", "materials/a.mtl", "materials/maps/t.png")

    @pytest.mark.parametrize(
        "line",
        [
            "map_Kd    my wood.png  ",
            'map_Kd "my wood.png"',
            "map_Kd -s 1 1 1 -o 0 0 0 -bm 0.5 my wood.png",
            "map_Kd -blendu on -mm 0 1 my wood.png",
            "map_kd C:\\textures\\My Wood.PNG",
        ],
    )
    def test_texture_names_with_blanks_options_and_paths(self, tmp_path, line):
        image(tmp_path / "my wood.png")
        (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED)
        (tmp_path / "a.mtl").write_text(f"newmtl m\nKd 0 0 0\n{line}\n")
        check(read_cad(tmp_path / "a.obj"), CENTRES)

    def test_options_scale_and_move_a_texture(self, tmp_path):
        image(tmp_path / "t.png")
        (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED)
        (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd -s 0.5 0.5 1 -o 0.5 0 t.png\n")
        check(read_cad(tmp_path / "a.obj"), {(0.05, 0.05): YELLOW, (0.01, 0.09): YELLOW})

    def test_a_symbolic_link_finds_what_lies_beside_its_target(self, tmp_path):
        image(tmp_path / "real" / "t.png")
        (tmp_path / "real" / "ref.obj").write_text("mtllib ref.mtl\n" + TEXTURED)
        (tmp_path / "real" / "ref.mtl").write_text("newmtl m\nmap_Kd t.png\n")
        os.symlink("real/ref.obj", tmp_path / "link.obj")
        model = read_cad(tmp_path / "link.obj")
        check(model, CENTRES)
        assert model.sources == ("link.obj", "real/ref.mtl", "real/t.png")

    def test_opacity_emission_and_a_mask(self, tmp_path):
        image(tmp_path / "t.png")
        image(tmp_path / "holes.png", np.kron(np.array([[255, 0], [255, 255]]), np.ones((16, 16))))
        rows = "mtllib a.mtl\n" + POINTS + UV + "v 1 1 0\nv 1.1 1 0\nv 1.1 1.1 0\nusemtl holes\nf 1/1 2/2 3/3 4/4\n"
        (tmp_path / "a.obj").write_text(rows + "usemtl glow\nf 5 6 7\nusemtl hull\nf 2 3 4\n")
        holes, glow = "newmtl holes\nmap_Kd t.png\nmap_d holes.png\n", "newmtl glow\nKd 0 0 0\nKe 0 0 1\n"
        (tmp_path / "a.mtl").write_text(holes + glow + "newmtl hull\nKd 1 1 1\nd 0.05\n")
        model = read_cad(tmp_path / "a.obj")
        assert colour_at(model.mesh, 0.08, 0.08) is None
        check(
            model,
            {(0.02, 0.08): RED, (1.08, 1.02): (0, 0, 255)},
            ["a.obj: not drawn: 1 nearly transparent surface (opacity below 0.25)"],
        )

    def test_what_is_no_surface_and_materials_that_are_unknown_are_named(self, tmp_path):
        (tmp_path / "a.mtl").write_text("newmtl other\nKd 1 0 0\n")
        (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + POINTS + "usemtl m\nf 1 2 3 4\nl 1 2\nl 2 3\np 1\n")
        warnings = [
            "a.obj: its material files lack the material m; drawn in neutral grey",
            "a.obj: not drawn: 2 lines, 1 points",
        ]
        check(read_cad(tmp_path / "a.obj"), {(0.05, 0.02): GREY}, warnings)

    @pytest.mark.parametrize(("line", "warned"), [("Tr 1", False), ("Tr 0", False), ("Tr 0.4", True), ("d 0.4", True)])
    def test_transparency_that_programs_write_either_way_round(self, tmp_path, line, warned):
        (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + POINTS + "usemtl m\nf 1 2 3 4\n")
        (tmp_path / "a.mtl").write_text(f"newmtl m\nKd 0.98 0 0\n{line}\n")
        warnings = ["a.obj: not drawn: semi-transparency (drawn opaque)"] * warned
        check(read_cad(tmp_path / "a.obj"), {(0.05, 0.02): RED}, warnings)

    def test_negative_indices_continued_lines_and_concave_polygons(self, tmp_path):
        outline = [(0, 0), (0.3, 0), (0.3, 0.1), (0.1, 0.1), (0.1, 0.3), (0, 0.3)]  # an L: 0.05 m^2
        rows = "".join(f"v {x} {y} 0\n" for x, y in outline)
        (tmp_path / "a.obj").write_text(rows + "f -6 -5 -4 \\\n -3 -2 -1\n")
        assert read_cad(tmp_path / "a.obj").mesh.area == pytest.approx(0.05)

    def test_a_material_without_any_file_is_named(self, tmp_path):
        (tmp_path / "a.obj").write_text("v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nusemtl red\nf 1 2 3\n")
        warning = "a.obj: names no file for its material red; drawn in neutral grey"
        assert read_cad(tmp_path / "a.obj", "m").warnings == (warning,)

    def test_faces_without_three_corners_are_named(self, tmp_path):
        (tmp_path / "a.obj").write_text("v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nf 1 2 3\nf\nf 2 3")
        model = read_cad(tmp_path / "a.obj", "m")
        assert model.warnings == ("a.obj: not drawn: 2 faces of fewer than three corners",)
        assert model.mesh.area == pytest.approx(0.005)


def test_concave_polygons_are_cut_inside_themselves():
    rng = np.random.default_rng(5)
    for turn in (1, -1):
        for count in (5, 9, 24):
            angle = turn * np.sort(rng.uniform(0, 2 * np.pi, count))
            radius = rng.uniform(0.2, 1, count)
            star = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(count, 2.0)], axis=1)
            faces = triangulated([list(range(count))], star)
            x, y = star[:, 0], star[:, 1]
            whole = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
            a, b, c = np.moveaxis(star[faces], 1, 0)
            assert len(faces) == count - 2
            assert np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2 == pytest.approx(whole)


def test_a_polygon_around_a_hole_keeps_it_open():
    """As exporters write it: the outline, a bridge to the hole, the hole the other way round, and the bridge back."""
    outline, hole = [(0, 0), (4, 0), (4, 4), (0, 4)], [(1, 1), (1, 3), (3, 3), (3, 1)]
    points = np.array([(x, y, 0) for x, y in [*outline, *hole]], float)
    for polygon in ([0, 1, 2, 3, 0, 4, 5, 6, 7, 4], [0, 4, 7, 6, 5, 4, 0, 3, 2, 1]):
        corners = np.array(polygon)[triangulated([polygon], points)]
        a, b, c = np.moveaxis(points[corners], 1, 0)
        assert np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2 == pytest.approx(12)


class TestPly:
    def write(self, path, vertex, face=(), rows=None, faces=None, comments=(), binary=False):
        """Write the square; vertex and face are names and types of further properties."""
        names = [("x", "float"), ("y", "float"), ("z", "float"), *vertex]
        lines = ["ply", f"format {'binary_little_endian' if binary else 'ascii'} 1.0", *comments, "element vertex 4"]
        lines += [f"property {kind} {name}" for name, kind in names]
        lines += [f"element face {len(faces or [[0, 1, 2, 3]])}", "property list uchar int vertex_indices"]
        lines += [f"property {kind} {name}" for name, kind in face]
        lines += ["end_header", ""]
        rows = rows or [()] * 4
        stored = [(*point, *row) for point, row in zip(SQUARE, rows, strict=True)]
        if binary:
            codes = {"float": "f", "uchar": "B", "double": "d", "ushort": "H"}
            kinds = "<" + "".join(codes[kind] for _, kind in names)
            body = b"".join(struct.pack(kinds, *row) for row in stored)
            body += b"".join(struct.pack(f"<B{len(f)}i", len(f), *f) for f in faces or [[0, 1, 2, 3]])
        else:
            texts = [" ".join(map(str, row)) for row in stored] + [
                " ".join(map(str, f)) for f in faces or [[4, 0, 1, 2, 3]]
            ]
            body = "\n".join([*texts, ""]).encode()
        path.write_bytes("\n".join(lines).encode() + body)
        return path

    @pytest.mark.parametrize(
        "names", [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")]
    )
    @pytest.mark.parametrize(("kind", "scale"), [("uchar", 1), ("float", 255), ("float", 1), ("ushort", 1 / 257)])
    @pytest.mark.parametrize("binary", [False, True])
    def test_names_and_types_of_vertex_colours(self, tmp_path, names, kind, scale, binary):
        rows = [tuple((int if kind != "float" else float)(v / scale) for v in c) for c in (RED, GREEN, BLUE, YELLOW)]
        path = self.write(tmp_path / "a.ply", [(name, kind) for name in names], rows=rows, binary=binary)
        check(read_cad(path), CORNERS)

    def test_quads_with_face_colours_in_text(self, tmp_path):
        face = [(name, "uchar") for name in ("red", "green", "blue")]
        path = self.write(tmp_path / "a.ply", [], face, faces=[[3, 0, 1, 2, *RED], [3, 0, 2, 3, *BLUE]])
        check(read_cad(path), {(0.08, 0.02): RED, (0.02, 0.08): BLUE})
        path = self.write(tmp_path / "b.ply", [], face, faces=[[4, 0, 1, 2, 3, *GREEN]])
        check(read_cad(path), {(0.08, 0.02): GREEN, (0.02, 0.08): GREEN})

    def test_wedge_coordinates_and_several_textures(self, tmp_path):
        image(tmp_path / "t0.png")
        image(tmp_path / "t1.png", np.full((8, 8, 3), GREEN))
        face = [("texcoord", "list uchar float"), ("texnumber", "int")]
        faces = ["3 0 1 2 6 0 0 1 0 1 1 0", "3 0 2 3 6 0 0 1 1 0 1 1"]
        comments = ["comment VCGLIB generated", "comment TextureFile t0.png", "comment TextureFile t1.png"]
        path = self.write(tmp_path / "a.ply", [], face, faces=[row.split() for row in faces], comments=comments)
        check(read_cad(path), {(0.08, 0.06): GREEN, (0.06, 0.02): YELLOW, (0.03, 0.08): GREEN, (0.09, 0.02): YELLOW})

    @pytest.mark.parametrize("names", [("u", "v"), ("s", "t"), ("texture_u", "texture_v")])
    def test_vertex_coordinates(self, tmp_path, names):
        image(tmp_path / "t.png")
        rows = [(0, 0), (1, 0), (1, 1), (0, 1)]
        vertex = [(name, "float") for name in names]
        path = self.write(tmp_path / "a.ply", vertex, rows=rows, comments=["comment TextureFile t.png"])
        check(read_cad(path), CENTRES)

    def test_numbers_that_no_property_names_are_passed_over(self, tmp_path):
        path = self.write(
            tmp_path / "a.ply", [], [("red", "uchar")], faces=[[3, 0, 1, 2, 7, 9, 9], [3, 0, 2, 3, 7, 9, 9]]
        )
        assert read_cad(path).mesh.area == pytest.approx(0.01)

    def test_strips_and_other_elements(self, tmp_path):
        text = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
        text += "element tristrips 1\nproperty list int int vertex_indices\nelement edge 1\nproperty int vertex1\n"
        text += "property int vertex2\nend_header\n0 0 0\n0.1 0 0\n0 0.1 0\n0.1 0.1 0\n8 0 1 2 3 -1 0 1 2\n0 1\n"
        (tmp_path / "a.ply").write_text(text)
        model = read_cad(tmp_path / "a.ply")
        assert len(model.mesh.faces) == 3
        assert model.mesh.area == pytest.approx(0.015)
        np.testing.assert_allclose(model.mesh.face_normals, [[0, 0, 1]] * 3)
        assert model.warnings == ("a.ply: not drawn: 1 edge elements",)


class TestStl:
    def triangles(self, attributes=(0, 0)):
        """The square, 100 mm wide, in two triangles."""
        points = np.array(SQUARE, np.float32) * 1000
        rows = [
            struct.pack("<12fH", 0, 0, 1, *points[list(face)].ravel(), value)
            for face, value in zip(((0, 1, 2), (0, 2, 3)), attributes, strict=True)
        ]
        return b"".join(rows)

    def binary(self, path, header=b"", count=2, attributes=(0, 0), tail=b""):
        path.write_bytes(header.ljust(80, b"\0") + struct.pack("<I", count) + self.triangles(attributes) + tail)
        return path

    def text(self):
        points = (np.array(SQUARE) * 1000).tolist()
        rows = ["solid square"]
        for face in ((0, 1, 2), (0, 2, 3)):
            corners = "".join(f"vertex {points[i][0]} {points[i][1]} {points[i][2]}\n" for i in face)
            rows.append(f"facet normal 0 0 1\nouter loop\n{corners}endloop\nendfacet")
        return "\n".join([*rows, "endsolid square\n"])

    @pytest.mark.parametrize(
        ("count", "tail", "warning"),
        [
            (2, b"", None),
            (2, b"surplus!", "not drawn: 8 bytes after its 2 triangles"),
            (0, b"", "its header states 0 triangles; all 2 are read"),
            (1, b"", "its header states 1 triangles; all 2 are read"),
            (2**32 - 1, b"", "its header states 4,294,967,295 triangles; all 2 are read"),
        ],
    )
    @pytest.mark.parametrize("header", [b"made by hand", b"solid made by hand"])
    def test_counts_and_surplus_bytes(self, tmp_path, header, count, tail, warning):
        model = read_cad(self.binary(tmp_path / "a.stl", header, count, tail=tail))
        assert model.mesh.area == pytest.approx(0.01)
        assert model.warnings == (() if warning is None else (f"a.stl: {warning}",))

    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\xff\xfe", b" \n\t"])
    @pytest.mark.parametrize("tail", ["", " " * 2000, "\n\n\0\x1a"])
    @pytest.mark.parametrize("change", [str, str.upper, lambda text: text.replace(".", ",")])
    def test_text_with_marks_blanks_capitals_and_decimal_commas(self, tmp_path, mark, tail, change):
        text = change(self.text()) + tail
        encoded = text.encode("utf-16-le") if mark == b"\xff\xfe" else text.encode()
        (tmp_path / "a.stl").write_bytes(mark + encoded)
        model = read_cad(tmp_path / "a.stl")
        assert (model.mesh.area, model.unit, model.warnings) == (pytest.approx(0.01), "mm", ())

    def test_colours_of_viscam_and_magics(self, tmp_path):
        red, blue = 31 << 10, 31
        model = read_cad(self.binary(tmp_path / "v.stl", attributes=(1 << 15 | red, 1 << 15 | blue)))
        check(model, {(0.08, 0.02): (255, 0, 0), (0.02, 0.08): (0, 0, 255)})
        model = read_cad(self.binary(tmp_path / "n.stl", attributes=(red, 1 << 15 | blue)))
        check(model, {(0.08, 0.02): GREY, (0.02, 0.08): (0, 0, 255)})
        # Magics counts the channels the other way round, and the bit means the part's own colour.
        header = b"COLOR=" + bytes([0, 255, 0, 255])
        model = read_cad(self.binary(tmp_path / "m.stl", header, attributes=(31, 1 << 15)))
        check(model, {(0.08, 0.02): (255, 0, 0), (0.02, 0.08): (0, 255, 0)})


class TestOff:
    BODY = "{kind}\n# a square\n4 1 0\n0 0 0{a}\n0.1 0 0{b}\n0.1 0.1 0{c}\n0 0.1 0{d}\n4 0 1 2 3{face}\n"

    def write(self, path, kind="OFF", corners=("",) * 4, face=""):
        a, b, c, d = corners
        path.write_text(self.BODY.format(kind=kind, a=a, b=b, c=c, d=d, face=face))
        return path

    @pytest.mark.parametrize("floats", [False, True])
    @pytest.mark.parametrize("alpha", [False, True])
    def test_vertex_colours(self, tmp_path, floats, alpha):
        corners = []
        for colour in (RED, GREEN, BLUE, YELLOW):
            values = [*colour, 255][: 3 + alpha]
            corners.append(" " + " ".join(str(value / 255 if floats else value) for value in values))
        model = read_cad(self.write(tmp_path / "a.off", "COFF", corners))
        check(model, CORNERS)

    @pytest.mark.parametrize("face", [" 250 0 0", " 250 0 0 255", " 0.98 0.0 0.0 1.0"])
    def test_face_colours(self, tmp_path, face):
        check(read_cad(self.write(tmp_path / "a.off", face=face)), {(0.05, 0.02): RED})

    def test_normals_and_coordinates_are_no_colours(self, tmp_path):
        check(read_cad(self.write(tmp_path / "a.off", "NOFF", (" 0 0 1",) * 4)), {(0.05, 0.02): GREY})
        check(read_cad(self.write(tmp_path / "a.off", "STOFF", (" 0 1",) * 4)), {(0.05, 0.02): GREY})

    def test_what_goes_over_lines(self, tmp_path):
        self.write(tmp_path / "b.off")
        (tmp_path / "b.off").write_text((tmp_path / "b.off").read_text().replace("OFF\n# a square\n4 1", "OFF4 1"))
        assert read_cad(tmp_path / "b.off").mesh.area == pytest.approx(0.01)
        (tmp_path / "a.off").write_text("OFF 4\n1 0\n0 0 0 0.1\n0 0\n0.1 0.1 0\n0 0.1 0\n4 0\n1 2\n3\n")
        assert read_cad(tmp_path / "a.off").mesh.area == pytest.approx(0.01)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("4OFF\n4 1 0\n", "4OFF"),
            ("OFF BINARY\n", "binary OFF"),
            ("OFF\n4 2 0\n", "damaged"),
            ("OFF\n353535235358 6 0\n0 0 0\n", "3 numbers for 353535235358"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, tmp_path, text, reason):
        (tmp_path / "a.off").write_text(text)
        with pytest.raises(MeshError, match=reason):
            read_cad(tmp_path / "a.off")

    def test_colours_of_a_map_are_named(self, tmp_path):
        warnings = ["a.off: not drawn: face colours given by their number in a colour map"]
        check(read_cad(self.write(tmp_path / "a.off", face=" 3")), {(0.05, 0.02): GREY}, warnings)


def test_a_very_large_texture_is_reduced(tmp_path):
    pixels = np.zeros((1, 14000, 3), np.uint8)
    pixels[:, 7000:] = RED
    Image.fromarray(np.repeat(pixels, 13000, axis=0)).save(tmp_path / "t.png", compress_level=1)
    (tmp_path / "a.obj").write_text("mtllib a.mtl\n" + TEXTURED)
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd t.png\n")
    model = read_cad(tmp_path / "a.obj")
    warning = "a.obj: its texture t.png of 14000 x 13000 pixels is reduced to 4096 x 3803"
    check(model, {(0.02, 0.05): (0, 0, 0), (0.08, 0.05): RED}, [warning])
