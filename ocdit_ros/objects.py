"""Objects that are added to the library and removed from it while the node runs. No ROS in here.

The worker encodes an object before it is stored, and puts it in force between two frames: no frame shows a name that
the library lacks.
"""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdit_core.errors import ConfigError, OcditError
from ocdit_core.objects.archive import save_templates, stored_names
from ocdit_core.objects.library import ObjectLibrary, remove_objects, update_manifest
from ocdit_core.objects.making import NewObject, make_object

if TYPE_CHECKING:
    from ocdit_core.objects.archive import ObjectTemplates
    from ocdit_ros.worker import Worker


class LibraryEditor:
    """Changes a library's folder, and then the library and the targets of a worker.

    Every failure leaves folder, library and targets as they were; numbers of removed objects are not used again.

    Args:
        folder: the library's folder.
        worker: uses the library.
        publish: called with the numbers of all objects, by name, that frames may show from now on.
    """

    def __init__(self, folder: Path, worker: Worker, publish: Callable[[dict[str, int]], None]):
        self._folder = folder
        self._worker = worker
        self._publish = publish
        self._making, self._changing = threading.Lock(), threading.Lock()

    def add(self, new: NewObject, *, target: bool) -> tuple[str, int]:
        """Make an object and store it; return its name and number.

        Args:
            new: what to make it of.
            target: whether to look for it from the next frame on.

        Raises:
            OcditError: it cannot be made, stored or encoded; the library holds such a name; another one is being made.
        """
        new = new.checked()
        if not self._making.acquire(blocking=False):
            raise OcditError("another object is being made: ask again after the reply to that request")
        try:
            self._require_absent(new.name)
            with tempfile.TemporaryDirectory(prefix="ocdit_") as scratch:
                templates = make_object(new, Path(scratch))
                # Encoded alone first: what the network cannot encode does not get into the library.
                staged = ObjectLibrary(scratch)
                if self._worker.running:
                    self._worker.call(lambda network: network.encode_objects(staged, [new.name]) and None).result()
            with self._changing:
                return new.name, self._store(templates, target)
        finally:
            self._making.release()

    def _store(self, templates: ObjectTemplates, target: bool) -> int:
        name, before = templates.name, self._worker.library
        self._require_absent(name)
        save_templates(self._folder, templates)
        try:
            update_manifest(self._folder, [name])
            library = self._refreshed()
            self._publish(numbers_of(library))
            choose = (lambda names: [*names, name]) if target else list
            self._worker.change_library(library, choose).result()
        except Exception:
            remove_objects(self._folder, [name])
            self._publish(numbers_of(before))
            raise
        return numbers_of(library)[name]

    def _refreshed(self) -> ObjectLibrary:
        """Return the library as its folder is now; the one in use stays as it is."""
        library: ObjectLibrary = copy.copy(self._worker.library)
        library.refresh()
        return library

    def _require_absent(self, name: str) -> None:
        if name in stored_names(self._folder):
            raise ConfigError(f"{self._folder} holds {name} already: remove it first, or choose another name")

    def remove(self, name: str) -> None:
        """Stop looking for an object and delete it.

        Raises:
            UnknownObjectError: the library does not hold it.
            OcditError: it is the only target or the only object, or it cannot be deleted.
        """
        with self._changing:
            library = self._worker.library
            library.require([name])
            if len(library) == 1:
                raise OcditError(f"{name} is the only object of the library: add another one first")
            targets = self._worker.targets
            if targets is not None and targets.object_ids == (name,):
                raise OcditError(f"{name} is the only target: choose others first")
            rest = library.without([name])
            self._worker.change_library(rest, lambda names: [other for other in names if other != name]).result()
            try:
                remove_objects(self._folder, [name])
            except OcditError:
                again = targets is not None and name in targets.object_ids
                self._worker.change_library(library, lambda names: [*names, name] if again else names).result()
                raise
            self._publish(numbers_of(rest))

    def reload(self, *, everything: bool) -> tuple[list[str], list[str]]:
        """Read the folder again; return the names that are new, and those that are gone.

        Args:
            everything: whether all objects are targets; else those that are still there stay the targets.

        Raises:
            LibraryError: the folder holds no object, or an archive of a target is damaged.
            OcditError: none of the targets is there any more.
        """

        def choose(names: Sequence[str]) -> list[str]:
            kept = [name for name in (library.object_ids if everything else names) if name in library]
            if not kept:
                raise OcditError(f"the library holds none of the targets any more: {', '.join(names)}")
            return kept

        with self._changing:
            before, library = self._worker.library, self._refreshed()
            known, found = numbers_of(before), numbers_of(library)
            self._publish(known | found)
            try:
                self._worker.change_library(library, choose).result()
            except Exception:
                self._publish(known)
                raise
            self._publish(found)
        return sorted(found.keys() - known), sorted(known.keys() - found)


def numbers_of(library: Any) -> dict[str, int]:
    """Return the permanent number of each object of a library by name."""
    return {name: entry.id for name, entry in library.manifest.items()}
