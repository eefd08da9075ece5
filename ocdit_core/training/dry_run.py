"""Dry run: some steps, a validation and a checkpoint's size, to estimate what a run will cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from torch import nn

from ocdit_core.training.checkpoints import KEPT
from ocdit_core.training.data import held_out_batches
from ocdit_core.training.distributed import Runtime
from ocdit_core.training.logger import peak_memory
from ocdit_core.training.loop import Stage, begin, training_step, validate
from ocdit_core.training.settings import TrainSettings

_WARM_UP, _MEASURED = 2, 5


def dry_run(settings: TrainSettings, stage: Stage, runtime: Runtime) -> Iterator[str]:
    """Run the loop's training steps and a validation, write nothing, and yield the lines of a report.

    Raises:
        OcditError: whatever the run itself would raise.
    """
    loop = settings.loop
    yield from _parameters(stage.model)
    module = runtime.setup(stage.model)
    state = begin(settings, stage, runtime)
    # The first steps may train the matching prior alone.
    state.step = settings.diffusion_loss.prior_only_steps
    batches = iter(state.data)
    waiting: list[float] = []
    computing: list[float] = []
    for _ in range(_WARM_UP + _MEASURED):
        started = _now(runtime)
        used = [next(batches) for _ in range(loop.accumulate)]
        loaded = _now(runtime)
        values, _, _ = training_step(state, settings, stage, module, [runtime.to_device(b) for b in used], runtime)
        waiting.append(loaded - started)
        computing.append(_now(runtime) - loaded)
    for name, value in used[0].items():
        yield f"batch       {name} {list(value.shape)} {str(value.dtype)[6:]}"
    yield "loss        " + ", ".join(f"{name} {value.float().mean():.4g}" for name, value in values[0].items())

    data, network = (statistics.fmean(times[_WARM_UP:]) for times in (waiting, computing))
    yield f"step        {1000 * (data + network):.0f} ms: data {1000 * data:.0f} ms, network {1000 * network:.0f} ms"
    yield f"memory      peak {peak_memory() / 2**30:.2f} GiB ({'GPU' if torch.cuda.is_available() else 'process'})"

    started = _now(runtime)
    held_out = [
        runtime.to_device(batch) for batch in held_out_batches(settings, rank=runtime.rank, world=runtime.world)
    ]
    loading = _now(runtime) - started
    validating = 0.0
    if held_out:
        started = _now(runtime)
        metrics, images = validate(state, stage, module, held_out, runtime)
        validating = _now(runtime) - started
        found = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        yield f"validation  {validating:.1f} s, {len(held_out)} batches, {len(images)} images: {found}"
    with torch.no_grad():
        module(stage.finish, held_out)
    yield f"checkpoint  {state.size() / 2**20:.0f} MiB each, {KEPT} kept"

    episodes = loop.batch_groups * loop.accumulate * runtime.world
    seconds = loop.steps * (data + network) + loading + validating * (loop.steps // loop.validate_every + 1)
    processes = f"{runtime.world} {'process' if runtime.world == 1 else 'processes'}"
    yield (
        f"run         {loop.steps} steps of {episodes} groups on {processes} ({runtime.device.type}): "
        f"about {_duration(seconds)}"
    )


def _parameters(model: nn.Module) -> Iterator[str]:
    total, trainable = 0, 0
    for name, part in model.named_children():
        count = sum(p.numel() for p in part.parameters())
        learned = sum(p.numel() for p in part.parameters() if p.requires_grad)
        total, trainable = total + count, trainable + learned
        yield f"parameters  {name} {count / 1e6:.2f} M{'' if learned else ' (frozen)'}"
    yield f"parameters  {total / 1e6:.2f} M, {trainable / 1e6:.2f} M trainable"


def _now(runtime: Runtime) -> float:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.monotonic()


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d {hours} h" if days else f"{hours} h {minutes} min") if hours or days else f"{minutes} min"
