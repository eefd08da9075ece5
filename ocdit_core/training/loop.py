"""The training loop: any stage, in one process or several, continued exactly where it was interrupted."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ocdit_core.config import as_dict, build, read_yaml, to_yaml
from ocdit_core.errors import ConfigError, OcditError
from ocdit_core.files import replacing, write_text
from ocdit_core.training import checkpoints
from ocdit_core.training.average import WeightAverage
from ocdit_core.training.data import TrainingData, held_out_batches
from ocdit_core.training.engine import Engine
from ocdit_core.training.export import MODEL_FOLDER, write_model
from ocdit_core.training.log import LOG_FILE
from ocdit_core.training.metrics import summarise
from ocdit_core.training.settings import SETTINGS_FILE, LoopSettings, TrainSettings
from ocdit_core.training.stage import Batch, Picture, Stage
from ocdit_core.training.state import TrainingState
from ocdit_core.training.stopping import StopSignals, requeue_job
from ocdit_core.training.watch import Watch

logger = logging.getLogger(__name__)


def train(settings: TrainSettings, stage: Stage, engine: Engine) -> int:
    """Run `stage` to its last step, or until it is asked to stop, and return the number of steps done.

    Checkpoints, logs and the exported model are in the folder `settings.run`.

    Raises:
        OcditError: the loss is no longer finite, or the data, the run's folder or a checkpoint cannot be used.
    """
    loop, run = settings.loop, Path(settings.run)
    module = engine.setup(stage)
    state = TrainingState(
        model=stage.model,
        average=WeightAverage(stage.model, loop.ema_decay),
        optimiser=make_optimiser(stage.model, loop),
        data=TrainingData(settings, rank=engine.rank, world=engine.world),
    )
    held_out = [engine.to_device(batch) for batch in held_out_batches(settings, rank=engine.rank, world=engine.world)]
    resume(state, settings, engine)
    if engine.rank == 0:
        check_run_folder(run)
        write_text(run / SETTINGS_FILE, to_yaml(settings), guard=False)

    groups = loop.batch_groups * loop.accumulate * engine.world
    watch = Watch(run, step=state.step, steps=loop.steps, engine=engine, groups_per_step=groups)
    deadline = time.monotonic() + loop.max_minutes * 60 if loop.max_minutes else math.inf
    saved = state.step
    batches = iter(state.data)
    with StopSignals() as stop:
        while state.step < loop.steps and not engine.any(stop.asked or time.monotonic() >= deadline):
            for group in state.optimiser.param_groups:
                group["lr"] = loop.learning_rate * learning_rate_factor(state.step, loop)
            used: list[Batch] = []
            finite = torch.ones((), dtype=torch.bool, device=engine.device)
            for part in range(loop.accumulate):
                with watch.waiting():
                    used.append(engine.to_device(next(batches)))
                with engine.no_sync(module, part < loop.accumulate - 1):
                    loss, figures = module("loss", used[-1], state.step)
                    engine.backward(loss / loop.accumulate, module)
                finite &= loss.isfinite()
                watch.add(loss, figures)
            norm = clip_gradients(stage.model, loop.clip_norm)
            # Before the step: weights that are no longer finite tell nothing.
            if engine.any(not bool(finite & norm.isfinite())):
                raise OcditError(_save_what_broke(run, state, used, loss, engine))
            state.optimiser.step()
            state.optimiser.zero_grad(set_to_none=True)
            state.step += 1
            state.average.update(state.step)
            watch.stepped()

            last = state.step == loop.steps
            if state.step % loop.log_every == 0 or last:
                rate = state.optimiser.param_groups[0]["lr"]
                watch.write(state.step, gradient_norm=float(norm), learning_rate=float(rate))
            if held_out and (state.step % loop.validate_every == 0 or last):
                watch.validated(state.step, *validate(module, state.average, held_out, loop, engine))
            if state.step % loop.checkpoint_every == 0 or last:
                saved = save(state, settings, stage, module, held_out, engine)
        if saved != state.step:
            save(state, settings, stage, module, held_out, engine)
    watch.close()
    if stop.requeue and loop.requeue and state.step < loop.steps and engine.rank == 0:
        requeue_job()
    return state.step


def make_optimiser(model: nn.Module, loop: LoopSettings) -> AdamW:
    """Return AdamW over what learns, as one fused kernel where torch has it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return AdamW(parameters, lr=loop.learning_rate, weight_decay=loop.weight_decay, fused=fused)


