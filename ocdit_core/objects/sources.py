"""The files that a CAD model is made of: the main one, and the materials, textures and buffers that it names."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ocdit_core.errors import MeshError

MAX_BYTES = 1 << 30
"""A larger file is refused by its size, before it is read."""

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tga", ".tif", ".tiff", ".webp", ".gif", ".dds")
_NEUTRAL = (165, 165, 165)


def source_digest(path: str | Path, sources: Iterable[str]) -> str | None:
    """Return what `CadModel.sha256` would be, from the files alone: nothing is parsed.

    Args:
        path: the main file.
        sources: `CadModel.sources`, the main file first.

    Returns:
        The SHA-256 of the files' contents one after the other, hexadecimal; None when one is missing or cannot be
        read, so that it is time to look again.
    """
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
    r"""Reads a main file and what it names, and keeps the list: trimesh's resolver, with a memory.

    A name is looked up in the main file's folder as it stands (`../textures/a.png` included), then by its last part
    alone, as files that were moved from another machine need it (`C:\models\a.png`).

    Attributes:
        path: the main file.
        names: relative to its folder, in the order asked for, the main one first; those that are missing included.
        missing: the names, as the files give them, that were looked for in vain.
        problem: the first thing found wrong with a file that does exist; trimesh's parsers would pass over it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self.missing: list[str] = []
        self.problem: str | None = None
        # What trimesh names a geometry after, and looks at to tell a resolver.
        self.file_name = path.name
        self._read: dict[str, bytes] = {}
        self._joined: dict[str, list[str]] = {}
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hexadecimal, of all the files read so far, one after the other."""
        return self._digest.hexdigest()

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
        """Return the bytes of a file beside the main one that belongs to the model, `name` relative to its folder.

        Raises:
            MeshError: it is missing, too large or cannot be read.
        """
        try:
            data = _bounded(self.path.parent / name)
        except OSError as error:
            raise MeshError(f"{self.path.parent / name}: cannot be read ({error.strerror})") from error
        self._note(name, data)
        return data

    def join(self, name: str, names: list[str]) -> None:
        """Let `get(name)` return the texts of several files, one after the other; those that are missing are noted."""
        self._joined[name] = names

    def exists(self, name: str) -> bool:
        """Return whether a file of that name, as a mesh file gives it, would be found."""
        return any((self.path.parent / candidate).is_file() for candidate in _candidates(name))

    def get(self, name: str) -> bytes:
        """Return the bytes of a file named by the main one, or by its material file.

        A picture that is missing is replaced by a plain grey one, so that the rest of its material still counts.

        Raises:
            FileNotFoundError: there is no such file, and it is no picture.
        """
        if (names := self._joined.pop(name, None)) is not None:
            found = [other for other in names if self.exists(other)]
            for other in names:
                if other not in found:
                    self.note_missing(other)
            return b"\n".join(self.get(other) for other in found)
        for candidate in _candidates(name):
            if candidate in self._read:
                return self._read[candidate]
            try:
                data = _bounded(self.path.parent / candidate)
            except FileNotFoundError:
                continue
            except (MeshError, OSError) as error:
                reason = str(error) if isinstance(error, MeshError) else f"{candidate} ({error.strerror})"
                self.problem = self.problem or f"{self.path}: needs a file that cannot be read: {reason}"
                raise FileNotFoundError(name) from error
            if Path(candidate).suffix.lower() in PICTURES:
                self._check_picture(candidate, data)
            self._note(candidate, data)
            return data
        self.note_missing(name)
        if Path(_candidates(name)[-1]).suffix.lower() not in PICTURES:
            raise FileNotFoundError(name)
        return _grey_picture()

    def note_missing(self, name: str) -> None:
        """Record a file that is named, and is not there."""
        wanted = _candidates(name)[0]
        if wanted not in self.missing:
            self.missing.append(wanted)
            self.names.append(wanted)

    def __getitem__(self, name: str) -> bytes:
        """Return what `get` returns."""
        return self.get(name)

    def _check_picture(self, name: str, data: bytes) -> None:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.verify()
        except Exception as error:  # Pillow's decoders raise many kinds
            reason = " ".join(str(error).split())[:120].replace("<_io.BytesIO object", "").split(" at 0x")[0]
            self.problem = self.problem or f"{self.path}: its texture {name} is damaged or no picture ({reason})"

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
    """Return where a name found in a file may point to, relative to its folder, best first."""
    name = name.strip().strip('"')
    if name.startswith("-"):  # an MTL file's options come before the texture's name: -s 1 1 1 wood.png
        name = name.split()[-1]
    name = name.removeprefix("file://").replace("\\", "/")
    last = name.rsplit("/", 1)[-1]
    found = [name] if not name.startswith("/") and ":" not in name else []
    found += [unquote(name), last, unquote(last)] if found else [last, unquote(last)]
    return list(dict.fromkeys(candidate.removeprefix("./") for candidate in found))


def _grey_picture() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (4, 4), _NEUTRAL).save(stream, "PNG")
    return stream.getvalue()


def missing_lines(files: SourceFiles) -> tuple[str, ...]:
    """Return one warning for each file that was looked for in vain."""
    kinds: dict[str, Any] = {".mtl": "material file", **dict.fromkeys(PICTURES, "texture")}
    return tuple(
        f"{files.path.name}: its {kinds.get(Path(name).suffix.lower(), 'file')} {name} is missing; "
        "drawn in neutral grey"
        for name in files.missing
    )
