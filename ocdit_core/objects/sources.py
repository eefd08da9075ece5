"""The files that a CAD model is made of: the main one, and the materials, textures and buffers that it names."""

import hashlib
import importlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import MeshError
from ocdit_core.images import shrunk

MAX_BYTES = 1 << 30  # of a file; a larger one is refused before it is read
MAX_FACES = 2_000_000
MAX_PIXELS = 400_000_000  # of a texture; a larger one is refused from its header
MAX_SIDE, REDUCED_SIDE = 8192, 4096  # a texture with a side above the first is reduced to the second
BESIDE_TEXTURE = "colours of vertices beside a texture"
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tga", ".tif", ".tiff", ".webp", ".avif", ".gif", ".dds", ".ktx2")

Array = NDArray[Any]
Pixels = NDArray[np.uint8]


def source_digest(path: str | Path, sources: Iterable[str]) -> str | None:
    """Return what `CadModel.sha256` of `CadModel.sources` would be, without parsing; None if a file cannot be read."""
    path = Path(path)
    names = list(sources)
    if not names:
        return None
    digest = hashlib.sha256()
    try:
        for file in [path, *(path.parent / name for name in names[1:])]:
            if not file.is_file():
                return None
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


class SourceFiles:
    r"""Reads a main file and what it names, and keeps the list.

    A name is looked up beside the file that names it, then beside the main one (a symbolic link: also beside its
    target), then in ../materials/textures (Google Scanned Objects), as it stands and then by its last part alone
    (`C:\models\a.png`), in any case of letters.

    Attributes:
        path: the main file.
        names: relative to its folder, in the order asked for, the main one first; those that are missing included.
        warnings: what is missing or was reduced, without the file's name.
        undrawn: what they hold and is not drawn, in a few words each; see `leave_out`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self.warnings: list[str] = []
        self.undrawn: list[str] = []
        self._read: dict[str, bytes] = {}
        self._textures: dict[str, Pixels | None] = {}
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hexadecimal, of all the files read so far, one after the other."""
        return self._digest.hexdigest()

    def leave_out(self, *features: str, when: bool = True) -> None:
        """Note what the files hold and is not drawn, in a few words each; what is noted twice is named once."""
        self.undrawn += [feature for feature in features if when and feature not in self.undrawn]

    def package(self, module: str, reason: str, name: str | None = None) -> Any:
        """Import a package that this file needs, `name` on PyPI; raises MeshError if it is not installed."""
        try:
            return importlib.import_module(module)
        except ImportError as error:
            wanted = name or module
            raise MeshError(f"{self.path}: {reason} needs the package {wanted}: pip install {wanted}") from error

    def main(self) -> bytes:
        """Return the main file's bytes.

        Raises:
            MeshError: it is missing, empty, too large, no regular file, or cannot be read.
        """
        try:
            data = _bounded(self.path)
        except FileNotFoundError:
            raise MeshError(f"{self.path}: no such mesh file") from None
        except OSError as error:
            raise MeshError(f"{self.path}: cannot be read ({error.strerror})") from error
        if not data:
            raise MeshError(f"{self.path}: the file is empty")
        self._note(self.path.name, data)
        return data

    def add(self, name: str) -> bytes:
        """Return the bytes of a file that belongs to the model, `name` relative to the main one's folder.

        Raises:
            MeshError: it is missing, too large or cannot be read.
        """
        if name not in self._read:
            try:
                data = _bounded(self.path.parent / name)
            except (MeshError, OSError) as error:
                reason = str(error) if isinstance(error, MeshError) else f"{name} ({error.strerror})"
                raise MeshError(f"{self.path}: needs a file that cannot be read: {reason}") from error
            self._note(name, data)
        return self._read[name]

    def find(self, name: str, folder: str = "") -> str | None:
        """Return the path of a file that one in `folder` names, both relative to the main one's folder, or None."""
        here = self.path.parent
        scanned = here.parent / "materials" / "textures"
        folders = dict.fromkeys([here / folder, here, self.path.resolve().parent, scanned])
        for candidate in _candidates(name):
            for base in folders:
                path = base / candidate
                if not path.is_file():
                    path = _any_case(path)
                if path.is_file():
                    return os.path.relpath(path, here)
        return None

    def get(self, name: str, folder: str = "", *, instead: str = "drawn in neutral grey") -> bytes | None:
        """Return the bytes of the file that `find` finds; None if it is missing, with a warning: what is done instead.

        Raises:
            MeshError: it is too large or cannot be read.
        """
        found = self.find(name, folder)
        if found is not None:
            return self.add(found)
        wanted = _candidates(name)[0]
        if wanted not in self.names:
            self.names.append(wanted)
            suffix = Path(wanted).suffix.lower()
            kind = "material file" if suffix == ".mtl" else "texture" if suffix in IMAGES else "file"
            self.warnings.append(f"its {kind} {wanted} is missing; {instead}")
        return None

    def texture(self, name: str, folder: str = "") -> Pixels | None:
        """Return a named image as (H, W, 4) sRGBA, first row at the top; None if it is missing or of no known format.

        Raises:
            MeshError: it is damaged.
        """
        found = self.find(name, folder)
        if found is None:
            self.get(name, folder)
            return None
        return self.decode(self.add(found), found)

    def decode(self, data: bytes, name: str) -> Pixels | None:
        """Return encoded image data as (H, W, 4) sRGBA; images above MAX_SIDE are reduced, which becomes a warning.

        Raises:
            MeshError: it is damaged or has too many pixels.
        """
        key = f"{name} {len(data)} {hash(data)}"
        if key not in self._textures:
            if data[:8] in (b"\xabKTX 20\xbb", b"\xabKTX 11\xbb"):
                self.warnings.append("its textures are in a format that cannot be read (KTX2); drawn in plain colours")
                self._textures[key] = None
                return None
            try:
                pixels = _decoded(data)
            except MeshError as error:
                raise MeshError(f"{self.path}: its texture {name} {error}") from None
            except Exception as error:  # Pillow's decoders raise many kinds
                reason = " ".join(str(error).split())[:120].replace("<_io.BytesIO object", "").split(" at 0x")[0]
                raise MeshError(f"{self.path}: its texture {name} is damaged or no image ({reason})") from error
            height, width = pixels.shape[:2]
            if max(height, width) > MAX_SIDE:
                pixels = shrunk(pixels, REDUCED_SIDE)
                size = f"{pixels.shape[1]} x {pixels.shape[0]}"
                self.warnings.append(f"its texture {name} of {width} x {height} pixels is reduced to {size}")
            self._textures[key] = pixels
        return self._textures[key]

    def _note(self, name: str, data: bytes) -> None:
        self.names.append(name)
        self._read[name] = data
        self._digest.update(data)


