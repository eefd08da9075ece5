"""The target objects on disk: a folder with one archive of rendered views for each object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ocdit_core.errors import LibraryError, UnknownObjectError
from ocdit_core.objects.archive import SUFFIX, ObjectTemplates, load_templates


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
        return load_templates(self.path / f"{name}{SUFFIX}")

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
