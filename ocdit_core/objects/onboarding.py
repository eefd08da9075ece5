"""From CAD files to a library: each mesh is read, rendered from all sides, and stored as one archive."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
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
from ocdit_core.objects.templates import RENDERING_VERSION, check_views, render_templates
from ocdit_core.workers import Died, Opener, Work, run_tasks

logger = logging.getLogger(__name__)

# File names that data sets give to every object's mesh: there its folder is the name.
_COMMON_STEMS = ("textured", "textured_simple", "nontextured", "model", "model_normalized", "mesh", "object", "scene")
# Folders of the meshes of Google Scanned Objects and YCB: the folder above is the name.
_MESH_FOLDERS = ("meshes", "google_16k", "google_64k", "google_512k")
_NOT_IN_NAMES = re.compile(r"[^\w .()+@-]+")
POINTS = 2048  # surface points stored for each object
VIEWS_A_JOB = 300  # with so many views each, a further process saves more time than its start takes


@dataclass(frozen=True, kw_only=True)
class AddedObjects:
    """Result of `add_objects`: names of the objects whose archives were written, and of those that were current."""

    rendered: tuple[str, ...]
    unchanged: tuple[str, ...]


def make_templates(
    renderer: Renderer, path: str | Path, *, name: str | None = None, unit: str = "auto", views: int = 12
) -> ObjectTemplates:
    """Read and render one CAD file; warnings are logged.

    Args:
        renderer: an open renderer.
        path: the mesh file.
        name: object name; default: the file's name without its suffix.
        unit: "auto", "m", "cm", "mm" or "in".
        views: viewpoints, evenly spread: 12, 42 or 162.

    Raises:
        ConfigError: an unknown unit or a bad name.
        MeshError: the file cannot be used.
        RenderingError: it cannot be drawn.
    """
    name = check_name(Path(path).stem if name is None else name)
    model = read_cad(path, unit)
    for warning in model.warnings:
        logger.warning("%s", warning)
    with renderer.uploaded(model.mesh) as handle:
        drawn = render_templates(renderer, handle, views=views)
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
        recipe=_recipe(views, unit),
    )


def _recipe(views: int, unit: str) -> str:
    """Return a short text that is the same exactly when the same mesh gives the same views."""
    return f"rendering {RENDERING_VERSION}: moderngl views={views} in_plane=1; unit={unit}"


def add_objects(
    library: str | Path,
    meshes: Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    unit: str = "auto",
    views: int = 12,
    jobs: int = 1,
    force: bool = False,
    on_error: Callable[[Path, OcditError], None] | None = None,
    progress: bool = False,
) -> AddedObjects:
    """Render CAD files into a library folder, which is made when it is missing.

    An object whose archive was made of the same files with the same `views` and `unit` stays as it is; another one of
    the same name is replaced, with a warning if it was made of other files. Several processes may add to one library.

    Args:
        library: the folder.
        meshes: CAD files; a folder of a known layout (see `expand_meshes`) stands for all its models, unless names are
            given.
        names: object names, one a file; default: `object_names`, and a file given twice counts once.
        unit: unit of all files: "auto", "m", "cm", "mm" or "in".
        views: viewpoints, evenly spread: 12, 42 or 162.
        jobs: number of processes; 1: this one alone; 0: one for each core, but fewer for little work. They are spawned:
            a script that asks for more than one does so below `if __name__ == "__main__":`.
        force: render unchanged objects as well.
        on_error: called for each file that cannot be used, in order; without it the first error is raised.
        progress: whether to show a progress bar, if the error stream is a terminal.

    Raises:
        ConfigError: another number of names than of files, one name given twice, or a negative number of jobs.
        LibraryError: the library's manifest is damaged, or its folder cannot be written to.
        RenderingError: the renderer cannot be opened.
        OcditError: what `make_templates` raises, when there is no `on_error`.
    """
    if jobs < 0:
        raise ConfigError(f"jobs: {jobs} is negative; 0 takes as many as there are cores")
    tasks = _tasks(meshes, names)
    jobs = min(jobs or _fitting_jobs(len(tasks) * views), len(tasks))
    folder = Path(library)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise LibraryError(f"{folder}: is a file; a library is a folder") from None
    except OSError as error:
        raise LibraryError(f"{folder}: cannot be made a library's folder ({error.strerror})") from error
    # A damaged manifest is better known before hours of rendering than after.
    update_manifest(folder)
    opener = partial(_onboarding, folder, views, unit, force, jobs > 1)
    added: dict[str, list[str]] = {"rendered": [], "unchanged": []}
    results = run_tasks(opener, tasks, jobs) if jobs > 1 else _in_this_process(opener, tasks)
    try:
        # None: a bar on a terminal only, so that log files stay readable.
        shown = tqdm(results, "rendering", len(tasks), unit="object", disable=None if progress else True)
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
    error: OcditError | None = None  # of a folder that holds no models, say: reported in its turn


_Outcome = Literal["rendered", "unchanged"] | OcditError


def object_names(paths: Sequence[str | Path]) -> list[str | None]:
    """Return a name for the object of each mesh file: the file's name without its suffix.

    Of google_16k/textured.obj (YCB) and meshes/model.obj (Google Scanned Objects) it is the folder above. Files of one
    name are told apart by the first part of their paths that differs: left/wheel.stl is `left_wheel`. None stands for
    files that no folder tells apart.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    names: list[str | None] = [_own_name(path) for path in absolute]
    stems: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        stems.setdefault(name or "", []).append(index)
    for stem, members in stems.items():
        if len(members) > 1:
            labels = _apart([absolute[index].parent.parts for index in members])
            for index, label in zip(members, labels, strict=True):
                whole = label if label and stem.lower() in _COMMON_STEMS else f"{label or ''}_{stem}"
                names[index] = None if label is None else _NOT_IN_NAMES.sub("_", whole).strip(" _")[:100]
    return [None if names.count(name) > 1 else name for name in names]


