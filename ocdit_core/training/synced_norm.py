"""Batch statistics over all processes: torch's own SyncBatchNorm works on GPUs only, and training must test on CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's value has a part in all of their losses."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d without affine weights whose mean and variance are those of all processes' batches together."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w); every process must call it, with batches of one size."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        values = x.float()
        world = dist.get_world_size()
        moments = torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))])
        mean, square = _Sum.apply(moments) / world
        variance = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            count = world * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()
        return (values - mean[:, None, None]) * scale[:, None, None]


def synchronise_batch_norms(module: nn.Module) -> None:
    """Replace every BatchNorm2d without affine weights in `module`, in place; names in the state dict stay."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d and not child.affine:
                synced = SyncedBatchNorm2d(child.num_features, child.eps, child.momentum, affine=False)
                synced.load_state_dict(child.state_dict())
                setattr(parent, name, synced.to(next(child.buffers()).device).train(child.training))
