"""The command line of training/train.py."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from ocdit_core.config import apply_overrides, build, read_yaml, to_yaml
from ocdit_core.errors import OcditError
from ocdit_core.training.diffusion import DiffusionStage
from ocdit_core.training.loop import train
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.stage import Stage
from ocdit_core.training.vae import VAEStage


def main(arguments: list[str] | None = None) -> int:
    """Train what the config describes and return the exit code: 0, or 2 for a mistake in the settings or data."""
    parser = argparse.ArgumentParser(
        prog="training/train.py",
        description="Train one stage of OC-DiT. Started again, it goes on where its newest checkpoint stands.",
        epilog="example: training/train.py --config config/train/smoke_vae.yaml loop.steps=200 run=runs/try",
    )
    parser.add_argument("--config", required=True, type=Path, help="YAML file, see config/train/")
    parser.add_argument("--print-config", action="store_true", help="print the settings that would be used, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = build(TrainSettings, apply_overrides(read_yaml(options.config), options.overrides))
        if options.print_config:
            print(to_yaml(settings), end="")
            return 0
        torch.manual_seed(settings.loop.seed)
        stage: Stage = VAEStage(settings) if settings.stage == "vae" else DiffusionStage(settings)
        folder = train(settings, stage)
    except OcditError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    print(f"exported to {folder}")
    return 0
