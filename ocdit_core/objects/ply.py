"""PLY files made fit for trimesh, which passes over colours beside texture coordinates and wants faces of one size."""

from __future__ import annotations

import re

import numpy as np

from ocdit_core.errors import MeshError
from ocdit_core.objects.sources import SourceFiles

_COORDINATES = re.compile(rb"(?m)^(property [^\n]*\b)(texture_u|texture_v|u|v|s|t|texcoord)(\s*)$")
_TEXTURE = re.compile(rb"(?mi)^comment\s+texturefile\s+([^\n]+)$")
_END = re.compile(rb"(?m)^end_header[ \t]*\r?\n")
_TYPES = {
    **dict.fromkeys((b"char", b"int8"), "i1"),
    **dict.fromkeys((b"uchar", b"uint8"), "u1"),
    **dict.fromkeys((b"short", b"int16"), "i2"),
    **dict.fromkeys((b"ushort", b"uint16"), "u2"),
    **dict.fromkeys((b"int", b"int32"), "i4"),
    **dict.fromkeys((b"uint", b"uint32"), "u4"),
    **dict.fromkeys((b"float", b"float32"), "f4"),
    **dict.fromkeys((b"double", b"float64"), "f8"),
}


def readable_ply(files: SourceFiles, data: bytes) -> bytes:
    """Return a PLY file that trimesh reads as it is meant.

    Its texture coordinates go if its texture is missing, or if it names none: MeshLab writes colours and coordinates
    together, and trimesh drops the colours as soon as it sees coordinates. In a binary file, faces of different
    numbers of corners (Blender writes them) become triangles.

    Raises:
        MeshError: the header has no end.
    """
    end = _END.search(data[: 1 << 20])
    if end is None:
        raise MeshError(f"{files.path}: damaged, truncated, or not a .ply mesh (its header does not end)")
    header, body = data[: end.end()], data[end.end() :]
    named = _TEXTURE.search(header)
    if named is not None:
        name = named.group(1).decode("utf-8", "replace").strip()
        if files.exists(name):
            return _triangulated(header, body)
        files.note_missing(name)
        header = _TEXTURE.sub(b"comment", header)
    return _triangulated(_COORDINATES.sub(rb"\1unused_\2\3", header), body)


def _triangulated(header: bytes, body: bytes) -> bytes:
    """Return the file with triangles for a binary list of faces of several sizes; any other file as it is."""
    layout = _layout(header)
    if layout is None:
        return header + body
    endian, vertices, row, faces, before, kinds, after = layout
    start = vertices * row
    count_type, index_type = (np.dtype(endian + kind) for kind in kinds)
    fixed, size = before + count_type.itemsize + after, index_type.itemsize
    if not faces or len(body) < start + fixed:
        return header + body
    first = int(np.frombuffer(body, count_type, 1, start + before)[0])
    if start + faces * (fixed + first * size) == len(body):
        return header + body  # one size for all: trimesh's own case
    triangles: list[np.ndarray] = []
    at = start
    try:
        for _ in range(faces):
            corners = int(np.frombuffer(body, count_type, 1, at + before)[0])
            face = np.frombuffer(body, index_type, corners, at + before + count_type.itemsize)
            if corners >= 3:
                triangles.append(np.stack([np.full(corners - 2, face[0]), face[1:-1], face[2:]], axis=1))
            at += fixed + corners * size
    except ValueError:
        return header + body  # truncated, which trimesh finds too
    if not triangles or at > len(body):
        return header + body
    joined = np.concatenate(triangles).astype("<i4" if endian == "<" else ">i4")
    rows = np.empty(len(joined), [("n", "u1"), ("face", joined.dtype, 3)])
    rows["n"], rows["face"] = 3, joined
    head = header[: header.index(b"element face")]
    head += b"element face %d\nproperty list uchar int vertex_indices\nend_header\n" % len(joined)
    return head + body[:start] + rows.tobytes()


def _layout(header: bytes) -> tuple[str, int, int, int, int, tuple[str, str], int] | None:
    """Return byte order, vertices, bytes a vertex, faces, bytes before a face's list, its types, bytes after it.

    None for a text file, and for any but the usual order: vertices of plain numbers, then faces with one list.
    """
    lines = [line.split() for line in header.splitlines()]
    lines = [line for line in lines if line and line[0] in (b"format", b"element", b"property")]
    if not lines or lines[0][0] != b"format" or b"binary" not in lines[0][1]:
        return None
    endian = ">" if b"big" in lines[0][1] else "<"
    elements = [index for index, line in enumerate(lines) if line[0] == b"element"]
    if len(elements) < 2 or [lines[index][1] for index in elements[:2]] != [b"vertex", b"face"]:
        return None
    stop = elements[2] if len(elements) > 2 else len(lines)
    vertex, face = lines[elements[0] + 1 : elements[1]], lines[elements[1] + 1 : stop]
    lists = [index for index, line in enumerate(face) if line[1] == b"list"]
    try:
        if len(lists) != 1 or face[lists[0]][4] not in (b"vertex_indices", b"vertex_index"):
            return None
        row = sum(np.dtype(_TYPES[line[1]]).itemsize for line in vertex)
        sizes = [0 if index in lists else np.dtype(_TYPES[line[1]]).itemsize for index, line in enumerate(face)]
        kinds = (_TYPES[face[lists[0]][2]], _TYPES[face[lists[0]][3]])
        vertices, faces = (int(lines[index][2]) for index in elements[:2])
    except (KeyError, IndexError, ValueError):
        return None  # not a PLY header: trimesh says what is wrong with it
    return endian, vertices, row, faces, sum(sizes[: lists[0]]), kinds, sum(sizes[lists[0] :])
