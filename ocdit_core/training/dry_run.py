"""One batch through everything, and what the run will cost: before a lab spends a week on it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from torch import nn

from ocdit_core.training.average import WeightAverage
from ocdit_core.training.data import TrainingData, held_out_batches
from ocdit_core.training.engine import Engine
from ocdit_core.training.loop import clip_gradients, make_optimiser, validate
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.stage import Stage
from ocdit_core.training.state import TrainingState
from ocdit_core.training.watch import peak_memory

_WARM_UP, _MEASURED = 2, 5


def dry_run(settings: TrainSettings, stage: Stage, engine: Engine) -> Iterator[str]:
    """Take some steps, a validation and a checkpoint's content, write nothing, and yield lines that tell about them.

    Raises:
        OcditError: whatever the run itself would raise.
    """
    loop = settings.loop
    yield from _parameters(stage.model)
    module = engine.setup(stage)
    optimiser = make_optimiser(stage.model, loop)
    average = WeightAverage(stage.model, loop.ema_decay)
    data = TrainingData(settings, rank=engine.rank, world=engine.world)
    batches = iter(data)
    times: dict[str, list[float]] = {"data": [], "network": [], "optimiser": []}
    shapes: dict[str, str] = {}
    for step in range(_WARM_UP + _MEASURED):
        spent = dict.fromkeys(times, 0.0)
        for part in range(loop.accumulate):
            started = _now(engine)
            batch = next(batches)
            shapes = {name: f"{list(value.shape)} {str(value.dtype)[6:]}" for name, value in batch.items()}
            loaded = _now(engine)
            with engine.no_sync(module, part < loop.accumulate - 1):
                loss, figures = module("loss", engine.to_device(batch), step + settings.diffusion_loss.prior_only_steps)
                engine.backward(loss / loop.accumulate, module)
            spent["data"] += loaded - started
            spent["network"] += _now(engine) - loaded
        started = _now(engine)
        clip_gradients(stage.model, loop.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(step + 1)
        spent["optimiser"] = _now(engine) - started
        if step >= _WARM_UP:
            for name, seconds in spent.items():
                times[name].append(seconds)
    for name, text in shapes.items():
        yield f"batch       {name} {text}"
    parts = ", ".join(f"{name} {value.float().mean():.4g}" for name, value in figures.items())
    yield f"loss        {float(loss.detach()):.4g} ({parts})"

    means = {name: statistics.fmean(values) for name, values in times.items()}
    step_time = sum(means.values())
    split = ", ".join(f"{name} {1000 * t:.0f} ms ({100 * t / step_time:.1f}%)" for name, t in means.items())
    yield f"step        {1000 * step_time:.0f} ms: {split}"
    yield f"memory      {peak_memory() / 2**30:.2f} GiB at most ({'GPU' if torch.cuda.is_available() else 'process'})"

    started = _now(engine)
    held_out = [engine.to_device(batch) for batch in held_out_batches(settings, rank=engine.rank, world=engine.world)]
    loading = _now(engine) - started
    validating = 0.0
    if held_out:
        started = _now(engine)
        figures_found, pictures = validate(module, average, held_out, loop, engine)
        validating = _now(engine) - started
        found = ", ".join(f"{name} {value:.3f}" for name, value in figures_found.items())
        yield f"validation  {validating:.1f} s, {len(held_out)} batches, {len(pictures)} pictures: {found}"
    with torch.no_grad():
        module("finish", held_out)
    state = TrainingState(model=stage.model, average=average, optimiser=optimiser, data=data).capture(engine)
    tensors = [*state["model"].values(), *state["average"].values()]
    tensors += [value for values in state["optimiser"].values() for value in values.values()]
    size = sum(tensor.nbytes for tensor in tensors)
    yield f"checkpoint  {size / 2**20:.0f} MiB each, {loop.keep_checkpoints} kept"

    groups = loop.batch_groups * loop.accumulate * engine.world
    seconds = loop.steps * step_time + loading + validating * (loop.steps // loop.validate_every + 1)
    yield (
        f"run         {loop.steps} steps of {groups} groups on {engine.world} "
        f"{'process' if engine.world == 1 else 'processes'} ({engine.device.type}): about {_duration(seconds)}"
    )


def _parameters(model: nn.Module) -> Iterator[str]:
    whole, learning = 0, 0
    for name, part in model.named_children():
        count = sum(p.numel() for p in part.parameters())
        learns = sum(p.numel() for p in part.parameters() if p.requires_grad)
        whole, learning = whole + count, learning + learns
        yield f"parameters  {name} {count / 1e6:.2f} M{'' if learns else ' (frozen)'}"
    yield f"parameters  {whole / 1e6:.2f} M, of which {learning / 1e6:.2f} M learn"


def _now(engine: Engine) -> float:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return time.monotonic()


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    return (f"{days} d {hours} h" if days else f"{hours} h {minutes} min") if hours or days else f"{minutes} min"
