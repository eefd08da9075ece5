"""PLY files: text and binary, with colours of vertices or faces, and one or several textures.

http://paulbourke.net/dataformats/ply/
"""

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from ocdit_core.errors import MeshError
from ocdit_core.objects.parts import Material, ParsedFile, Part, part_of, rgba, strip_triangles
from ocdit_core.objects.sources import BESIDE_TEXTURE, Array, SourceFiles

_END = re.compile(rb"(?m)^[ \t]*end_header[ \t]*(\r\n|\n|\r)")
_TEXTURE = re.compile(r"(?i)comment\s+texturefile\s+(.+)")
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_COLOURS = [[f"{prefix}{name}" for name in ("red", "green", "blue")] for prefix in ("", "diffuse_")] + [["r", "g", "b"]]
_COORDINATES = (("texture_u", "texture_v"), ("s", "t"), ("u", "v"), ("texcoord_u", "texcoord_v"), ("tx", "ty"))
_DRAWN = ("vertex", "face", "tristrips")


@dataclass
class _Element:
    """Rows of one kind; each property has a type, and a type of its count if it is a list."""

    name: str
    count: int
    properties: list[tuple[str, str, str | None]] = field(default_factory=list)


def read_ply(files: SourceFiles, data: bytes) -> ParsedFile:
    """Read a PLY file; raises MeshError if its header has no end. Colours count where there is no texture."""
    end = _END.search(data[: 1 << 20])
    if end is None or data[:3] != b"ply":
        raise MeshError(f"{files.path}: damaged, truncated, or not a .ply mesh (its header does not end)")
    header = data[: end.start()].decode("utf-8", "replace").replace("\r", "\n").split("\n")
    layout, elements, names = "", list[_Element](), list[str]()
    for line in header:
        words = line.split()
        if match := _TEXTURE.match(line.strip()):
            names.append(match[1].strip())
        elif words[:1] == ["format"]:
            layout = words[1]
        elif words[:1] == ["element"]:
            elements.append(_Element(words[1], int(words[2])))
        elif words[:2] == ["property", "list"]:
            elements[-1].properties.append((words[4], _TYPES[words[3]], _TYPES[words[2]]))
        elif words[:1] == ["property"]:
            elements[-1].properties.append((words[2], _TYPES[words[1]], None))
    body = data[end.end() :]
    if layout == "ascii":
        tables = _from_text(body, elements)
    else:
        tables = _from_bytes(body, elements, ">" if "big" in layout else "<")
    files.leave_out(*(f"{e.count} {e.name} elements" for e in elements if e.name not in _DRAWN and e.count))
    return ParsedFile(parts=_parts(files, tables, names))


def _from_text(body: bytes, elements: list[_Element]) -> dict[str, dict[str, Any]]:
    """Return the columns of each element of a text file.

    A row is a line, and what a line holds beyond its properties is passed over; where the lines are not as many as the
    rows, numbers are read one after the other.
    """
    rows = [line.split() for line in body.splitlines()]
    rows = [row for row in rows if row]
    numbers = np.array(list(chain.from_iterable(rows)), dtype=np.float64)
    starts = np.cumsum([0, *map(len, rows)]) if len(rows) == sum(element.count for element in elements) else None
    tables: dict[str, dict[str, Any]] = {}
    at = row = 0
    for element in elements:
        columns: dict[str, Any] = {name: [] for name, _, _ in element.properties}
        if all(count is None for _, _, count in element.properties):
            width = len(element.properties)
            begins = at + width * np.arange(element.count) if starts is None else starts[row : row + element.count]
            for offset, (name, kind, _) in enumerate(element.properties):
                with np.errstate(invalid="ignore"):  # a colour or an index that is NaN
                    columns[name] = numbers[begins + offset].astype(kind)
            at, row = at + width * element.count, row + element.count
        else:
            for _ in range(element.count):
                at, row = at if starts is None else int(starts[row]), row + 1
                for name, _, count in element.properties:
                    size = 1 if count is None else int(numbers[at])
                    at += count is not None
                    values = numbers[at : at + size]
                    if len(values) < size:
                        raise ValueError("too few numbers")
                    columns[name].append(values if count is not None else values[0])
                    at += size
            for name, kind, count in element.properties:
                columns[name] = columns[name] if count is not None else np.array(columns[name]).astype(kind)
        tables[element.name] = columns
    return tables


