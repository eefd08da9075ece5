"""From CAD files to a library: each mesh is read, rendered from all sides, and stored as one archive."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from ocdit_core.errors import ConfigError, LibraryError, MeshError, OcditError, RenderingError
from ocdit_core.objects.archive import SUFFIX, ObjectTemplates, check_name, load_templates, read_fields, save_templates
from ocdit_core.objects.library import update_manifest
from ocdit_core.objects.meshes import expand_meshes, read_cad
from ocdit_core.objects.renderer import Renderer
from ocdit_core.objects.sources import source_digest
from ocdit_core.objects.surfaces import surface_points
from ocdit_core.objects.templates import ViewSettings, check_views, render_templates
from ocdit_core.workers import Died, Work, run_tasks

logger = logging.getLogger(__name__)

# File names that data sets give to every object's mesh: there its folder is the name.
_COMMON_STEMS = ("textured", "textured_simple", "nontextured", "model", "model_normalized", "mesh", "object", "scene")
_NOT_IN_NAMES = re.compile(r"[^\w .()+@-]+")
POINTS = 2048
"""Surface points stored for each object."""
VIEWS_A_JOB = 300
"""With so many views each, a further process saves more time than its start takes."""


@dataclass(frozen=True, kw_only=True)
class AddedObjects:
    """What became of the meshes that were given to `add_objects`, in their order.

    Attributes:
        rendered: names of the objects whose archives were written.
        unchanged: names of those whose archives were made of the same files in the same way already.
    """

    rendered: tuple[str, ...]
    unchanged: tuple[str, ...]


def make_templates(
    renderer: Renderer,
    path: str | Path,
    *,
    name: str | None = None,
    unit: str = "auto",
    settings: ViewSettings | None = None,
) -> ObjectTemplates:
    """Read and render one CAD file; what is odd about it is logged.

    Args:
        renderer: an open renderer; one serves any number of files.
        path: the mesh file.
        name: of the object; default: the file's name without its suffix.
        unit: "auto", "m", "cm", "mm" or "in".
        settings: which views; default: 12 directions.

    Raises:
        ConfigError: an unknown unit or a bad name.
        MeshError: the file cannot be used.
        RenderingError: it cannot be drawn.
    """
    settings = settings or ViewSettings()
    name = check_name(Path(path).stem if name is None else name)
    model = read_cad(path, unit)
    for warning in model.warnings:
        logger.warning("%s", warning)
    with renderer.uploaded(model.mesh) as handle:
        drawn = render_templates(renderer, handle, settings)
        points = surface_points(handle.surface, POINTS)
    if not drawn.mask.any():
        raise RenderingError(f"{path}: nothing can be seen of the object from any side (is its texture all hole?)")
    return ObjectTemplates(
        name=name,
        rgb=drawn.rgb,
        mask=drawn.mask,
        box=drawn.box,
        K=drawn.K,
        pose=drawn.pose,
        points=points.astype(np.float32),
        diameter=model.diameter,
        symmetries_discrete=model.symmetries_discrete,
        symmetries_continuous=model.symmetries_continuous,
        unit=model.unit,
        sources=model.sources,
        source_sha256=model.sha256,
        recipe=_recipe(settings, unit),
    )


def _recipe(settings: ViewSettings, unit: str) -> str:
    return f"{settings.recipe()}; unit={unit}"


def add_objects(
    library: str | Path,
    meshes: Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    unit: str = "auto",
    settings: ViewSettings | None = None,
    jobs: int = 1,
    force: bool = False,
    on_error: Callable[[Path, OcditError], None] | None = None,
    progress: bool = False,
) -> AddedObjects:
    """Render CAD files into a library folder, which is made when it is missing.

    Only what has changed is rendered: an object whose archive is sound, and was made of the same files, with the same
    settings and `unit`, stays as it is. Otherwise an object of the same name is replaced, which is logged as a
    warning if it was made of other files; each is written atomically. Several processes may add to one library at
    once.

    Args:
        library: the folder.
        meshes: CAD files; a folder of BOP models stands for all its models, unless names are given.
        names: of the objects, one a file; default: `object_names`, and a file given twice counts once.
        unit: of all files: "auto", "m", "cm", "mm" or "in".
        settings: which views; default: 12 directions.
        jobs: processes that share the work; 1: this one alone; 0: one for each core, but fewer for little work.
            Processes are spawned: a script that asks for any does so below `if __name__ == "__main__":`.
        force: render all, changed or not.
        on_error: called for a file that cannot be used, in the order of the meshes, and the others go on; without it
            the first error ends the work.
        progress: whether to show a progress bar, if the error stream is a terminal.

    Returns:
        The names of the objects rendered, and of those left as they were.

    Raises:
        ConfigError: another number of names than of files, one name given twice, or a negative number of jobs.
        LibraryError: the library's manifest is damaged, or its folder cannot be written to.
        RenderingError: the renderer cannot be opened.
        OcditError: what `make_templates` raises, when there is no `on_error`.
    """
    if jobs < 0:
        raise ConfigError(f"jobs: {jobs} is negative; 0 takes as many as there are cores")
    tasks = _tasks(meshes, names)
    settings = settings or ViewSettings()
    jobs = min(jobs or _fitting_jobs(len(tasks), settings), len(tasks))
    folder = Path(library)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise LibraryError(f"{folder}: is a file; a library is a folder") from None
    except OSError as error:
        raise LibraryError(f"{folder}: cannot be made a library's folder ({error.strerror})") from error
    # A damaged manifest is better known before hours of rendering than after.
    update_manifest(folder)
    opener = partial(_Onboarding, folder, settings, unit, force, jobs > 1)
    added: dict[str, list[str]] = {"rendered": [], "unchanged": []}
    results = run_tasks(opener, tasks, jobs) if jobs > 1 else _in_this_process(opener, tasks)
    # None: a bar on a terminal only, so that log files stay readable.
    hidden = None if progress else True
    try:
        shown = tqdm(results, "rendering", len(tasks), unit="object", disable=hidden)
        for task, result in zip(tasks, shown, strict=True):
            if isinstance(result, Died):
                result = RenderingError(f"{task.path}: could not be rendered: {result.reason}")
            if not isinstance(result, OcditError):
                added[result].append(task.name)
            elif on_error is None:
                raise result
            else:
                on_error(task.path, result)
    finally:
        results.close()
        update_manifest(folder, added["rendered"])
    return AddedObjects(rendered=tuple(added["rendered"]), unchanged=tuple(added["unchanged"]))


@dataclass(frozen=True)
class _Task:
    path: Path
    name: str
    # A folder that holds no models, say: reported in its turn.
    error: OcditError | None = None


_Outcome = Literal["rendered", "unchanged"] | OcditError


def object_names(paths: Sequence[str | Path]) -> list[str | None]:
    """Return a name for the object of each mesh file: the file's name without its suffix.

    Files of one name are told apart by the first part of their paths that differs, as data sets of objects have them:
    ycb/002_master_chef_can/google_16k/textured.obj is `002_master_chef_can`, left/wheel.stl is `left_wheel`. None
    stands for what no folder tells apart from another file.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    stems: dict[str, list[int]] = {}
    for index, path in enumerate(absolute):
        stems.setdefault(path.stem, []).append(index)
    names: list[str | None] = [path.stem for path in absolute]
    for stem, members in stems.items():
        if len(members) > 1:
            labels = _apart([absolute[index].parent.parts for index in members])
            for index, label in zip(members, labels, strict=True):
                whole = label if label and stem.lower() in _COMMON_STEMS else f"{label or ''}_{stem}"
                names[index] = None if label is None else _NOT_IN_NAMES.sub("_", whole).strip(" _")[:100]
    taken = [name for name in names if name is not None]
    return [None if name is None or taken.count(name) > 1 else name for name in names]


