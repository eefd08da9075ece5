"""From a checkpoint to the folder that others load: averaged weights, config, and for people a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ocdit_core.config import build, read_yaml
from ocdit_core.errors import WeightsError
from ocdit_core.files import check_output, write_text
from ocdit_core.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE, check_state, write_checkpoint
from ocdit_core.models.mask_vae import MaskVAE, MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.training import checkpoints
from ocdit_core.training.card import model_card
from ocdit_core.training.log import read_log
from ocdit_core.training.settings import SETTINGS_FILE, TrainSettings

MODEL_FOLDER = "model"


def averaged_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's weights as they are meant to be used: averaged where they learn, else the newest."""
    return {**checkpoint["model"], **checkpoint["average"]}


def write_model(
    folder: Path,
    config: OCDiTConfig | MaskVAEConfig,
    checkpoint: Mapping[str, Any],
    *,
    half: bool | None = None,
    guard: bool = False,
) -> None:
    """Write config.yaml and model.safetensors.

    Args:
        folder: where to.
        config: of the model that the checkpoint is of.
        checkpoint: what `TrainingState.capture` returned.
        half: store float16; by default whole models do, and a VAE, which goes on into another training, does not.
        guard: refuse to replace files of others, see `files.replacing`.
    """
    half = isinstance(config, OCDiTConfig) if half is None else half
    write_checkpoint(folder, config, averaged_state(checkpoint), half=half, guard=guard)


def export_run(run: Path, folder: Path, *, step: int | None = None, half: bool | None = None) -> int:
    """Write a run's model with its card, and return the step that it is of.

    Args:
        run: folder of the run.
        folder: gets config.yaml, model.safetensors and README.md.
        step: of a checkpoint that the run kept; by default the newest.
        half: see `write_model`.

    Raises:
        ConfigError: the folder is not one of a run.
        WeightsError: there is no such checkpoint, or it is damaged.
        OutputError: `folder` holds files of the same names that are not ours.
    """
    check_output(*(folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, "README.md")))
    settings = build(TrainSettings, read_yaml(run / SETTINGS_FILE))
    checkpoint = checkpoints.find(run, step)
    # Not the run's settings: a backbone named after a hub has its architecture in here.
    stored = read_yaml(run / MODEL_FOLDER / CONFIG_FILE)
    config: OCDiTConfig | MaskVAEConfig
    model: OCDiT | MaskVAE
    if settings.stage == "vae":
        config = build(MaskVAEConfig, stored)
        model = MaskVAE(config, settings.model.sigma_data)
    else:
        config = build(OCDiTConfig, stored)
        model = OCDiT(config)
    if "model" not in checkpoint or "average" not in checkpoint:
        raise WeightsError(f"{run}: the checkpoint holds no weights; it is of another version of this program")
    check_state(model.state_dict(), averaged_state(checkpoint), str(run))
    write_model(folder, config, checkpoint, half=half, guard=True)
    parameters = sum(p.numel() for p in model.parameters())
    write_text(folder / "README.md", model_card(settings, checkpoint["step"], read_log(run), parameters))
    return int(checkpoint["step"])