def _own_name(path: Path) -> str:
    if path.parent.name in _MESH_FOLDERS and path.stem in _COMMON_STEMS and path.parent.parent.name:
        return _NOT_IN_NAMES.sub("_", path.parent.parent.name)
    return path.stem


def _apart(folders: list[tuple[str, ...]]) -> list[str | None]:
    """Return for each folder the parts of its path that tell it from the others, as few as it takes; None: none do."""
    columns = [column for column in zip_longest(*folders, fillvalue="") if len(set(column)) > 1]
    labels: list[str | None] = [None] * len(folders)
    for count in range(1, len(columns) + 1):
        longer = ["_".join(filter(None, parts)) for parts in zip(*columns[:count], strict=True)]
        for index, label in enumerate(longer):
            labels[index] = label if labels[index] is None and longer.count(label) == 1 else labels[index]
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
            own = _own_name(task.path)
            twin = next(o.path for i, o in enumerate(tasks) if i != index and _own_name(o.path) == own)
            reason = f"would be called {task.name!r}, as {twin} would; render them one by one (--name)"
            tasks[index] = replace(task, error=ConfigError(f"{task.path}: {reason}"))
    return tasks


def _fitting_jobs(views: int) -> int:
    return min(len(os.sched_getaffinity(0)), -(-views // VIEWS_A_JOB))


def _in_this_process(opener: Opener, tasks: Sequence[_Task]) -> Generator[_Outcome, None, None]:
    with opener() as work:
        yield from map(work, tasks)


@contextmanager
def _onboarding(
    folder: Path, views: int, unit: str, force: bool, shares_cores: bool
) -> Iterator[Work[_Task, _Outcome]]:
    """Yield a function that does one task after another with one renderer, opened when there is something to draw.

    It returns what became of the task; what it raises concerns all tasks.
    """
    renderers: list[Renderer] = []

    def work(task: _Task) -> _Outcome:
        if task.error is not None:
            return task.error
        if not force and _is_current(folder, task, _recipe(views, unit)):
            return "unchanged"
        if not renderers:
            if shares_cores:
                # Mesa's software renderer takes every core otherwise, as its neighbours do.
                os.environ.setdefault("LP_NUM_THREADS", "1")
            renderers.append(stack.enter_context(Renderer()))
        try:
            templates = make_templates(renderers[0], task.path, name=task.name, unit=unit, views=views)
            _name_replaced(folder, templates)
            for problem in check_views(templates):
                logger.warning("%s: %s", task.name, problem)
            save_templates(folder, templates)
        except OcditError as error:
            return error
        return "rendered"

    with ExitStack() as stack:
        yield work


def _name_replaced(folder: Path, templates: ObjectTemplates) -> None:
    """Warn that an object of the same name, which was made of other files, is about to be replaced."""
    with suppress(LibraryError):
        known = read_fields(folder / f"{templates.name}{SUFFIX}", ("sources", "source_sha256", "origin"))
        if str(known["source_sha256"]) != templates.source_sha256:
            named = [*known["sources"].tolist(), "file"][0]
            source = "photographs" if known["origin"] == "photos" else f"another {named}"
            logger.warning("%s: replaces an object that was made of %s; --name keeps both", templates.name, source)


def _is_current(folder: Path, task: _Task, recipe: str) -> bool:
    """Return whether an object's archive is sound, and made of the same files in the same way."""
    archive = folder / f"{task.name}{SUFFIX}"
    if not archive.is_file():
        return False
    try:
        known = read_fields(archive, ("sources", "source_sha256", "recipe"))
        if known["recipe"] != recipe or known["source_sha256"] != source_digest(task.path, known["sources"].tolist()):
            return False
        # All of it: who is told to render a damaged object again must not hear that nothing has changed.
        load_templates(archive)
    except LibraryError:
        return False
    return True
