"""FSDP2: the denoiser in shards over the processes, and whole tensors out of shards again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ocdit_core.errors import ConfigError
from ocdit_core.models.blocks import Block

_SCALARS = "_scalars_before_sharding"


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard what learns, block by block; frozen weights stay whole in every process.

    Weights are gathered in float32, also where autocast computes in bfloat16: layer norms on CPUs take no other.

    Args:
        module: on its device; its forward must be what reaches all of its parts.
        mesh: torch.distributed device mesh with one dimension.
    """
    try:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError:
        raise ConfigError(f"loop.strategy: fsdp2 needs torch 2.6 or newer, this is {torch.__version__}") from None
    _lengthen_scalars(module)
    for block in [part for part in module.modules() if isinstance(part, Block)]:
        # Keys and values of the templates are computed once, outside the block's own forward.
        fully_shard(block.cross_attention, mesh=mesh)
        for method in ("keys_values", "attend"):
            register_fsdp_forward_method(block.cross_attention, method)
        fully_shard(block, mesh=mesh)
    frozen = {p for p in module.parameters() if not p.requires_grad}
    fully_shard(module, mesh=mesh, ignored_params=frozen)
    return module


def _lengthen_scalars(module: nn.Module) -> None:
    """Make a vector of one of each scalar parameter: FSDP2 shards along the first dimension, and scalars have none."""
    for part in module.modules():
        names = [name for name, p in part.named_parameters(recurse=False) if p.requires_grad and p.ndim == 0]
        for name in names:
            scalar = getattr(part, name)
            setattr(part, name, nn.Parameter(scalar.detach()[None]))
        if names:
            setattr(part, _SCALARS, names)


def scalars(module: nn.Module) -> set[str]:
    """Return the full names of parameters that are scalars outside of this sharded run."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name in getattr(part, _SCALARS, ())
    }


def reshard(module: nn.Module) -> None:
    """Drop gathered copies of sharded weights, so that the next forward pass gathers them anew."""
    for part in module.modules():
        drop = getattr(part, "reshard", None)
        if callable(drop):
            drop()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one process's view of a sharded one."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard, which shares memory with `tensor`; a tensor that is whole comes back as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full_tensor(tensor: Tensor, *, scalar: bool = False) -> Tensor:
    """Return the whole tensor on the CPU, a copy; every process must call it. `scalar` undoes its lengthening."""
    whole = tensor.detach()
    if is_sharded(whole):
        gathered = whole.full_tensor().cpu()  # type: ignore[attr-defined]
        return gathered.reshape(()) if scalar else gathered
    # A copy also on the CPU: what is saved must not change under the next step.
    return whole.to("cpu", copy=True)


def like(whole: Tensor, reference: Tensor) -> Tensor:
    """Return a whole tensor on the device of `reference`, in shards where that is."""
    whole = whole.to(reference.device).reshape(reference.shape)
    if not is_sharded(reference):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, reference.device_mesh, reference.placements)  # type: ignore[attr-defined]