def _apart(folders: list[tuple[str, ...]]) -> list[str | None]:
    """Return for each folder the parts of its path that tell it from the others, from the first that differs."""
    if len(folders) == 1:
        return [""]
    depth = 0
    while len({folder[depth : depth + 1] for folder in folders}) == 1:
        if len(folders[0]) <= depth:
            return [None] * len(folders)  # one folder for all
        depth += 1
    labels: list[str | None] = [None] * len(folders)
    buckets: dict[str, list[int]] = {}
    for index, folder in enumerate(folders):
        buckets.setdefault("".join(folder[depth : depth + 1]), []).append(index)
    for part, members in buckets.items():
        inner = _apart([folders[index][depth + 1 :] for index in members])
        for index, label in zip(members, inner, strict=True):
            labels[index] = None if label is None else "_".join(filter(None, (part, label)))
    return labels


def _tasks(meshes: Sequence[str | Path], names: Sequence[str] | None) -> list[_Task]:
    paths = [Path(mesh) for mesh in meshes]
    if not paths:
        raise ConfigError("no mesh was given")
    if names is not None:
        if len(names) != len(paths):
            raise ConfigError(f"{len(names)} names were given for {len(paths)} meshes; give one for each")
        first: dict[str, Path] = {}
        for path, name in zip(paths, names, strict=True):
            if first.setdefault(check_name(name), path) is not path:
                raise ConfigError(f"{first[name]} and {path} would both be called {name!r}; give each its own name")
        return [_Task(path, name) for path, name in zip(paths, names, strict=True)]
    tasks: list[_Task] = []
    seen: set[str] = set()
    for path in paths:
        try:
            files = [file for file in expand_meshes([path]) if os.path.realpath(file) not in seen]
        except MeshError as error:
            tasks.append(_Task(path, path.name, error))
            continue
        seen |= {os.path.realpath(file) for file in files}
        tasks += [_Task(file, file.stem) for file in dict.fromkeys(files)]
    usable = [index for index, task in enumerate(tasks) if task.error is None]
    for index, chosen in zip(usable, object_names([tasks[index].path for index in usable]), strict=True):
        task = tasks[index]
        try:
            tasks[index] = replace(task, name=check_name(chosen or task.name))
        except ConfigError as error:
            tasks[index] = replace(task, error=ConfigError(f"{task.path}: {error}; or give one (--name)"))
        if chosen is None:
            twin = next(o.path for i, o in enumerate(tasks) if i != index and o.path.stem == task.path.stem)
            reason = f"would be called {task.name!r}, as {twin} would; render them one by one (--name)"
            tasks[index] = replace(task, error=ConfigError(f"{task.path}: {reason}"))
    return tasks


