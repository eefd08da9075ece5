"""CAD files in: any common mesh format becomes one triangle mesh in metres, or an error says why it cannot."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ocdit_core.errors import ConfigError, MeshError
from ocdit_core.objects.merging import merge, texture_of

if TYPE_CHECKING:
    import trimesh

logger = logging.getLogger(__name__)

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}
"""Metres in one unit of length."""

FORMATS = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf")
MIN_DIAMETER, MAX_DIAMETER = 0.005, 5.0
"""Metres: what is smaller or larger is a wrong unit, or no object that a robot's camera meets."""

MAX_BYTES = 1 << 30
MAX_FACES = 2_000_000
_EXTRAS = {".dae": ("collada", "pycollada"), ".3mf": ("lxml", "lxml")}


@dataclass(frozen=True, kw_only=True)
class CadModel:
    """A mesh as it was read.

    Attributes:
        mesh: one triangle mesh in metres, in the file's own frame, with a texture, vertex colours, or neither.
        diameter: the largest distance between two of its points, metres.
        unit: the unit of the file's numbers: "m", "cm", "mm" or "in".
        guessed: whether the unit was concluded from the size, neither given nor stated by the file.
        sha256: of the file, hexadecimal.
    """

    mesh: trimesh.Trimesh
    diameter: float
    unit: str
    guessed: bool
    sha256: str


def load_mesh(path: str | Path, unit: str = "auto") -> trimesh.Trimesh:
    """Return the mesh in metres that `read_cad` reads."""
    return read_cad(path, unit).mesh


def read_cad(path: str | Path, unit: str = "auto") -> CadModel:
    """Read a CAD file; the parts of a scene are joined.

    Args:
        path: a GLB, glTF, OBJ, PLY, STL, OFF, COLLADA or 3MF file.
        unit: "m", "cm", "mm", "in", or "auto": what the file states if that makes a plausible size (glTF states
            metres), else concluded from the size; the choice is logged.

    Raises:
        ConfigError: an unknown unit.
        MeshError: missing, a folder, empty, of an unknown format, truncated or damaged, without faces, with vertices
            that are not finite, too large a file, or of a size outside 5 mm .. 5 m.
    """
    if unit != "auto" and unit not in UNITS:
        raise ConfigError(f"unit: {unit!r} is unknown; use auto, {', '.join(UNITS)}")
    path = Path(path)
    data = _read_bytes(path)
    mesh, stated = _parse(path, data)
    size = diameter(mesh.vertices)
    if not size > 0:
        raise MeshError(f"{path}: all vertices are in one place")
    believed = stated is not None and MIN_DIAMETER <= size * UNITS[stated] <= MAX_DIAMETER
    if unit != "auto":
        chosen, how = unit, "given"
    elif believed and stated is not None:
        chosen, how = stated, "stated by the file"
    else:
        chosen, how = _guess_unit(size), "guessed from the size"
    metres = size * UNITS[chosen]
    if not MIN_DIAMETER <= metres <= MAX_DIAMETER:
        raise MeshError(
            f"{path}: is {size:.4g} units wide, {metres:.3g} m if the unit is {chosen} ({how}), which is outside "
            f"{MIN_DIAMETER * 1000:g} mm .. {MAX_DIAMETER:g} m; say which it is with --unit m, cm, mm or in"
        )
    if unit == "auto":
        logger.info("%s: unit %s (%s), so it is %.3g m wide; --unit to change", path.name, chosen, how, metres)
    mesh.apply_scale(UNITS[chosen])
    guessed = unit == "auto" and not believed
    return CadModel(mesh=mesh, diameter=metres, unit=chosen, guessed=guessed, sha256=hashlib.sha256(data).hexdigest())


