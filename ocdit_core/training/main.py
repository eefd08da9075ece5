"""The command line of training/train.py."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ocdit_core.config import apply_overrides, build, read_yaml, to_yaml
from ocdit_core.errors import OcditError
from ocdit_core.training.settings import TrainSettings

EPILOG = """\
examples:
  training/train.py --config config/train/smoke_vae.yaml loop.steps=200 run=runs/try
  training/train.py --config config/train/coarse.yaml --dry-run
  torchrun --nproc_per_node=8 training/train.py --config config/train/coarse.yaml loop.strategy=fsdp2

SIGTERM, SIGINT and SIGUSR1 end a run after the step under way, with a checkpoint; started again, it goes on there.
"""


def main(arguments: list[str] | None = None) -> int:
    """Train what the config describes and return the exit code: 0, or 2 for a mistake in the settings or data."""
    parser = argparse.ArgumentParser(
        prog="training/train.py",
        description="Train one stage of OC-DiT. Started again, it goes on where its newest checkpoint stands.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, type=Path, help="YAML file, see config/train/")
    parser.add_argument("--print-config", action="store_true", help="print the settings that would be used, and stop")
    parser.add_argument(
        "--dry-run", action="store_true", help="one batch through everything: shapes, memory, time; nothing is written"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Its launcher announces itself in five lines.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        settings = build(TrainSettings, apply_overrides(read_yaml(options.config), options.overrides))
        if options.print_config:
            print(to_yaml(settings), end="")
            return 0
        return _run(settings, options.dry_run)
    except OcditError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2


def _run(settings: TrainSettings, dry: bool) -> int:
    from ocdit_core.training.diffusion import DiffusionStage
    from ocdit_core.training.dry_run import dry_run
    from ocdit_core.training.engine import Engine
    from ocdit_core.training.export import MODEL_FOLDER
    from ocdit_core.training.loop import train
    from ocdit_core.training.stage import Stage
    from ocdit_core.training.state import seed_random_states
    from ocdit_core.training.vae import VAEStage

    engine = Engine(settings.loop, unused=settings.stage != "vae")
    try:
        seed_random_states(settings.loop.seed)
        stage: Stage = VAEStage(settings) if settings.stage == "vae" else DiffusionStage(settings)
        if dry:
            for line in dry_run(settings, stage, engine):
                if engine.rank == 0:
                    print(line)
            return 0
        done = train(settings, stage, engine)
    finally:
        engine.close()
    if engine.rank == 0:
        model = Path(settings.run) / MODEL_FOLDER
        if done < settings.loop.steps:
            print(f"stopped at step {done} of {settings.loop.steps}; the same command goes on from there")
        print(f"exported to {model}")
    return 0