def _fitting_jobs(objects: int, settings: ViewSettings) -> int:
    views = objects * settings.views * settings.in_plane
    return min(len(os.sched_getaffinity(0)), -(-views // VIEWS_A_JOB))


def _in_this_process(
    opener: Callable[[], AbstractContextManager[Work[_Task, _Outcome]]], tasks: Sequence[_Task]
) -> Generator[_Outcome, None, None]:
    with opener() as work:
        yield from map(work, tasks)


class _Onboarding:
    """Does one task after another with one renderer, which is opened when there is something to draw.

    Called with a task it returns what became of it; what it raises concerns all tasks.
    """

    def __init__(self, folder: Path, settings: ViewSettings, unit: str, force: bool, alone: bool) -> None:
        self._folder, self._settings, self._unit, self._force = folder, settings, unit, force
        self._shares_cores = alone
        self._renderer: Renderer | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _Onboarding:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, task: _Task) -> _Outcome:
        if task.error is not None:
            return task.error
        if not self._force and self._is_current(task):
            return "unchanged"
        if self._renderer is None:
            if self._shares_cores:
                # Mesa's software renderer takes every core otherwise, as its neighbours do.
                os.environ.setdefault("LP_NUM_THREADS", "1")
            self._renderer = self._stack.enter_context(Renderer())
        try:
            templates = make_templates(
                self._renderer, task.path, name=task.name, unit=self._unit, settings=self._settings
            )
            self._name_replaced(templates)
            for problem in check_views(templates):
                logger.warning("%s: %s", task.name, problem)
            save_templates(self._folder, templates)
        except OcditError as error:
            return error
        return "rendered"

    def _name_replaced(self, templates: ObjectTemplates) -> None:
        """Warn that an object of the same name, which was made of other files, is about to be replaced."""
        with suppress(LibraryError):
            known = read_fields(self._folder / f"{templates.name}{SUFFIX}", ("sources", "source_sha256", "origin"))
            if str(known["source_sha256"]) != templates.source_sha256:
                named = [*known["sources"].tolist(), "file"][0]
                source = "photographs" if known["origin"] == "photos" else f"another {named}"
                logger.warning("%s: replaces an object that was made of %s; --name keeps both", templates.name, source)

    def _is_current(self, task: _Task) -> bool:
        archive = self._folder / f"{task.name}{SUFFIX}"
        if not archive.is_file():
            return False
        try:
            known = read_fields(archive, ("sources", "source_sha256", "recipe"))
            if known["recipe"] != _recipe(self._settings, self._unit):
                return False
            if known["source_sha256"] != source_digest(task.path, known["sources"].tolist()):
                return False
            # All of it: who is told to render a damaged object again must not hear that nothing has changed.
            load_templates(archive)
        except LibraryError:
            return False
        return True
