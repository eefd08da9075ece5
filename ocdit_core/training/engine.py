"""Processes, devices, precision and sharding: Lightning Fabric, and what the loop needs on top of it.

Fabric rather than Accelerate: with torch 2.13 on CPUs (gloo) its FSDP2 shards, where Accelerate's falls back to DDP
without a word; its package brings no other torch and no torchvision.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning_fabric.wrappers import _FabricModule as FabricModule
from torch import Tensor, nn

from ocdit_core.models.checkpoints import pick_device
from ocdit_core.models.mask_vae import MaskVAE
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.training.settings import LoopSettings
from ocdit_core.training.sharding import shard
from ocdit_core.training.stage import Batch, Stage
from ocdit_core.training.synced_norm import synchronise_batch_norms


class StageModule(nn.Module):
    """A stage behind one forward method: what DDP and FSDP2 wrap, and autocast surrounds."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.model = stage.model
        self._stage = stage

    def forward(self, task: str, *arguments: Any) -> Any:
        """Call the stage's method `task`: loss, predict ..."""
        return getattr(self._stage, task)(*arguments)


class Engine:
    """This process among those that train together: one, or several that torchrun or srun started.

    Args:
        loop: settings; device, strategy, precision and threads are used here.
        unused: whether there are steps in which some weights that learn get no gradient.

    Raises:
        ConfigError: the device does not exist, or the strategy cannot be had.
    """

    def __init__(self, loop: LoopSettings, *, unused: bool = True):
        device = pick_device(loop.device)
        if loop.threads:
            torch.set_num_threads(loop.threads)
        self._compile = loop.compile
        world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(world // int(os.environ.get("SLURM_NNODES", "1")))))
        if "WORLD_SIZE" not in os.environ and "SLURM_PROCID" not in os.environ:
            world = per_node = 1  # inside an allocation, but not started by srun
        strategy: str | Strategy = "auto"
        if world > 1:
            strategy = DDPStrategy(find_unused_parameters=unused)
            if loop.strategy == "fsdp2":
                strategy = ModelParallelStrategy(self._shard, data_parallel_size=world, tensor_parallel_size=1)
        devices: int | list[int] = [device.index] if device.index is not None and world == 1 else per_node
        self.fabric = Fabric(
            accelerator="cuda" if device.type == "cuda" else "cpu",
            devices=devices,
            num_nodes=max(world // per_node, 1),
            strategy=strategy,
            precision="bf16-mixed" if loop.precision == "bfloat16" else "32-true",
            plugins=[TorchElasticEnvironment()] if "WORLD_SIZE" in os.environ and world > 1 else None,
        )
        self.fabric.launch()
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size
        self.device = self.fabric.device

    def setup(self, stage: Stage) -> FabricModule:
        """Move the stage's model to the device, share it among the processes, and return it as a module to call."""
        module = StageModule(stage).to(self.device).train()
        if self.world > 1:
            synchronise_batch_norms(module)
        if self._compile:
            _compile(stage.model)
        return self.fabric.setup_module(module)

    def _shard(self, module: nn.Module, mesh: Any) -> nn.Module:
        return shard(module, mesh["data_parallel"])

    def backward(self, loss: Tensor, module: FabricModule) -> None:
        """Add the gradients of `loss`."""
        self.fabric.backward(loss, model=module)

    def no_sync(self, module: FabricModule, enabled: bool) -> AbstractContextManager[Any]:
        """Inside, gradients are added up in each process on its own: the batches of a step before its last."""
        return self.fabric.no_backward_sync(module, enabled=enabled) if self.world > 1 else nullcontext()

    def to_device(self, batch: Batch) -> Batch:
        """Return a batch on this process's device; what counts samples stays on the CPU."""
        return {
            name: value if name == "number" else value.to(self.device, non_blocking=True)
            for name, value in batch.items()
        }

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return the mean of each value over the processes, all of which call it with the same names."""
        if self.world == 1:
            return values
        packed = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(packed)
        return dict(zip(values, (packed / self.world).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is up in any process: all have to stop at the same step."""
        if self.world == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def gather(self, value: Any) -> list[Any]:
        """Return every process's `value`, a plain Python object, in all of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Leave the group of processes."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _compile(model: OCDiT | MaskVAE) -> None:
    """Compile what the time goes into, in place: whole models would be compiled anew for each number of targets."""
    parts = model.denoiser.blocks if isinstance(model, OCDiT) else (model.encoder, model.decoder)
    for part in parts:
        part.compile()
