"""Objects that are added to the library and removed from it while the node runs. No ROS in here.

An object is made in a process of its own, because rendering takes seconds and may crash a graphics driver. The worker
encodes it before it is stored, and puts it in force between two frames: no frame shows a name that the library lacks.
"""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ocdit_core.errors import ConfigError, OcditError, RenderingError
from ocdit_core.images import write_image
from ocdit_core.objects.archive import SUFFIX, check_name, load_templates, save_templates, stored_names
from ocdit_core.objects.library import ObjectLibrary, remove_objects, update_manifest
from ocdit_core.workers import Died, Work, run_tasks

if TYPE_CHECKING:
    from ocdit_core.masks import Box
    from ocdit_core.objects.archive import ObjectTemplates
    from ocdit_ros.worker import Worker


@dataclass(frozen=True, kw_only=True, eq=False)
class NewObject:
    """What an object is made of: a CAD file, or images of its sides.

    Attributes:
        name: its name; empty: that of the CAD file without its suffix.
        mesh: the CAD file; None: images are given.
        unit: unit of the CAD file.
        images: (H, W, 3) uint8 RGB.
        masks: (H, W) bool, one for each image, or none.
        boxes: one for each image, or none. Without masks and boxes each background has to be plain.
        diameter: metres, if it is known, of an object made of images.
    """

    name: str = ""
    mesh: Path | None = None
    unit: str = "auto"
    images: Sequence[np.ndarray] = ()
    masks: Sequence[np.ndarray] = ()
    boxes: Sequence[Box] = ()
    diameter: float | None = None

    def checked(self) -> NewObject:
        """Return it with its name; raises ConfigError if something is missing or contradicts something else."""
        if (self.mesh is None) == (not len(self.images)):
            raise ConfigError("give either mesh, the path of a CAD file, or images")
        if self.mesh is not None and (self.masks or self.boxes or self.diameter is not None):
            raise ConfigError("masks, boxes and diameter belong to images, not to a CAD file")
        if self.masks and self.boxes:
            raise ConfigError("masks and boxes were given; either is enough")
        for what, given in (("masks", self.masks), ("boxes", self.boxes)):
            if given and len(given) != len(self.images):
                raise ConfigError(f"{len(given)} {what} were given for {len(self.images)} images; give one for each")
        return replace(self, name=check_name(self.name or (self.mesh.stem if self.mesh else "")))


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


def make_object(new: NewObject, folder: Path) -> ObjectTemplates:
    """Render an object, or cut it out of images, in a process of its own; `folder` holds its files meanwhile.

    Raises:
        OcditError: it cannot be made.
    """
    (result,) = run_tasks(_maker, [(new, folder)], 1)
    if isinstance(result, Died):
        raise RenderingError(f"{new.name} could not be made: {result.reason}")
    if isinstance(result, OcditError):
        raise result
    return load_templates(folder / f"{new.name}{SUFFIX}")


@contextmanager
def _maker() -> Iterator[Work[tuple[NewObject, Path], OcditError | None]]:
    """Yield a function that stores an object in a folder; it returns why that failed."""
    # Here, as the node itself needs no renderer.
    from ocdit_core.objects.capture import capture_object
    from ocdit_core.objects.cutout import cut_out
    from ocdit_core.objects.onboarding import add_objects

    def work(task: tuple[NewObject, Path]) -> OcditError | None:
        new, folder = task
        try:
            if new.mesh is not None:
                add_objects(folder, [new.mesh], names=[new.name], unit=new.unit)
                return None
            photos, masks = [], []
            for index, image in enumerate(new.images):
                photos.append(folder / f"image_{index + 1}.png")
                write_image(photos[-1], image)
                if new.masks or new.boxes:
                    mask = new.masks[index] if new.masks else cut_out(image, box=new.boxes[index])
                    masks.append(folder / f"mask_{index + 1}.png")
                    write_image(masks[-1], mask.astype(np.uint8) * np.uint8(255))
            captured = capture_object(new.name, photos, masks=masks or None, diameter=new.diameter)
            if captured.problems:
                return captured.problems[0]
            save_templates(folder, captured.templates)
        except OcditError as error:
            return error
        return None

    yield work
