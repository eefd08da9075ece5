"""Mesh files by their suffix, and the plain ones: OBJ with MTL, STL, OFF."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from ocdit_core.errors import MeshError
from ocdit_core.objects.cad import read_cad_format
from ocdit_core.objects.gltf import read_gltf
from ocdit_core.objects.parts import Material, ParsedFile, Part, corners_of, part_of, solid, with_emission
from ocdit_core.objects.ply import read_ply
from ocdit_core.objects.sources import BESIDE_TEXTURE, MAX_FACES, Array, SourceFiles
from ocdit_core.objects.surfaces import NEUTRAL_GREY, scaled_colours
from ocdit_core.objects.xml_formats import read_3mf, read_dae

FORMATS = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf")
CAD_FORMATS = (
    ".step", ".stp", ".iges", ".igs", ".usd", ".usda", ".usdc", ".usdz", ".fbx", ".3ds", ".x",
)  # fmt: skip
"""Read by optional packages."""


def check_format(path: Path) -> None:
    """Raise MeshError unless a file's suffix is one of FORMATS or CAD_FORMATS and trimesh is installed."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS + CAD_FORMATS:
        known = ", ".join(FORMATS + CAD_FORMATS)
        raise MeshError(f"{path}: unknown mesh format {suffix or '(no suffix)'}; known are {known}")
    if importlib.util.find_spec("trimesh") is None:
        raise MeshError(f"{path}: reading meshes needs the package trimesh: pip install trimesh")


def parse(files: SourceFiles, data: bytes) -> ParsedFile:
    """Parse a main file's bytes; what it names is read through `files`.

    Raises:
        MeshError: damaged, truncated, without faces, with too many, or with vertices that are not finite.
    """
    path, suffix = files.path, files.path.suffix.lower()
    try:
        parsed = _READERS.get(suffix, read_cad_format)(files, data)
    except MeshError:
        raise
    except Exception as error:
        # Whatever a parser meets in a damaged file: ValueError, KeyError, IndexError, struct.error, XML and ZIP errors.
        try:
            text = str(error)
        except UnicodeDecodeError:  # USD quotes the damaged bytes
            text = ""
        reason = " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")
        raise MeshError(f"{path}: damaged, truncated, or not a {path.suffix} mesh ({reason[:200]})") from error
    parsed.parts = [part for part in parsed.parts if len(part.faces)]
    _check_parts(path, parsed.parts)
    return parsed


def _check_parts(path: Path, parts: list[Part]) -> None:
    if not parts:
        raise MeshError(f"{path}: has no faces (a point cloud, a drawing, or a damaged file); a surface mesh is needed")
    faces = sum(len(part.faces) for part in parts)
    if faces > MAX_FACES:
        raise MeshError(f"{path}: {faces:,} faces are over the limit of {MAX_FACES:,}; simplify the mesh first")
    for part in parts:
        low, high, count = part.faces.min(), part.faces.max(), len(part.vertices)
        if low < 0 or high >= count:
            wrong = low if low < 0 else high
            raise MeshError(f"{path}: damaged: a face names vertex {wrong} of {count}, counted from 0")
        bad = np.count_nonzero(~np.isfinite(part.vertices).all(axis=1))
        if bad:
            raise MeshError(f"{path}: {bad} of {count} vertices are not finite numbers")


def lines_of(data: bytes) -> list[str]:
    """Return a text file's lines, whatever its byte order mark and its line ends (CR, LF, CR LF)."""
    marks = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
    mark, code = next((item for item in marks if data.startswith(item[0])), (b"", "utf-8"))
    return data[len(mark) :].decode(code, "replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")


_UNDRAWN_OBJ = {
    "l": "lines", "p": "points", "curv": "curved surfaces", "curv2": "curved surfaces", "surf": "curved surfaces",
}  # fmt: skip
_UNDRAWN_MTL = {
    **dict.fromkeys(("map_bump", "bump"), "bump maps"), "norm": "normal maps", "disp": "displacement maps",
    "decal": "decals", "refl": "reflection maps", "map_ks": "specular maps", "map_ns": "shininess maps",
    "map_ke": "emissive maps", "map_pr": "roughness maps", "map_pm": "metalness maps", "map_ps": "sheen maps",
    "pc": "clearcoat", "aniso": "anisotropy",
}  # fmt: skip