def diameter(points: ArrayLike) -> float:
    """Return the largest distance between two of the points (N, 3), in their unit."""
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import pdist

    outer = np.unique(np.asarray(points, dtype=np.float64), axis=0)
    if len(outer) < 2:
        return 0.0
    if len(outer) > 50:
        try:
            outer = outer[ConvexHull(outer).vertices]
        except QhullError:
            # Flat: as thick as rounding, which is enough for a hull and changes nothing that can be seen.
            outer = outer[ConvexHull(outer, qhull_options="QJ").vertices]
    # A sphere of very many faces is its own hull; a few thousand of its points are as wide as all of them.
    return float(pdist(outer[:: 1 + len(outer) // 4000]).max())


def _guess_unit(size: float) -> str:
    # What fits in a hand or stands on a table is far more common than what fills a room.
    if size <= 2:
        return "m"
    return "cm" if size < 20 else "mm"


def _stated_unit(scene: trimesh.Scene) -> str | None:
    """Return the unit that the format or the file states (glTF: metres), if it is one of UNITS."""
    import trimesh

    try:
        scale = trimesh.units.unit_conversion(scene.units, "meters") if scene.units else 0.0
    except (KeyError, ValueError):
        return None
    return next((name for name, metres in UNITS.items() if abs(scale / metres - 1) < 1e-3), None)


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise MeshError(f"{path}: is a folder; give a mesh file")
    try:
        length = path.stat().st_size
        if length > MAX_BYTES:
            raise MeshError(f"{path}: {length / 2**20:.0f} MiB is over the limit of {MAX_BYTES >> 20} MiB; simplify it")
        suffix = path.suffix.lower()
        if suffix not in FORMATS:
            known = ", ".join(FORMATS)
            raise MeshError(f"{path}: unknown mesh format {suffix or '(no suffix)'}; known are {known}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise MeshError(f"{path}: no such mesh file") from None
    except OSError as error:
        raise MeshError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise MeshError(f"{path}: the file is empty")
    module, package = _EXTRAS.get(suffix, ("json", ""))
    if importlib.util.find_spec(module) is None:
        raise MeshError(f"{path}: reading {suffix} needs the package {package}: pip install {package}")
    # Without DracoPy such a file loads without an error, with every vertex at zero.
    if b"KHR_draco_mesh_compression" in data[: 1 << 24] and importlib.util.find_spec("DracoPy") is None:
        raise MeshError(f"{path}: is compressed with Draco; reading it needs the package DracoPy: pip install DracoPy")
    if suffix == ".glb" and int.from_bytes(data[8:12], "little") > len(data):
        stated = int.from_bytes(data[8:12], "little")
        raise MeshError(f"{path}: truncated: its header states {stated:,} bytes, the file has {len(data):,}")
    return data


def _parse(path: Path, data: bytes) -> tuple[trimesh.Trimesh, str | None]:
    """Return the joined mesh in the file's unit, and that unit if it is stated."""
    try:
        import trimesh
    except ImportError as error:
        raise MeshError("reading meshes needs the package trimesh: pip install trimesh") from error
    try:
        scene = trimesh.load_scene(
            io.BytesIO(data),
            file_type=path.suffix.lower()[1:],
            # The folder is where textures and buffers are looked up.
            resolver=trimesh.resolvers.FilePathResolver(str(path.resolve())),
            process=False,
        )
        parts: list[Any] = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
        for part in parts:
            if texture_of(part.visual) is not None:
                texture_of(part.visual).load()  # a picture inside the file is decoded only now
    except ImportError as error:
        raise MeshError(f"{path}: reading {path.suffix} needs another package ({error})") from error
    except Exception as error:
        # The parsers raise whatever they meet (ValueError, KeyError, struct.error, IndexError, json and XML errors).
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise MeshError(f"{path}: damaged, truncated, or not a {path.suffix} mesh ({reason[:200]})") from error
    if not parts:
        raise MeshError(f"{path}: has no faces (a point cloud, a drawing, or a damaged file); a surface mesh is needed")
    faces = sum(len(part.faces) for part in parts)
    if faces > MAX_FACES:
        raise MeshError(f"{path}: {faces:,} faces are over the limit of {MAX_FACES:,}; simplify the mesh first")
    for part in parts:
        if part.faces.min() < 0 or part.faces.max() >= len(part.vertices):
            raise MeshError(f"{path}: damaged: a face names vertex {part.faces.max()} of {len(part.vertices)}")
        bad = np.count_nonzero(~np.isfinite(part.vertices).all(axis=1))
        if bad:
            raise MeshError(f"{path}: {bad} of {len(part.vertices)} vertices are not finite numbers")
    linear = path.suffix.lower() in (".glb", ".gltf") and not _written_by_trimesh(data)
    mesh = merge(parts, linear_colours=linear)
    mesh.remove_unreferenced_vertices()
    return mesh, _stated_unit(scene)


def _written_by_trimesh(data: bytes) -> bool:
    # trimesh exports its sRGB vertex colours as they are, although glTF's rule is linear.
    return b"github.com/mikedh/trimesh" in data[: 1 << 24]