def learning_rate_factor(step: int, loop: LoopSettings) -> float:
    """Return the share of the learning rate in step `step`: linear warm-up, then a cosine to final_learning_rate."""
    if step < loop.warmup_steps:
        return (step + 1) / loop.warmup_steps
    progress = min((step - loop.warmup_steps) / max(loop.steps - loop.warmup_steps, 1), 1.0)
    return loop.final_learning_rate + (1 - loop.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def clip_gradients(model: nn.Module, most: float) -> Tensor:
    """Scale the gradients down to the norm `most` and return the norm that they had, over all shards."""
    norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], most)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


@torch.no_grad()
def validate(
    module: nn.Module, average: WeightAverage, held_out: list[Batch], loop: LoopSettings, engine: Engine
) -> tuple[dict[str, float], list[Picture]]:
    """Return figures over all processes' held-out batches, and pictures of the first one, with the averaged weights."""
    module.eval()
    with average.swapped():
        results = [result for batch in held_out for result in module("validate", batch)]
        pictures = module("pictures", held_out[0], loop.pictures) if loop.pictures else []
    module.train()
    return summarise([result for part in engine.gather(results) for result in part]), pictures


@torch.no_grad()
def save(
    state: TrainingState,
    settings: TrainSettings,
    stage: Stage,
    module: nn.Module,
    held_out: list[Batch],
    engine: Engine,
) -> int:
    """Write a checkpoint and the exported model, and return the step; every process must call it."""
    module.eval()
    with state.average.swapped():
        module("finish", held_out)
    module.train()
    captured = state.capture(engine)
    if engine.rank == 0:
        run = Path(settings.run)
        checkpoints.save(run / checkpoints.FOLDER, state.step, captured, settings.loop.keep_checkpoints)
        write_model(run / MODEL_FOLDER, stage.model.config, captured)
    return state.step


def check_run_folder(run: Path) -> None:
    """Check that a folder is new, empty or a training run's, whose files may be replaced.

    Raises:
        ConfigError: it holds something else under the names that a run uses.
    """
    if (run / SETTINGS_FILE).exists():
        if not {"stage", "loop"} <= read_yaml(run / SETTINGS_FILE).keys():
            raise ConfigError(f"{run / SETTINGS_FILE}: is not of a training run; choose another run folder")
        return
    others = [name for name in (LOG_FILE, checkpoints.FOLDER, MODEL_FOLDER, "tensorboard") if (run / name).exists()]
    if others:
        raise ConfigError(f"{run}: holds {', '.join(others)} but no {SETTINGS_FILE}; choose another run folder")


def resume(state: TrainingState, settings: TrainSettings, engine: Engine) -> None:
    """Go on from the checkpoint that the settings ask for, if there is one.

    Raises:
        ConfigError: `resume: never` and the folder has checkpoints, or processes see different ones.
        WeightsError: the checkpoint asked for is missing or damaged, or does not fit.
    """
    run = Path(settings.run)
    found: dict[str, Any] | None
    if settings.resume == "never":
        if checkpoints.listed(run / checkpoints.FOLDER):
            raise ConfigError(f"resume: never, but {run} holds checkpoints; remove it or name another run")
        return
    if settings.resume == "auto":
        source, found = run, checkpoints.load_newest(run / checkpoints.FOLDER)
    else:
        source = Path(settings.resume)
        found = checkpoints.find(source) if source.is_dir() else checkpoints.load(source)
    steps = engine.gather(found["step"] if found else 0)
    if len(set(steps)) > 1:
        raise ConfigError(f"run: processes see {run} at steps {steps}; it has to be on a file system that all share")
    if found is None:
        return
    state.restore(found, engine, str(source))
    logger.info("resumed %s at step %d", source, state.step)
    changed = _changed_settings(run / SETTINGS_FILE, settings)
    if changed and engine.rank == 0:
        logger.warning("settings changed since: %s", ", ".join(changed))


def _changed_settings(path: Path, settings: TrainSettings) -> list[str]:
    try:
        before = as_dict(build(TrainSettings, read_yaml(path)))
    except ConfigError:
        return []
    return _differences(before, as_dict(settings))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(f"{prefix}{key}: {old} -> {new}")
    return names


def _save_what_broke(run: Path, state: TrainingState, batches: list[Batch], loss: Tensor, engine: Engine) -> str:
    """Write the step's batches and the weights it met, and return the error's text; every process calls it."""
    weights = state.whole_model()
    name = f"nan_batch_{state.step}" + (f"_rank{engine.rank}" if engine.rank else "")
    content = {
        "step": state.step,
        "loss": float(loss.detach()),
        "batches": batches,
        "model": weights if engine.rank == 0 else {},
    }
    path = run / f"{name}.pt"
    with replacing(path, guard=False) as temporary:
        torch.save(content, temporary)
    return (
        f"step {state.step}: the loss ({float(loss)}) or its gradient is not finite; the batch and the weights are in "
        f"{path}; a lower loop.learning_rate may help"
    )
