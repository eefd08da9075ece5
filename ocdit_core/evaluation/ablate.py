"""Grids of settings: an evaluation for each combination, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from ocdit_core.config import build, read_yaml
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.evaluation.run import METRICS, EvaluationTask, evaluate
from ocdit_core.evaluation.runs import Run, read_run
from ocdit_core.files import write_text

ABLATION = "ablation.json"

Cell = dict[str, Any]
"""One combination: a value for each key, such as {"sampler.steps": 9}."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is tried.

    Attributes:
        title: for people.
        method: as in `ocdit evaluate`.
        preset: likewise.
        settings: the same in all cells, by dotted key.
        grids: each holds lists of values by dotted key, of which all combinations are tried.
    """

    title: str = ""
    method: str = "ocdit"
    preset: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    grids: list[dict[str, Any]]

    def __post_init__(self) -> None:
        for at, grid in enumerate(self.grids):
            for key, values in grid.items():
                if not isinstance(values, list) or not values:
                    raise ConfigError(f"grids.{at}.{key}: {values!r} is not a list of values")
        if not any(self.grids):
            raise ConfigError("grids: no values to try; give lists such as sampler.steps: [3, 9, 18]")

    @property
    def cells(self) -> list[Cell]:
        """All combinations, each once, the last key of a grid changing fastest."""
        cells = [
            dict(zip(grid, values, strict=True)) for grid in self.grids if grid for values in product(*grid.values())
        ]
        return list({cell_name(cell): cell for cell in cells}.values())


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A grid that was run.

    Attributes:
        title: for people.
        path: its folder.
        cells: the combinations that are finished, with their runs.
        unfinished: how many are not.
    """

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
    """Return a cell's name, which is that of its folder: "sampler.steps=9,ensemble=4"."""
    return ",".join(f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in cell.items()).replace(
        "/", "_"
    )


def overrides_of(cell: Cell) -> list[str]:
    """Return settings as the command line takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in cell.items()]


def ablate(
    out: Path,
    grid: Grid,
    task_of: Callable[[list[str]], EvaluationTask],
    *,
    jobs: int = 1,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[str, int, int], None] | None = None,
) -> Ablation:
    """Evaluate every cell that is not finished; broken off at any instant, the same call goes on.

    Args:
        out: folder of the cells' folders, made when missing.
        grid: what is tried.
        task_of: gives the evaluation with these overrides of settings.
        jobs: processes for each cell.
        share: (i, n): of each cell's images only, see `evaluate`.
        progress: told each cell's name, its number from 1 on, and how many there are, before it begins.

    Raises:
        ConfigError: a cell's settings are refused; nothing was evaluated then.
        DataError: see `evaluate`; a cell's folder holds an evaluation of something else.
    """
    tasks = [(cell, task_of(overrides_of({**grid.settings, **cell}))) for cell in grid.cells]
    plan = {"title": grid.title, "cells": [{"folder": cell_name(cell), "settings": cell} for cell, _ in tasks]}
    try:
        write_text(out / ABLATION, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{out / ABLATION}: cannot be written ({error.strerror})") from error
    for number, (cell, task) in enumerate(tasks, start=1):
        if progress is not None:
            progress(cell_name(cell), number, len(tasks))
        evaluate(out / cell_name(cell), task, jobs=jobs, share=share, progress=progress is not None)
    return read_ablation(out)


def is_ablation(path: Path) -> bool:
    """Whether a folder holds a grid's cells."""
    return (path / ABLATION).is_file()


def read_ablation(path: Path) -> Ablation:
    """Read a grid's finished cells.

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
