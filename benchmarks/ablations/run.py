#!/usr/bin/env python3
"""Train and measure every cell of the training ablations: one setting changed from the base, three seeds.

    python benchmarks/ablations/run.py                                # all cells: about an hour on one core
    python benchmarks/ablations/run.py --cells base log_normal --seeds 0 --set loop.steps=1000
    python benchmarks/ablations/table.py                              # writes the tables of docs/ablations.md

The result of a cell is a JSON file in --out; the same command skips finished cells and resumes interrupted ones. All
cells of a seed see the same images in the same order, and all are measured on the same images of unseen objects.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import sys
import time
from pathlib import Path

from cells import CELLS, FEW, RAW, TASKS
from measure import LEVELS, measure

from ocdit_core.commands.options import add_settings
from ocdit_core.config import apply_overrides, as_dict, build, read_yaml
from ocdit_core.errors import OcditError
from ocdit_core.files import write_text
from ocdit_core.resumable import keep_plan
from ocdit_core.synthesis.bank import BankSettings, build_bank
from ocdit_core.synthesis.composed_dataset import ComposedDataSettings
from ocdit_core.synthesis.procedural import HELD_OUT_SEED
from ocdit_core.training.checkpoints import find_checkpoint, read_weights, seed_random_states
from ocdit_core.training.data import Batch, TrainingData
from ocdit_core.training.diffusion_stage import DiffusionStage
from ocdit_core.training.distributed import Runtime
from ocdit_core.training.loop import train
from ocdit_core.training.settings import TrainSettings

BASE = Path(__file__).with_name("base.yaml")
# Seed of the held-out images; no run has it.
HELD_OUT_STREAM = 1_000_003


def main() -> int:
    """Run the unfinished cells and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="default runs/ablations")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--groups", type=int, default=24, help="held-out groups of three images (default 24)")
    parser.add_argument("--objects", type=int, default=600, help="in the training bank, where there is none")
    add_settings(parser, "override base.yaml, for all cells")
    options = parser.parse_args()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        base = cell_settings("base", 0, options.out, options.settings)
        plan = {"settings": as_dict(base), "groups": options.groups, "cells": CELLS}
        keep_plan(options.out / "plan.json", plan, outputs=[f"{cell}_0.json" for cell in CELLS])
        ensure_banks(base, options.objects)
        # Seed by seed: the finished part of a grid can be compared.
        for seed, cell in itertools.product(options.seeds, options.cells):
            settings = cell_settings(cell, seed, options.out, options.settings)
            if not run_cell(cell, settings, options.out / f"{cell}_{seed}.json", options.groups):
                print("interrupted; the same command resumes")
                return 0
    except OcditError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def cell_settings(cell: str, seed: int, out: Path, overrides: list[str]) -> TrainSettings:
    """Return the settings of one run."""
    own = [f"run={out / f'{cell}_{seed}'}", f"loop.seed={seed}", f"data.seed={seed}"]
    return build(TrainSettings, apply_overrides(read_yaml(BASE), [*overrides, *CELLS[cell], *own]))


def ensure_banks(settings: TrainSettings, objects: int) -> None:
    """Draw the banks of objects that are missing."""
    assert isinstance(settings.data, ComposedDataSettings)
    assert settings.held_out_bank is not None
    wanted = {
        settings.data.bank: BankSettings(objects=objects),
        settings.held_out_bank: BankSettings(objects=200, first_seed=HELD_OUT_SEED),
    }
    for folder, bank in wanted.items():
        if not Path(folder).exists():
            build_bank(Path(folder), bank, jobs=os.cpu_count() or 1)


def run_cell(cell: str, settings: TrainSettings, result: Path, groups: int) -> bool:
    """Train and measure one cell, unless its result exists; return False if the training was interrupted."""
    if result.exists():
        return True
    started = time.process_time()  # not wall time: other work on the machine does not count
    runtime = Runtime(settings.loop)
    try:
        seed_random_states(settings.loop.seed)
        stage = DiffusionStage(settings)
        if train(settings, stage, runtime) < settings.loop.steps:
            return False
    finally:
        runtime.close()
    trained = time.process_time()
    checkpoint = find_checkpoint(Path(settings.run))
    batches = held_out(settings, groups)
    stage.model.load_state_dict(read_weights(checkpoint))
    figures = {"averaged": measure(stage, batches, TASKS.get(cell, (FEW,)))}
    if cell in RAW:
        stage.model.load_state_dict(read_weights(checkpoint, averaged=False))
        figures["raw"] = measure(stage, batches, (FEW,))
    seconds = {"training": trained - started, "measuring": time.process_time() - trained}
    record = {"cell": cell, "seed": settings.loop.seed, "groups": groups, "levels": LEVELS, "seconds": seconds}
    text = json.dumps({**record, "figures": figures, "settings": as_dict(settings)}, indent=1)
    write_text(result, f"{text}\n")
    iou = {name: round(found["iou"], 3) for name, found in figures["averaged"][str(FEW)].items()}
    print(f"{result.stem}: IoU {iou}, {sum(seconds.values()):.0f} s", flush=True)
    return True


def held_out(settings: TrainSettings, groups: int) -> list[Batch]:
    """Return batches of unseen objects, the same for all cells and seeds."""
    assert isinstance(settings.data, ComposedDataSettings)
    data = dataclasses.replace(settings.data, seed=HELD_OUT_STREAM)
    batches = TrainingData(dataclasses.replace(settings, data=data), held_out=True)
    return list(itertools.islice(batches, max(groups // settings.loop.batch_groups, 1)))


if __name__ == "__main__":
    sys.exit(main())