@dataclass
class _ObjMaterial:
    """A material of an MTL file; `scale` and `offset` are those of its texture's coordinates."""

    material: Material = field(default_factory=Material)
    scale: tuple[float, ...] = (1.0, 1.0)
    offset: tuple[float, ...] = (0.0, 0.0)


def read_obj(files: SourceFiles, data: bytes) -> ParsedFile:
    """Read an OBJ file, its materials and its textures. Colours of vertices count where there is no texture."""
    positions: list[list[str]] = []
    coordinates: list[list[str]] = []
    libraries: list[str] = []
    groups: dict[str, list[tuple[list[int], list[int]]]] = {}
    current = groups.setdefault("", [])
    left_out = Counter[str]()
    rows = iter(lines_of(data))
    for row in rows:
        while row.endswith("\\"):
            row = row[:-1] + " " + next(rows, "")
        words = row.split()
        if not words:
            continue
        key = words[0]
        if key == "v":
            positions.append(words[1:])
        elif key == "vt":
            coordinates.append(words[1:3])
        elif key in ("f", "fo"):
            face = [word.split("/") for word in words[1:] if word[0] != "#"]
            at = [_index(corner[0], len(positions)) for corner in face]
            uv = [_index(corner[1], len(coordinates)) for corner in face if len(corner) > 1 and corner[1]]
            current.append((at, uv if len(uv) == len(at) else []))
        elif key == "usemtl":
            current = groups.setdefault(row.split(None, 1)[1].strip() if len(words) > 1 else "", [])
        elif key == "mtllib" and len(words) > 1:
            libraries.append(row.split(None, 1)[1].strip())
        elif key in _UNDRAWN_OBJ:
            left_out[_UNDRAWN_OBJ[key]] += 1
    if short := sum(len(face[0]) < 3 for faces in groups.values() for face in faces):
        left_out["faces of fewer than three corners"] = short
    files.leave_out(*(f"{count} {kind}" for kind, count in left_out.items()))
    points = _numbers(positions, 3)
    colours = _obj_colours(positions, points)
    uvs = _numbers(coordinates, 2)
    materials = _obj_materials(files, libraries, colours is not None)
    unknown = [name for name, faces in groups.items() if name and faces and name not in materials]
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    if unknown and materials:
        files.warnings.append(f"its material files lack the material {unknown[0]}{more}; drawn in neutral grey")
    elif unknown and not libraries and colours is None:
        files.warnings.append(f"names no file for its material {unknown[0]}{more}; drawn in neutral grey")
    parts = []
    for name, faces in groups.items():
        look = materials.get(name, _ObjMaterial())
        for textured in (True, False):
            chosen = [face for face in faces if bool(face[1] and look.material.texture is not None) == textured]
            polygons = [face[0] for face in chosen]
            if not chosen:
                continue
            if textured:
                files.leave_out(BESIDE_TEXTURE, when=colours is not None)
                moved = (uvs * look.scale + look.offset, corners_of([face[1] for face in chosen]))
                parts.append(part_of(polygons, points, look.material, uv=moved))
            elif colours is not None:  # more exact than the material's one colour
                parts.append(part_of(polygons, points, Material(), colours=(colours, corners_of(polygons))))
            else:
                parts.append(part_of(polygons, points, look.material))
    return ParsedFile(parts=parts)


def _index(word: str, count: int) -> int:
    number = int(word)
    return number - 1 if number > 0 else count + number if number < 0 else -1


def _numbers(rows: list[list[str]], width: int) -> Array:
    """Return the first `width` columns (N, width) of rows of numbers; what is missing is 0."""
    if not rows:
        return np.zeros((0, width))
    return np.array([row[:width] + ["0"] * (width - len(row)) for row in rows], dtype=np.float64)


