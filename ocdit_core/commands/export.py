"""`ocdit export`: a training run to a folder that `Segmenter.from_pretrained` takes."""

from __future__ import annotations

import argparse
from pathlib import Path

from ocdit_core.commands.common import add_command, positive

EXAMPLES = """\
  ocdit export runs/coarse --out my_model
  ocdit export runs/coarse --out my_model --step 120000 --full
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "export", "write the model of a training run, with its card", EXAMPLES)
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a run of training/train.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets the weights, config and card")
    parser.add_argument("--step", type=positive, help="of a checkpoint that the run kept (default: the newest)")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--half", action="store_const", const=True, help="store float16 (default, but for a VAE: it goes on training)"
    )
    precision.add_argument("--full", dest="half", action="store_const", const=False, help="store float32")
    parser.set_defaults(run=run, half=None)


def run(arguments: argparse.Namespace) -> int:
    """Export; returns 0."""
    from ocdit_core.config import build, read_yaml, to_yaml
    from ocdit_core.files import check_output, write_text
    from ocdit_core.inference.settings import SETTINGS_FILE, InferenceSettings
    from ocdit_core.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE
    from ocdit_core.models.ocdit import OCDiTConfig
    from ocdit_core.training import settings as training
    from ocdit_core.training.export import export_run

    check_output(arguments.out / SETTINGS_FILE)
    step = export_run(arguments.folder, arguments.out, step=arguments.step, half=arguments.half)
    stage = read_yaml(arguments.folder / training.SETTINGS_FILE)["stage"]
    if stage != "vae":
        model = build(OCDiTConfig, read_yaml(arguments.out / CONFIG_FILE))
        recommended = to_yaml(InferenceSettings(image_size=model.image_size))
        text = f"# Defaults of a model fresh from training: choose thresholds on validation scenes.\n{recommended}"
        write_text(arguments.out / SETTINGS_FILE, text)
    size = (arguments.out / WEIGHTS_FILE).stat().st_size
    print(f"{arguments.out}: stage {stage}, step {step:,}, {size / 1e6:.1f} MB")
    return 0
