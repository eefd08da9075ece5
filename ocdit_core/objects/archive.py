"""One object on disk: a compressed NumPy archive of its views and its geometry, checked when written and when read.

docs/objects.md documents the fields; raise SCHEMA_VERSION when they change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ocdit_core.errors import ConfigError, LibraryError
from ocdit_core.files import is_own, replacing
from ocdit_core.objects.viewpoints import spread_indices

SCHEMA_VERSION = 2
SUFFIX = ".npz"
TEMPLATE_SIZE = 128
_NAME = re.compile(r"\w[\w .()+@-]{0,99}")
# Shape and type of each field, V views and N points: whatever the letters are, they must agree.
_FIELDS: dict[str, tuple[tuple[str | int, ...], str]] = {
    "rgb": (("V", TEMPLATE_SIZE, TEMPLATE_SIZE, 3), "uint8"),
    "mask": (("V", TEMPLATE_SIZE, TEMPLATE_SIZE), "bool"),
    "box": (("V", 4), "float32"),
    "K": (("V", 3, 3), "float64"),
    "pose": (("V", 4, 4), "float64"),
    "points": (("N", 3), "float32"),
    "diameter": ((), "float64"),
    "symmetries_discrete": (("D", 4, 4), "float64"),
    "symmetries_continuous": (("C", 2, 3), "float64"),
    "origin": ((), "U"),
    "unit": ((), "U"),
    "sources": (("F",), "U"),
    "source_sha256": ((), "U"),
    "recipe": ((), "U"),
}
_MAY_BE_EMPTY = ("N", "D", "C", "F")
# Photographs have no geometry: there these are NaN.
_GEOMETRY = ("K", "pose", "diameter")


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTemplates:
    """What is known of one target object: V views and its geometry (paper A.1).

    Attributes:
        name: object name in its library.
        rgb: (V, 128, 128, 3) uint8 sRGB on black, cropped to the object.
        mask: (V, 128, 128) bool, the object's pixels in the crop.
        box: (V, 4) float32 x, y, width, height of the object in pixels of the full rendering or photograph.
        K: (V, 3, 3) float64 intrinsics of the crop.
        pose: (V, 4, 4) float64 camera-from-object, OpenCV axes (x right, y down, z forward), metres.
        points: (N, 3) float32 on the object's surface, metres.
        diameter: the largest distance between two of its points, metres.
        symmetries_discrete: (D, 4, 4) float64 object-from-object transforms that leave it looking alike, metres,
            the identity not among them (BOP's `symmetries_discrete`).
        symmetries_continuous: (C, 2, 3) float64 axes of rotation: direction, and a point on the axis in metres.
        origin: "cad", or "photos": then K, pose and (unless it was given) diameter are NaN and there are no points.
        unit: unit that the CAD file was read in; empty for photographs.
        sources: names of the files that the views were made from, the main one first, relative to its folder.
        source_sha256: hash of those files' contents, in that order, hexadecimal.
        recipe: how they were made; equal recipes and equal sources make equal archives.
    """

    name: str
    rgb: np.ndarray
    mask: np.ndarray
    box: np.ndarray
    K: np.ndarray
    pose: np.ndarray
    points: np.ndarray
    diameter: float
    symmetries_discrete: np.ndarray = field(default_factory=lambda: np.zeros((0, 4, 4)))
    symmetries_continuous: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, 3)))
    origin: Literal["cad", "photos"] = "cad"
    unit: str = "m"
    sources: tuple[str, ...] = ()
    source_sha256: str = ""
    recipe: str = ""

    def __len__(self) -> int:
        """Return V, the number of views."""
        return len(self.rgb)

    def directions(self) -> np.ndarray:
        """Return (V, 3) unit vectors from the object to the camera, in object axes; NaN for photographs."""
        cameras = -np.einsum("vji,vj->vi", self.pose[:, :3, :3], self.pose[:, :3, 3])
        centre = (self.points.min(axis=0) + self.points.max(axis=0)) / 2 if len(self.points) else np.zeros(3)
        vectors = cameras - centre
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def best_views(self, count: int = 12) -> ObjectTemplates:
        """Return the `count` views that cover the object best, in the archive's order; or all if they are fewer.

        Renderings are chosen by farthest point sampling of their directions, photographs by `_typical_indices`.
        """
        if count >= len(self):
            return self
        order = spread_indices(self.directions(), count) if self.origin == "cad" else self._typical_indices(count)
        return self._views(np.sort(order))

    def exactly(self, count: int) -> ObjectTemplates:
        """Return `count` views: the best ones or, where there are too few, all of them again and again in turn."""
        chosen = self.best_views(count)
        return chosen if len(chosen) == count else chosen._views(np.arange(count) % len(chosen))

    def _views(self, indices: np.ndarray) -> ObjectTemplates:
        return replace(self, **{key: getattr(self, key)[indices] for key in ("rgb", "mask", "box", "K", "pose")})

    def _typical_indices(self, count: int) -> np.ndarray:
        """Return (count,) views from which, in sum, no view is far: facility location, greedily.

        Views are compared by 8 x 8 images of colour and coverage.
        """
        colour = self.rgb.reshape(len(self), 8, 16, 8, 16, 3).mean(axis=(2, 4)).reshape(len(self), -1) / 255
        shape = self.mask.reshape(len(self), 8, 16, 8, 16).mean(axis=(2, 4)).reshape(len(self), -1)
        features = np.concatenate([colour, shape], axis=1)
        squares = (features**2).sum(axis=1)
        apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * features @ features.T, 0))
        nearest = np.full(len(self), np.inf)
        chosen: list[int] = []
        for _ in range(count):
            left = np.minimum(nearest, apart).sum(axis=1)
            left[chosen] = np.inf
            chosen.append(int(left.argmin()))
            nearest = np.minimum(nearest, apart[chosen[-1]])
        return np.array(chosen)


def check_name(name: str) -> str:
    """Return the name if it can name an object (and so a file); else raise ConfigError."""
    if not _NAME.fullmatch(name) or name != name.strip() or len(name.encode()) > 240:  # bytes that a file name holds
        shown = name if len(name) <= 100 else f"{name[:40]}... ({len(name)} characters)"
        allowed = "1 to 100 letters, digits, spaces or any of _ - . ( ) + @, with a letter or digit first"
        raise ConfigError(f"object name {shown!r}: use {allowed}")
    return name


def save_templates(folder: str | Path, templates: ObjectTemplates) -> Path:
    """Write an object's archive into a library, atomically, and return its path; the same name is replaced.

    Raises:
        ConfigError: the name cannot be a file's.
        LibraryError: a field has a wrong shape or type.
        OutputError: the folder cannot be written to, or holds a file of that name that is no archive.
    """
    path = Path(folder) / f"{check_name(templates.name)}{SUFFIX}"
    fields: dict[str, Any] = {key: np.asarray(getattr(templates, key)) for key in _FIELDS}
    fields["sources"] = np.asarray(templates.sources, dtype=np.str_)
    _check(path, fields)
    with replacing(path, known=is_archive) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, schema_version=np.int64(SCHEMA_VERSION), **fields)
    return path


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive of this package, of any version, or one that was damaged since."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {"schema_version", "source_sha256"} <= set(getattr(archive, "files", ()))
    except Exception:
        # NumPy raises whatever its parsers meet.
        return is_own(path, changed=True)


def load_templates(path: Path) -> ObjectTemplates:
    """Read an object's archive, all of it, and check it.

    Raises:
        LibraryError: it is missing, damaged, or of another schema version.
    """
    fields = read_fields(path, _FIELDS)
    _check(path, fields)
    values: dict[str, Any] = {key: value if value.ndim else value.item() for key, value in fields.items()}
    return ObjectTemplates(name=path.stem, **{**values, "sources": tuple(values["sources"].tolist())})


def read_fields(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read the named fields of an archive, without checking their values.

    Raises:
        LibraryError: it is missing, damaged, of another schema version, or lacks one of the fields.
    """
    names = list(names)
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise LibraryError(f"{path}: is not an archive of views; render the object again")
            version = int(archive["schema_version"]) if "schema_version" in archive.files else None
            if version != SCHEMA_VERSION:
                reason = f"has schema version {version}, not {SCHEMA_VERSION}"
                raise LibraryError(f"{path}: {reason}; render the object again")
            missing = [key for key in names if key not in archive.files]
            if missing:
                raise LibraryError(f"{path}: lacks {', '.join(missing)}; render the object again")
            fields = {key: archive[key] for key in names}
            if broken := [key for key, value in fields.items() if not isinstance(value, np.ndarray)]:
                raise ValueError(f"{broken[0]} is no array")
            return fields
    except FileNotFoundError:
        raise LibraryError(f"{path}: was removed after the library was opened") from None
    except LibraryError:
        raise
    except Exception as error:  # NumPy raises whatever its parsers meet: zlib.error, TokenError ...
        # It takes whatever is no archive for a pickle, and says how to load one unsafely.
        reason = "not a NumPy archive" if "pickle" in str(error) else " ".join(str(error).split())[:120]
        raise LibraryError(f"{path}: truncated or damaged ({reason}); render the object again") from error


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


def _check(path: Path, fields: dict[str, np.ndarray]) -> None:
    sizes: dict[str, int] = {}
    origin = str(fields["origin"])
    if origin not in ("cad", "photos"):
        raise LibraryError(f"{path}: origin is {origin!r}, not 'cad' or 'photos'")
    for key, (shape, kind) in _FIELDS.items():
        value = fields[key]
        if value.dtype.kind != "U" if kind == "U" else value.dtype != kind:
            raise LibraryError(f"{path}: {key} is {value.dtype}, not {kind}")
        wanted = tuple(sizes.get(side, side) if isinstance(side, str) else side for side in shape)
        fits = len(wanted) == value.ndim and all(
            (has > 0 or want in _MAY_BE_EMPTY) if isinstance(want, str) else want == has
            for want, has in zip(wanted, value.shape, strict=True)
        )
        if not fits:
            raise LibraryError(f"{path}: {key} has the shape {value.shape}, not {wanted}")
        sizes.update({side: has for side, has in zip(shape, value.shape, strict=True) if isinstance(side, str)})
        unknown = origin == "photos" and key in _GEOMETRY
        if value.dtype.kind == "f" and not unknown and not np.isfinite(value).all():
            raise LibraryError(f"{path}: {key} holds values that are not finite")
    if origin == "cad" and not len(fields["points"]):
        raise LibraryError(f"{path}: points are missing")
    hidden = np.flatnonzero(~fields["mask"].any(axis=(1, 2)))
    if hidden.size:
        raise LibraryError(f"{path}: the object covers no pixel of view {int(hidden[0])}")
    if float(fields["diameter"]) <= 0:
        raise LibraryError(f"{path}: the diameter is {float(fields['diameter']):g} m, not above 0")
