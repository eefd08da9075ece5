"""In which numbers a network computes, and whether it is compiled first."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

from ocdit_core.inference.packing import can_pack, with_packed_layers
from ocdit_core.models.ocdit import OCDiT

Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 on GPUs that compute in it, float32 elsewhere."""


def computes_in_half(precision: Precision, device: torch.device) -> bool:
    """Return whether the denoiser and the decoder compute in bfloat16."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def half_context(device: torch.device, half: bool) -> AbstractContextManager[object]:
    """Return the context to compute in: sums and norms stay in float32 where bfloat16 would be too coarse."""
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def prepared(model: OCDiT, *, half: bool, compiled: bool, plain: bool, device: torch.device) -> OCDiT:
    """Return the model on `device`, in evaluation, ready to generate masks.

    Args:
        model: moved to the device itself, unless `half` or `compiled`: then it stays as it is, and a copy is returned.
        half: keep the weights of denoiser and decoder in bfloat16: half the memory, nothing to convert at use.
        compiled: compile the denoiser; on a GPU as a CUDA graph. The first image of each size takes a minute longer.
        plain: leave the layers as they are, where they could be packed (see `packing`).
        device: where it will run.
    """
    if half or compiled:
        model = copy.deepcopy(model)
    if half:
        for part in (model.denoiser, model.vae.decoder):
            for layer in part.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    layer.to(torch.bfloat16)
    model = model.to(device).eval().requires_grad_(False)
    if device.type == "cpu" and not (half or compiled or plain) and can_pack():
        model = with_packed_layers(model)
    if compiled:
        model.denoiser.compile_transformer("reduce-overhead" if device.type == "cuda" else "default")
    return model
