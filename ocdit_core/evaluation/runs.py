"""Finished evaluations, read back from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocdit_core.errors import DataError
from ocdit_core.evaluation.bop_results import ImageKey, ResultRow, read_results
from ocdit_core.evaluation.records import ImageRecord, read_records
from ocdit_core.evaluation.run import METRICS, RECORDS, RESULTS, SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `ocdit evaluate` has left in a folder.

    Attributes:
        name: to call it by; that of the folder.
        path: the folder.
        metrics: what metrics.json holds.
        records: of its images.
    """

    name: str
    path: Path
    metrics: dict[str, Any]
    records: tuple[ImageRecord, ...]

    @property
    def plan(self) -> dict[str, Any]:
        """What was evaluated: dataset, method, settings, versions."""
        return dict(self.metrics["run"])

    @property
    def asked(self) -> dict[ImageKey, set[int]]:
        """Which obj_ids were looked for in each image."""
        return {
            (record.scene_id, record.image_id): {target.object_id for target in record.targets if target.asked}
            for record in self.records
        }

    def rows(self) -> dict[ImageKey, list[ResultRow]]:
        """Read what was found in each image.

        Raises:
            DataError: the masks are missing or damaged.
        """
        if not (self.path / RESULTS).is_file():
            raise DataError(f"{self.path}: has no {RESULTS}, without which there are no pictures")
        found: dict[ImageKey, list[ResultRow]] = {(one.scene_id, one.image_id): [] for one in self.records}
        for row in read_results(self.path / RESULTS):
            found[row.image].append(row)
        return found


def read_run(path: str | Path, name: str | None = None) -> Run:
    """Read a finished evaluation.

    Args:
        path: its folder.
        name: to call it by; default: the folder's.

    Raises:
        DataError: it is missing, not finished, damaged, or of another version.
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
    records = tuple(read_records(path / RECORDS))
    return Run(name=name or path.resolve().name, path=path, metrics=metrics, records=records)


def named_apart(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: where two folders have the same, with the folder above them."""
    names = [run.name for run in runs]
    return [f"{run.path.resolve().parent.name}/{run.name}" if names.count(run.name) > 1 else run.name for run in runs]


def require_same_task(runs: Sequence[Run]) -> None:
    """Check that all runs looked for the same objects in the same images.

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
