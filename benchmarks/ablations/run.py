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
from ocdit_core.synthesis.generation import synthesize
from ocdit_core.synthesis.plan import SynthesisSettings
from ocdit_core.synthesis.procedural import HELD_OUT_SEED
from ocdit_core.training.checkpoints import find_checkpoint, read_weights, seed_random_states
from ocdit_core.training.data import Batch, TrainingData
from ocdit_core.training.diffusion_stage import DiffusionStage
from ocdit_core.training.distributed import Runtime
from ocdit_core.training.loop import train
from ocdit_core.training.settings import TrainSettings

BASE = Path(__file__).with_name("base.yaml")
IMAGES, HELD_OUT_IMAGES, HELD_OUT_OBJECTS = 600, 120, 200


def main() -> int:
    """Run the unfinished cells and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="default runs/ablations")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--groups", type=int, default=24, help="held-out groups of three images (default 24)")
    parser.add_argument("--objects", type=int, default=600, help="of the training data, where there is none")
    add_settings(parser, "override base.yaml, for all cells")
    options = parser.parse_args()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        base = cell_settings("base", 0, options.out, options.settings)
        plan = {"settings": as_dict(base), "groups": options.groups, "cells": CELLS}
        keep_plan(options.out / "plan.json", plan, outputs=[f"{cell}_0.json" for cell in CELLS])
        ensure_data(base, options.objects)
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
    own = [f"run={out / f'{cell}_{seed}'}", f"loop.seed={seed}"]
    return build(TrainSettings, apply_overrides(read_yaml(BASE), [*overrides, *CELLS[cell], *own]))


def ensure_data(settings: TrainSettings, objects: int) -> None:
    """Generate the datasets that are missing."""
    common = SynthesisSettings(images=IMAGES, objects=objects, size=(240, 320), targets=(4, 8), depth=False)
    held_out = dataclasses.replace(common, images=HELD_OUT_IMAGES, objects=HELD_OUT_OBJECTS, first_object=HELD_OUT_SEED)
    for dataset, wanted in ((settings.data.datasets[0], common), (settings.data.held_out[0], held_out)):
        if not Path(dataset.path).exists():
            synthesize(Path(dataset.path).parent, wanted, progress=True)


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
    batches = TrainingData(
        dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, seed=0)), held_out=True
    )
    return list(itertools.islice(batches, max(groups // settings.loop.batch_groups, 1)))


if __name__ == "__main__":
    sys.exit(main())
