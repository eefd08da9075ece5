"""Metrics of a results file that some other program wrote."""

from __future__ import annotations

import logging
from collections import defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.shards import ShardDataset
from ocdit_core.evaluation.bop_results import ImageKey, ResultRow, read_results
from ocdit_core.evaluation.parts import ImageResult
from ocdit_core.evaluation.records import write_records
from ocdit_core.evaluation.run import RECORDS, keep_plan, records_of, versions, write_metrics
from ocdit_core.evaluation.targets import Targets, digest_of, frames_of, image_key, objects_of

logger = logging.getLogger(__name__)


def evaluate_file(
    out: Path, path: Path, dataset: BopFolder | ShardDataset, targets: Targets, *, threshold: float
) -> dict[str, Any]:
    """Compare a BOP results file with the truth; writes records.jsonl and metrics.json.

    Args:
        out: folder of the results, made when missing.
        path: the results file; rows for images that are no targets are left out, as the BOP toolkit does.
        dataset: with the truth.
        targets: what was looked for in which images.
        threshold: of the scores, for everything but average precision and recall.

    Returns:
        What metrics.json holds.

    Raises:
        DataError: the file cannot be used; the message has the row's number and the reason.
    """
    sizes = {image_key(frame): frame.size for frame in frames_of(dataset, targets)}
    rows = read_results(path, objects=objects_of(dataset), size_of=sizes.get)
    plan = {
        "dataset": dataset.name,
        "split": getattr(dataset, "split", None),
        "images": len(targets),
        "targets": sum(len(objects) for objects in targets.values()),
        "targets_digest": digest_of(targets),
        "method": path.stem,
        "results_sha256": sha256(path.read_bytes()).hexdigest()[:16],
        "score_threshold": threshold,
        "versions": versions(),
    }
    keep_plan(out, plan)
    by_image: dict[ImageKey, list[ResultRow]] = defaultdict(list)
    for row in rows:
        by_image[row.image].append(row)
    others = set(by_image) - set(targets)
    if others:
        logger.info("%s: rows for %d images that are no targets are left out", path, len(others))
    results = {
        image: ImageResult(image=image, rows=tuple(found), time=found[0].time, timings={})
        for image, found in by_image.items()
    }
    records = records_of(dataset, targets, results, progress=True)
    write_records(out / RECORDS, records)
    return write_metrics(out, plan, records, threshold=threshold)
