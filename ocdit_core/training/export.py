"""From a checkpoint to the folder that others load: averaged weights and config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ocdit_core.models.checkpoint import write_checkpoint

MODEL_FOLDER = "model"


def averaged_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's weights as they are meant to be used: averaged where they learn, else the newest."""
    return {**checkpoint["model"], **checkpoint["average"]}


def write_model(folder: Path, model: nn.Module, checkpoint: Mapping[str, Any], *, half: bool | None = None) -> None:
    """Write config.yaml and model.safetensors.

    Args:
        folder: where to.
        model: whose architecture the weights are of: an OCDiT or a MaskVAE.
        checkpoint: state of `TrainingState.capture`.
        half: store float16; by default only the small final models do, a VAE that goes on into another training not.
    """
    from ocdit_core.models.ocdit import OCDiT

    if half is None:
        half = isinstance(model, OCDiT)
    config = model.config
    write_checkpoint(folder, config, averaged_state(checkpoint), half=half)
