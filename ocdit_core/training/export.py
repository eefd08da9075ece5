"""Exported models: written from checkpoints, with a model card, and used to initialise a new model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ocdit_core.config import build, read_yaml, to_yaml
from ocdit_core.errors import ConfigError
from ocdit_core.files import check_output, write_text
from ocdit_core.models import checkpoints as models
from ocdit_core.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE, check_state
from ocdit_core.models.embeddings import IndexPosition, PatchPosition
from ocdit_core.models.mask_vae import MaskVAE, MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.training.checkpoints import find_checkpoint, read_rank, read_weights
from ocdit_core.training.logger import read_log
from ocdit_core.training.settings import SETTINGS_FILE, TrainSettings

MODEL_FOLDER = "model"

Log = Sequence[dict[str, Any]]


def export_run(run: Path, folder: Path, *, step: int | None = None, half: bool | None = None) -> int:
    """Write the model of a run with its card, and return the step of the checkpoint.

    Args:
        run: folder of the run.
        folder: folder to write config.yaml, model.safetensors and README.md to.
        step: step of a checkpoint that the run has kept; default: the newest.
        half: store float16; default: for an OCDiT, but not for a VAE, which other stages train with.

    Raises:
        ConfigError: `run` is not the folder of a run.
        WeightsError: there is no such checkpoint, or it is damaged.
        OutputError: `folder` holds files of the same names that are not ours.
    """
    check_output(*(folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, "README.md")))
    settings = build(TrainSettings, read_yaml(run / SETTINGS_FILE))
    checkpoint = find_checkpoint(run, step)
    # Not the run's settings: the exported config holds the architecture of a backbone that was named by a hub id.
    stored = read_yaml(run / MODEL_FOLDER / CONFIG_FILE)
    vae = settings.stage == "vae"
    model: OCDiT | MaskVAE = MaskVAE(build(MaskVAEConfig, stored)) if vae else OCDiT(build(OCDiTConfig, stored))
    weights = read_weights(checkpoint)
    check_state(model.state_dict(), weights, str(run))
    models.write_checkpoint(folder, model.config, weights, half=not vae if half is None else half)
    at = int(read_rank(checkpoint, 0)["step"])
    parameters = sum(p.numel() for p in model.parameters())
    write_text(folder / "README.md", model_card(settings, at, read_log(run), parameters))
    return at


@torch.no_grad()
def start_from(model: OCDiT, folder: str | Path) -> None:
    """Copy the weights of an exported model; learned positions are interpolated to this model's sizes.

    An embedding of prompts that the other model does not have stays as it is.

    Args:
        model: model to initialise.
        folder: folder of the other model.

    Raises:
        WeightsError: the weights are missing, damaged, or of another architecture.
    """
    source = OCDiT.from_pretrained(folder)
    state = source.state_dict()
    modules = dict(source.named_modules())
    for name, target in model.named_modules():
        given = modules.get(name)
        if isinstance(target, PatchPosition) and isinstance(given, PatchPosition):
            state[f"{name}.table"] = given(target.grid)
        elif isinstance(target, IndexPosition) and isinstance(given, IndexPosition):
            state[f"{name}.table"] = given.resized(len(target.table))
    own = model.state_dict()
    if model.prompts is not None and source.prompts is None:
        # A new embedding changes nothing until it is trained.
        state |= {name: value for name, value in own.items() if name.startswith("prompts.")}
    check_state(own, state, str(folder))
    model.load_state_dict(state)


def load_vae(model: OCDiT, folder: Path) -> None:
    """Copy the weights of an exported VAE; raises WeightsError or ConfigError if they do not fit."""
    config = build(MaskVAEConfig, read_yaml(folder / CONFIG_FILE))
    if config != model.config.vae:
        raise ConfigError(f"vae: {folder} holds a VAE of another configuration than model.vae")
    state = models.read_weights(folder / WEIGHTS_FILE)
    check_state(model.vae.state_dict(), state, str(folder))
    model.vae.load_state_dict(state)


def model_card(settings: TrainSettings, step: int, log: Log, parameters: int) -> str:
    """Return a model card as Markdown.

    Args:
        settings: settings of the run.
        step: step of the weights.
        log: log of the run, of which the last validation up to `step` is shown.
        parameters: number of parameters, including frozen ones.
    """
    prefix, last = "validation/", {"step": step}
    for line in log:
        if line["step"] <= step and any(name.startswith(prefix) for name in line):
            last = line
    metrics = {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
    sources = ", ".join(f"{one.path} (weight {one.weight:g})" for one in settings.data.datasets)
    return f"""\
# {Path(settings.run).name}

OC-DiT, stage {settings.stage}, after {step:,} of {settings.loop.steps:,} steps; averaged weights.

| | |
|---|---|
| image size | {" x ".join(map(str, settings.model.image_size))} pixels |
| parameters | {parameters / 1e6:.2f} million |
| training data | {sources} |
| initialised from | {settings.init or "random weights"}{f", VAE of {settings.vae}" if settings.vae else ""} |

## Validation

| step | {" | ".join(metrics) or "nothing was logged"} |
|---|{"---|" * (len(metrics) or 1)}
| {last["step"]:,} | {" | ".join(f"{value:.4g}" for value in metrics.values())} |

On held-out targets; posterior mean, mask threshold 0.5. iou: mean over present targets; recall50 and precision50: at an
IoU of 0.5; false_masks: fraction of absent targets that got a mask.

## Settings

```yaml
{to_yaml(settings).rstrip()}
```
"""
