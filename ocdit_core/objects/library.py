"""The target objects on disk: a folder with one compressed NumPy archive of rendered views for each object."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ocdit_core.errors import ConfigError, LibraryError, UnknownObjectError
from ocdit_core.files import replacing
from ocdit_core.objects.viewpoints import spread_indices

SCHEMA_VERSION = 1
SUFFIX = ".npz"
TEMPLATE_SIZE = 128

_NAME = re.compile(r"\w[\w .()+@-]{0,99}")
# Shape of each field, V views and N points: whatever the letters are, they must agree.
_FIELDS: dict[str, tuple[tuple[str | int, ...], str]] = {
    "rgb": (("V", TEMPLATE_SIZE, TEMPLATE_SIZE, 3), "uint8"),
    "mask": (("V", TEMPLATE_SIZE, TEMPLATE_SIZE), "bool"),
    "box": (("V", 4), "float32"),
    "K": (("V", 3, 3), "float64"),
    "pose": (("V", 4, 4), "float64"),
    "points": (("N", 3), "float32"),
    "diameter": ((), "float64"),
    "source_sha256": ((), "U"),
    "unit": ((), "U"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTemplates:
    """What is known of one target object: V rendered views and its size (paper A.1).

    Attributes:
        name: of the object in its library.
        rgb: (V, 128, 128, 3) uint8 sRGB on black, cropped to the object.
        mask: (V, 128, 128) bool, the object's pixels in the crop.
        box: (V, 4) float32 x, y, width, height of the object in pixels of the full rendering.
        K: (V, 3, 3) float64 intrinsics of the crop: with `pose` they project object points onto the crop's mask.
        pose: (V, 4, 4) float64 camera-from-object, OpenCV axes (x right, y down, z forward), metres.
        points: (N, 3) float32 on the object's surface, metres.
        diameter: the largest distance between two of its points, metres.
        source_sha256: of the CAD file, hexadecimal.
        unit: that the CAD file was read in.
    """

    name: str
    rgb: np.ndarray
    mask: np.ndarray
    box: np.ndarray
    K: np.ndarray
    pose: np.ndarray
    points: np.ndarray
    diameter: float
    source_sha256: str
    unit: str

    def __len__(self) -> int:
        """Return V, the number of views."""
        return len(self.rgb)

    def directions(self) -> np.ndarray:
        """Return (V, 3) unit vectors from the object to the camera, in object axes."""
        cameras = -np.einsum("vji,vj->vi", self.pose[:, :3, :3], self.pose[:, :3, 3])
        vectors = cameras - (self.points.min(axis=0) + self.points.max(axis=0)) / 2
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def best_views(self, count: int = 12) -> ObjectTemplates:
        """Return the `count` views that cover the object best: each next one is the farthest from those taken.

        The order is that of the archive; fewer views than `count` are returned as they are.
        """
        if count >= len(self):
            return self
        order = np.sort(spread_indices(self.directions(), count))
        return replace(self, **{key: getattr(self, key)[order] for key in ("rgb", "mask", "box", "K", "pose")})


class ObjectLibrary:
    """A folder of rendered objects, as `ocdit render` makes it.

    Opening it reads the names only; an object's archive is read, and checked, each time it is asked for. Safe to use
    from several threads.

    Args:
        path: the folder.

    Raises:
        LibraryError: the folder is missing, is a file, or holds no object.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._ids = stored_names(self.path)
        if not self._ids:
            raise LibraryError(f"{self.path}: holds no object (*{SUFFIX}); add some with `ocdit render MESH --out ...`")

    @property
    def object_ids(self) -> tuple[str, ...]:
        """The objects' names, sorted."""
        return self._ids

    def __getitem__(self, name: str) -> ObjectTemplates:
        """Read one object.

        Raises:
            UnknownObjectError: the library has no such object.
            LibraryError: its archive is damaged, or of another schema version.
        """
        if name not in self._ids:
            raise UnknownObjectError([name], list(self._ids))
        return _load(self.path / f"{name}{SUFFIX}")

    def select(self, names: Iterable[str]) -> tuple[ObjectTemplates, ...]:
        """Read several objects, in the order given.

        Raises:
            UnknownObjectError: names all that the library lacks.
            LibraryError: an archive is damaged.
        """
        names = list(names)
        unknown = [name for name in names if name not in self._ids]
        if unknown:
            raise UnknownObjectError(unknown, list(self._ids))
        return tuple(self[name] for name in names)

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"ObjectLibrary({str(self.path)!r}, {len(self)} objects)"


