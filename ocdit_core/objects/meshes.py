"""CAD files in: any common mesh format becomes one triangle mesh in metres, or an error says why it cannot."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import MeshError
from ocdit_core.objects.bop_models import ModelInfo, expand_meshes, info_source, parse_info
from ocdit_core.objects.merging import merge
from ocdit_core.objects.parsing import FORMATS, MAX_FACES, check_format, parse
from ocdit_core.objects.sources import MAX_BYTES, SourceFiles, missing_lines, source_digest
from ocdit_core.objects.units import MAX_DIAMETER, MIN_DIAMETER, UNITS, check_unit, choose_unit

if TYPE_CHECKING:
    import trimesh

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_DIAMETER",
    "MAX_FACES",
    "MIN_DIAMETER",
    "UNITS",
    "CadModel",
    "diameter",
    "expand_meshes",
    "load_mesh",
    "read_cad",
    "source_digest",
]

logger = logging.getLogger(__name__)

DIAMETER_TOLERANCE = 0.05
"""By how much a BOP model's diameter may differ from the one that models_info.json states."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CadModel:
    """A mesh as it was read.

    Attributes:
        mesh: one triangle mesh in metres, in the file's own frame, with a texture, vertex colours, or neither. Where
            the file states them, `mesh.metadata` holds "metallic" and "roughness", means over the surface in 0..1.
        diameter: the largest distance between two of its points, metres.
        unit: the unit of the file's numbers: "m", "cm", "mm" or "in".
        guessed: whether the unit was concluded from the size, neither given nor stated by the file.
        sha256: of the files read, one after the other in the order of `sources`, hexadecimal.
        sources: names of the files that the model was read from, relative to the main one's folder: the main one
            first, then the material files, textures and buffers that it names, those that are missing included, and
            the models_info.json that describes it.
        symmetries_discrete: (D, 4, 4) object-from-object transforms, metres, from models_info.json.
        symmetries_continuous: (C, 2, 3) axes of rotation: unit direction, a point on the axis in metres.
        warnings: lines for the user, each beginning with the file's name.
    """

    mesh: trimesh.Trimesh
    diameter: float
    unit: str
    guessed: bool
    sha256: str
    sources: tuple[str, ...]
    symmetries_discrete: NDArray[np.float64]
    symmetries_continuous: NDArray[np.float64]
    warnings: tuple[str, ...]


def load_mesh(path: str | Path, unit: str = "auto") -> trimesh.Trimesh:
    """Return the mesh in metres that `read_cad` reads; its warnings go to the log."""
    model = read_cad(path, unit)
    for warning in model.warnings:
        logger.warning("%s", warning)
    return model.mesh


def read_cad(path: str | Path, unit: str = "auto") -> CadModel:
    """Read a CAD file; the parts of a scene are joined, faces without an area are left out.

    A model of a BOP folder (obj_000001.ply beside models_info.json) is in millimetres and has its symmetries.

    Args:
        path: a GLB, glTF, OBJ, PLY, STL, OFF, COLLADA or 3MF file.
        unit: "m", "cm", "mm", "in", or "auto": what the file states if that makes a plausible size, else concluded
            from the size; `units.choose_unit` has the rule. The choice is logged; overriding the file is a warning.

    Raises:
        ConfigError: an unknown unit.
        MeshError: missing, a folder, empty, of an unknown format, truncated or damaged, without faces, with vertices
            that are not finite, too large a file, or of a size outside 5 mm .. 5 m; or models_info.json is damaged.
    """
    check_unit(unit)
    path = Path(path)
    files = SourceFiles(path)
    if path.is_file():
        check_format(path)
    data = files.main()
    parsed = parse(files, data)
    source = info_source(path)
    info = parse_info(path, source, files.add(source)) if source is not None else None
    mesh = _without_degenerate_faces(path, merge(parsed.parts, linear_colours=parsed.linear_colours))
    size = diameter(mesh.vertices)
    chosen = choose_unit(path, size, given=unit, stated="mm" if info is not None else parsed.unit)
    scale = UNITS[chosen.name]
    if unit == "auto" and chosen.warning is None:
        logger.info(
            "%s: unit %s (%s), so it is %.3g m wide; --unit to change", path.name, chosen.name, chosen.how, size * scale
        )
    mesh.apply_scale(scale)
    discrete, continuous = np.zeros((0, 4, 4)), np.zeros((0, 2, 3))
    if info is not None:
        discrete, continuous = info.symmetries_discrete.copy(), info.symmetries_continuous.copy()
        discrete[:, :3, 3] *= scale
        continuous[:, 1] *= scale
    return CadModel(
        mesh=mesh,
        diameter=size * scale,
        unit=chosen.name,
        guessed=chosen.guessed,
        sha256=files.sha256,
        sources=tuple(files.names),
        symmetries_discrete=discrete,
        symmetries_continuous=continuous,
        warnings=(
            *missing_lines(files),
            *parsed.warnings,
            *([chosen.warning] if chosen.warning is not None else []),
            *_diameter_warning(path, size, info),
        ),
    )


def diameter(points: ArrayLike) -> float:
    """Return the largest distance between two of the points (N, 3), in their unit."""
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import pdist

    outer = np.asarray(points, dtype=np.float64)
    if len(outer) < 2 or not np.ptp(outer, axis=0).any():
        return 0.0
    if len(outer) > 50:
        try:
            outer = outer[ConvexHull(outer).vertices]
        except QhullError:
            # Flat: as thick as rounding, which is enough for a hull and changes nothing that can be seen.
            outer = outer[ConvexHull(outer, qhull_options="QJ").vertices]
    # A sphere of very many faces is its own hull; a few thousand of its points are as wide as all of them.
    return float(pdist(outer[:: 1 + len(outer) // 4000]).max())


def _without_degenerate_faces(path: Path, mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Drop the faces that have no area, and the vertices that no face uses."""
    triangles = np.asarray(mesh.vertices)[mesh.faces]
    size = float(np.ptp(triangles.reshape(-1, 3), axis=0).max())
    if not size > 0:
        raise MeshError(f"{path}: all vertices are in one place")
    doubled = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    # Relative to the object: what is a millionth of it wide and long has no pixel in any view.
    solid = doubled > 1e-12 * size**2
    if not solid.any():
        raise MeshError(f"{path}: none of its {len(solid)} faces has an area; a surface mesh is needed")
    if not solid.all():
        mesh.update_faces(solid)
    mesh.remove_unreferenced_vertices()
    return mesh


def _diameter_warning(path: Path, size: float, info: ModelInfo | None) -> list[str]:
    if info is None or abs(size / info.diameter - 1) <= DIAMETER_TOLERANCE:
        return []
    return [
        f"{path.name}: is {size:.4g} mm wide, but {info.source} states a diameter of {info.diameter:.4g} mm; "
        "they may belong to different models"
    ]
