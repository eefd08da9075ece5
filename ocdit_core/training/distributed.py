"""Devices, precision and processes: Lightning Fabric, FSDP2 sharding, and batch norm over all processes."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning_fabric.wrappers import _FabricModule as FabricModule
from torch import Tensor, nn

from ocdit_core.errors import ConfigError
from ocdit_core.models.blocks import Block
from ocdit_core.models.checkpoints import pick_device
from ocdit_core.models.mask_vae import MaskVAE
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.training.data import Batch
from ocdit_core.training.settings import LoopSettings

T = TypeVar("T")

_SCALARS = "_scalars_before_sharding"


class _StageModule(nn.Module):
    """A model whose forward calls a method of its stage: what DDP and FSDP2 wrap, and autocast surrounds."""

    def __init__(self, model: OCDiT | MaskVAE):
        super().__init__()
        self.model = model

    def forward(self, method: Callable[..., T], *arguments: Any) -> T:
        """Call a method of the stage."""
        return method(*arguments)


class Runtime:
    """This process among those that train together: a single one, or several that torchrun or srun started.

    Fabric rather than Accelerate: on CPUs (gloo, torch 2.13) its FSDP2 shards, whereas Accelerate's silently falls back
    to DDP.

    Args:
        loop: settings; strategy, precision and compile are used here.
        unused: whether some trainable weights get no gradient in some steps.
        device: auto (CUDA where available, else the CPU), cpu or cuda.

    Attributes:
        scaler: scales the loss and the gradients of float16; without effect for other precisions.

    Raises:
        ConfigError: the strategy or the device is not available.
    """

    def __init__(self, loop: LoopSettings, *, unused: bool = True, device: str = "auto"):
        self._compile = loop.compile
        kind, half = pick_device(device).type, loop.precision == "float16"
        self.scaler = torch.amp.GradScaler(kind, enabled=half)
        torch.set_float32_matmul_precision("high" if loop.precision == "tf32" else "highest")
        world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(world // int(os.environ.get("SLURM_NNODES", "1")))))
        if "WORLD_SIZE" not in os.environ and "SLURM_PROCID" not in os.environ:
            world = per_node = 1  # inside an allocation, but not started by srun
        strategy: str | Strategy = "auto"
        if world > 1:
            strategy = DDPStrategy(find_unused_parameters=unused)
            if loop.strategy == "fsdp2":
                strategy = ModelParallelStrategy(
                    lambda module, mesh: _shard(module, mesh["data_parallel"]),
                    data_parallel_size=world,
                    tensor_parallel_size=1,
                )
        # Named by its precision alone, float16 on CPUs would become bfloat16.
        plugins: list[Any] = [MixedPrecision("16-mixed", device=kind, scaler=self.scaler)] if half else []
        if "WORLD_SIZE" in os.environ and world > 1:
            plugins.append(TorchElasticEnvironment())
        self.fabric = Fabric(
            accelerator=kind,
            devices=per_node,
            num_nodes=max(world // per_node, 1),
            strategy=strategy,
            precision={"bfloat16": "bf16-mixed", "float16": None}.get(loop.precision, "32-true"),
            plugins=plugins,
        )
        self.fabric.launch()
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size
        self.device = self.fabric.device
        # Flags of the host go over the CPU, so that nothing waits for the GPU.
        self.hosts = dist.new_group(backend="gloo") if self.world > 1 else None

    def setup(self, model: OCDiT | MaskVAE) -> FabricModule:
        """Move a model to the device and distribute it; return the module that calls methods of its stage."""
        module = _StageModule(model).to(self.device).train()
        if self.world > 1:
            _synchronise_batch_norms(module)
        if self._compile:
            # Whole models would be recompiled for each number of targets.
            for part in model.denoiser.blocks if isinstance(model, OCDiT) else (model.encoder, model.decoder):
                part.compile()
        return self.fabric.setup_module(module)

    def backward(self, loss: Tensor, module: FabricModule) -> None:
        """Add the gradients of a loss."""
        self.fabric.backward(loss, model=module)

    def no_sync(self, module: FabricModule, enabled: bool) -> AbstractContextManager[Any]:
        """Return a context without gradient reduction over the processes: for all batches of a step but the last."""
        return self.fabric.no_backward_sync(module, enabled=enabled) if self.world > 1 else nullcontext()

    def to_device(self, batch: Batch) -> Batch:
        """Return a batch on this process's device; the episodes' numbers stay on the CPU."""
        return {
            name: value if name == "number" else value.to(self.device, non_blocking=True)
            for name, value in batch.items()
        }

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return the mean of each value over the processes, which all have the same names."""
        if self.world == 1:
            return values
        packed = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(packed, group=self.hosts)
        return dict(zip(values, (packed / self.world).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; does not wait for the device."""
        if self.world == 1:
            return flag
        flags = torch.tensor(float(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.hosts)
        return bool(flags)

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, a picklable object, in all processes."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.hosts)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier(group=self.hosts)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _shard(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard the trainable weights by FSDP2, block by block; frozen weights stay whole in every process.

    Weights are gathered in float32 even if autocast computes in bfloat16: layer norms on CPUs need it.
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
    """Replace scalar parameters by vectors of length 1: FSDP2 shards along the first dimension."""
    for part in module.modules():
        names = [name for name, p in part.named_parameters(recurse=False) if p.requires_grad and p.ndim == 0]
        for name in names:
            setattr(part, name, nn.Parameter(getattr(part, name).detach()[None]))
        if names:
            setattr(part, _SCALARS, names)


def scalar_names(model: nn.Module) -> list[str]:
    """Return the names of the scalars in a model's state dict, including those that sharding has lengthened."""
    lengthened = [
        f"{prefix}.{name}" if prefix else name
        for prefix, part in model.named_modules()
        for name in getattr(part, _SCALARS, ())
    ]
    return lengthened + [name for name, value in model.state_dict().items() if value.ndim == 0]


def drop_gathered(model: nn.Module) -> None:
    """Drop gathered copies of sharded weights, so that the next forward pass gathers them anew."""
    for part in model.modules():
        drop = getattr(part, "reshard", None)
        if callable(drop):
            drop()


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard, which shares memory with `tensor`; a tensor that is not sharded as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes; each one's value contributes to all of their losses."""

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


class _SyncedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d without affine weights that uses the statistics of all processes' batches.

    torch's SyncBatchNorm runs on GPUs only; distributed training is tested on CPUs.
    """

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
        mean, square = _SumOverProcesses.apply(moments) / world
        variance = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            count = world * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()
        return (values - mean[:, None, None]) * scale[:, None, None]


def _synchronise_batch_norms(module: nn.Module) -> None:
    """Make every BatchNorm2d without affine weights a synchronised one, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d and not child.affine:
            child.__class__ = _SyncedBatchNorm2d
