"""One training run from its settings to the exported model."""

from __future__ import annotations

import logging
from pathlib import Path

from ocdit_core.training.diffusion import DiffusionStage
from ocdit_core.training.dry_run import dry_run
from ocdit_core.training.engine import Engine
from ocdit_core.training.export import MODEL_FOLDER
from ocdit_core.training.loop import train
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.stage import Stage
from ocdit_core.training.state import seed_random_states
from ocdit_core.training.vae import VAEStage


def run_training(settings: TrainSettings, *, dry: bool = False) -> None:
    """Train what the settings describe, or continue its run.

    Args:
        settings: the run's settings.
        dry: process one batch, print shapes, memory and time, and write nothing.

    Raises:
        OcditError: a mistake in the settings or data, or the loss is not finite.
    """
    # Fabric announces itself in five lines.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    engine = Engine(settings.loop, unused=settings.stage != "vae")
    try:
        seed_random_states(settings.loop.seed)
        stage: Stage = VAEStage(settings) if settings.stage == "vae" else DiffusionStage(settings)
        if dry:
            for line in dry_run(settings, stage, engine):
                if engine.rank == 0:
                    print(line)
            return
        done = train(settings, stage, engine)
    finally:
        engine.close()
    if engine.rank == 0:
        if done < settings.loop.steps:
            print(f"stopped at step {done} of {settings.loop.steps}; the same command continues the run")
        print(f"exported to {Path(settings.run) / MODEL_FOLDER}")