def _bounded(path: Path) -> bytes:
    length = path.stat().st_size
    if path.is_dir():
        raise MeshError(f"{path}: is a folder; give a mesh file")
    if not path.is_file():
        raise MeshError(f"{path}: is not a regular file")
    if length > MAX_BYTES:
        raise MeshError(f"{path}: {length / 2**20:,.0f} MiB is over the limit of {MAX_BYTES >> 20} MiB; simplify it")
    return path.read_bytes()


def _candidates(name: str) -> list[str]:
    """Return where a name found in a file may point to, relative to a folder, best first."""
    name = name.strip().strip('"').strip()
    name = name.removeprefix("file://").replace("\\", "/")
    last = name.rsplit("/", 1)[-1]
    found = [name] if not name.startswith("/") and ":" not in name else []
    found += [unquote(name), last, unquote(last)] if found else [last, unquote(last)]
    return list(dict.fromkeys(candidate.removeprefix("./") for candidate in found))


def _any_case(path: Path) -> Path:
    """Return the file of that name in any case, as Windows finds it; the path itself if there is none."""
    try:
        same = [other for other in path.parent.iterdir() if other.name.lower() == path.name.lower()]
    except OSError:
        return path
    return same[0] if len(same) == 1 else path


def _decoded(data: bytes) -> Pixels:
    from PIL import Image

    # Photogrammetry has textures of more pixels than Pillow takes for an image: ours is the limit.
    known, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
    finally:
        Image.MAX_IMAGE_PIXELS = known
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise MeshError(f"has {pixels:,} pixels, over the limit of {MAX_PIXELS:,}; reduce it")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    return np.asarray(image.convert("RGBA"))
