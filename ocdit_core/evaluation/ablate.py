"""Grids of settings: one evaluation per combination, each in its own folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from ocdit_core.config import build, read_yaml
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.evaluation.run import METRICS, EvaluationTask, Run, evaluate, read_run
from ocdit_core.resumable import Shard, keep_plan

ABLATION = "ablation.json"

Cell = dict[str, Any]
"""One combination: values by dotted key, such as {"sampler.steps": 9}."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Combinations of settings to evaluate.

    Attributes:
        title: title in reports.
        preset: preset, as in `ocdit evaluate`.
        settings: settings of all cells by dotted key.
        grids: lists of values by dotted key; each grid yields all combinations of its lists.
    """

    title: str = ""
    preset: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    grids: list[dict[str, Any]]

    def __post_init__(self) -> None:
        for at, grid in enumerate(self.grids):
            for key, values in grid.items():
                if not isinstance(values, list) or not values:
                    raise ConfigError(f"grids.{at}.{key}: {values!r} must be a list of values")
        if not any(self.grids):
            raise ConfigError("grids: no values to try; give lists such as sampler.steps: [3, 9, 18]")

    @property
    def cells(self) -> list[Cell]:
        """All distinct combinations; the last key of a grid varies fastest."""
        cells = [
            dict(zip(grid, values, strict=True)) for grid in self.grids if grid for values in product(*grid.values())
        ]
        return list({cell_name(cell): cell for cell in cells}.values())


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """An evaluated grid: title, folder, finished combinations with their runs, and number of the others."""

    title: str
    path: Path
    cells: tuple[tuple[Cell, Run], ...]
    unfinished: int


def read_grid(path: Path) -> Grid:
    """Return the grid of a YAML file; raises ConfigError."""
    try:
        return build(Grid, read_yaml(path))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def cell_name(cell: Cell) -> str:
    """Return the name of a cell and of its folder: "sampler.steps=9,ensemble=4"."""
    name = ",".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in cell.items())
    return name.replace("/", "_")


def overrides_of(cell: Cell) -> list[str]:
    """Return settings as overrides of the command line."""
    return [f"{key}={json.dumps(value)}" for key, value in cell.items()]


def ablate(
    out: Path,
    grid: Grid,
    task_of: Callable[[list[str]], EvaluationTask],
    *,
    jobs: int = 1,
    shard: Shard = (0, 1),
    progress: Callable[[str, int, int], None] | None = None,
) -> Ablation:
    """Evaluate every unfinished cell; the same call continues an interrupted run.

    Args:
        out: folder of the cells' folders, created if missing.
        grid: combinations to evaluate.
        task_of: return the evaluation with these overrides.
        jobs: processes for each cell.
        shard: shard of each cell's images, see `evaluate`.
        progress: called before each cell with its name, its number from 1 on, and the number of cells.

    Raises:
        ConfigError: the settings of a cell are invalid; nothing has been evaluated then.
        DataError: see `evaluate`; a cell's folder holds another evaluation.
    """
    tasks = [(cell, task_of(overrides_of({**grid.settings, **cell}))) for cell in grid.cells]
    plan = {"title": grid.title, "cells": [{"folder": cell_name(cell), "settings": cell} for cell, _ in tasks]}
    # Each cell's folder keeps its own plan: a grid may be extended.
    keep_plan(out / ABLATION, plan, outputs=[cell_name(cell) for cell in grid.cells], may_differ=("title", "cells"))
    for number, (cell, task) in enumerate(tasks, start=1):
        if progress is not None:
            progress(cell_name(cell), number, len(tasks))
        evaluate(out / cell_name(cell), task, jobs=jobs, shard=shard, progress=progress is not None)
    return read_ablation(out)


def is_ablation(path: Path) -> bool:
    """Return whether a folder holds a grid."""
    return (path / ABLATION).is_file()


def read_ablation(path: Path) -> Ablation:
    """Read the finished cells of a grid.

    Raises:
        DataError: the folder holds no grid, or it or a cell is damaged.
    """
    try:
        plan = json.loads((path / ABLATION).read_text(encoding="utf-8"))
        title = str(plan["title"])
        cells = [(dict(entry["settings"]), path / str(entry["folder"])) for entry in plan["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path / ABLATION}: cannot be read ({error})", kind="damaged JSON") from error
    finished = tuple((cell, read_run(folder)) for cell, folder in cells if (folder / METRICS).is_file())
    return Ablation(title=title, path=path, cells=finished, unfinished=len(cells) - len(finished))
