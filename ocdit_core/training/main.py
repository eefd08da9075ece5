"""One training run, from its settings to the exported model."""

import logging
from pathlib import Path

from ocdit_core.training.checkpoints import seed_random_states
from ocdit_core.training.diffusion_stage import DiffusionStage
from ocdit_core.training.distributed import Runtime
from ocdit_core.training.dry_run import dry_run
from ocdit_core.training.export import MODEL_FOLDER
from ocdit_core.training.loop import Stage, train
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.vae_stage import VAEStage


def run_training(settings: TrainSettings, *, dry: bool = False, device: str = "auto") -> None:
    """Train, or resume a run.

    Args:
        settings: settings of the run.
        dry: run a few steps, print shapes, memory and time, and write nothing.
        device: auto (CUDA where available, else the CPU), cpu or cuda.

    Raises:
        OcditError: the settings or the data are wrong, or the loss stays non-finite.
    """
    # Fabric announces its launcher in five lines.
    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    runtime = Runtime(settings.loop, unused=settings.stage != "vae", device=device)
    try:
        seed_random_states(settings.loop.seed)
        stage: Stage = VAEStage(settings) if settings.stage == "vae" else DiffusionStage(settings)
        if dry:
            for line in dry_run(settings, stage, runtime):
                if runtime.rank == 0:
                    print(line)
            return
        finished = train(settings, stage, runtime)
    finally:
        runtime.close()
    if runtime.rank == 0:
        if finished < settings.loop.steps:
            print(f"stopped at step {finished} of {settings.loop.steps}; the same command resumes")
        print(f"exported to {Path(settings.run) / MODEL_FOLDER}")
