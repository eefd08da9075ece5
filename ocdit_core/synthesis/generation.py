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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ocdit_core.data.frame import read_json
from ocdit_core.data.writers import (
    MODELS_INFO,
    LabelledFrame,
    LabelledObject,
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
from ocdit_core.synthesis.path_tracer import PathTracer
from ocdit_core.synthesis.plan import SynthesisSettings, Task, keep_plan, tasks_of, views_of_scenes
from ocdit_core.synthesis.scenes import CameraSettings, SceneImage, SceneMaker, SceneSettings
from ocdit_core.synthesis.settling import collision_hulls
from ocdit_core.synthesis.sources import (
    MeshFolder,
    MixedObjects,
    ObjectSource,
    OnlyObjects,
    ProceduralObjects,
    TexturePool,
    read_split,
)
from ocdit_core.workers import TRIES, Died, Engine, LocalEngine, Work, run_all

logger = logging.getLogger(__name__)

MODELS, TEMPLATES, OBJECTS = "models", "templates", "objects.json"
_AT_ONCE = 32  # objects whose models are noted in models_info.json together, and that a process is started for


def open_source(settings: SynthesisSettings) -> ObjectSource:
    """Return the objects that the settings name: procedural ones, those of a folder, or both; one part of a split.

    Raises:
        DataError: the folder or the split file is missing or damaged, or nothing is left.
    """
    sources: list[ObjectSource] = []
    photographs = None if settings.textures is None else TexturePool(painted=0, folder=settings.textures)
    if settings.objects:
        sources.append(ProceduralObjects(settings.objects, first_seed=settings.first_object, photographs=photographs))
    if settings.meshes is not None:
        sources.append(MeshFolder(settings.meshes, seed=settings.seed, photographs=photographs))
    source: ObjectSource = MixedObjects(*sources) if len(sources) > 1 else sources[0]
    if settings.split is None:
        return source
    parts = read_split(settings.split)
    chosen = set(parts[settings.part]).intersection(source.names)
    if not chosen:
        raise DataError(f"{settings.split}: none of the {len(source.names)} objects is in its part {settings.part!r}")
    unknown = len(set(source.names).difference(*parts.values()))
    if unknown:
        # Which part they belong to nobody has said: they are in neither.
        logger.warning("%s: %d of the objects are in no part of it, and left out", settings.split, unknown)
    return OnlyObjects(source, chosen)


@dataclass(frozen=True, kw_only=True)
class PreparedObjects:
    """The objects that scenes are made of.

    Attributes:
        names: by BOP's obj_id.
        skipped: why others cannot be used, by name.
    """

    names: dict[int, str]
    skipped: dict[str, str]


def prepare_objects(out: Path, settings: SynthesisSettings, engine: Engine | None, *, jobs: int) -> PreparedObjects:
    """Write models/ and templates/, and objects.json when both are done; what is there already stays.

    An object that cannot be used is logged in one line, and left out of the scenes; its number stays free.

    Args:
        out: the dataset's folder.
        settings: of the dataset.
        engine: writes the models; default: processes on this machine.
        jobs: processes on this machine; few objects take fewer.

    Raises:
        DataError: nothing can be written here, or objects.json is damaged.
        ConfigError: too few objects for a scene are left.
        RenderingError: there is no off-screen OpenGL.
    """
    path = out / OBJECTS
    if not path.exists():
        names = dict(enumerate(open_source(settings).names, start=1))
        skipped = _write_models(out, settings, names, engine or LocalEngine(min(jobs, -(-len(names) // _AT_ONCE))))
        skipped |= _draw_templates(out, names, skipped, jobs)
        left = {str(number): name for number, name in names.items() if name not in skipped}
        content = {"objects": left, "skipped": {name: skipped[name] for name in names.values() if name in skipped}}
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in content["objects"].items()}
        prepared = PreparedObjects(names=names, skipped=dict(content["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it to write it anew") from error
    wanted = settings.targets[1] + settings.distractors[1]
    if len(prepared.names) < wanted:
        raise ConfigError(
            f"objects: a scene may take {settings.targets[1]} targets and {settings.distractors[1]} distractors, and "
            f"there are {len(prepared.names)}; give more (--objects, --meshes), or ask for fewer (--targets, "
            "--distractors)"
        )
    return prepared


def prepared_source(settings: SynthesisSettings, prepared: PreparedObjects) -> ObjectSource:
    """Return the objects that can be used, of which scenes are made."""
    return OnlyObjects(open_source(settings), prepared.names.values())


def _write_models(out: Path, settings: SynthesisSettings, names: dict[int, str], engine: Engine) -> dict[str, str]:
    """Write the models that are missing; return why others cannot be, by name."""
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
                # It is hardly this one's fault when none came through.
                raise DataError(f"{name}: given up after {TRIES} tries: {result.reason}")
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
    # Whatever unit a file is in, the source scales what is not of a table's size.
    logging.getLogger(meshes.__name__).addFilter(_not_about_units)

    def work(task: tuple[int, str]) -> object:
        number, name = task
        try:
            mesh = source.mesh(name)
            # What physics cannot take would end a scene much later.
            collision_hulls(mesh)
        except MeshError as error:
            # Errors of the mesh alone do not say whose it is.
            return str(error) if name in str(error) else f"{name}: {error}"
        return write_model(folder, number, mesh)

    try:
        yield work
    finally:
        logging.getLogger(meshes.__name__).removeFilter(_not_about_units)


def _not_about_units(record: logging.LogRecord) -> bool:
    return "--unit" not in record.getMessage()


def _draw_templates(out: Path, names: dict[int, str], skipped: dict[str, str], jobs: int) -> dict[str, str]:
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


RECORDS = ".done"
SEEN = 0.1
"""Visible share of an object from which on it counts as seen, as in BOP's targets."""
_TRIES = 6
# Between the numbers of a scene's tries: no other scene comes to the same.
_STRIDE = 10_000_000


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What a task made.

    Attributes:
        images: pictures.
        instances: labelled objects in them, hidden ones included.
        seen: those of which a tenth or more is visible.
    """

    images: int
    instances: int
    seen: int


def record_path(out: Path, task: Task) -> Path:
    """Return the file that says what a task made; it is written right before the last of it appears."""
    return out / RECORDS / f"{task.number:06d}.json"


def read_record(out: Path, task: Task) -> TaskRecord:
    """Read what a finished task made.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = record_path(out, task)
    try:
        return TaskRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: missing or damaged ({error}); delete it, and the task is done again") from error


def is_done(out: Path, settings: SynthesisSettings, task: Task) -> bool:
    """Return whether all that the task makes is there."""
    if not record_path(out, task).exists():
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
        settings: of the dataset.
        objects: of which scenes are made.
        alone: whether this process has the machine for itself; else it keeps to one core.

    Raises:
        RenderingError: there is no off-screen OpenGL.
    """

    def __init__(self, out: Path, settings: SynthesisSettings, objects: PreparedObjects, alone: bool) -> None:
        self._out, self._settings, self._objects, self._alone = out, settings, objects, alone
        self._numbers = {name: number for number, name in objects.names.items()}
        self._stack = ExitStack()

    def __enter__(self) -> SceneWork:
        settings = self._settings
        if not self._alone:
            # Mesa's software renderer and OpenCV take every core otherwise, as their neighbours do.
            os.environ.setdefault("LP_NUM_THREADS", "1")
            cv2.setNumThreads(1)
        # What is odd about a mesh was said when its model was written.
        log = logging.getLogger("ocdit_core.objects")
        self._stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        self._maker = self._stack.enter_context(
            SceneMaker(
                prepared_source(settings, self._objects),
                scene_settings(settings),
                seed=settings.seed,
                textures=TexturePool(settings.seed, folder=settings.textures),
            )
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, task: Task) -> TaskRecord:
        """Make a task and write it; what was made of it before stays.

        Raises:
            DataError: a scene cannot be made, or nothing can be written.
            MeshError: the file of an object has gone.
        """
        frames = self._frames(task)
        if self._settings.format == "bop":
            self._write_scene(task.scenes[0], (frame for _, frame in frames))
        else:
            write_shard(shard_path(self._out / self._settings.shards_folder, task.number), frames)
        return read_record(self._out, task)

    def _frames(self, task: Task) -> Iterator[tuple[str, LabelledFrame]]:
        """Yield the task's pictures by their keys; its record is there before the last of its files is."""
        images = instances = seen = 0
        for scene, views in zip(task.scenes, task.views, strict=True):
            frames: Iterable[LabelledFrame] = self._scene(scene, views)
            if self._settings.format == "both":
                frames = list(frames)
                self._write_scene(scene, frames)
            for number, frame in enumerate(frames):
                images += 1
                instances += len(frame.objects)
                seen += sum(item.visible_fraction >= SEEN for item in frame.objects)
                yield f"{scene:06d}_{number:06d}", frame
        record = TaskRecord(images=images, instances=instances, seen=seen)
        write_text(record_path(self._out, task), json.dumps(asdict(record)) + "\n")

    def _write_scene(self, scene: int, frames: Iterable[LabelledFrame]) -> None:
        folder = scene_folder(self._out, self._settings.bop_split, scene)
        if folder.exists():
            # Of a task that was broken off between its scenes: they are counted only.
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
        """Yield the pictures of a scene; where nothing comes to rest or into view, of another one in its place."""
        reason: Exception | None = None
        for attempt in range(_TRIES):
            images = self._maker.images(scene + attempt * _STRIDE, count=views)
            try:
                first = next(images)
            except (DataError, ImageError) as error:
                reason = error
                logger.debug("scene %d: tried again: %s", scene, error)
                continue
            for image in itertools.chain([first], images):
                yield self._truth(image)
            return
        raise DataError(f"scene {scene}: given up after {_TRIES} tries: {reason}")

    def _truth(self, image: SceneImage) -> LabelledFrame:
        pixels: NDArray[np.uint8] | bytes = image.rgb
        if self._settings.format == "both":
            pixels, _ = encode_image(image.rgb)
        return LabelledFrame(
            image=pixels,
            K=image.K,
            depth=image.depth / 1000 if self._settings.depth else None,
            rotation=image.cam_R_w2c,
            translation=image.cam_t_w2c / 1000,
            objects=tuple(
                LabelledObject(
                    object_id=self._numbers[item.name],
                    rotation=item.cam_R_m2c,
                    translation=item.cam_t_m2c / 1000,
                    visible=visible,
                    silhouette=whole,
                    whole=(item.px_count_all, item.bbox_obj),
                )
                for item, visible, whole in zip(image.instances, image.masks_visible, image.masks, strict=True)
            ),
        )


def scene_settings(settings: SynthesisSettings) -> SceneSettings:
    """Return what scenes hold, as their maker takes it.

    Raises:
        ConfigError: a value is out of its range.
    """
    return SceneSettings(
        targets=settings.targets,
        repeats=settings.repeats,
        distractors=settings.distractors,
        cameras=settings.views,
        samples=2 if settings.quality == "good" else 1,
        path_traced=settings.path_traced,
        camera=CameraSettings(size=settings.size),
    )


_DEFAULT = SynthesisSettings(objects=1)


def command_of(settings: SynthesisSettings, out: str = "DATASET") -> str:
    """Return the command that makes such a dataset; what is as by default is left out."""
    words = ["ocdit", "synthesize", "--out", out, "--images", str(settings.images), "--seed", str(settings.seed)]
    for name in ("objects", "first_object", "meshes", "split", "part", "textures", "size", "targets", "repeats",
                 "distractors", "views", "format", "quality", "path_traced", "scenes_a_shard",
                 "bop_split"):  # fmt: skip
        value = getattr(settings, name)
        if (value == getattr(_DEFAULT, name) and name != "objects") or not value:
            continue
        option = {"views": "views-per-scene", "scenes_a_shard": "scenes-per-shard"}.get(name, name.replace("_", "-"))
        words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    if not settings.depth:
        words.append("--no-depth")
    return shlex.join(words)


def write_card(out: Path, settings: SynthesisSettings, records: Sequence[TaskRecord], objects: PreparedObjects) -> None:
    """Write README.md: what the dataset holds, how it was made, and what is where."""
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
        "templates/": "the objects from 12 sides: the library that training and `ocdit segment` read",
        "objects.json": "where each number (obj_id) comes from, and what was left out",
        "plan.json": "settings and objects; `ocdit synthesize` with the same ones goes on where it was broken off",
        "camera.json": "typical intrinsics; each picture has its own",
    }
    if settings.format == "bop":
        del layout[f"{settings.shards_folder}/"]
    if settings.format == "shards":
        del layout[f"{settings.bop_split}/"]
    lines = [
        "# Synthetic scenes for object segmentation",
        "",
        "Objects that came to rest in rooms, drawn from many sides; made by ocdit.",
        "",
        "| | |",
        "|---|---|",
        f"| images | {images:,} of {width} x {height} |",
        f"| scenes | {len(views_of_scenes(settings)):,} |",
        f"| objects | {len(objects.names):,}: {' and '.join(kinds)} |",
        f"| objects left out | {len(objects.skipped):,} |",
        f"| instances | {instances:,} ({instances / images:.1f} an image), of {seen:,} a tenth or more is visible |",
        f"| depth | {'0.1 mm units' if settings.depth else 'none'} |",
        f"| drawn by path tracing | {settings.path_traced:.0%} |",
        "",
        "Made by:",
        "",
        f"    {command_of(settings)}",
        "",
        "| file | what it is |",
        "|---|---|",
        *(f"| `{name}` | {what} |" for name, what in layout.items()),
        "",
        "Units are BOP's: poses in millimetres, depth in `depth_scale` millimetres, masks of what is seen",
        "(`mask_visib`) and of whole silhouettes (`mask`), boxes as the BOP toolkit computes them.",
        "",
    ]
    write_text(out / "README.md", "\n".join(lines))


_LOCK, _PREPARING = ".lock", ".lock-objects"


@dataclass(frozen=True, kw_only=True)
class Synthesised:
    """What a run did.

    Attributes:
        images: pictures that it made.
        there: pictures that were there before.
        missing: pictures that are others' share, and not there yet.
        scenes: scenes of the whole dataset.
        objects: objects that scenes are made of.
        skipped: objects that cannot be used.
        seconds: what making the pictures took.
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
    share: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Synthesised:
    """Make a dataset, or what is missing of it: scenes in BOP's layout, models, templates, and a description.

    Every scene depends on the settings and its number alone. Scenes and shards appear whole or not at all, so that a
    run that was killed goes on with the same call, and ends with the same files.

    Args:
        out: the dataset's folder, made when missing.
        settings: what it holds.
        jobs: processes on this machine; 0: one for each core. Processes are spawned: a script that asks for more than
            one does so below `if __name__ == "__main__":`.
        engine: who makes models and scenes; default: these processes.
        share: (i, n): make the i-th of n equal shares only, from 0 on; runs with different shares may run at once.
        progress: whether to show progress bars, if the error stream is a terminal.

    Raises:
        ConfigError: a bad share or number of jobs, or too few objects for a scene.
        DataError: the folder holds something else or is being written to, sources are missing or damaged, or a scene
            cannot be made.
        RenderingError: there is no off-screen OpenGL, or no Mitsuba for path-traced pictures.
    """
    index, count = share
    if not 0 <= index < count:
        raise ConfigError(f"share: {index} of {count}; shares are counted from 0 to {count - 1}")
    if jobs < 0:
        raise ConfigError(f"jobs: {jobs} is negative; 0 takes as many as there are cores")
    folder = Path(out)
    # What is wrong with the settings is better known before hours of work than after.
    scene_settings(settings)
    TexturePool(folder=settings.textures)
    if settings.path_traced:
        PathTracer()
    names = open_source(settings).names
    jobs = jobs or len(os.sched_getaffinity(0))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made a dataset's folder ({error.strerror})") from error
    tasks = tasks_of(settings)
    with ExitStack() as stack:
        stack.enter_context(_locked(folder / _LOCK, f"{folder}: is being written by another run", shared=count > 1))
        with _locked(folder / _PREPARING):
            keep_plan(folder, settings, names)
            check_output(folder / "README.md")
            if count == 1:
                _remove_leftovers(folder, settings)
            objects = prepare_objects(folder, settings, engine, jobs=jobs)
            if not (folder / "camera.json").exists():
                scale = settings.size[1] / TUDL_SIZE[1]
                write_camera(folder, np.diag([scale, scale, 1.0]) @ TUDL_K, settings.size)
        mine = [task for task in tasks if task.number % count == index]
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
    """Make the tasks; return how many pictures that were."""
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
                raise DataError(f"{_name(settings, task)}: given up after {TRIES} tries: {result.reason}")
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
    """Remove what killed processes left under temporary names."""
    remove_unfinished(folder, settings.bop_split)
    for name in (".", RECORDS, MODELS, TEMPLATES, settings.shards_folder):
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
            # Some network file systems have no locks: whoever writes a thing twice there writes the same.
            logger.warning("%s: no lock on this file system (%s)", path, error.strerror)
        yield
