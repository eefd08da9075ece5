"""The bytes of a CAD file become the triangle meshes of its scene, or an error says why they cannot."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_core.errors import MeshError
from ocdit_core.objects.materials import texture_of
from ocdit_core.objects.obj import readable_obj
from ocdit_core.objects.ply import readable_ply
from ocdit_core.objects.sources import SourceFiles

if TYPE_CHECKING:
    import trimesh

FORMATS = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf")
MAX_FACES = 2_000_000
_EXTRAS = {".dae": ("collada", "pycollada"), ".3mf": ("lxml", "lxml")}
# What a glTF file may require: the rest changes the geometry in a way that trimesh passes over.
_GLTF_EXTENSIONS = ("KHR_draco_mesh_compression", "KHR_materials_", "KHR_texture_transform", "EXT_texture_webp")


@dataclass(frozen=True, kw_only=True)
class ParsedFile:
    """What a file holds.

    Attributes:
        parts: meshes in the scene's frame and the file's unit, each with faces, whose vertices are finite.
        unit: metres in one unit of length, where the file or its format states it; else None.
        linear_colours: whether vertex colours are linear (glTF's rule) rather than sRGB.
        warnings: lines for the user.
    """

    parts: list[trimesh.Trimesh]
    unit: float | None
    linear_colours: bool
    warnings: tuple[str, ...]


def check_format(path: Path) -> None:
    """Check that a file's suffix is one of FORMATS and that the packages that read it are there.

    Raises:
        MeshError: they are not.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise MeshError(f"{path}: unknown mesh format {suffix or '(no suffix)'}; known are {', '.join(FORMATS)}")
    module, package = _EXTRAS.get(suffix, ("trimesh", "trimesh"))
    if importlib.util.find_spec(module) is None:
        raise MeshError(f"{path}: reading {suffix} needs the package {package}: pip install {package}")


def parse(files: SourceFiles, data: bytes) -> ParsedFile:
    """Parse a main file's bytes; what it names is read through `files`.

    Raises:
        MeshError: damaged, truncated, without faces, with too many, or with vertices that are not finite.
    """
    import trimesh

    path, suffix = files.path, files.path.suffix.lower()
    resolver: Any = files  # trimesh asks for no more than `get` and []
    warnings: list[str] = []
    if suffix in (".glb", ".gltf"):
        warnings += _check_gltf(path, data)
    elif suffix == ".ply":
        data = readable_ply(files, data)
    elif suffix == ".obj":
        data = readable_obj(files, data)
    elif suffix == ".stl":
        _check_stl(path, data)
    try:
        with _trimesh_warnings() as said:
            scene = trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], resolver=resolver, process=False)
            parts: list[Any] = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
            for part in parts:
                if texture_of(part.visual) is not None:
                    texture_of(part.visual).load()  # a picture inside the file is decoded only now
    except ImportError as error:
        raise MeshError(f"{path}: reading {path.suffix} needs another package ({error})") from error
    except FileNotFoundError as error:
        raise MeshError(f"{path}: needs the file {error}, which is missing") from error
    except Exception as error:
        if files.problem is not None:
            raise MeshError(files.problem) from error
        # The parsers raise whatever they meet (ValueError, KeyError, struct.error, IndexError, json and XML errors).
        reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise MeshError(f"{path}: damaged, truncated, or not a {path.suffix} mesh ({reason[:200]})") from error
    if files.problem is not None:
        raise MeshError(files.problem)
    if undecoded := next((line for line in said if "placeholder zeros" in line or "extension" in line), None):
        raise MeshError(f"{path}: damaged, or packed in a way that cannot be read ({undecoded[:200]})")
    _check_parts(path, parts)
    return ParsedFile(
        parts=parts,
        unit=_stated_unit(scene),
        # trimesh exports its sRGB vertex colours as they are, although glTF's rule is linear.
        linear_colours=suffix in (".glb", ".gltf") and b"github.com/mikedh/trimesh" not in data[: 1 << 24],
        warnings=(*warnings, *(f"{path.name}: {line}" for line in said)),
    )


def _check_parts(path: Path, parts: list[trimesh.Trimesh]) -> None:
    if not parts:
        raise MeshError(f"{path}: has no faces (a point cloud, a drawing, or a damaged file); a surface mesh is needed")
    faces = sum(len(part.faces) for part in parts)
    if faces > MAX_FACES:
        raise MeshError(f"{path}: {faces:,} faces are over the limit of {MAX_FACES:,}; simplify the mesh first")
    for part in parts:
        low, high = part.faces.min(), part.faces.max()
        if low < 0 or high >= len(part.vertices):
            raise MeshError(
                f"{path}: damaged: a face names vertex {low if low < 0 else high} of {len(part.vertices)}, "
                "counted from 0"
            )
        bad = np.count_nonzero(~np.isfinite(part.vertices).all(axis=1))
        if bad:
            raise MeshError(f"{path}: {bad} of {len(part.vertices)} vertices are not finite numbers")