def stored_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the objects in a folder, which may be none.

    Raises:
        LibraryError: the folder is missing, a file, or cannot be listed.
    """
    try:
        return tuple(sorted(path.stem for path in folder.iterdir() if path.suffix == SUFFIX and path.name[0] != "."))
    except FileNotFoundError:
        raise LibraryError(f"{folder}: no such folder; make it with `ocdit render MESH --out {folder}`") from None
    except NotADirectoryError:
        raise LibraryError(f"{folder}: is a file; a library is the folder that `ocdit render --out` wrote") from None
    except OSError as error:
        raise LibraryError(f"{folder}: cannot be listed ({error.strerror})") from error


def check_name(name: str) -> str:
    """Return the name if it can name an object (and so a file).

    Raises:
        ConfigError: it is empty, too long, or holds characters that file names or messages cannot.
    """
    if not _NAME.fullmatch(name) or name != name.strip():
        raise ConfigError(
            f"object name {name!r}: use 1 to 100 letters, digits, spaces or any of _ - . ( ) + @, "
            "with a letter or digit first"
        )
    return name


def save_templates(folder: str | Path, templates: ObjectTemplates) -> Path:
    """Write an object's archive into a library, atomically; an object of the same name is replaced.

    Returns:
        The archive's path.

    Raises:
        ConfigError: the name cannot be a file's.
        LibraryError: a field has a wrong shape or type, or the folder cannot be written to.
    """
    path = Path(folder) / f"{check_name(templates.name)}{SUFFIX}"
    fields: dict[str, Any] = {key: np.asarray(getattr(templates, key)) for key in _FIELDS}
    _check(path, fields)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, schema_version=np.int64(SCHEMA_VERSION), **fields)
    except OSError as error:
        raise LibraryError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def _load(path: Path) -> ObjectTemplates:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise LibraryError(f"{path}: is not an archive of views; render the object again")
            version = int(archive["schema_version"]) if "schema_version" in archive.files else None
            if version != SCHEMA_VERSION:
                raise LibraryError(
                    f"{path}: has schema version {version}, not {SCHEMA_VERSION}; render the object again"
                )
            missing = [key for key in _FIELDS if key not in archive.files]
            if missing:
                raise LibraryError(f"{path}: lacks {', '.join(missing)}; render the object again")
            fields = {key: archive[key] for key in _FIELDS}
    except FileNotFoundError:
        raise LibraryError(f"{path}: was removed after the library was opened") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, TypeError, OSError) as error:
        # NumPy takes whatever is no archive for a pickle, and says how to load one unsafely.
        reason = "not a NumPy archive" if "pickle" in str(error) else " ".join(str(error).split())[:120]
        raise LibraryError(f"{path}: truncated or damaged ({reason}); render the object again") from error
    _check(path, fields)
    arrays: dict[str, Any] = {key: value for key, value in fields.items() if value.ndim}
    return ObjectTemplates(
        name=path.stem,
        diameter=float(fields["diameter"]),
        source_sha256=str(fields["source_sha256"]),
        unit=str(fields["unit"]),
        **arrays,
    )


def _check(path: Path, fields: dict[str, np.ndarray]) -> None:
    sizes: dict[str, int] = {}
    for key, (shape, kind) in _FIELDS.items():
        value = fields[key]
        if value.dtype.kind != "U" if kind == "U" else value.dtype != kind:
            raise LibraryError(f"{path}: {key} is {value.dtype}, not {kind}")
        wanted = tuple(sizes.get(side, side) if isinstance(side, str) else side for side in shape)
        fits = len(wanted) == value.ndim and all(
            isinstance(want, str) or want == has for want, has in zip(wanted, value.shape, strict=True)
        )
        if not fits or 0 in value.shape:
            raise LibraryError(f"{path}: {key} has the shape {value.shape}, not {wanted}")
        sizes.update({side: has for side, has in zip(shape, value.shape, strict=True) if isinstance(side, str)})
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise LibraryError(f"{path}: {key} holds values that are not finite")
    hidden = np.flatnonzero(~fields["mask"].any(axis=(1, 2)))
    if hidden.size:
        raise LibraryError(f"{path}: the object covers no pixel of view {int(hidden[0])}")
    if not float(fields["diameter"]) > 0:
        raise LibraryError(f"{path}: the diameter is {float(fields['diameter']):g} m, not above 0")