def _obj_colours(rows: list[list[str]], points: Array) -> Array | None:
    """Return the colours (V, 3) behind the positions, in 0..1; None where not all vertices have one."""
    if not rows or min(map(len, rows)) < 6:
        return None
    colours = scaled_colours([[float(word) for word in row[3:6]] for row in rows])
    return None if (colours >= 1).all() else colours


def _obj_materials(files: SourceFiles, libraries: list[str], coloured: bool) -> dict[str, _ObjMaterial]:
    """Return the materials of all material files by name; a line may list several, but a name may hold spaces too."""
    instead = "drawn in the colours of its vertices" if coloured else "drawn in neutral grey"
    materials: dict[str, _ObjMaterial] = {}
    for line in dict.fromkeys(libraries):
        for name in [line] if files.find(line) else line.split():
            data = files.get(name, instead=instead)
            if data is not None:
                materials.update(_read_mtl(files, data, str(Path(files.find(name) or "").parent)))
    return materials


def _read_mtl(files: SourceFiles, data: bytes, folder: str) -> dict[str, _ObjMaterial]:
    """Return the materials of an MTL file that lies in `folder`, relative to the main file's."""
    stored: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for row in lines_of(data):
        key, _, value = row.strip().replace("\t", " ").partition(" ")
        if key.lower() == "newmtl":
            current = stored.setdefault(value.strip(), {})
        elif key and key[0] != "#":
            current.setdefault(key.lower(), value.strip())
    return {name: _obj_material(files, values, folder) for name, values in stored.items()}


def _obj_material(files: SourceFiles, values: dict[str, str], folder: str) -> _ObjMaterial:
    def number(key: str, fallback: float) -> float:
        words = values.get(key, "").split()
        return float(words[-1]) if words else fallback

    def triple(key: str) -> Array | None:
        words = values.get(key, "").split()
        if not words or not _is_number(words[0]):
            return None  # spectral curves and CIE XYZ
        return np.resize(np.array([float(word) for word in words[:3] if _is_number(word)]), 3)

    files.leave_out(*(feature for key, feature in _UNDRAWN_MTL.items() if values.get(key, "0").strip("0.")))
    texture, options = None, dict[str, list[str]]()
    if "map_kd" in values:
        name, options = _texture_name(values["map_kd"])
        texture = files.texture(name, folder)
        files.leave_out("the texture option -mm", when=options.get("mm", ["0", "1"]) != ["0", "1"])
    colour = triple("kd")
    alpha = "opaque"
    unclear = number("tr", 0.0)  # some programs write opacity, some its opposite
    opacity = number("d", max(unclear, 1 - unclear))
    if "map_d" in values:
        mask = files.texture(_texture_name(values["map_d"])[0], folder)
        if mask is not None and texture is not None:
            # A mask without an alpha channel of its own is grey.
            channel = mask[..., 3] if mask[..., 3].min() < 255 else mask[..., 0]
            channel = np.ascontiguousarray(channel)
            resized = cv2.resize(channel, texture.shape[1::-1], interpolation=cv2.INTER_AREA)
            texture = np.dstack([texture[..., :3], np.asarray(resized, dtype=np.uint8)])
            alpha = "mask"
    files.leave_out("opacity maps", when="map_d" in values and alpha == "opaque")
    if opacity < 1 and alpha == "opaque":
        alpha = "blend"
    if texture is not None:
        colour = np.ones(3)  # many exporters write Kd 0 0 0 beside a texture
    elif "map_kd" in values:
        colour = None
    metallic, roughness = (number(key, np.nan) for key in ("pm", "pr"))
    material = Material(
        colour=None if colour is None else np.array([*colour, opacity]),
        texture=texture if alpha != "opaque" or texture is None else solid(texture),
        wrap=("clamp", "clamp") if options.get("clamp") == ["on"] else ("repeat", "repeat"),
        alpha=alpha,
        metallic=None if np.isnan(metallic) else metallic,
        roughness=None if np.isnan(roughness) else roughness,
    )
    emission = triple("ke")
    if emission is not None and emission.any():
        material = with_emission(material, emission)
    scale, offset = (
        [*(float(word) for word in options.get(key, [])), rest, rest] for key, rest in (("s", 1.0), ("o", 0.0))
    )
    return _ObjMaterial(material, (scale[0], scale[1]), (offset[0], offset[1]))