def _stated_unit(scene: trimesh.Scene) -> float | None:
    import trimesh

    try:
        return float(trimesh.units.unit_conversion(scene.units, "meters")) if scene.units else None
    except (KeyError, ValueError):
        return None


def _check_gltf(path: Path, data: bytes) -> list[str]:
    """Return warnings about what trimesh passes over in silence; a header that is no JSON is left to trimesh."""
    if path.suffix.lower() == ".glb":
        if data[:4] != b"glTF":
            raise MeshError(f"{path}: damaged, or not a .glb mesh (it does not begin with glTF)")
        stated = int.from_bytes(data[8:12], "little")
        if stated > len(data) or len(data) < 20:
            raise MeshError(f"{path}: truncated: its header states {stated:,} bytes, the file has {len(data):,}")
        data = data[20 : 20 + int.from_bytes(data[12:16], "little")]
    try:
        header = json.loads(data)
        required = header.get("extensionsRequired", [])
        accessors = header.get("accessors", [])
        unread = [name for name in required if not name.startswith(_GLTF_EXTENSIONS)]
        packed = [a for a in accessors if a.get("normalized") and a["componentType"] != 5126 and a["type"] == "VEC2"]
        counts = [a["count"] for a in accessors]
        textures, images = header.get("textures", []), header.get("images", [])
        kinds = {image.get("mimeType") for image in images}
        drawn = [m.get("pbrMetallicRoughness", {}).get("baseColorTexture") for m in header.get("materials", [])]
        moved = any(texture and "KHR_texture_transform" in texture.get("extensions", {}) for texture in drawn)
        unsourced = any(texture and _image_of(textures[texture["index"]]) is None for texture in drawn)
        sparse = any("sparse" in accessor for accessor in accessors)
    except Exception as error:  # anything may be wrong with a JSON text from outside
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise MeshError(f"{path}: damaged, or not a {path.suffix} mesh ({reason})") from error
    if "KHR_draco_mesh_compression" in required and importlib.util.find_spec("DracoPy") is None:
        raise MeshError(f"{path}: is compressed with Draco; reading it needs the package DracoPy: pip install DracoPy")
    if unread:
        raise MeshError(f"{path}: needs the glTF extension {unread[0]}, which is not supported; export it without")
    if packed or sparse:
        what = "texture coordinates packed into integers" if packed else "sparse accessors"
        raise MeshError(f"{path}: has {what}, which are not supported; export it without")
    if max(counts, default=0) > 3 * MAX_FACES * 3:
        raise MeshError(f"{path}: states {max(counts):,} values in one list, too many for {MAX_FACES:,} faces")
    warnings = []
    if "image/ktx2" in kinds or unsourced:
        warnings.append(f"{path.name}: its textures are in a format that cannot be read (KTX2); drawn in plain colours")
    if moved:
        warnings.append(f"{path.name}: KHR_texture_transform is not supported; its textures may be out of place")
    return warnings


def _image_of(texture: dict[str, Any]) -> Any:
    return texture.get("source", texture.get("extensions", {}).get("EXT_texture_webp", {}).get("source"))


def _check_stl(path: Path, data: bytes) -> None:
    """Refuse a truncated file: trimesh would read a part of a text, and take a part of a binary one for a text."""
    text = data.lstrip()[:5].lower() == b"solid"
    stated = int.from_bytes(data[80:84], "little")
    length = 84 + 50 * stated
    if text and len(data) != length:
        if b"endsolid" not in data[-1000:].lower():
            raise MeshError(f"{path}: truncated, or not a .stl mesh (its text does not end with endsolid)")
    elif len(data) < max(length, 84):
        raise MeshError(
            f"{path}: truncated, or not a .stl mesh: {stated:,} triangles take {length:,} bytes, "
            f"the file has {len(data):,}"
        )


@contextmanager
def _trimesh_warnings() -> Iterator[list[str]]:
    """Collect what trimesh logs as warnings in this thread, so that it reaches the user as our own lines do."""
    said: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                line = " ".join(record.getMessage().split())
                if line not in said:
                    said.append(line)

    collector = Collector(level=logging.WARNING)
    logger = logging.getLogger("trimesh")
    logger.addHandler(collector)
    try:
        yield said
    finally:
        logger.removeHandler(collector)
