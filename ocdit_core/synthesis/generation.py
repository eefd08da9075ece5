"""Generate datasets, from settings to the last file; interrupted at any instant, the same call continues."""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ocdit_core.data.frame import read_json
from ocdit_core.data.writers import (
    MODELS_INFO,
    LabelledFrame,
    encode_image,
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
from ocdit_core.objects.templates import ViewSettings
from ocdit_core.objects.viewpoints import TUDL_K, TUDL_SIZE
from ocdit_core.resumable import Shard, keep_plan, take_shard
from ocdit_core.synthesis.path_tracer import PathTracer
from ocdit_core.synthesis.plan import SynthesisSettings, Task, tasks_of, views_of_scenes
from ocdit_core.synthesis.scenes import SceneMaker
from ocdit_core.synthesis.settling import collision_hulls
from ocdit_core.synthesis.sources import ObjectSource, TexturePool, mesh_folder, procedural_objects, read_split
from ocdit_core.workers import TRIES, Died, Engine, LocalEngine, Work, run_all

logger = logging.getLogger(__name__)

PLAN, MODELS, TEMPLATES, OBJECTS, CARD = "plan.json", "models", "templates", "objects.json", "README.md"
SCHEMA_VERSION = 1
SEEN = 0.1
"""Visible fraction from which on an object counts as visible, as in BOP's targets."""

_LOCK, _PREPARING, _RECORDS = ".lock", ".lock-objects", ".done"
_AT_ONCE = 32  # objects whose models are noted in models_info.json together, and that a process is started for
_ATTEMPTS = 6
_STRIDE = 10_000_000  # between the numbers of a scene's attempts: no other scene gets the same


@dataclass(frozen=True, kw_only=True)
class Synthesised:
    """What a run did.

    Attributes:
        images: images that it made.
        there: images that existed before.
        missing: images of other shards that are not made yet.
        scenes: scenes of the whole dataset.
        objects: objects that scenes are made of.
        skipped: objects that cannot be used.
        seconds: time of making the images.
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
    """Make a dataset, or what is missing of it: scenes in BOP's layout, models, templates, and a description.

    Every scene depends on the settings and its number alone. Scenes and shards appear when they are complete, so that
    the same call continues a run that was killed, and ends with the same files.

    Args:
        out: the dataset's folder, created when missing.
        settings: what it holds.
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
    # Before hours of work.
    TexturePool(folder=settings.textures)
    if settings.path_traced:
        PathTracer()
    names = open_source(settings).names
    jobs = jobs or len(os.sched_getaffinity(0))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made a dataset's folder ({error.strerror})") from error
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
        began = time.perf_counter()
        made = _make(folder, settings, objects, waiting, engine, jobs, there, progress)
        seconds = time.perf_counter() - began
        open_tasks = [task for task in tasks if not is_done(folder, settings, task)]
        if not open_tasks:
            _finish(folder, settings, tasks, objects)
    return Synthesised(
        images=made,
        there=there,
        missing=sum(task.images for task in open_tasks),
        scenes=sum(len(task.scenes) for task in tasks),
        objects=len(objects.names),
        skipped=len(objects.skipped),
        seconds=seconds,
    )


def _make(
    folder: Path,
    settings: SynthesisSettings,
    objects: PreparedObjects,
    tasks: list[Task],
    engine: Engine | None,
    jobs: int,
    there: int,
    progress: bool,
) -> int:
    """Make the tasks; return the number of images."""
    if not tasks:
        return 0
    jobs = min(jobs, len(tasks))
    opener = partial(SceneWork, folder, settings, objects, engine is None and jobs == 1)
    results = run_all(engine or LocalEngine(jobs), opener, tasks, partial(_name, settings))
    total = there + sum(task.images for task in tasks)
    made = 0
    # None: a bar on a terminal only, so that log files stay readable.
    with tqdm(total=total, initial=there, desc="scenes", unit="image", disable=None if progress else True) as bar:
        for task, result in results:
            if isinstance(result, Died):
                raise DataError(f"{_name(settings, task)}: given up after {TRIES} attempts: {result.reason}")
            made += task.images
            bar.update(task.images)
    return made


def _name(settings: SynthesisSettings, task: Task) -> str:
    return f"scene {task.scenes[0]}" if settings.format == "bop" else f"shard {task.number}"


def _finish(folder: Path, settings: SynthesisSettings, tasks: list[Task], objects: PreparedObjects) -> None:
    """Write what describes the whole dataset; others that find it complete at the same time write the same."""
    _remove_leftovers(folder, settings)
    if settings.format != "bop":
        write_key_to_shard(folder / settings.shards_folder)
    write_card(folder, settings, [read_record(folder, task) for task in tasks], objects)


def _remove_leftovers(folder: Path, settings: SynthesisSettings) -> None:
    """Remove the temporary files of killed processes."""
    remove_unfinished(folder, settings.bop_split)
    for name in (".", _RECORDS, MODELS, TEMPLATES, settings.shards_folder):
        for path in (folder / name).glob(".*.part*"):
            if path.is_file():
                path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, taken: str | None = None, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock that ends with this process; without a message for when it is taken, wait for it."""
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


def open_source(settings: SynthesisSettings) -> ObjectSource:
    """Return the objects that the settings name: procedural ones, those of a folder, or both; one part of a split.

    Raises:
        DataError: the folder or the split file is missing or damaged, or no object is left.
    """
    sources: list[ObjectSource] = []
    photographs = None if settings.textures is None else TexturePool(painted=0, folder=settings.textures)
    if settings.objects:
        sources.append(procedural_objects(settings.objects, first_seed=settings.first_object, photographs=photographs))
    if settings.meshes is not None:
        sources.append(mesh_folder(settings.meshes, seed=settings.seed, photographs=photographs))
    source = sources[0] | sources[1] if len(sources) > 1 else sources[0]
    if settings.split is None:
        return source
    parts = read_split(settings.split)
    chosen = set(parts[settings.part]).intersection(source.names)
    if not chosen:
        raise DataError(f"{settings.split}: none of the {len(source.names)} objects is in its part {settings.part!r}")
    unknown = len(set(source.names).difference(*parts.values()))
    if unknown:
        logger.warning("%s: %d of the objects are in no part of it, and left out", settings.split, unknown)
    return source.only(chosen)


@dataclass(frozen=True, kw_only=True)
class PreparedObjects:
    """The objects that scenes are made of.

    Attributes:
        names: name of each obj_id.
        skipped: why other objects cannot be used, by name.
    """

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
        names = dict(enumerate(open_source(settings).names, start=1))
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
            mesh = source.mesh(name)
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
        add_objects(
            out / TEMPLATES,
            list(by_file),
            unit="mm",
            settings=ViewSettings(),
            jobs=min(jobs, -(-len(by_file) // _AT_ONCE)),
            on_error=note,
            progress=True,
        )
    return failed


# Scenes.


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """Counts of a finished task.

    Attributes:
        images: number of images.
        instances: labelled objects in them, including hidden ones.
        seen: those of which a tenth or more is visible.
    """

    images: int
    instances: int
    seen: int


def _record_path(out: Path, task: Task) -> Path:
    """Return the path of a task's record, which is written right before the last of its files appears."""
    return out / _RECORDS / f"{task.number:06d}.json"


def read_record(out: Path, task: Task) -> TaskRecord:
    """Read the record of a finished task.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = _record_path(out, task)
    try:
        return TaskRecord(**read_json(path))
    except TypeError as error:
        raise DataError(f"{path}: damaged ({error}); delete it, and the task is done again") from error


def is_done(out: Path, settings: SynthesisSettings, task: Task) -> bool:
    """Return whether all files of a task exist."""
    if not _record_path(out, task).exists():
        return False
    if settings.format != "bop" and not shard_path(out / settings.shards_folder, task.number).exists():
        return False
    return settings.format == "shards" or all(
        scene_folder(out, settings.bop_split, scene).exists() for scene in task.scenes
    )


class SceneWork:
    """Makes tasks one after another with one renderer; use it as a context manager, and call it with each task.

    Args:
        out: the dataset's folder.
        settings: settings of the dataset.
        objects: the objects of its scenes.
        alone: whether this process has the machine for itself; else it keeps to one core.

    Raises:
        RenderingError: there is no off-screen OpenGL.
    """

    def __init__(self, out: Path, settings: SynthesisSettings, objects: PreparedObjects, alone: bool) -> None:
        self._out, self._settings, self._objects, self._alone = out, settings, objects, alone
        self._stack = ExitStack()

    def __enter__(self) -> SceneWork:
        settings = self._settings
        if not self._alone:
            # Otherwise Mesa's software renderer and OpenCV take every core, as those of the other processes do.
            os.environ.setdefault("LP_NUM_THREADS", "1")
            cv2.setNumThreads(1)
        # Warnings about a mesh were logged when its model was written.
        log = logging.getLogger("ocdit_core.objects")
        self._stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        self._maker = self._stack.enter_context(
            SceneMaker(
                open_source(settings).only(self._objects.names.values()),
                settings,
                seed=settings.seed,
                textures=TexturePool(settings.seed, folder=settings.textures),
                object_ids={name: number for number, name in self._objects.names.items()},
            )
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, task: Task) -> TaskRecord:
        """Make a task and write it; what exists of it stays.

        Raises:
            DataError: a scene cannot be made, or files cannot be written.
            MeshError: the file of an object has gone.
        """
        frames = self._frames(task)
        if self._settings.format == "bop":
            self._write_scene(task.scenes[0], (frame for _, frame in frames))
        else:
            write_shard(shard_path(self._out / self._settings.shards_folder, task.number), frames)
        return read_record(self._out, task)

    def _frames(self, task: Task) -> Iterator[tuple[str, LabelledFrame]]:
        """Yield the task's frames by their keys, then write its record: before the last of its files appears."""
        images = instances = seen = 0
        for scene, views in zip(task.scenes, task.views, strict=True):
            frames: Iterable[LabelledFrame] = self._scene(scene, views)
            if self._settings.format == "both":
                # One encoding for both layouts.
                frames = [replace(frame, image=encode_image(frame.image)[0]) for frame in frames]
                self._write_scene(scene, frames)
            for number, frame in enumerate(frames):
                images += 1
                instances += len(frame.objects)
                seen += sum(item.visible_fraction >= SEEN for item in frame.objects)
                yield f"{scene:06d}_{number:06d}", frame
        record = TaskRecord(images=images, instances=instances, seen=seen)
        write_text(_record_path(self._out, task), json.dumps(asdict(record)) + "\n")

    def _write_scene(self, scene: int, frames: Iterable[LabelledFrame]) -> None:
        folder = scene_folder(self._out, self._settings.bop_split, scene)
        if folder.exists():
            # Of a task that was interrupted between its scenes: they are only counted.
            for _ in frames:
                pass
            return
        try:
            write_scene(self._out, self._settings.bop_split, scene, frames)
        except DataError:
            # A process of a run that was killed may have lived on, and have made the very same.
            if not folder.exists():
                raise

    def _scene(self, scene: int, views: int) -> Iterator[LabelledFrame]:
        """Yield the frames of a scene; where nothing comes to rest or into view, of another one in its place."""
        reason: Exception | None = None
        for attempt in range(_ATTEMPTS):
            frames = self._maker.frames(scene + attempt * _STRIDE, views)
            try:
                first = next(frames)
            except (DataError, ImageError) as error:
                reason = error
                logger.debug("scene %d: tried again: %s", scene, error)
                continue
            for frame in itertools.chain([first], frames):
                yield frame if self._settings.depth else replace(frame, depth=None)
            return
        raise DataError(f"scene {scene}: given up after {_ATTEMPTS} attempts: {reason}")


# The dataset's card.

_OPTIONS = {"views": "views-per-scene", "scenes_a_shard": "scenes-per-shard"}
_DEFAULT = SynthesisSettings(objects=1)


def command_of(settings: SynthesisSettings, out: str = "DATASET") -> str:
    """Return the command that makes such a dataset; defaults are left out."""
    words = ["ocdit", "synthesize", "--out", out, "--images", str(settings.images), "--seed", str(settings.seed)]
    for name in ("objects", "first_object", "meshes", "split", "part", "textures", "size", "targets", "repeats",
                 "distractors", "views", "format", "quality", "path_traced", "scenes_a_shard",
                 "bop_split"):  # fmt: skip
        value = getattr(settings, name)
        if (value == getattr(_DEFAULT, name) and name != "objects") or not value:
            continue
        option = _OPTIONS.get(name, name.replace("_", "-"))
        words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    if not settings.depth:
        words.append("--no-depth")
    return shlex.join(words)


def write_card(out: Path, settings: SynthesisSettings, records: Sequence[TaskRecord], objects: PreparedObjects) -> None:
    """Write README.md: what the dataset holds, how it was made, and its files."""
    images = sum(record.images for record in records)
    instances = sum(record.instances for record in records)
    seen = sum(record.seen for record in records)
    height, width = settings.size
    kinds = []
    if settings.objects:
        kinds.append("procedural ones")
    if settings.meshes is not None:
        kinds.append(f"meshes of {Path(settings.meshes).name}, under their own licences")
    layout = {
        f"{settings.bop_split}/": "scenes as BOP folders: rgb, depth, mask, mask_visib, scene_camera, scene_gt, "
        "scene_gt_info",
        f"{settings.shards_folder}/": "the scenes as BOP webdataset shards, and key_to_shard.json",
        "models/": "meshes in millimetres, models_info.json",
        "templates/": "12 views of each object: the library for training and `ocdit segment`",
        OBJECTS: "origin of each obj_id, and what was left out",
        PLAN: "settings and objects; `ocdit synthesize` with the same settings continues an interrupted run",
        "camera.json": "typical intrinsics; each image has its own",
    }
    if settings.format == "bop":
        del layout[f"{settings.shards_folder}/"]
    if settings.format == "shards":
        del layout[f"{settings.bop_split}/"]
    lines = [
        "# Synthetic scenes for object segmentation",
        "",
        "Rooms with objects at rest, rendered from many sides by ocdit.",
        "",
        "| | |",
        "|---|---|",
        f"| images | {images:,} of {width} x {height} |",
        f"| scenes | {len(views_of_scenes(settings)):,} |",
        f"| objects | {len(objects.names):,}: {' and '.join(kinds)} |",
        f"| objects left out | {len(objects.skipped):,} |",
        f"| instances | {instances:,} ({instances / images:.1f} an image), of {seen:,} a tenth or more is visible |",
        f"| depth | {'0.1 mm units' if settings.depth else 'none'} |",
        f"| path-traced images | {settings.path_traced:.0%} |",
        "",
        "Made by:",
        "",
        f"    {command_of(settings)}",
        "",
        "| file | contents |",
        "|---|---|",
        *(f"| `{name}` | {what} |" for name, what in layout.items()),
        "",
        "Units are BOP's: poses in millimetres, depth in `depth_scale` millimetres, masks of visible parts",
        "(`mask_visib`) and of whole silhouettes (`mask`), boxes as the BOP toolkit computes them.",
        "",
    ]
    write_text(out / CARD, "\n".join(lines))
