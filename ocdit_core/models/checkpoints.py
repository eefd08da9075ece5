"""Models on disk: a folder with config.yaml and model.safetensors."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ocdit_core.config import to_yaml
from ocdit_core.errors import ConfigError, WeightsError
from ocdit_core.files import replacing, write_text

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"


def write_checkpoint(
    folder: Path, config: object, state: Mapping[str, Tensor], *, half: bool = False, guard: bool = True
) -> None:
    """Write config.yaml and model.safetensors, each atomically.

    Args:
        folder: target folder, created where it is missing.
        config: dataclass of the model's configuration.
        state: the weights.
        half: store floating-point weights as float16.
        guard: refuse to replace files of others, see `files.replacing`.
    """
    tensors = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in state.items()
    }
    write_text(folder / CONFIG_FILE, to_yaml(config), guard=guard)
    with replacing(folder / WEIGHTS_FILE, guard=guard) as temporary:
        # save_file would create a file that only its owner can read.
        temporary.write_bytes(safetensors.torch.save(tensors))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({error})") from error


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Check that weights fit a model.

    Args:
        expected: state dict of the model.
        found: the weights.
        source: name of the weights in errors.

    Raises:
        WeightsError: a key is missing, unknown, of another shape or not finite; the first one is named.
    """
    for key, value in expected.items():
        if key not in found:
            raise WeightsError(f"{source}: {key} is missing; the model has it with shape {list(value.shape)}")
        if found[key].shape != value.shape:
            raise WeightsError(f"{source}: {key} has shape {list(found[key].shape)}, the model has {list(value.shape)}")
        tensor = found[key]
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{source}: {key} has values that are not finite")
    for key, value in found.items():
        if key not in expected:
            raise WeightsError(f"{source}: {key} of shape {list(value.shape)} is not part of the model")


def pick_device(name: str) -> torch.device:
    """Return a torch device.

    Args:
        name: auto (CUDA where available, else the CPU), cpu, cuda or cuda:N.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} torch finds no CUDA device; use auto or cpu")
    return device
