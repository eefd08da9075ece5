"""An evaluation from a dataset to metrics; broken off at any instant, the same call goes on."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ocdit_core import __version__
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.dataset import open_dataset
from ocdit_core.data.frame import Frame
from ocdit_core.data.shards import ShardDataset, iterate_shard
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.evaluation.bop_results import ImageKey, ResultRow, rows_of, write_results
from ocdit_core.evaluation.finders import FinderSpec
from ocdit_core.evaluation.parts import ImageResult, open_part, read_parts, write_result
from ocdit_core.evaluation.records import ImageRecord, record_image, write_records
from ocdit_core.evaluation.summary import summarise
from ocdit_core.evaluation.targets import Targets, digest_of, frames_of, image_key
from ocdit_core.files import write_text
from ocdit_core.objects.archive import SUFFIX, ObjectTemplates
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.workers import TRIES, Died, LocalEngine, Work, run_all

PLAN, RESULTS, RECORDS, METRICS = "evaluation.json", "results.json", "records.jsonl", "metrics.json"
SCHEMA_VERSION = 1
_FREE = ("score_threshold", "versions")
"""What may differ when a run goes on."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """What is evaluated on what.

    Attributes:
        dataset: BOP's folder or shards, as `open_dataset` takes them.
        split: of a folder.
        targets: what is looked for in which images.
        library: folder of the objects' templates.
        names: in the library, of each obj_id.
        finder: the method.
    """

    dataset: str
    split: str | None
    targets: Targets
    library: Path
    names: dict[int, str]
    finder: FinderSpec


def evaluate(
    out: Path, task: EvaluationTask, *, jobs: int = 1, share: tuple[int, int] = (0, 1), progress: bool = False
) -> dict[str, Any] | None:
    """Find the targets in all images and compare them with the truth.

    Writes results.json (BOP's results file), records.jsonl and metrics.json into `out` when all images are done. What
    was found in each image stays in `out`/parts: a run that was killed goes on with the same call.

    Args:
        out: folder of the results, made when missing.
        task: what is evaluated.
        jobs: processes on this machine. They are spawned: a script that asks for more than one does so below
            `if __name__ == "__main__":`.
        share: (i, n): the i-th of n equal shares of the images only, from 0 on; runs with different shares may share
            the folder, at once or one after the other, and the last one writes the metrics.
        progress: whether to show progress bars, if the error stream is a terminal.

    Returns:
        What metrics.json holds; None while others' shares are missing.

    Raises:
        ConfigError: a bad share or number of jobs.
        DataError: `out` holds an evaluation of something else, or an image cannot be read.
    """
    index, count = share
    if not 0 <= index < count:
        raise ConfigError(f"share: {index} of {count}; shares are counted from 0 to {count - 1}")
    if jobs < 1:
        raise ConfigError(f"jobs: {jobs} is not above 0")
    dataset = open_dataset(task.dataset, task.split)
    plan = plan_of(task, dataset.name)
    keep_plan(out, plan)
    done = read_parts(out)
    work: Sequence[Any] = list(task.targets) if isinstance(dataset, BopFolder) else dataset.shards
    mine = work[index::count]
    if isinstance(dataset, BopFolder):
        mine = [image for image in mine if image not in done]
    elif len(done) == len(task.targets):
        mine = []
    jobs = min(jobs, max(1, len(mine)))
    opener = partial(_finding, out, task, jobs)
    # None: a bar on a terminal only, so that log files stay readable.
    hidden = None if progress else True
    with tqdm(total=len(task.targets), initial=len(done), desc="images", unit="image", disable=hidden) as bar:
        for item, result in run_all(LocalEngine(jobs), opener, mine, str) if mine else ():
            if isinstance(result, Died):
                raise DataError(f"{item}: given up after {TRIES} tries: {result.reason}")
            bar.update(result)
    done = read_parts(out) if mine else done
    if any(image not in done for image in task.targets):
        return None
    results = [done[image] for image in task.targets]
    write_results(out / RESULTS, (row for result in results for row in result.rows))
    records = records_of(dataset, task.targets, done, progress=progress)
    write_records(out / RECORDS, records)
    return write_metrics(out, plan, records, threshold=task.finder.threshold)


def records_of(
    dataset: BopFolder | ShardDataset,
    targets: Targets,
    results: dict[ImageKey, ImageResult],
    *,
    progress: bool = False,
) -> list[ImageRecord]:
    """Compare results with the truth.

    Args:
        dataset: with the truth.
        targets: what was looked for; images without a result are images in which nothing was found.
        results: by image.
        progress: whether to show a progress bar, if the error stream is a terminal.

    Returns:
        The records, by ascending scene and image: the order that counts where scores are equal.
    """
    nothing = ImageResult(image=(0, 0), rows=(), time=-1.0, timings={})
    records = []
    frames = tqdm(
        frames_of(dataset, targets),
        desc="comparing",
        total=len(targets),
        unit="image",
        disable=None if progress else True,
    )
    for frame in frames:
        image = image_key(frame)
        result = results.get(image, nothing)
        records.append(record_image(frame, targets[image], result.rows, time=result.time, timings=result.timings))
    return sorted(records, key=lambda record: (record.scene_id, record.image_id))


def write_metrics(
    out: Path, plan: dict[str, Any], records: Sequence[ImageRecord], *, threshold: float
) -> dict[str, Any]:
    """Write metrics.json, and return what it holds."""
    metrics = {"schema_version": SCHEMA_VERSION, "run": plan, **summarise(records, threshold=threshold)}
    _write_json(out / METRICS, metrics)
    return metrics


def plan_of(task: EvaluationTask, dataset: str) -> dict[str, Any]:
    """Return what a run is, for evaluation.json: equal plans give equal results on one machine."""
    return {
        "dataset": dataset,
        "split": task.split,
        "images": len(task.targets),
        "targets": sum(len(objects) for objects in task.targets.values()),
        "targets_digest": digest_of(task.targets),
        "templates_digest": _digest_templates(task),
        **task.finder.identity(),
        "score_threshold": task.finder.threshold,
        "versions": versions(),
    }


def keep_plan(out: Path, plan: dict[str, Any]) -> None:
    """Write evaluation.json into a new folder; of one that was begun, make sure that it has the same plan.

    Raises:
        DataError: it has another one, of which the message names the first difference, is damaged, or cannot be
            written to.
    """
    path = out / PLAN
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: damaged ({error}); choose another folder") from error
        for key in (key for key in {**before, **plan} if key not in _FREE):
            if before.get(key) != plan.get(key):
                raise DataError(
                    f"{out}: holds an evaluation with {key} {_difference(before.get(key), plan.get(key))}; give the "
                    "same settings to go on, or choose another folder"
                )
    _write_json(path, plan)


def versions() -> dict[str, str]:
    """Return what results may depend on besides the settings."""
    import cv2
    import numpy as np
    import torch

    return {
        "ocdit": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


class _KeptLibrary(ObjectLibrary):
    """A library that keeps objects in memory: images ask for the same ones again and again, in ever new company."""

    @lru_cache(maxsize=128)  # noqa: B019 - it lives as long as its process
    def __getitem__(self, name: str) -> ObjectTemplates:
        return super().__getitem__(name)


@contextmanager
def _finding(out: Path, task: EvaluationTask, jobs: int) -> Iterator[Work[Any, int]]:
    """Yield what takes an image, or a shard, and returns how many images were done."""
    if jobs > 1:
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))
    dataset = open_dataset(task.dataset, task.split)
    library = _KeptLibrary(task.library)
    numbers = {name: number for number, name in task.names.items()}
    finder = task.finder.open()
    current: tuple[int, ...] = ()

    def find(frame: Frame) -> None:
        nonlocal current
        image = image_key(frame)
        objects = task.targets[image]
        picture = frame.image()
        timings: dict[str, float] = {}
        rows: list[ResultRow] = []
        seconds = 0.0
        # Where nothing is to be found nobody need look.
        if objects:
            if objects != current:
                finder.set_objects(library, [task.names[number] for number in objects])
                current = objects
            began = time.perf_counter()
            result = finder.segment(picture)
            seconds = time.perf_counter() - began
            timings = result.timings
            rows = rows_of(image, result, numbers, seconds)
        write_result(file, ImageResult(image=image, rows=tuple(rows), time=seconds, timings=timings))

    def work(item: Any) -> int:
        if isinstance(dataset, BopFolder):
            find(dataset[dataset.index(*item)])
            return 1
        done = read_parts(out)
        count = 0
        for frame in iterate_shard(item, dataset=dataset.name, depth=False, amodal=False):
            image = image_key(frame)
            if image in task.targets and image not in done:
                find(frame)
                count += 1
        return count

    with open_part(out) as file:
        yield work


def _digest_templates(task: EvaluationTask) -> str:
    digest = sha256()
    for number in sorted({number for objects in task.targets.values() for number in objects}):
        name = task.names[number]
        digest.update(f"{number} {name} ".encode())
        digest.update((task.library / f"{name}{SUFFIX}").read_bytes())
    return digest.hexdigest()[:16]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        key = next(key for key in {**before, **after} if before.get(key) != after.get(key))
        return f"{key}: {_difference(before.get(key), after.get(key))}"
    return f"{before}, not {after}"
