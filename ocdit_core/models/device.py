"""Where a network runs."""

from __future__ import annotations

import torch

from ocdit_core.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the device that `name` asks for; auto takes CUDA where there is one. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a device; auto, cpu or cuda would be") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} was asked for, but torch finds no CUDA device; auto or cpu would work")
    return device
