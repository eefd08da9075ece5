"""What a model starts from: the weights of another one, and a trained VAE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ocdit_core.config import build, read_yaml
from ocdit_core.errors import ConfigError
from ocdit_core.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE, check_state, read_weights
from ocdit_core.models.embeddings import IndexPosition, PatchPosition
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.training.settings import MODEL_PARTS, ModelPart


@torch.no_grad()
def start_from(model: OCDiT, folder: str | Path, parts: Sequence[ModelPart] = MODEL_PARTS) -> None:
    """Copy the weights of an exported model; learned positions are interpolated to this model's numbers of them.

    Args:
        model: gets them.
        folder: of the other model.
        parts: what is taken; the rest stays as it is.

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
            spread = torch.linspace(0, given.capacity - 1, target.capacity)
            state[f"{name}.table"] = given(spread) if given.capacity != target.capacity else given.table
    own = model.state_dict()
    state = {key: value for key, value in state.items() if key.split(".")[0] in parts}
    check_state({key: value for key, value in own.items() if key.split(".")[0] in parts}, state, str(folder))
    model.load_state_dict({**own, **state})


def load_vae(model: OCDiT, folder: Path) -> None:
    """Copy the weights of an exported VAE into `model`; raises WeightsError or ConfigError where they do not fit."""
    config = build(MaskVAEConfig, read_yaml(folder / CONFIG_FILE))
    if config != model.config.vae:
        raise ConfigError(f"vae: {folder} holds another VAE than model.vae describes")
    state = read_weights(folder / WEIGHTS_FILE)
    check_state(model.vae.state_dict(), state, str(folder))
    model.vae.load_state_dict(state)
