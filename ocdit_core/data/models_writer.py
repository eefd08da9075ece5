"""A dataset's models out: obj_NNNNNN.ply in millimetres with colours or a texture, and models_info.json.

The format: https://github.com/thodan/bop_toolkit/blob/master/docs/bop_datasets_format.md
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.bop import read_bytes
from ocdit_core.data.bop_writer import line_by_line
from ocdit_core.data.frame import parse_json
from ocdit_core.errors import DataError
from ocdit_core.files import replacing, write_text

if TYPE_CHECKING:
    import trimesh

INFO = "models_info.json"

# trimesh's names of texture coordinates, and those of the BOP toolkit (and of MeshLab).
_RENAMED = {b"s": b"texture_u", b"t": b"texture_v"}
_FORMAT = b"format ascii 1.0\n"


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """An object of a dataset.

    Attributes:
        mesh: in metres, in the frame that the poses mean; with a texture, vertex colours, or neither.
        symmetries_discrete: (D, 4, 4) transforms that leave it looking alike, metres, without the identity.
        symmetries_continuous: (C, 2, 3) axes of rotation: direction, and a point on the axis in metres.
    """

    mesh: trimesh.Trimesh
    symmetries_discrete: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4, 4)))
    symmetries_continuous: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2, 3)))


def model_path(folder: str | Path, object_id: int) -> Path:
    """Return the path of an object's mesh in a folder of models."""
    return Path(folder) / f"obj_{object_id:06d}.ply"


def write_model(folder: str | Path, object_id: int, model: Model) -> dict[str, Any]:
    """Write an object's mesh, and its texture as obj_NNNNNN.png, atomically each.

    Args:
        folder: "models" in the dataset's folder, made when missing.
        object_id: its number.
        model: the object.

    Returns:
        Its entry for `write_models_info`.

    Raises:
        DataError: the mesh has no faces, or nothing can be written here.
    """
    from trimesh.visual import ColorVisuals, TextureVisuals

    from ocdit_core.objects.materials import texture_of
    from ocdit_core.objects.meshes import diameter

    path = model_path(folder, object_id)
    if not len(model.mesh.faces):
        raise DataError(f"{path}: the mesh has no faces")
    mesh = model.mesh.copy()
    mesh.remove_unreferenced_vertices()
    mesh.apply_scale(1000)
    texture = texture_of(mesh.visual)
    if texture is None and isinstance(mesh.visual, TextureVisuals):
        mesh.visual = mesh.visual.to_color()
    if isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "face":
        # The toolkit knows colours of vertices only.
        mesh.visual = ColorVisuals(mesh, vertex_colors=mesh.visual.vertex_colors)
    data = mesh.export(file_type="ply", encoding="ascii", vertex_normal=True)
    assert isinstance(data, bytes)
    try:
        if texture is not None:
            picture = path.with_suffix(".png")
            header, mark, body = data.partition(b"end_header\n")
            for name, instead in _RENAMED.items():
                header = re.sub(rb"property (\w+) " + name + b"\n", rb"property \1 " + instead + b"\n", header)
            header = header.replace(_FORMAT, _FORMAT + b"comment TextureFile " + picture.name.encode() + b"\n", 1)
            data = header + mark + body
            encoded = io.BytesIO()
            texture.convert("RGB").save(encoded, "PNG")
            with replacing(picture) as temporary:
                temporary.write_bytes(encoded.getvalue())
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    low, high = np.asarray(mesh.vertices).min(axis=0), np.asarray(mesh.vertices).max(axis=0)
    entry: dict[str, Any] = {"diameter": float(diameter(mesh.vertices))}
    for axis, letter in enumerate("xyz"):
        entry[f"min_{letter}"] = float(low[axis])
        entry[f"size_{letter}"] = float(high[axis] - low[axis])
    if len(model.symmetries_discrete):
        transforms = np.array(model.symmetries_discrete, dtype=np.float64)
        transforms[:, :3, 3] *= 1000
        entry["symmetries_discrete"] = transforms.reshape(-1, 16).tolist()
    if len(model.symmetries_continuous):
        entry["symmetries_continuous"] = [
            {"axis": axis.tolist(), "offset": (offset * 1000).tolist()}
            for axis, offset in np.asarray(model.symmetries_continuous, dtype=np.float64)
        ]
    return entry


def write_models_info(folder: str | Path, entries: dict[int, dict[str, Any]]) -> None:
    """Write models_info.json, atomically; entries of other objects that are in the file already stay.

    Raises:
        DataError: the file that is there is damaged, or nothing can be written here.
    """
    path = Path(folder) / INFO
    known: dict[int, Any] = {}
    if path.is_file():
        old = parse_json(read_bytes(path), str(path))
        if not isinstance(old, dict) or not all(key.isdecimal() for key in old):
            raise DataError(f"{path}: is no object with a number for each model", kind="damaged JSON")
        known = {int(key): value for key, value in old.items()}
    try:
        write_text(path, line_by_line({**known, **entries}))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
