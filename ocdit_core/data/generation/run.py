"""Synthesised datasets from settings to the last file; broken off at any instant, the same call goes on."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ocdit_core.data.generation.card import write_card
from ocdit_core.data.generation.plan import SynthesisSettings, Task, keep_plan, tasks_of
from ocdit_core.data.generation.scene_work import RECORDS, SceneWork, is_done, read_record, scene_settings
from ocdit_core.data.generation.sources import MODELS, TEMPLATES, PreparedObjects, open_source, prepare_objects
from ocdit_core.data.writers import remove_unfinished, write_camera, write_key_to_shard
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.objects.viewpoints import TUDL_K, TUDL_SIZE
from ocdit_core.synthesis.path_tracer import PathTracer
from ocdit_core.synthesis.sources import TexturePool
from ocdit_core.workers import TRIES, Died, Engine, LocalEngine, run_all

logger = logging.getLogger(__name__)

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
    with path.open("w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if taken else 0))
        except BlockingIOError as error:
            raise DataError(f"{taken}; wait for its end, or choose another folder") from error
        except OSError as error:
            # Some network file systems have no locks: whoever writes a thing twice there writes the same.
            logger.warning("%s: no lock on this file system (%s)", path, error.strerror)
        yield
