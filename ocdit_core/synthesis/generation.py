"""Generate datasets; the same call continues an interrupted run."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ocdit_core.data.frame import read_json
from ocdit_core.data.writers import (
    MODELS_INFO,
    LabelledFrame,
    model_path,
    remove_unfinished,
    scene_folder,
    shard_path,
    write_camera,
    write_key_to_shard,
    write_model,
    write_models_info,
    write_scene,
    write_shard,
)
from ocdit_core.errors import ConfigError, DataError, ImageError, MeshError, OcditError
from ocdit_core.files import check_output, write_text
from ocdit_core.objects import meshes
from ocdit_core.objects.onboarding import add_objects
from ocdit_core.objects.viewpoints import TUDL_K, TUDL_SIZE
from ocdit_core.resumable import Shard, keep_plan, take_shard
from ocdit_core.synthesis.path_tracer import PathTracer
from ocdit_core.synthesis.plan import SynthesisSettings, Task, tasks_of, views_of_scenes
from ocdit_core.synthesis.scenes import SceneMaker
from ocdit_core.synthesis.settling import collision_hulls
from ocdit_core.synthesis.sources import Objects, TexturePool, mesh_folder, procedural_objects, read_split
from ocdit_core.workers import TRIES, Died, Engine, LocalEngine, Work, run_all

logger = logging.getLogger(__name__)

PLAN, MODELS, TEMPLATES, OBJECTS, CARD = "plan.json", "models", "templates", "objects.json", "README.md"
SCHEMA_VERSION = 1

_LOCK, _PREPARING = ".lock", ".lock-objects"
_AT_ONCE = 32  # objects whose models are noted in models_info.json together, and that a process is started for
_ATTEMPTS = 6
_STRIDE = 10_000_000  # between the numbers of a scene's attempts: no other scene gets the same


@dataclass(frozen=True, kw_only=True)
class Synthesised:
    """Result of a run.

    Attributes:
        images: images made by this run.
        there: images that existed before.
        missing: images that other shards have still to make.
        scenes: scenes of the whole dataset.
        objects: usable objects.
        skipped: unusable objects.
        seconds: duration of making the images.
    """

    images: int
    there: int
    missing: int
    scenes: int
    objects: int
    skipped: int
    seconds: float


def synthesize(
    out: str | Path,
    settings: SynthesisSettings,
    *,
    jobs: int = 0,
    engine: Engine | None = None,
    shard: Shard = (0, 1),
    progress: bool = False,
) -> Synthesised:
    """Make a dataset, or its missing parts: scenes in BOP's layout, models, templates and a description.

    Each scene depends on the settings and its number alone. Scenes and shards are written atomically: the same call
    continues a run that was killed, and ends with the same files.

    Args:
        out: the dataset's folder, created when missing.
        settings: settings of the dataset.
        jobs: processes on this machine; 0: one for each core. Processes are spawned: a script that asks for more than
            one needs `if __name__ == "__main__":`.
        engine: runs the tasks; default: these processes.
        shard: make this shard of the tasks only; runs of different shards may run at once.
        progress: show progress bars if stderr is a terminal.

    Raises:
        ConfigError: an invalid shard or number of jobs, or too few objects for a scene.
        DataError: the folder holds something else or is being written to, sources are missing or damaged, or a scene
            cannot be made.
        RenderingError: there is no off-screen OpenGL, or no Mitsuba for path-traced images.
    """
    tasks = tasks_of(settings)
    mine = take_shard(tasks, shard)
    if jobs < 0:
        raise ConfigError(f"jobs: {jobs} is negative; 0 takes as many as there are cores")
    folder = Path(out)
    # Fail before hours of work.
    TexturePool(folder=settings.textures)
    if settings.path_traced:
        PathTracer()
    names = list(open_source(settings))
    jobs = jobs or len(os.sched_getaffinity(0))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error.strerror})") from error
    with ExitStack() as stack:
        stack.enter_context(_locked(folder / _LOCK, f"{folder}: is being written by another run", shared=shard[1] > 1))
        with _locked(folder / _PREPARING):
            plan = {"schema_version": SCHEMA_VERSION, "settings": asdict(settings), "objects": names}
            keep_plan(folder / PLAN, plan)
            check_output(folder / CARD)
            if shard[1] == 1:
                _remove_leftovers(folder, settings)
            objects = prepare_objects(folder, settings, engine, jobs=jobs)
            if not (folder / "camera.json").exists():
                scale = settings.size[1] / TUDL_SIZE[1]
                write_camera(folder, np.diag([scale, scale, 1.0]) @ TUDL_K, settings.size)
        waiting = [task for task in mine if not is_done(folder, settings, task)]
        there = sum(task.images for task in mine) - sum(task.images for task in waiting)
        jobs = max(min(jobs, len(waiting)), 1)
        opener = partial(scene_work, folder, settings, objects, engine is None and jobs == 1)
        kind = "scene" if settings.format == "bop" else "shard"
        results = run_all(engine or LocalEngine(jobs), opener, waiting, lambda task: f"{kind} {task.number}")
        began = time.perf_counter()
        bar = tqdm(
            total=sum(task.images for task in mine),
            initial=there,
            desc="scenes",
            unit="image",
            # None: a bar on a terminal only, so that log files stay readable.
            disable=None if progress and waiting else True,
        )
        with bar:
            for task, result in results if waiting else ():
                if isinstance(result, Died):
                    raise DataError(f"{kind} {task.number}: given up after {TRIES} attempts: {result.reason}")
                bar.update(task.images)
        seconds = time.perf_counter() - began
        open_tasks = [task for task in tasks if not is_done(folder, settings, task)]
        if not open_tasks:
            # Others that find the dataset complete at the same time write the same.
            _remove_leftovers(folder, settings)
            if settings.format != "bop":
                write_key_to_shard(folder / settings.shards_folder)
            write_card(folder, settings, objects)
    return Synthesised(
        images=sum(task.images for task in waiting),
        there=there,
        missing=sum(task.images for task in open_tasks),
        scenes=sum(len(task.scenes) for task in tasks),
        objects=len(objects.names),
        skipped=len(objects.skipped),
        seconds=seconds,
    )


def _remove_leftovers(folder: Path, settings: SynthesisSettings) -> None:
    """Remove the temporary files of killed processes."""
    remove_unfinished(folder, settings.bop_split)
    for name in (".", MODELS, TEMPLATES, settings.shards_folder):
        for path in (folder / name).glob(".*.part*"):
            if path.is_file():
                path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, taken: str | None = None, *, shared: bool = False) -> Iterator[None]:
    """Hold a file lock; if it is taken, raise DataError with the message `taken`, or wait without one."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError as error:
            raise DataError(f"{taken}; wait for its end, or choose another folder") from error
        except OSError as error:
            # Some network file systems have no locks: processes that write a file twice there write the same.
            logger.warning("%s: no lock on this file system (%s)", path, error.strerror)
        yield


