"""CAD files in: any common mesh format becomes one triangle mesh in metres, or an error says why it cannot."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import ConfigError, MeshError
from ocdit_core.objects.formats import check_format, parse
from ocdit_core.objects.parts import join
from ocdit_core.objects.sources import SourceFiles

if TYPE_CHECKING:
    import trimesh

logger = logging.getLogger(__name__)

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}  # metres in one unit of length
DIAMETER_TOLERANCE = 0.05  # relative, of a BOP model against the diameter in models_info.json
MIN_DIAMETER, MAX_DIAMETER = 0.005, 5.0  # metres: beyond, the unit is wrong, or no robot's camera meets the object
ABSURD = (0.0005, 20.0)  # metres: beyond, even a unit that the file states is not believed
INFO = "models_info.json"
_MODEL = re.compile(r"obj_(\d{6})\.ply")
# Folders of the same objects in the same frames, at other resolutions: where they have no file of their own.
_SIBLINGS = ("models", "models_eval")


@dataclass(frozen=True, kw_only=True, eq=False)
class CadModel:
    """A mesh as it was read.

    Attributes:
        mesh: one triangle mesh in metres, in the file's own frame, with a texture, vertex colours, or neither. Where
            the file states them, `mesh.metadata` holds "metallic" and "roughness", means over the surface in 0..1.
        diameter: largest distance between two of its points, metres.
        unit: unit of the file's numbers, as `ChosenUnit.name`.
        guessed: whether the unit was concluded from the size.
        sha256: hash of the files read, one after the other in the order of `sources`, hexadecimal.
        sources: names of the files read, relative to the main one's folder: the main one first, then the materials,
            textures and buffers that it names, missing ones included, and the models_info.json that describes it.
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
        path: a file of one of `formats.FORMATS`, or, with optional packages, `formats.CAD_FORMATS`.
        unit: "m", "cm", "mm", "in", or "auto": what the file states, else concluded from the size; `choose_unit` has
            the rule. The choice is logged.

    Raises:
        ConfigError: an unknown unit.
        MeshError: missing, a folder, empty, of an unknown format, truncated or damaged, without faces, with vertices
            that are not finite, too large a file, or of an absurd size; or models_info.json is damaged.
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
    joined, undrawn = join(parsed.parts)
    files.leave_out(*undrawn)
    if not len(joined.faces):
        raise MeshError(f"{path}: its whole surface is a hole (its opacity is below the cut-off of its material)")
    mesh = _without_degenerate_faces(path, joined)
    size = diameter(mesh.vertices)
    chosen = choose_unit(path, size, given=unit, stated=parsed.unit if info is None else UNITS["mm"])
    scale = chosen.metres
    if unit == "auto" and chosen.warning is None:
        how, width = chosen.how, size * scale
        logger.info("%s: unit %s (%s), so it is %.3g m wide; --unit to change", path.name, chosen.name, how, width)
    warnings = list(dict.fromkeys(files.warnings))
    if files.undrawn:
        warnings.append(f"not drawn: {', '.join(files.undrawn)}")
    warnings = [f"{path.name}: {line}" for line in warnings]
    if chosen.warning is not None:
        warnings.append(chosen.warning)
    if info is not None and abs(size / info.diameter - 1) > DIAMETER_TOLERANCE:
        warnings.append(
            f"{path.name}: is {size:.4g} mm wide, but {info.source} states a diameter of {info.diameter:.4g} mm; "
            "they may belong to different models"
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
        warnings=tuple(warnings),
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


@dataclass(frozen=True, kw_only=True)
class ChosenUnit:
    """The unit that a file is read in.

    Attributes:
        name: "m", "cm", "mm", "in", "ft", "um", or a length such as "0.5 m".
        metres: in one unit.
        how: the reason in words.
        guessed: whether it was concluded from the size.
        warning: a line for the user where the size is implausible, or the file states another unit.
    """

    name: str
    metres: float
    how: str
    guessed: bool = False
    warning: str | None = None


def check_unit(unit: str) -> str:
    """Return the unit if it is "auto" or one of UNITS; else raise ConfigError."""
    if unit != "auto" and unit not in UNITS:
        raise ConfigError(f"unit: {unit!r} is unknown; use auto, {', '.join(UNITS)}")
    return unit


def choose_unit(path: Path, size: float, *, given: str = "auto", stated: float | None = None) -> ChosenUnit:
    """Choose the unit of an object that is `size` units wide.

    A given unit is taken, else the one that the file states unless the size is absurd then (below 0.5 mm or above
    20 m), else the size decides: up to 2 units are metres, below 20 centimetres, above millimetres. Many files are glTF
    by name but in another unit: a can of 67 x 67 x 122 units is 0.14 m, not 139 m. Overruling the file is a warning, as
    is a size outside 5 mm to 5 m; one that remains absurd is refused.

    Args:
        path: file, for messages.
        size: the object's diameter in the file's numbers, above 0.
        given: "auto", or a key of UNITS.
        stated: metres in the unit that the file states, if any.

    Raises:
        ConfigError: `given` is unknown.
        MeshError: the size is absurd.
    """
    metres = UNITS[given] if check_unit(given) != "auto" else stated
    how = "given" if given != "auto" else "stated by the file"
    overruled = None
    if metres is not None and given == "auto" and not ABSURD[0] <= size * metres <= ABSURD[1]:
        overruled = f"would be {size * metres:.3g} m wide in {_unit_name(metres)}, the unit that the file states"
        metres = None
    guessed = metres is None
    if metres is None:
        metres, how = UNITS["m" if size <= 2 else "cm" if size < 20 else "mm"], "guessed from the size"
    name, width = _unit_name(metres), size * metres
    plausible = f"{MIN_DIAMETER * 1000:g} mm .. {MAX_DIAMETER:g} m"
    limits = f"which is outside {plausible}; say which it is with --unit m, cm, mm or in"
    if not ABSURD[0] <= width <= ABSURD[1]:
        raise MeshError(f"{path}: is {size:.4g} units wide, {width:.3g} m if the unit is {name} ({how}), {limits}")
    warning = None
    if overruled is not None:
        warning = f"{path.name}: {overruled}; taken as {name}, {width:.3g} m; --unit to change"
    elif not MIN_DIAMETER <= width <= MAX_DIAMETER:
        warning = f"{path.name}: is {width:.3g} m wide, the unit being {name} ({how}), {limits}"
    return ChosenUnit(name=name, metres=metres, how=how, guessed=guessed, warning=warning)


def _unit_name(metres: float) -> str:
    known = {**UNITS, "ft": 0.3048, "um": 1e-6}
    return next((name for name, length in known.items() if abs(metres / length - 1) < 1e-3), f"{metres:g} m")


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInfo:
    """One model's entry in models_info.json; lengths in millimetres, `source` is the file's name.

    The identity is not among the discrete symmetries; `CadModel` documents the fields.
    """

    source: str
    diameter: float
    symmetries_discrete: NDArray[np.float64]
    symmetries_continuous: NDArray[np.float64]


_DIGITS = "[0-9][0-9][0-9]"
_LAYOUTS = ("*/meshes/model.obj", "*/google_16k/textured.obj", f"{_DIGITS}-{_DIGITS}/*.glb")


def expand_meshes(paths: Iterable[str | Path]) -> list[Path]:
    """Return the mesh files meant: a file stays, a folder becomes the files of its layout, sorted.

    The layouts: BOP models (obj_NNNNNN.ply), Google Scanned Objects as downloaded (NAME/meshes/model.obj), YCB
    (NAME/google_16k/textured.obj), Objaverse (000-023/UID.glb).

    Raises:
        MeshError: a folder of another layout.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        try:
            names = sorted(entry.name for entry in path.iterdir())
        except OSError as error:
            raise MeshError(f"{path}: cannot be listed ({error.strerror})") from error
        models = [path / name for name in names if _MODEL.fullmatch(name)]
        for layout in _LAYOUTS:
            models = models or sorted(path.glob(layout))
        if not models:
            inner = next((name for name in names if name.startswith("models") and (path / name).is_dir()), None)
            advice = f"give {path / inner}" if inner is not None else f"give mesh files, such as {path}/*.glb"
            raise MeshError(f"{path}: is a folder of no known layout (BOP's obj_000001.ply ...); {advice}")
        files += models
    return files


def info_source(path: Path) -> str | None:
    """Return the name of the models_info.json that describes a file, relative to its folder; None if there is none."""
    if not _MODEL.fullmatch(path.name):
        return None
    names = [INFO]
    if path.resolve().parent.name.startswith("models"):
        names += [f"../{sibling}/{INFO}" for sibling in _SIBLINGS]
    return next((name for name in names if (path.parent / name).is_file()), None)


def parse_info(path: Path, source: str, data: bytes) -> ModelInfo:
    """Return the entry of the model `path` in the contents of a models_info.json.

    Raises:
        MeshError: damaged; the message names the file and the key.
    """
    key = str(int(path.stem.removeprefix("obj_")))
    try:
        entry = json.loads(data)[key]
        size = float(entry["diameter"])
        discrete = np.array(entry.get("symmetries_discrete", []), dtype=np.float64).reshape(-1, 4, 4)
        axes = entry.get("symmetries_continuous", [])
        pairs = np.array([[axis["axis"], axis["offset"]] for axis in axes], dtype=np.float64).reshape(-1, 2, 3)
        lengths = np.linalg.norm(pairs[:, :1], axis=2, keepdims=True)
        rotation = discrete[:, :3, :3]
        rigid = np.allclose(rotation @ rotation.swapaxes(1, 2), np.eye(3), atol=1e-2)
        rigid &= bool((np.linalg.det(rotation) > 0).all()) and np.allclose(discrete[:, 3], [0, 0, 0, 1], atol=1e-6)
        for sound, problem in (
            (size > 0 and np.isfinite(size), f"the diameter is {size:g}, not above 0"),
            (rigid, "symmetries_discrete: one is not a rotation and a translation (4 x 4, row by row)"),
            (np.isfinite(pairs).all() and (lengths > 1e-6).all(), "symmetries_continuous: one axis has no direction"),
        ):
            if not sound:
                raise ValueError(problem)
    except KeyError as error:
        raise MeshError(f"{path.parent / source}: lacks the key {error} (for {path.name}); complete it") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:120]
        raise MeshError(f'{path.parent / source}: damaged, at or before the key "{key}" ({reason})') from error
    moves = ~np.isclose(discrete, np.eye(4), atol=1e-6).all(axis=(1, 2))
    pairs[:, :1] /= lengths
    return ModelInfo(source=source, diameter=size, symmetries_discrete=discrete[moves], symmetries_continuous=pairs)
