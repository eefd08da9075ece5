"""Evaluation of a method, or of a results file, on a dataset: resumable, shared by processes and machines."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from ocdit_core import __version__
from ocdit_core.data.dataset import Dataset, open_dataset
from ocdit_core.data.frame import Annotation, Frame
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.evaluation.bop_results import (
    PARTS,
    ImageKey,
    ImageResult,
    ResultRow,
    open_part,
    read_parts,
    read_results,
    rows_of,
    write_result,
    write_results,
)
from ocdit_core.evaluation.drawn_prompts import draw_prompt
from ocdit_core.evaluation.methods import MethodSpec
from ocdit_core.evaluation.metrics import summarise
from ocdit_core.evaluation.records import MIN_VISIBLE, ImageRecord, read_records, record_image, write_records
from ocdit_core.evaluation.targets import Targets, digest_of, image_key, objects_of
from ocdit_core.files import write_text
from ocdit_core.inference.results import Segmentation
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.masks import Box, decode_mask, tight_box
from ocdit_core.objects.archive import SUFFIX, ObjectTemplates
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.resumable import Shard, keep_plan, take_shard
from ocdit_core.workers import TRIES, Died, LocalEngine, Work, run_all

logger = logging.getLogger(__name__)

PLAN, RESULTS, RECORDS, METRICS = "evaluation.json", "results.json", "records.jsonl", "metrics.json"
SCHEMA_VERSION = 1
TRUTH = "truth"
_OUTPUTS = (RESULTS, RECORDS, METRICS, PARTS)
_MAY_DIFFER = ("score_threshold", "versions")


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """A method, a dataset and its targets.

    Attributes:
        dataset: BOP folder or shards, as `open_dataset` takes them.
        split: split of a folder.
        targets: target obj_ids of each image.
        library: folder of the objects' templates.
        names: object name in the library by obj_id.
        method: method to evaluate.
        regions: regions that are labelled instead of segmenting the image (paper table 3): TRUTH, the boxes of the
            ground truth, or a BOP results file, whose masks' boxes are taken; None: segment.
        labels: keep the objects' names of the regions, and segment them only.
        prompts: kind of the location prompts (see `drawn_prompts`) that are given for the visible targets; None: none.
    """

    dataset: str
    split: str | None
    targets: Targets
    library: Path
    names: dict[int, str]
    method: MethodSpec
    regions: str | None = None
    labels: bool = False
    prompts: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished evaluation: its folder, the content of metrics.json, and the records of the images."""

    path: Path
    metrics: dict[str, Any]
    records: tuple[ImageRecord, ...]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def plan(self) -> dict[str, Any]:
        """Dataset, method, settings and versions."""
        return dict(self.metrics["run"])

    @property
    def asked(self) -> dict[ImageKey, set[int]]:
        """Target obj_ids of each image."""
        return {
            (record.scene_id, record.image_id): {target.object_id for target in record.targets if target.asked}
            for record in self.records
        }

    def rows(self) -> dict[ImageKey, list[ResultRow]]:
        """Read the results of each image.

        Raises:
            DataError: results.json is missing or damaged.
        """
        if not (self.path / RESULTS).is_file():
            raise DataError(f"{self.path}: has no {RESULTS}, which holds the masks")
        rows: dict[ImageKey, list[ResultRow]] = {(one.scene_id, one.image_id): [] for one in self.records}
        for row in read_results(self.path / RESULTS):
            rows[row.image].append(row)
        return rows


