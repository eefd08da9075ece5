"""The library: a folder with one archive for each object, and manifest.json with their numbers and colours.

An object keeps its number and colour when it is rendered again: BOP results, ROS messages and label images refer to
objects by number. docs/objects.md documents the file.
"""

from __future__ import annotations

import copy
import fcntl
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ocdit_core.colours import Colour, number_colour
from ocdit_core.errors import LibraryError, UnknownObjectError
from ocdit_core.files import write_text
from ocdit_core.objects.archive import SUFFIX, ObjectTemplates, is_archive, load_templates, read_fields, stored_names

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_LOCK = ".manifest.lock"
_BOP_NAME = re.compile(r"obj_(\d{6})")


@dataclass(frozen=True, kw_only=True)
class ObjectEntry:
    """One object in the manifest.

    Attributes:
        id: number from 1; the one in a BOP model's name (obj_000005) where that was free.
        colour: (r, g, b), 0 to 255.
        origin: "cad" or "photos"; empty where the archive cannot be read.
        diameter: metres; NaN where it is not known.
        source: name of the main source file; empty where it is not known.
    """

    id: int
    colour: Colour
    origin: str = ""
    diameter: float = math.nan
    source: str = ""


class _Manifest(NamedTuple):
    objects: dict[str, ObjectEntry]
    # Numbers of objects that were removed: no other object gets them, and the same name gets its own again.
    retired: dict[str, int]


class ObjectLibrary:
    """A folder of rendered objects, as `ocdit render` makes it.

    Opening it reads the names only; an archive is read and checked each time it is asked for. Objects that are added or
    removed later are known after `refresh`. Thread-safe.

    Args:
        path: the folder.

    Raises:
        LibraryError: the folder is missing, is a file, or holds no object.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._archives = _archives(self.path)
        self._manifest: _Manifest | None = None

    def refresh(self) -> tuple[str, ...]:
        """Read names and manifest again; return the sorted names of objects that were added, changed or removed.

        No object gets the number of another one that this library has known; on an error, the library stays as it was.

        Raises:
            LibraryError: the folder is missing or holds no object any more, or its manifest is damaged.
        """
        before, after = self._archives, _archives(self.path)
        changed = tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))
        stored = _read(self.path)
        if self._manifest is not None:
            # Numbers that no file holds yet.
            taken = {*(entry.id for entry in stored.objects.values()), *stored.retired.values()}
            unknown = {name: entry for name, entry in self._manifest.objects.items() if entry.id not in taken}
            retired = {name: number for name, number in self._manifest.retired.items() if number not in taken}
            stored = _Manifest(unknown | stored.objects, retired | stored.retired)
        manifest = _completed(self.path, stored, after, refresh=changed)
        self._archives, self._manifest = after, manifest
        return changed

    @property
    def object_ids(self) -> tuple[str, ...]:
        """The objects' names, sorted."""
        return tuple(self._archives)

    @property
    def manifest(self) -> dict[str, ObjectEntry]:
        """Entry of each object by name, read from manifest.json once; LibraryError if that is damaged."""
        if self._manifest is None:
            # Objects that the file does not list yet, such as copied ones, get the numbers that the next write would
            # give.
            self._manifest = _completed(self.path, _read(self.path), self._archives)
        return self._manifest.objects

    def __getitem__(self, name: str) -> ObjectTemplates:
        """Read one object; raises what `select` does."""
        self.require([name])
        return load_templates(self.path / f"{name}{SUFFIX}")

    def select(self, names: Iterable[str]) -> tuple[ObjectTemplates, ...]:
        """Read several objects, in the order given.

        Raises:
            UnknownObjectError: names all that the library lacks.
            LibraryError: an archive is damaged, or of another schema version.
        """
        names = list(names)
        self.require(names)
        return tuple(self[name] for name in names)

    def require(self, names: Iterable[str]) -> None:
        """Raise UnknownObjectError, which names all that the library lacks, unless it has all these objects."""
        known = self._archives
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UnknownObjectError(unknown, list(known))

    def without(self, names: Iterable[str]) -> ObjectLibrary:
        """Return the library as it is without these objects; the folder stays as it is."""
        rest = copy.copy(self)
        hidden = set(names)
        rest._archives = {name: value for name, value in self._archives.items() if name not in hidden}
        rest._manifest = None
        return rest

    def __contains__(self, name: object) -> bool:
        return name in self._archives

    def __iter__(self) -> Iterator[str]:
        return iter(self._archives)

    def __len__(self) -> int:
        return len(self._archives)