def _is_number(word: str) -> bool:
    number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word)
    return number is not None and abs(float(word)) < 1e30


def _texture_name(value: str) -> tuple[str, dict[str, list[str]]]:
    """Return a texture's file name, which may hold spaces, and the options before it (-s 1 1 1 -clamp on)."""
    options: dict[str, list[str]] = {}
    while match := re.match(r"-([a-zA-Z]+)\s+", value):
        key, value = match[1].lower(), value[match.end() :]
        options[key] = []
        most = {"s": 3, "o": 3, "t": 3, "mm": 2}.get(key, 1)
        while len(options[key]) < most:
            word, _, rest = value.partition(" ")
            if not rest.strip() or (most > 1 and not _is_number(word)):
                break
            options[key].append(word)
            value = rest.lstrip()
    return value, options


def read_stl(files: SourceFiles, data: bytes) -> ParsedFile:
    """Read a binary or text STL file, with VisCAM's and Magics' face colours; raises MeshError if it is truncated."""
    path = files.path
    stated = int.from_bytes(data[80:84], "little")
    length = 84 + 50 * stated
    text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = "\n".join(lines_of(data)).encode()
    if (
        text[:5].lower() == b"solid"
        and len(data) != length
        and (b"facet" in text[:1000] or b"endsolid" in text.lower())
    ):
        return _text_stl(path, text)
    held = (len(data) - 84) // 50
    if len(data) < 84 or (stated > held and not (stated > 100 * MAX_FACES and len(data) == 84 + 50 * held)):
        raise MeshError(
            f"{path}: truncated, or not a .stl mesh: {stated:,} triangles take {length:,} bytes, "
            f"the file has {len(data):,}"
        )
    if stated != held and len(data) == 84 + 50 * held:  # some writers never fill the count in
        files.warnings.append(f"its header states {stated:,} triangles; all {held:,} are read")
        stated = held
    elif len(data) > length:
        files.leave_out(f"{len(data) - length:,} bytes after its {stated:,} triangles")
    kind = np.dtype([("normal", "<f4", 3), ("points", "<f4", (3, 3)), ("attribute", "<u2")])
    rows = np.frombuffer(data, kind, stated, 84)
    colours = _stl_colours(data[:80], rows["attribute"].astype(np.int64))
    points = rows["points"].reshape(-1, 3).astype(float)
    faces = np.arange(len(points)).reshape(-1, 3)
    part = Part(vertices=points, faces=faces, colours=None if colours is None else np.repeat(colours, 3, axis=0))
    return ParsedFile(parts=[part])


def _stl_colours(header: bytes, attribute: Array) -> Array | None:
    """Return a colour (F, 3) in 0..1 for each face, None where the file has none.

    https://en.wikipedia.org/wiki/STL_(file_format)#Color_in_binary_STL
    """
    five = np.stack([attribute & 31, attribute >> 5 & 31, attribute >> 10 & 31], axis=1) / 31
    own = attribute >> 15 == 1
    default = header.find(b"COLOR=")
    if default >= 0:  # Magics: red is lowest, and the bit says that the part's own colour counts
        plain = np.frombuffer(header, np.uint8, 3, default + 6) / 255 if default <= 70 else np.full(3, 0.65)
        return np.where(own[:, None], plain, five)
    if not own.any():
        return None
    return np.where(own[:, None], five[:, ::-1], NEUTRAL_GREY / 255)