def evaluate(
    out: Path, task: EvaluationTask, *, jobs: int = 1, shard: Shard = (0, 1), progress: bool = False
) -> dict[str, Any] | None:
    """Segment all images and compare the results with the ground truth.

    Writes results.json (BOP's results file), records.jsonl and metrics.json into `out` when all images are done. The
    result of each image is kept in `out`/parts, so that the same call continues an interrupted run.

    Args:
        out: output folder, created if missing.
        task: what to evaluate.
        jobs: processes on this machine. They are spawned: a script that uses more than one needs
            `if __name__ == "__main__":`.
        shard: process this shard of the images only. Runs of different shards may share the folder, at the same time
            or one after the other; the last one writes the metrics.
        progress: show progress bars if stderr is a terminal.

    Returns:
        Content of metrics.json; None while other shards are missing.

    Raises:
        ConfigError: an invalid shard or number of jobs.
        DataError: `out` holds another evaluation or other files, or an image cannot be read.
    """
    if jobs < 1:
        raise ConfigError(f"jobs: {jobs} must be at least 1")
    dataset = open_dataset(task.dataset, task.split)
    mine = take_shard(dataset.units(task.targets), shard)
    method = {"templates_digest": _digest_templates(task), **task.method.identity()}
    if task.regions is not None:
        method |= {"regions": task.regions, "labels": task.labels}
        if task.regions != TRUTH:
            read_results(task.regions, objects=objects_of(dataset))
            method["regions"] = sha256(Path(task.regions).read_bytes()).hexdigest()[:16]
    if task.prompts is not None:
        method["prompts"] = task.prompts
    plan = _plan(dataset, task.targets, **method, score_threshold=task.method.threshold)
    keep_plan(out / PLAN, plan, outputs=_OUTPUTS, may_differ=_MAY_DIFFER)
    done = read_parts(out)
    waiting = set(dataset.units([image for image in task.targets if image not in done]))
    mine = [unit for unit in mine if unit in waiting]
    jobs = min(jobs, max(1, len(mine)))
    opener = partial(_open_worker, out, task, jobs)
    disable = None if progress else True
    with tqdm(total=len(task.targets), initial=len(done), desc="images", unit="image", disable=disable) as bar:
        for item, result in run_all(LocalEngine(jobs), opener, mine, str) if mine else ():
            if isinstance(result, Died):
                raise DataError(f"{item}: given up after {TRIES} attempts: {result.reason}")
            bar.update(result)
    done = read_parts(out) if mine else done
    if any(image not in done for image in task.targets):
        return None
    return _compare_with_truth(out, plan, dataset, task.targets, done, progress=progress)


def evaluate_file(out: Path, path: Path, dataset: Dataset, targets: Targets, *, threshold: float) -> dict[str, Any]:
    """Compare a BOP results file of any program with the ground truth; write the same files as `evaluate`.

    Args:
        out: output folder, created if missing.
        path: results file; rows for images that are not targets are ignored, as in the BOP toolkit.
        dataset: dataset with the ground truth.
        targets: target obj_ids of each image.
        threshold: score threshold for all metrics except AP and AR.

    Returns:
        Content of metrics.json.

    Raises:
        DataError: the file is invalid; the message has the row's index and the reason.
    """
    sizes = {image_key(frame): frame.size for frame in dataset.frames(targets)}
    by_image: dict[ImageKey, list[ResultRow]] = defaultdict(list)
    for row in read_results(path, objects=objects_of(dataset), size_of=sizes.get):
        by_image[row.image].append(row)
    others = set(by_image) - set(targets)
    if others:
        logger.info("%s: rows for %d images that are not targets are ignored", path, len(others))
    results = {
        image: ImageResult(image=image, rows=tuple(rows), time=rows[0].time)
        for image in targets
        if (rows := by_image.get(image))
    }
    digest = sha256(path.read_bytes()).hexdigest()[:16]
    plan = _plan(dataset, targets, method=path.stem, results_sha256=digest, score_threshold=threshold)
    keep_plan(out / PLAN, plan, outputs=_OUTPUTS, may_differ=_MAY_DIFFER)
    return _compare_with_truth(out, plan, dataset, targets, results, progress=True)