def _archives(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what changes with each write of the objects' archives, by sorted name; LibraryError if there are none."""
    found: dict[str, tuple[int, ...]] = {}
    for name in stored_names(folder):
        with suppress(FileNotFoundError):
            status = (folder / f"{name}{SUFFIX}").stat()
            found[name] = (status.st_mtime_ns, status.st_size, status.st_ino)
    if not found:
        raise LibraryError(f"{folder}: holds no object (*{SUFFIX}); add some with `ocdit render MESH --out ...`")
    return found


def update_manifest(folder: Path, changed: Iterable[str] = ()) -> dict[str, ObjectEntry]:
    """Bring manifest.json in line with the archives in the folder, and return its entries.

    New archives get a number, archives that are gone lose their entry, all others keep number and colour. Processes
    that write to one library take turns. The archives of the objects `changed` are read again.

    Raises:
        LibraryError: the manifest is damaged, or the folder cannot be written to.
    """
    with _locked(folder):
        before = _read(folder)
        after = _completed(folder, before, stored_names(folder), refresh=changed)
        if after != before or not (folder / MANIFEST).is_file():
            _write(folder, after)
        return after.objects


def remove_objects(folder: Path, names: Iterable[str]) -> None:
    """Delete objects from a library, all or, if one is unknown, none; their numbers are not given to others.

    Raises:
        UnknownObjectError: the library does not hold one of them.
        LibraryError: the manifest is damaged, or the folder cannot be written to.
    """
    names = list(dict.fromkeys(names))
    stored = stored_names(folder)
    unknown = [name for name in names if name not in stored]
    if unknown:
        raise UnknownObjectError(unknown, list(stored))
    foreign = [name for name in names if not is_archive(folder / f"{name}{SUFFIX}")]
    if foreign:
        raise LibraryError(f"{folder / foreign[0]}{SUFFIX}: is not an object's archive; remove it yourself")
    # First of all, so that every object to be removed has a number that can be kept from others.
    update_manifest(folder)
    for name in names:
        try:
            (folder / f"{name}{SUFFIX}").unlink(missing_ok=True)
        except OSError as error:
            raise LibraryError(f"{folder / name}{SUFFIX}: cannot be removed ({error.strerror})") from error
    update_manifest(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # A file of its own: the manifest itself is replaced by each write, and a lock on the old one would lock nothing.
    try:
        file = (folder / _LOCK).open("a")
    except OSError as error:
        raise LibraryError(f"{folder}: cannot be written to ({error.strerror})") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = stored["schema_version"]
        if version != SCHEMA_VERSION:
            raise LibraryError(f"{path}: has schema version {version}, not {SCHEMA_VERSION}; delete it to number anew")
        retired = {str(name): int(number) for name, number in stored.get("retired", {}).items()}
        manifest = _Manifest({str(name): _entry(values) for name, values in stored["objects"].items()}, retired)
    except FileNotFoundError:
        return _Manifest({}, {})
    except OSError as error:
        raise LibraryError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise LibraryError(f"{path}: damaged ({type(error).__name__}: {error}); delete it to number anew") from error
    numbers = [*(entry.id for entry in manifest.objects.values()), *retired.values()]
    for number, count in Counter(numbers).items():
        if number < 1 or count > 1:
            reason = f"the number {number} is " + ("below 1" if number < 1 else "given twice")
            raise LibraryError(f"{path}: damaged ({reason}); delete it to number anew")
    return manifest


def _entry(values: Mapping[str, Any]) -> ObjectEntry:
    red, green, blue = (int(value) for value in values["colour"])
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {values['colour']} is not within 0 to 255")
    diameter = values["diameter"]
    return ObjectEntry(
        id=int(values["id"]),
        colour=(red, green, blue),
        origin=str(values["origin"]),
        diameter=math.nan if diameter is None else float(diameter),
        source=str(values["source"]),
    )


def _write(folder: Path, manifest: _Manifest) -> None:
    objects = {}
    for name, entry in sorted(manifest.objects.items(), key=lambda item: item[1].id):
        # JSON has no NaN.
        objects[name] = asdict(entry) | {"diameter": entry.diameter if math.isfinite(entry.diameter) else None}
    content = {"schema_version": SCHEMA_VERSION, "objects": objects, "retired": manifest.retired}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    # What was there has been read as a manifest of ours before.
    write_text(folder / MANIFEST, text, guard=False)


def _completed(folder: Path, manifest: _Manifest, names: Iterable[str], refresh: Iterable[str] = ()) -> _Manifest:
    """Return the manifest for exactly these objects; what is not known of them yet is read from their archives."""
    names = sorted(names)
    retired = dict(manifest.retired)
    retired.update({name: entry.id for name, entry in manifest.objects.items() if name not in set(names)})
    entries = {name: manifest.objects[name] for name in names if name in manifest.objects}
    taken = {entry.id for entry in entries.values()} | set(retired.values())
    fresh = [name for name in names if name not in entries]
    # Those that were here before, and BOP's numbers, come before the numbers that anybody may have.
    for name in sorted(fresh, key=lambda name: (name not in retired, not _BOP_NAME.fullmatch(name), name)):
        number = retired.pop(name, None) or _bop_number(name)
        if number is None or (number in taken and name not in manifest.retired):
            number = next(free for free in range(1, len(taken) + 2) if free not in taken)
        taken.add(number)
        entries[name] = ObjectEntry(id=number, colour=number_colour(number))
    for name in {*fresh, *refresh} & set(entries):
        entries[name] = replace(entries[name], **_facts(folder / f"{name}{SUFFIX}"))
    return _Manifest({name: entries[name] for name in names}, retired)


def _bop_number(name: str) -> int | None:
    match = _BOP_NAME.fullmatch(name)
    return (int(match[1]) or None) if match else None


def _facts(path: Path) -> dict[str, Any]:
    try:
        fields = read_fields(path, ("origin", "diameter", "sources"))
    except LibraryError:  # it keeps its number; whoever asks for the object itself is told what is wrong with it
        return {"origin": "", "diameter": math.nan, "source": ""}
    source = [*fields["sources"].tolist(), ""][0]
    return {"origin": str(fields["origin"]), "diameter": float(fields["diameter"]), "source": source}
