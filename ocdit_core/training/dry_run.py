"""Dry run: some steps and a validation, to check a set-up and to estimate what a run will cost."""

import time
from collections.abc import Iterator
from datetime import timedelta

import torch

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
    for name, part in stage.model.named_children():
        learned = any(p.requires_grad for p in part.parameters())
        count = sum(p.numel() for p in part.parameters())
        yield f"parameters  {name} {count / 1e6:.2f} M{'' if learned else ' (frozen)'}"
    module = runtime.setup(stage.model)
    state = begin(settings, stage, runtime)
    # The first steps may train the matching prior alone.
    state.step = settings.diffusion_loss.prior_only_steps
    batches = iter(state.data)
    data = network = 0.0
    for number in range(_WARM_UP + _MEASURED):
        started = _now(runtime)
        used = [next(batches) for _ in range(loop.accumulate)]
        loaded = _now(runtime)
        values, _, _ = training_step(state, settings, stage, module, [runtime.to_device(b) for b in used], runtime)
        if number >= _WARM_UP:
            data += (loaded - started) / _MEASURED
            network += (_now(runtime) - loaded) / _MEASURED
    for name, value in used[0].items():
        yield f"batch       {name} {list(value.shape)} {str(value.dtype)[6:]}"
    yield "loss        " + ", ".join(f"{name} {value.float().mean():.4g}" for name, value in values[0].items())
    yield f"step        {1000 * (data + network):.0f} ms: data {1000 * data:.0f} ms, network {1000 * network:.0f} ms"

    started = _now(runtime)
    held_out = [runtime.to_device(b) for b in held_out_batches(settings, rank=runtime.rank, world=runtime.world)]
    if held_out:
        metrics, _ = validate(state, stage, module, held_out, runtime)
        found = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        yield f"validation  {_now(runtime) - started:.1f} s: {found}"
    seconds = loop.steps * (data + network) + (_now(runtime) - started) * (loop.steps // loop.validate_every + 1)
    yield f"memory      peak {peak_memory() / 2**30:.2f} GiB ({'GPU' if torch.cuda.is_initialized() else 'process'})"
    groups = loop.batch_groups * loop.accumulate * runtime.world
    devices, duration = f"{runtime.world} {runtime.device.type}", timedelta(minutes=round(seconds / 60))
    yield f"run         {loop.steps} steps of {groups} groups on {devices}: about {duration}"


def _now(runtime: Runtime) -> float:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.monotonic()