# Objects: models and templates beside the scenes.


def open_source(settings: SynthesisSettings) -> Objects:
    """Return the objects that the settings name: procedural ones, those of a folder, or both; one part of a split.

    Raises:
        DataError: the folder or the split file is missing or damaged, or no object is left.
    """
    photographs = None if settings.textures is None else TexturePool(painted=0, folder=settings.textures)
    objects = dict(procedural_objects(settings.objects, first_seed=settings.first_object, photographs=photographs))
    if settings.meshes is not None:
        objects |= mesh_folder(settings.meshes, seed=settings.seed, photographs=photographs)
    if settings.split is None:
        return objects
    parts = read_split(settings.split)
    chosen = {name: load for name, load in objects.items() if name in parts[settings.part]}
    if not chosen:
        raise DataError(f"{settings.split}: none of the {len(objects)} objects is in its part {settings.part!r}")
    unknown = len(set(objects).difference(*parts.values()))
    if unknown:
        logger.warning("%s: %d of the objects are in no part of it, and left out", settings.split, unknown)
    return chosen


@dataclass(frozen=True, kw_only=True)
class PreparedObjects:
    """Usable objects: the name of each obj_id; and why others are unusable, by name."""

    names: dict[int, str]
    skipped: dict[str, str]


def prepare_objects(out: Path, settings: SynthesisSettings, engine: Engine | None, *, jobs: int) -> PreparedObjects:
    """Write models/ and templates/, and objects.json when both are complete; existing files stay.

    An object that cannot be used is logged in one line, and left out of the scenes; its number is not used.

    Raises:
        DataError: files cannot be written, or objects.json is damaged.
        ConfigError: too few objects for a scene are left.
        RenderingError: there is no off-screen OpenGL.
    """
    path = out / OBJECTS
    if not path.exists():
        names = dict(enumerate(open_source(settings), start=1))
        skipped = _write_models(out, settings, names, engine or LocalEngine(min(jobs, -(-len(names) // _AT_ONCE))))
        skipped |= _render_templates(out, names, skipped, jobs)
        left = {str(number): name for number, name in names.items() if name not in skipped}
        content = {"objects": left, "skipped": {name: skipped[name] for name in names.values() if name in skipped}}
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    content = read_json(path)
    try:
        names = {int(number): str(name) for number, name in content["objects"].items()}
        prepared = PreparedObjects(names=names, skipped=dict(content["skipped"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it to write it again") from error
    wanted = settings.targets[1] + settings.distractors[1]
    if len(prepared.names) < wanted:
        raise ConfigError(
            f"objects: a scene may take {settings.targets[1]} targets and {settings.distractors[1]} distractors, and "
            f"there are {len(prepared.names)}; give more (--objects, --meshes), or ask for fewer (--targets, "
            "--distractors)"
        )
    return prepared


def _write_models(out: Path, settings: SynthesisSettings, names: dict[int, str], engine: Engine) -> dict[str, str]:
    """Write the models that are missing; return why others cannot be written, by name."""
    folder = out / MODELS
    info = folder / MODELS_INFO
    known = read_json(info) if info.exists() else {}
    missing = [n for n in names if str(n) not in known or not model_path(folder, n).is_file()]
    skipped: dict[str, str] = {}
    entries: dict[int, dict[str, object]] = {}
    opener = partial(_modelling, folder, settings)
    results = run_all(engine, opener, [(number, names[number]) for number in missing], lambda task: task[1])
    for (number, name), result in tqdm(results, "models", len(missing), unit="object", disable=None):
        if isinstance(result, Died):
            if not entries and not known:
                # Hardly the fault of this object when none succeeded.
                raise DataError(f"{name}: given up after {TRIES} attempts: {result.reason}")
            result = f"{name}: {result.reason}"
        if isinstance(result, str):
            skipped[name] = result
            logger.warning("left out: %s", result)
            continue
        entries[number] = result
        if len(entries) == _AT_ONCE:
            write_models_info(folder, entries)
            known, entries = {**known, **entries}, {}
    if entries:
        write_models_info(folder, entries)
    return skipped


@contextmanager
def _modelling(folder: Path, settings: SynthesisSettings) -> Iterator[Work[tuple[int, str], object]]:
    source = open_source(settings)
    log = logging.getLogger(meshes.__name__)
    # Guessed units do not matter: `mesh_folder` scales the objects.
    log.addFilter(_not_about_units)

    def work(task: tuple[int, str]) -> object:
        number, name = task
        try:
            mesh = source[name]()
            # What physics refuses would end a scene much later.
            collision_hulls(mesh)
        except MeshError as error:
            # Errors of the mesh alone do not name it.
            return str(error) if name in str(error) else f"{name}: {error}"
        return write_model(folder, number, mesh)

    try:
        yield work
    finally:
        log.removeFilter(_not_about_units)


def _not_about_units(record: logging.LogRecord) -> bool:
    return "--unit" not in record.getMessage()


def _render_templates(out: Path, names: dict[int, str], skipped: dict[str, str], jobs: int) -> dict[str, str]:
    failed: dict[str, str] = {}
    by_file = {model_path(out / MODELS, number): name for number, name in names.items() if name not in skipped}

    def note(path: Path, error: OcditError) -> None:
        failed[by_file[path]] = str(error)
        logger.warning("left out: %s: %s", by_file[path], error)

    if by_file:
        jobs = min(jobs, -(-len(by_file) // _AT_ONCE))
        add_objects(out / TEMPLATES, list(by_file), unit="mm", jobs=jobs, on_error=note, progress=True)
    return failed


# Scenes.


def is_done(out: Path, settings: SynthesisSettings, task: Task) -> bool:
    """Return whether all files of a task exist."""
    files = [] if settings.format == "bop" else [shard_path(out / settings.shards_folder, task.number)]
    if settings.format != "shards":
        files += [scene_folder(out, settings.bop_split, scene) for scene in task.scenes]
    return all(path.exists() for path in files)


@contextmanager
def scene_work(
    out: Path, settings: SynthesisSettings, objects: PreparedObjects, alone: bool
) -> Iterator[Work[Task, None]]:
    """Yield a function that makes and writes a task with one renderer; existing scenes stay.

    Args:
        out: the dataset's folder.
        settings: settings of the dataset.
        objects: the objects of its scenes.
        alone: whether this is the only process; otherwise it uses one core.

    Raises:
        RenderingError: there is no off-screen OpenGL.
    """
    if not alone:
        # Otherwise Mesa's software renderer and OpenCV take every core, as those of the other processes do.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        cv2.setNumThreads(1)
    source = open_source(settings)
    # Warnings about a mesh were logged when its model was written.
    log = logging.getLogger("ocdit_core.objects")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with SceneMaker(
            {name: source[name] for name in objects.names.values()},
            settings,
            seed=settings.seed,
            textures=TexturePool(settings.seed, folder=settings.textures),
            object_ids={name: number for number, name in objects.names.items()},
        ) as maker:
            yield partial(_make_task, maker, out, settings)
    finally:
        log.setLevel(level)


def _make_task(maker: SceneMaker, out: Path, settings: SynthesisSettings, task: Task) -> None:
    if settings.format == "bop":
        _write_scene(out, settings, task.scenes[0], _scene_frames(maker, task.scenes[0], task.views[0]))
    else:
        write_shard(shard_path(out / settings.shards_folder, task.number), _shard_frames(maker, out, settings, task))


def _shard_frames(
    maker: SceneMaker, out: Path, settings: SynthesisSettings, task: Task
) -> Iterator[tuple[str, LabelledFrame]]:
    """Yield the keys and frames of a shard; with both layouts, also write the folders."""
    for scene, views in zip(task.scenes, task.views, strict=True):
        frames: Iterable[LabelledFrame] = _scene_frames(maker, scene, views)
        if settings.format == "both":
            frames = list(frames)
            _write_scene(out, settings, scene, frames)
        for number, frame in enumerate(frames):
            yield f"{scene:06d}_{number:06d}", frame


def _write_scene(out: Path, settings: SynthesisSettings, scene: int, frames: Iterable[LabelledFrame]) -> None:
    folder = scene_folder(out, settings.bop_split, scene)
    try:
        if not folder.exists():  # else made before the task was interrupted
            write_scene(out, settings.bop_split, scene, frames)
    except DataError:
        # A process of a run that was killed may have lived on, and have made the very same.
        if not folder.exists():
            raise


def _scene_frames(maker: SceneMaker, scene: int, views: int) -> Iterator[LabelledFrame]:
    """Yield the frames of a scene; if it cannot be made, those of a substitute with another random state."""
    reason: Exception | None = None
    for attempt in range(_ATTEMPTS):
        frames = maker.frames(scene + attempt * _STRIDE, views)
        try:
            first = next(frames)
        except (DataError, ImageError) as error:
            reason = error
            logger.debug("scene %d: tried again: %s", scene, error)
        else:
            yield first
            yield from frames
            return
    raise DataError(f"scene {scene}: given up after {_ATTEMPTS} attempts: {reason}")


def write_card(out: Path, settings: SynthesisSettings, objects: PreparedObjects) -> None:
    """Write README.md: what the dataset holds and how to read it."""
    height, width = settings.size
    kinds = ["procedural ones"] * bool(settings.objects)
    if settings.meshes is not None:
        kinds.append(f"meshes of {Path(settings.meshes).name}, under their own licences")
    contents = "Clips of rooms, rendered" if settings.video else "Rooms with objects at rest, rendered from many sides"
    text = f"""\
# Synthetic scenes for object segmentation

{contents} by `ocdit synthesize`; its settings are in {PLAN}.

| | |
|---|---|
| images | {settings.images:,} of {width} x {height}, {settings.path_traced:.0%} of them path-traced |
| scenes | {len(views_of_scenes(settings)):,} |
| objects | {len(objects.names):,}: {" and ".join(kinds)}; {len(objects.skipped):,} left out |

In BOP's format and units: poses in millimetres, depth in `depth_scale` millimetres, `mask_visib` of visible parts and
`mask` of whole silhouettes. `templates` is the object library for training and `ocdit segment`, and {OBJECTS} names
the origin of each obj_id.
"""
    write_text(out / CARD, text)
