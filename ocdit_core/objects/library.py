"""The target objects on disk: a folder with one archive of rendered views for each object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from ocdit_core.errors import LibraryError, UnknownObjectError
from ocdit_core.objects.archive import SUFFIX, ObjectTemplates, load_templates, stored_names
from ocdit_core.objects.manifest import ObjectEntry, library_manifest


class ObjectLibrary:
    """A folder of rendered objects, as `ocdit render` makes it.

    Opening it reads the names only; an object's archive is read, and checked, each time it is asked for, and nothing
    of it is kept. Safe to use from several threads.

    Args:
        path: the folder.

    Raises:
        LibraryError: the folder is missing, is a file, or holds no object.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._ids = stored_names(self.path)
        self._known = frozenset(self._ids)
        if not self._ids:
            raise LibraryError(f"{self.path}: holds no object (*{SUFFIX}); add some with `ocdit render MESH --out ...`")

    @property
    def object_ids(self) -> tuple[str, ...]:
        """The objects' names, sorted."""
        return self._ids

    @cached_property
    def manifest(self) -> dict[str, ObjectEntry]:
        """Number, colour and origin of each object, by name, read from manifest.json when first asked for.

        Raises:
            LibraryError: the file is damaged.
        """
        return library_manifest(self.path, self._ids)

    def __getitem__(self, name: str) -> ObjectTemplates:
        """Read one object.

        Raises:
            UnknownObjectError: the library has no such object.
            LibraryError: its archive is damaged, or of another schema version.
        """
        if name not in self._known:
            raise UnknownObjectError([name], list(self._ids))
        return load_templates(self.path / f"{name}{SUFFIX}")

    def select(self, names: Iterable[str]) -> tuple[ObjectTemplates, ...]:
        """Read several objects, in the order given.

        Raises:
            UnknownObjectError: names all that the library lacks.
            LibraryError: an archive is damaged.
        """
        names = list(names)
        self.require(names)
        return tuple(self[name] for name in names)

    def require(self, names: Iterable[str]) -> None:
        """Check that the library has all these objects, without reading them.

        Raises:
            UnknownObjectError: names all that it lacks.
        """
        unknown = [name for name in names if name not in self._known]
        if unknown:
            raise UnknownObjectError(unknown, list(self._ids))

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"ObjectLibrary({str(self.path)!r}, {len(self)} objects)"