def _from_bytes(body: bytes, elements: list[_Element], endian: str) -> dict[str, dict[str, Any]]:
    """Return the columns of each element of a binary file."""
    tables: dict[str, dict[str, Any]] = {}
    at = 0
    for element in elements:
        if not element.count:
            tables[element.name] = {name: [] for name, _, _ in element.properties}
            continue
        # One size for all lists, that of the first row, is by far the most common: read at once.
        first, sizes = at, list[int]()
        for _, kind, count in element.properties:
            size = 1
            if count is not None:
                size = int(np.frombuffer(body, endian + count, 1, first)[0])
                first += np.dtype(count).itemsize
            sizes.append(size)
            first += size * np.dtype(kind).itemsize
        fields: list[Any] = []
        for (name, kind, count), size in zip(element.properties, sizes, strict=True):
            fields += [(f"count of {name}", endian + count)] if count is not None else []
            fields.append((name, endian + kind, (size,)) if count is not None else (name, endian + kind))
        row = np.dtype(fields)
        uniform = len(body) >= at + element.count * row.itemsize
        if uniform:
            rows = np.frombuffer(body, row, element.count, at)
            uniform = all(
                count is None or bool((rows[f"count of {name}"] == size).all())
                for (name, _, count), size in zip(element.properties, sizes, strict=True)
            )
        if uniform:
            tables[element.name] = {name: rows[name] for name, _, _ in element.properties}
            at += element.count * row.itemsize
            continue
        columns: dict[str, Any] = {name: [] for name, _, _ in element.properties}
        for _ in range(element.count):
            for name, kind, count in element.properties:
                size = 1
                if count is not None:
                    size = int(np.frombuffer(body, endian + count, 1, at)[0])
                    at += np.dtype(count).itemsize
                values = np.frombuffer(body, endian + kind, size, at)
                at += values.nbytes
                columns[name].append(values if count is not None else values[0])
        for name, _, count in element.properties:
            columns[name] = columns[name] if count is not None else np.array(columns[name])
        tables[element.name] = columns
    return tables


def _parts(files: SourceFiles, tables: dict[str, Any], names: list[str]) -> list[Part]:
    vertex, face = tables["vertex"], tables.get("face", {})
    points = np.stack([np.asarray(vertex[axis], dtype=np.float64) for axis in "xyz"], axis=1)
    polygons: Any = next((face[name] for name in ("vertex_indices", "vertex_index") if name in face), [])
    if isinstance(polygons, np.ndarray):
        polygons = polygons.astype(np.int64)
    else:
        polygons = [polygon.astype(np.int64) for polygon in polygons]
    for strip in tables.get("tristrips", {}).get("vertex_indices", []):
        runs = np.split(strip, np.flatnonzero(np.asarray(strip) < 0))
        polygons = [*polygons, *chain.from_iterable(strip_triangles(run[run >= 0]) for run in runs)]
    if not len(polygons):
        return []
    sizes = np.array([len(polygon) for polygon in polygons])
    corner = np.concatenate([np.asarray(polygon) for polygon in polygons]).astype(np.int64)
    owner = np.repeat(np.arange(len(polygons)), sizes)
    stored = _colours(vertex, face, corner, owner)
    files.leave_out("the opacity of its vertices", when=np.min(vertex.get("alpha", 255), initial=255) < 255)
    textures = [files.texture(name) for name in names]
    if textures and "texcoord" in face and len(face["texcoord"]) == len(polygons):
        wedges = np.concatenate(
            [np.asarray(row, dtype=np.float64)[: 2 * n] for row, n in zip(face["texcoord"], sizes, strict=True)]
        )
        uv = (wedges.reshape(-1, 2), np.arange(len(corner)))
        if len(wedges) != 2 * len(corner):
            raise ValueError("texture coordinates do not fit the faces")
    elif textures and (pair := next((p for p in _COORDINATES if p[0] in vertex and p[1] in vertex), None)):
        uv = (np.stack([np.asarray(vertex[name], dtype=np.float64) for name in pair], axis=1), corner)
    else:
        files.leave_out("a texture without coordinates", when=any(texture is not None for texture in textures))
        return [part_of(polygons, points, Material(), colours=stored)]
    number = np.zeros(len(polygons), np.int64)
    files.leave_out("further textures", when=len(names) > 1 and "texnumber" not in face)
    if "texnumber" in face and len(names) > 1:
        number = np.asarray(face["texnumber"]).astype(np.int64)
    parts = []
    for index in np.unique(number):
        which = np.flatnonzero(number == index)
        mine = np.isin(owner, which)
        texture = textures[index] if 0 <= index < len(textures) else None
        chosen = polygons[which] if isinstance(polygons, np.ndarray) else [polygons[i] for i in which]
        colours = None if stored is None else (stored[0], stored[1][mine])
        if texture is None:
            parts.append(part_of(chosen, points, Material(), colours=colours))
            continue
        files.leave_out(BESIDE_TEXTURE, when=stored is not None and stored[0].min() < 1)
        parts.append(part_of(chosen, points, Material(texture=texture), uv=(uv[0], uv[1][mine])))
    return parts


def _colours(vertex: dict[str, Any], face: dict[str, Any], corner: Array, owner: Array) -> tuple[Array, Array] | None:
    """Return sRGB colours (N, 3) in 0..1 and the index of each corner; those of vertices before those of faces."""
    for table, index in ((vertex, corner), (face, owner)):
        for names in _COLOURS:
            if all(name in table for name in names):
                values = np.stack([np.asarray(table[name]) for name in names], axis=1)
                if values.dtype.itemsize > 2 and values.max(initial=0) > 1:
                    values = values.clip(0, 255).astype(np.uint8)
                return rgba(values)[:, :3], index
    return None