def _compare_with_truth(
    out: Path,
    plan: dict[str, Any],
    dataset: Dataset,
    targets: Targets,
    results: dict[ImageKey, ImageResult],
    *,
    progress: bool,
) -> dict[str, Any]:
    """Write results.json, records.jsonl and metrics.json; an image without a result is one without instances."""
    write_results(out / RESULTS, (row for image in targets if image in results for row in results[image].rows))
    records = []
    disable = None if progress else True
    for frame in tqdm(dataset.frames(targets), desc="comparing", total=len(targets), unit="image", disable=disable):
        image = image_key(frame)
        result = results.get(image) or ImageResult(image=image)
        records.append(record_image(frame, targets[image], result.rows, time=result.time, timings=result.timings))
    # By ascending scene and image: the order matters for results of equal score.
    records.sort(key=lambda record: (record.scene_id, record.image_id))
    write_records(out / RECORDS, records)
    return write_metrics(out, plan, records, threshold=plan["score_threshold"])


def write_metrics(
    out: Path, plan: dict[str, Any], records: Sequence[ImageRecord], *, threshold: float
) -> dict[str, Any]:
    """Write metrics.json and return its content."""
    metrics = {"schema_version": SCHEMA_VERSION, "run": plan, **summarise(records, threshold=threshold)}
    _write(out, metrics)
    return metrics


def add_metrics(run: Run, **more: Any) -> dict[str, Any]:
    """Add metrics to the metrics.json of a finished evaluation and return its content."""
    metrics = run.metrics | more
    _write(run.path, metrics)
    return metrics


