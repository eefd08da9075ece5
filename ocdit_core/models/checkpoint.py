"""A model on disk: a folder with config.yaml and model.safetensors, checked before it is believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ocdit_core.config import build, read_yaml, to_yaml
from ocdit_core.errors import WeightsError
from ocdit_core.files import replacing, write_text

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


def write_checkpoint(folder: Path, config: object, state: Mapping[str, Tensor], *, half: bool = False) -> None:
    """Write both files, each whole or not at all: a reader never meets half a file."""
    tensors = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in state.items()
    }
    write_text(folder / CONFIG_FILE, to_yaml(config))
    with replacing(folder / WEIGHTS_FILE) as temporary:
        # Not save_file: it leaves a file that only its owner can read.
        temporary.write_bytes(safetensors.torch.save(tensors))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; raises WeightsError where it is missing or damaged."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({error})") from error


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Raise WeightsError naming the first key, in the model's order, that is missing, left over or of another shape."""
    for key, value in expected.items():
        if key not in found:
            raise WeightsError(f"{source}: {key} is missing; the model has it with shape {list(value.shape)}")
        if found[key].shape != value.shape:
            raise WeightsError(f"{source}: {key} has shape {list(found[key].shape)}, the model has {list(value.shape)}")
        tensor = found[key]
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{source}: {key} holds values that are not finite")
    for key, value in found.items():
        if key not in expected:
            raise WeightsError(f"{source}: {key} of shape {list(value.shape)} has no place in the model")


def read_checkpoint(folder: Path, config_type: type[C], make: Callable[[C], M]) -> M:
    """Return the model that `make` builds from the folder's config, with the folder's weights, in float32."""
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder of weights (it would hold {CONFIG_FILE} and {WEIGHTS_FILE})")
    if not (folder / CONFIG_FILE).is_file():
        raise WeightsError(f"{folder}: holds no {CONFIG_FILE}")
    config = build(config_type, read_yaml(folder / CONFIG_FILE))
    state = read_weights(folder / WEIGHTS_FILE)
    model = make(config)
    check_state(model.state_dict(), state, str(folder / WEIGHTS_FILE))
    model.load_state_dict(state)
    return model.eval()