def _text_stl(path: Path, text: bytes) -> ParsedFile:
    if b"endsolid" not in text.rstrip(b" \t\r\n\0\x1a")[-1000:].lower():
        raise MeshError(f"{path}: truncated, or not a .stl mesh (its text does not end with endsolid)")
    found = re.findall(rb"(?i)vertex\s+(\S+)\s+(\S+)\s+(\S+)", text)
    if found and any(b"," in word for word in found[0]):
        found = [tuple(word.replace(b",", b".") for word in row) for row in found]
    points = np.array(found, dtype=np.float64).reshape(-1, 3)
    return ParsedFile(parts=[Part(vertices=points, faces=np.arange(len(points) // 3 * 3).reshape(-1, 3))])


def read_off(files: SourceFiles, data: bytes) -> ParsedFile:
    """Read an OFF file, with colours of vertices (COFF) or of faces.

    http://www.geomview.org/docs/html/OFF.html
    """
    rows = [row.split("#", 1)[0].split() for row in lines_of(data)]
    rows = [row for row in rows if row]
    match = re.fullmatch(r"(ST)?(C)?(N)?(4)?(n)?OFF(\d*)", rows[0][0])
    kind = rows[0].pop(0) if match else "OFF"
    if match and match[6]:  # no blank before the counts
        rows[0].insert(0, match[6])
    if (match and (match[4] or match[5])) or rows[0][:1] == ["BINARY"]:
        kind = "binary OFF" if rows[0][:1] == ["BINARY"] else kind
        raise MeshError(f"{files.path}: is a {kind} file, which is not supported; convert it to OFF in text")
    rows = [row for row in rows if row]
    while len(rows[0]) < 2:  # the counts may stand below one another
        rows[0] += rows.pop(1)
    count, polygons_count = int(rows[0][0]), int(rows[0][1])
    rest = rows[1:]
    if not 0 <= 3 * count <= (held := sum(map(len, rest))):
        raise ValueError(f"{held} numbers for {count} vertices")
    width = len(rest[0]) if rest else 0
    if any(len(row) != width for row in rest[:count]):  # vertices that go over lines have no more than their position
        words = list(chain.from_iterable(rest))
        behind = rest[int(np.searchsorted(np.cumsum([len(row) for row in rest]), 3 * count, side="right")) :]
        rest, width = [words[at : at + 3] for at in range(0, 3 * count, 3)] + behind, 3
    table = np.array(rest[:count], dtype=np.float64).reshape(count, -1)
    points, at = table[:, :3], 6 if match and match[3] else 3
    coloured = width - at - (2 if match and match[1] else 0) >= 3
    polygons: list[list[int]] = []
    colours: list[list[float]] = []
    words = []
    for row in rest[count:]:
        words += row
        if len(polygons) == polygons_count or len(words) < 1 + int(words[0]):
            continue
        size = int(words[0])
        polygons.append([int(word) for word in words[1 : 1 + size]])
        colours.append([float(word) for word in words[1 + size : 4 + size]])
        words = []
    if len(polygons) < polygons_count:
        raise ValueError(f"{len(polygons)} of {polygons_count} faces")
    stored = None
    if coloured:
        files.leave_out("face colours beside those of vertices", when=any(colours))
        stored = (scaled_colours(table[:, at : at + 3]), corners_of(polygons))
    elif any(len(colour) == 3 for colour in colours):
        shown = [colour if len(colour) == 3 else [NEUTRAL_GREY] * 3 for colour in colours]
        owner = np.repeat(np.arange(len(polygons)), [len(polygon) for polygon in polygons])
        stored = (scaled_colours(shown), owner)
    else:
        files.leave_out("face colours given by their number in a colour map", when=any(colours))
    return ParsedFile(parts=[part_of(polygons, points, Material(), colours=stored)])


_READERS = {
    ".glb": read_gltf, ".gltf": read_gltf, ".obj": read_obj, ".ply": read_ply, ".stl": read_stl, ".off": read_off,
    ".dae": read_dae, ".3mf": read_3mf,
}  # fmt: skip