def _write(out: Path, metrics: dict[str, Any]) -> None:
    write_text(out / METRICS, json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")


def read_run(path: str | Path) -> Run:
    """Read a finished evaluation from its folder.

    Raises:
        DataError: it is missing, unfinished, damaged, or of another version.
    """
    path = Path(path)
    try:
        metrics = json.loads((path / METRICS).read_text(encoding="utf-8"))
        if metrics["schema_version"] != SCHEMA_VERSION:
            raise DataError(f"{path / METRICS}: has the version {metrics['schema_version']}, not {SCHEMA_VERSION}")
        metrics["run"]["targets_digest"], metrics["score_threshold"]
    except FileNotFoundError:
        raise DataError(
            f"{path}: no finished evaluation, it has no {METRICS}; `ocdit evaluate` writes it", kind="missing file"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / METRICS}: cannot be read ({error})", kind="damaged JSON") from error
    return Run(path=path, metrics=metrics, records=tuple(read_records(path / RECORDS)))


def unique_names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run, with the parent folder where two runs have the same name."""
    names = [run.name for run in runs]
    return [f"{run.path.resolve().parent.name}/{run.name}" if names.count(run.name) > 1 else run.name for run in runs]


def require_same_task(runs: Sequence[Run]) -> None:
    """Check that all runs have the same targets in the same images.

    Raises:
        DataError: two differ; the message names them.
    """
    first = runs[0]
    for other in runs[1:]:
        for key in ("dataset", "targets_digest"):
            mine, others = first.plan.get(key), other.plan.get(key)
            if mine != others:
                raise DataError(
                    f"{first.path} and {other.path} cannot be compared: {key} is {mine} in one, {others} in the other"
                )


def _plan(dataset: Dataset, targets: Targets, **method: Any) -> dict[str, Any]:
    """Return the content of evaluation.json: equal plans give equal results on one machine."""
    import cv2
    import torch

    return {
        "dataset": dataset.name,
        "split": getattr(dataset, "split", None),
        "images": len(targets),
        "targets": sum(len(objects) for objects in targets.values()),
        "targets_digest": digest_of(targets),
        **method,
        "versions": {
            "ocdit": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }


class _CachedLibrary(ObjectLibrary):
    """A library that keeps objects in memory: many images have the same targets."""

    @lru_cache(maxsize=128)  # noqa: B019 - the library lives as long as its process
    def __getitem__(self, name: str) -> ObjectTemplates:
        return super().__getitem__(name)


@contextmanager
def _open_worker(out: Path, task: EvaluationTask, jobs: int) -> Iterator[Work[str, int]]:
    """Yield a function that processes an image, or a shard, and returns the number of images done."""
    if jobs > 1:
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))
    dataset = open_dataset(task.dataset, task.split)
    library = _CachedLibrary(task.library)
    numbers = {name: number for number, name in task.names.items()}
    method = task.method.open()
    regions_of = _open_regions(task)
    current: tuple[int, ...] = ()

    def segment(image: ImageKey, frame: Frame) -> ImageResult:
        nonlocal current
        objects = task.targets[image]
        if not objects:
            return ImageResult(image=image, time=0.0)
        if objects != current:
            method.set_objects(library, [task.names[number] for number in objects])
            current = objects
        pixels, regions = frame.image(), regions_of(frame)
        began = time.perf_counter()
        if task.prompts is not None:
            prompts = [
                draw_prompt(task.prompts, frame, index, task.names[one.object_id])
                for index, one, _ in _visible(frame)
                if one.object_id in objects
            ]
            began = time.perf_counter()
            segmentation = cast(Segmenter, method).segment(pixels, prompts=prompts)
        elif regions is None:
            segmentation = method.segment(pixels)
        else:
            if task.labels:
                regions = [(box, number) for box, number in regions if number in objects]
            named = [task.names[number] for _, number in regions] if task.labels else None
            segmenter = cast(Segmenter, method)  # the only method that labels regions
            found = segmenter.label(pixels, [box for box, _ in regions], threshold=0.0, names=named)
            instances = tuple(label.instance for label in found if label.instance is not None)
            segmentation = Segmentation(instances=instances, image_size=frame.size, target_ids=segmenter.object_ids)
        seconds = time.perf_counter() - began
        rows = tuple(rows_of(image, segmentation, numbers, seconds))
        return ImageResult(image=image, rows=rows, time=seconds, timings=segmentation.timings)

    # A process that ended before may have done a part of its unit.
    done = read_parts(out)

    def work(unit: str) -> int:
        count = 0
        for frame in dataset.read(unit):
            image = image_key(frame)
            if image in task.targets and image not in done:
                write_result(file, segment(image, frame))
                count += 1
        return count

    with open_part(out) as file:
        yield work


def _open_regions(task: EvaluationTask) -> Callable[[Frame], list[tuple[Box, int]] | None]:
    """Return a function of a frame that returns boxes and obj_ids of its regions; None: there are no regions."""
    rows: dict[ImageKey, list[ResultRow]] = defaultdict(list)
    if task.regions is None:
        return lambda frame: None
    if task.regions != TRUTH:
        for row in read_results(task.regions):
            rows[row.image].append(row)

    def detected(frame: Frame) -> list[tuple[Box, int]]:
        masks = [(decode_mask(row.segmentation), row.category_id) for row in rows[image_key(frame)]]
        if any(mask.shape != frame.size for mask, _ in masks):
            raise DataError(f"{task.regions}: masks of {frame.key} are not of the image's size {frame.size} (H, W)")
        return [(tight_box(mask), number) for mask, number in masks if mask.any()]

    def truth(frame: Frame) -> list[tuple[Box, int]]:
        return [(box, one.object_id) for _, one, box in _visible(frame)]

    return truth if task.regions == TRUTH else detected


def _visible(frame: Frame) -> Iterator[tuple[int, Annotation, Box]]:
    """Yield the index, annotation and box of each instance that counts."""
    for index, one in enumerate(frame.annotations):
        box = frame.visible_box(index)
        # NaN, where the dataset does not say, is not below.
        if box and not one.visible_fraction < MIN_VISIBLE:
            yield index, one, box


def _digest_templates(task: EvaluationTask) -> str:
    digest = sha256()
    for number in sorted({number for objects in task.targets.values() for number in objects}):
        name = task.names[number]
        digest.update(f"{number} {name} ".encode())
        digest.update((task.library / f"{name}{SUFFIX}").read_bytes())
    return digest.hexdigest()[:16]
