"""BOP's folders of models: obj_000001.ply and so on in millimetres, with models_info.json beside them.

The format: https://github.com/thodan/bop_toolkit/blob/master/docs/bop_datasets_format.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import MeshError

INFO = "models_info.json"
_MODEL = re.compile(r"obj_(\d{6})\.ply")
# Folders of the same objects in the same frames, at other resolutions: where they have no file of their own.
_SIBLINGS = ("models", "models_eval")


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInfo:
    """What models_info.json says of one object; lengths in the file's unit, millimetres.

    Attributes:
        source: the file's name, relative to the model's folder.
        diameter: the largest distance between two of the model's points.
        symmetries_discrete: (D, 4, 4), the identity not among them.
        symmetries_continuous: (C, 2, 3) axes of rotation: unit direction, a point on the axis.
    """

    source: str
    diameter: float
    symmetries_discrete: NDArray[np.float64]
    symmetries_continuous: NDArray[np.float64]


def expand_meshes(paths: Iterable[str | Path]) -> list[Path]:
    """Return the mesh files meant: a file stays, a folder of BOP models becomes its obj_NNNNNN.ply, sorted.

    Raises:
        MeshError: a folder that holds no BOP models.
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
        if not models:
            raise MeshError(
                f"{path}: is a folder that holds no BOP models (obj_000001.ply ...); {_advice(path, names)}"
            )
        files += models
    return files


def _advice(path: Path, names: list[str]) -> str:
    inner = next((name for name in names if name.startswith("models") and (path / name).is_dir()), None)
    return f"give {path / inner}" if inner is not None else f"give mesh files, such as {path}/*.glb"


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
    match = _MODEL.fullmatch(path.name)
    assert match is not None
    key = str(int(match.group(1)))
    where = f"{path.parent / source}"
    try:
        info = json.loads(data)
    except ValueError as error:
        raise MeshError(f"{where}: is not valid JSON ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(info, dict):
        raise MeshError(f"{where}: is a {type(info).__name__}, not an object with a key for each model")
    entry = info.get(key)
    if not isinstance(entry, dict):
        state = "lacks" if entry is None else "has no object at"
        raise MeshError(f'{where}: {state} the key "{key}", which describes {path.name}')
    where = f"{where}: {key}"
    diameter = _numbers(f"{where}.diameter", entry.get("diameter"), ())
    if not diameter > 0:
        raise MeshError(f"{where}.diameter: is {float(diameter):g}, not above 0")
    discrete = [
        _transform(f"{where}.symmetries_discrete[{i}]", item)
        for i, item in enumerate(_items(f"{where}.symmetries_discrete", entry.get("symmetries_discrete", [])))
    ]
    discrete = [matrix for matrix in discrete if not np.allclose(matrix, np.eye(4), atol=1e-6)]
    continuous = [
        _axis(f"{where}.symmetries_continuous[{i}]", item)
        for i, item in enumerate(_items(f"{where}.symmetries_continuous", entry.get("symmetries_continuous", [])))
    ]
    return ModelInfo(
        source=source,
        diameter=float(diameter),
        symmetries_discrete=np.asarray(discrete, dtype=np.float64).reshape(-1, 4, 4),
        symmetries_continuous=np.asarray(continuous, dtype=np.float64).reshape(-1, 2, 3),
    )


def _items(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise MeshError(f"{where}: is a {type(value).__name__}, not a list")
    return value


def _numbers(where: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    wanted = f"{int(np.prod(shape))} numbers" if shape else "a number"
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = None
    if value is None or numbers is None or numbers.size != int(np.prod(shape)):
        text = "missing" if value is None else f"{json.dumps(value)[:60]}"
        raise MeshError(f"{where}: is {text}, not {wanted}")
    if not np.isfinite(numbers).all():
        raise MeshError(f"{where}: holds values that are not finite")
    return numbers.reshape(shape)


def _transform(where: str, value: Any) -> NDArray[np.float64]:
    """Sixteen numbers, row by row, as a rigid transform (4, 4)."""
    matrix = _numbers(where, value, (4, 4))
    rotation = matrix[:3, :3]
    rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2) and np.linalg.det(rotation) > 0
    if not rigid or not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
        raise MeshError(f"{where}: is not a rotation and a translation (4 x 4, row by row)")
    return matrix


def _axis(where: str, value: Any) -> NDArray[np.float64]:
    if not isinstance(value, dict):
        raise MeshError(f"{where}: is a {type(value).__name__}, not an object with axis and offset")
    axis = _numbers(f"{where}.axis", value.get("axis"), (3,))
    offset = _numbers(f"{where}.offset", value.get("offset"), (3,))
    length = float(np.linalg.norm(axis))
    if length < 1e-6:
        raise MeshError(f"{where}.axis: has no direction (0, 0, 0)")
    return np.stack([axis / length, offset])
