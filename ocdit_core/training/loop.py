"""The training loop: any stage, in one process or several, resumed exactly where it was interrupted."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ocdit_core.config import read_yaml, to_yaml
from ocdit_core.errors import ConfigError, OcditError, WeightsError
from ocdit_core.files import is_own, replacing, write_text
from ocdit_core.models.checkpoints import write_checkpoint
from ocdit_core.models.mask_vae import MaskVAE
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.training.checkpoints import (
    FOLDER,
    TrainingState,
    WeightAverage,
    find_checkpoint,
    list_checkpoints,
    read_rank,
    read_weights,
    require_intact,
)
from ocdit_core.training.data import REQUEUE_SIGNALS, STOP_SIGNALS, Batch, TrainingData, held_out_batches
from ocdit_core.training.distributed import FabricModule, Runtime
from ocdit_core.training.export import MODEL_FOLDER
from ocdit_core.training.logger import LOG_FILE, MetricsLogger
from ocdit_core.training.settings import SETTINGS_FILE, LoopSettings, TrainSettings
from ocdit_core.training.validation import MaskResult, summarise

logger = logging.getLogger(__name__)

CLIP_NORM = 1.0
"""Maximum norm of the gradients."""
FINAL_LEARNING_RATE = 0.01
"""Learning rate of the last step, as a fraction of the highest one."""
_LOG_LINES, _LOG_EVERY = 1000, 20  # log lines of a run, and the most steps between two of them
_DRAWN_IMAGES = 4  # of each validation
_MOST_SKIPPED = 10  # steps in a row whose gradients are not finite, after which a run ends


class Stage(Protocol):
    """A model in training. Its methods are called through the module that `Runtime.setup` returns."""

    @property
    def model(self) -> OCDiT | MaskVAE:
        """Model that is trained, averaged and saved."""

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and values to log: its parts, and optionally `sigma` and `error` of each noise level."""

    def validate(self, batch: Batch) -> list[MaskResult]:
        """Return the results for a held-out batch."""

    def draw(self, batch: Batch, count: int) -> dict[str, np.ndarray]:
        """Return drawings of the first images of a held-out batch, (H, W, 3) uint8 RGB by name."""

    def finish(self, batches: list[Batch]) -> None:
        """Complete the model for export, using held-out batches."""


