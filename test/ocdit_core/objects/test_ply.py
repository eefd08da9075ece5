import struct

import numpy as np
import pytest

from ocdit_core.errors import MeshError
from ocdit_core.objects.meshes import read_cad


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("extra", [False, True])
def test_a_binary_ply_of_triangles_quads_and_polygons(tmp_path, endian, extra):
    # A prism over a pentagon, with one of its five sides cut in two: what Blender writes.
    turn = np.arange(5) * 2 * np.pi / 5
    ring = np.stack([np.cos(turn), np.sin(turn)], axis=1) * 50
    points = np.concatenate([np.insert(ring, 2, z, axis=1) for z in (0, 80)])
    faces = [[4, 3, 2, 1, 0], [5, 6, 7, 8, 9], [0, 1, 6], [0, 6, 5]]
    faces += [[i, (i + 1) % 5, (i + 1) % 5 + 5, i + 5] for i in range(1, 5)]
    order = "binary_big_endian" if endian == ">" else "binary_little_endian"
    header = f"ply\nformat {order} 1.0\nelement vertex 10\nproperty float x\nproperty float y\nproperty float z\n"
    header += f"element face {len(faces)}\n" + ("property uchar flags\n" if extra else "")
    header += "property list uchar uint vertex_indices\n" + ("property float area\n" if extra else "")
    body = points.astype(f"{endian}f4").tobytes()
    for face in faces:
        row = struct.pack(f"{endian}B{len(face)}I", len(face), *face)
        body += b"\7" + row + struct.pack(f"{endian}f", 1.5) if extra else row
    (tmp_path / "a.ply").write_bytes(header.encode() + b"end_header\n" + body)
    mesh = read_cad(tmp_path / "a.ply").mesh
    assert len(mesh.faces) == 2 * 3 + 2 + 4 * 2
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(2.5 * np.sin(2 * np.pi / 5) * 0.05**2 * 0.08, rel=1e-5)
    (tmp_path / "half.ply").write_bytes(header.encode() + b"end_header\n" + body[:-9])
    with pytest.raises(MeshError, match="damaged, truncated"):
        read_cad(tmp_path / "half.ply")
