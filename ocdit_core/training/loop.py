"""The training loop: any stage, one process or several (torchrun); resumes from its newest checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ocdit_core.config import to_yaml
from ocdit_core.data.synthetic.dataset import SyntheticScenes
from ocdit_core.errors import OcditError
from ocdit_core.files import write_text
from ocdit_core.models.device import pick_device
from ocdit_core.training import checkpoints
from ocdit_core.training.settings import LoopSettings, TrainSettings
from ocdit_core.training.stage import Batch, Stage

logger = logging.getLogger(__name__)


def train(settings: TrainSettings, stage: Stage) -> Path:
    """Run `stage` to its last step and return the folder of the exported model.

    Raises:
        OcditError: the loss is no longer finite.
    """
    loop = settings.loop
    device = _join_group(pick_device(loop.device))
    rank, world = _rank_and_world()
    if loop.threads:
        torch.set_num_threads(loop.threads)
    run = Path(settings.run)
    if rank == 0:
        write_text(run / "settings.yaml", to_yaml(settings))

    model = stage.model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=loop.learning_rate, weight_decay=loop.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, loop))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(loop.ema_decay), use_buffers=False)

    step = 0
    state = checkpoints.load_newest(run / "checkpoints") if settings.resume else None
    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        step = state["step"]
        logger.info("resumed %s at step %d", run, step)

    held_out = list(itertools.islice(loader(settings, start=0, held_out=True), _validation_batches(loop)))
    held_out = [_to(batch, device) for batch in held_out]
    batches = iter(loader(settings, start=step * loop.batch_groups * world, held_out=False, rank=rank, world=world))
    loss_of: nn.Module = _Loss(stage)
    if world > 1:
        loss_of = DistributedDataParallel(loss_of, find_unused_parameters=True)
        # Noise of its own for each process, another one after each resumption.
        torch.manual_seed(loop.seed + 1_000_003 * step + rank)
    elif state is not None:
        # Only now: making loaders draws from the generator too.
        torch.set_rng_state(state["rng"])
    writer = SummaryWriter(run / "tensorboard") if rank == 0 else None
    stop = _StopSignal()
    deadline = time.monotonic() + loop.max_minutes * 60 if loop.max_minutes else math.inf

    def snapshot() -> None:
        checkpoints.save(
            run / "checkpoints",
            step,
            {
                "step": step,
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "rng": torch.get_rng_state(),
            },
            loop.keep_checkpoints,
        )
        stage.export(averaged(model, average), run / "model", held_out)

    progress = tqdm(total=loop.steps, initial=step, desc=run.name, unit="step", mininterval=2, disable=rank > 0)
    while step < loop.steps and not _any_rank(stop.asked or time.monotonic() >= deadline):
        started = time.monotonic()
        batch = _to(next(batches), device)
        waited = time.monotonic() - started
        with torch.autocast(device.type, torch.bfloat16, enabled=loop.precision == "bfloat16"):
            loss, parts = loss_of(batch, step)
        if not torch.isfinite(loss):
            raise OcditError(f"step {step}: the loss is {loss.item()}; a lower loop.learning_rate may help")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, loop.clip_norm)
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        step += 1
        if writer is None:
            continue
        progress.update()

        if step % loop.log_every == 0:
            figures: dict[str, torch.Tensor] = {"loss": loss, **parts, "gradient_norm": norm}
            scalars = {name: value.item() for name, value in figures.items()}
            scalars["learning_rate"] = float(schedule.get_last_lr()[0])
            scalars["data_wait_share"] = waited / max(time.monotonic() - started, 1e-9)
            _write(writer, "train", scalars, step)
            progress.set_postfix({name: f"{scalars[name]:.3f}" for name in ("loss", *parts)})
        if step % loop.validate_every == 0 or step == loop.steps:
            scalars = stage.validate(averaged(model, average), held_out)
            _write(writer, "validation", scalars, step)
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in scalars.items()))
        if step % loop.checkpoint_every == 0 or step == loop.steps:
            snapshot()
    if writer is not None:
        if step % loop.checkpoint_every and step < loop.steps:
            snapshot()
        writer.close()
    stop.release()
    progress.close()
    if world > 1:
        dist.destroy_process_group()
    return run / "model"


class _Loss(nn.Module):
    """A stage's loss as a module: what DistributedDataParallel wraps."""

    def __init__(self, stage: Stage):
        super().__init__()
        self.model = stage.model
        self._stage = stage

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts."""
        return self._stage.loss(batch, step)


def _rank_and_world() -> tuple[int, int]:
    """This process among those that torchrun started: (0, 1) without it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _join_group(device: torch.device) -> torch.device:
    """Join the processes that torchrun started, if it did; returns this process's own device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def _any_rank(flag: bool) -> bool:
    """True where it is true in any process: they have to stop at the same step."""
    if not dist.is_initialized():
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def learning_rate_factor(step: int, loop: LoopSettings) -> float:
    """Linear warm-up, then a cosine to final_learning_rate at the last step."""
    if step < loop.warmup_steps:
        return (step + 1) / loop.warmup_steps
    progress = min((step - loop.warmup_steps) / max(loop.steps - loop.warmup_steps, 1), 1.0)
    return loop.final_learning_rate + (1 - loop.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def averaged(model: nn.Module, average: AveragedModel) -> nn.Module:
    """Return a copy of `model` with the averaged weights and its own running statistics, in evaluation."""
    result = copy.deepcopy(average.module)
    # Not averaged, but the newest: buffers such as the matching prior's mean and variance.
    for (_, target), (_, source) in zip(result.named_buffers(), model.named_buffers(), strict=True):
        target.copy_(source)
    return result.eval()


def loader(settings: TrainSettings, *, start: int, held_out: bool, rank: int = 0, world: int = 1) -> DataLoader[Batch]:
    """Return batches of groups; the held-out ones show objects, in their own colours, that training never sees."""
    data = settings.data
    if held_out:
        data = dataclasses.replace(data, bank=settings.held_out_bank, recolour_share=0.0)
    workers = 0 if held_out else settings.loop.workers
    return DataLoader(
        SyntheticScenes(data, start=start, rank=rank, world=world),
        batch_size=settings.loop.batch_groups,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        worker_init_fn=_leave_signals_to_the_loop,
        pin_memory=torch.cuda.is_available(),
    )


def _validation_batches(loop: LoopSettings) -> int:
    return max(loop.validation_groups // loop.batch_groups, 1)


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _write(writer: SummaryWriter, group: str, scalars: dict[str, float], step: int) -> None:
    for name, value in scalars.items():
        writer.add_scalar(f"{group}/{name}", value, step)


def _leave_signals_to_the_loop(worker: int) -> None:
    # A signal to the whole process group must not take the data away from the step that is still to be saved.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _StopSignal:
    """Set by SIGTERM and SIGINT: the step under way ends and is saved."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        # A second signal ends the program at once.
        signal.signal(number, signal.SIG_DFL)

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