def train(settings: TrainSettings, stage: Stage, runtime: Runtime) -> int:
    """Train a stage to its last step, or until a signal stops it, and return the number of finished steps.

    Checkpoints, logs and the exported model are written to the folder `settings.run`.

    Raises:
        OcditError: the loss stays non-finite, or the data, the run's folder or a checkpoint cannot be used.
    """
    loop, run = settings.loop, Path(settings.run)
    module = runtime.setup(stage.model)
    state = begin(settings, stage, runtime)
    held_out = [
        runtime.to_device(batch) for batch in held_out_batches(settings, rank=runtime.rank, world=runtime.world)
    ]
    resume(state, settings, runtime)
    if runtime.rank == 0:
        new = _check_run_folder(run)
        write_text(run / SETTINGS_FILE, to_yaml(settings), guard=new)

    log = MetricsLogger(settings, step=state.step, runtime=runtime)
    saved = state.step
    log_every = min(max(loop.steps // _LOG_LINES, 1), _LOG_EVERY)
    skipped, in_a_row = torch.zeros(2, device=runtime.device)
    batches = iter(state.data)
    with _StopSignals() as stop:
        while state.step < loop.steps and not runtime.any(stop.received):
            used: list[Batch] = []
            for _ in range(loop.accumulate):
                with log.waiting():
                    used.append(runtime.to_device(next(batches)))
            values, norm, finite = training_step(state, settings, stage, module, used, runtime)
            skipped, in_a_row = skipped + ~finite, (in_a_row + 1) * ~finite
            for one in values:
                log.add(one)
            log.step()

            last = state.step == loop.steps
            if state.step % log_every == 0 or last:
                rate = float(state.optimiser.param_groups[0]["lr"])
                log.write(state.step, gradient_norm=float(norm), learning_rate=rate, skipped_steps=int(skipped))
                if in_a_row >= _MOST_SKIPPED:
                    save(state, settings, stage, module, held_out, runtime)
                    raise OcditError(_save_batches(run, state.step, used, runtime.rank))
                skipped = torch.zeros_like(skipped)
            if held_out and (state.step % loop.validate_every == 0 or last):
                log.write_validation(state.step, *validate(state, stage, module, held_out, runtime))
            if state.step % loop.checkpoint_every == 0 or last:
                save(state, settings, stage, module, held_out, runtime)
                saved = state.step
        if saved != state.step:
            save(state, settings, stage, module, held_out, runtime)
    log.close()
    if stop.requeue is not None and state.step < loop.steps:
        if callable(signal.getsignal(stop.requeue)):
            signal.raise_signal(stop.requeue)  # to the launcher's handler, such as submitit's, which requeues the job
        elif runtime.rank == 0:
            _requeue_job()
    return state.step


def begin(settings: TrainSettings, stage: Stage, runtime: Runtime) -> TrainingState:
    """Return the state of a new run; the model must be set up already."""
    return TrainingState(
        model=stage.model,
        average=WeightAverage(stage.model, settings.loop.ema_decay),
        optimiser=_make_optimiser(stage.model, settings.loop.learning_rate),
        data=TrainingData(settings, rank=runtime.rank, world=runtime.world),
    )


def training_step(
    state: TrainingState,
    settings: TrainSettings,
    stage: Stage,
    module: FabricModule,
    batches: Sequence[Batch],
    runtime: Runtime,
) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    """Take one optimiser step, without waiting for the device.

    If the gradient is not finite, the device skips the update of the weights.

    Args:
        state: state of the run, changed in place.
        settings: settings of the run.
        stage: stage in training.
        module: the stage's model, set up.
        batches: batches on the device, whose gradients are averaged.
        runtime: processes of the run.

    Returns:
        The loss and other values of each batch, the norm of the gradient, and whether it is finite.
    """
    loop = settings.loop
    for group in state.optimiser.param_groups:
        group["lr"] = loop.learning_rate * learning_rate_factor(state.step, loop)
    # Running statistics, which the forward pass changes.
    buffers = [buffer for buffer in stage.model.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in buffers]
    values = []
    for number, batch in enumerate(batches, start=1):
        with runtime.no_sync(module, number < len(batches)):
            loss, parts = module(stage.loss, batch, state.step)
            runtime.backward(loss / len(batches), module)
        values.append({"loss": loss.detach(), **parts})
    runtime.scaler.unscale_(state.optimiser)
    norm = nn.utils.clip_grad_norm_([p for p in stage.model.parameters() if p.requires_grad], CLIP_NORM)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    finite = norm.isfinite()
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(finite, buffer, old))
    # The fused kernel leaves weights and moments unchanged if this is 1, as for torch.amp.GradScaler.
    state.optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
    state.optimiser.step()
    runtime.scaler.update()
    state.optimiser.zero_grad(set_to_none=True)
    state.step += 1
    state.average.update(state.step)
    return values, norm, finite


def _make_optimiser(model: nn.Module, learning_rate: float) -> AdamW:
    """Return AdamW over the trainable weights, with its state: weights without a gradient so far are saved, too."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    optimiser.grad_scale = None  # type: ignore[attr-defined]
    for parameter in parameters:
        moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    return optimiser


def learning_rate_factor(step: int, loop: LoopSettings) -> float:
    """Return the factor of the learning rate in a step: warm-up, constant, then a cosine to FINAL_LEARNING_RATE."""
    if step < loop.warmup_steps:
        return (step + 1) / loop.warmup_steps
    start = max(loop.warmup_steps, loop.decay_from * loop.steps)
    progress = min(max(step - start, 0) / max(loop.steps - start, 1), 1.0)
    return FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def validate(
    state: TrainingState, stage: Stage, module: FabricModule, held_out: list[Batch], runtime: Runtime
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the metrics of the averaged weights on all processes' held-out batches, and drawings of the first one."""
    module.eval()
    with state.average.swapped():
        results = [result for batch in held_out for result in module(stage.validate, batch)]
        images = module(stage.draw, held_out[0], _DRAWN_IMAGES)
    module.train()
    return summarise([result for part in runtime.gather(results) for result in part]), images


@torch.no_grad()
def save(
    state: TrainingState,
    settings: TrainSettings,
    stage: Stage,
    module: FabricModule,
    held_out: list[Batch],
    runtime: Runtime,
) -> None:
    """Write a checkpoint and the exported model; every process must call it."""
    module.eval()
    with state.average.swapped():
        module(stage.finish, held_out)
    module.train()
    run = Path(settings.run)
    path = state.save(run / FOLDER, runtime)
    if runtime.rank == 0:
        half = isinstance(stage.model, OCDiT)  # other stages train with a VAE's weights
        write_checkpoint(run / MODEL_FOLDER, stage.model.config, read_weights(path), half=half, guard=False)


def _check_run_folder(run: Path) -> bool:
    """Return whether a run is new: its folder is that of an earlier run, or holds nothing under the names it uses.

    Raises:
        ConfigError: it holds something else under these names.
    """
    path = run / SETTINGS_FILE
    if path.exists() and not {"stage", "loop"} <= read_yaml(path).keys():
        raise ConfigError(f"{path}: is not of a training run; choose another run folder")
    # Settings that --print-config wrote there are the user's: only a run lists them, or has checkpoints beside them.
    if is_own(path, changed=True) or (path.exists() and list_checkpoints(run / FOLDER)):
        return False
    names = (SETTINGS_FILE, LOG_FILE, FOLDER, MODEL_FOLDER, "tensorboard")
    if others := [name for name in names if (run / name).exists()]:
        raise ConfigError(f"{run}: holds {', '.join(others)} that no earlier run wrote; choose another run folder")
    return True


def resume(state: TrainingState, settings: TrainSettings, runtime: Runtime) -> None:
    """Load the checkpoint that the settings ask for, if there is one.

    Raises:
        ConfigError: `resume: never` and the folder has checkpoints, or processes see different ones.
        WeightsError: the checkpoint is missing, damaged, or of another model.
    """
    run = Path(settings.run)
    exists = bool(list_checkpoints(run / FOLDER))
    path: Path | None = None
    if settings.resume == "never" and exists:
        raise ConfigError(f"resume: never, but {run} holds checkpoints; remove it or name another run")
    if settings.resume == "auto":
        path = find_checkpoint(run) if exists else None
    elif settings.resume != "never":
        path = Path(settings.resume)
        if not path.is_dir():
            raise WeightsError(f"resume: {path}: no such checkpoint")
        if (path / FOLDER).is_dir():
            path = find_checkpoint(path)
        require_intact(path)
    steps = runtime.gather(read_rank(path, 0)["step"] if path is not None else 0)
    if len(set(steps)) > 1:
        raise ConfigError(f"run: processes see {run} at steps {steps}; it must be on a file system that all share")
    if path is None:
        return
    state.load(path, runtime)
    logger.info("resumed %s", path)


def _save_batches(run: Path, step: int, batches: Sequence[Batch], rank: int) -> str:
    """Write the last batches of a run whose gradients are no longer finite, and return the error's text."""
    path = run / (f"nan_batch_{step}" + (f"_rank{rank}" if rank else "") + ".pt")
    with replacing(path) as temporary:
        torch.save({"step": step, "batches": list(batches)}, temporary)
    return (
        f"step {step}: the gradient has not been finite for {_MOST_SKIPPED} steps or more, which did not change the "
        f"weights; the last batch is in {path}; try a lower loop.learning_rate"
    )


class _StopSignals:
    """Note SIGTERM, SIGINT, SIGUSR1 and SIGUSR2, so that the current step ends and is saved.

    A second signal of the same kind ends the program at once.
    """

    def __init__(self) -> None:
        self.received = False
        self.requeue: int | None = None

    def __enter__(self) -> _StopSignals:
        self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if number in REQUEUE_SIGNALS:
            self.requeue = number
        signal.signal(number, signal.SIG_DFL)


def _requeue_job() -> None:
    """Requeue this SLURM job, if it is one; a failure is logged."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        logger.error("scontrol requeue %s failed: %s; submit the job again", job, str(detail).strip())
    else:
        logger.info("requeued SLURM job %s", job)
