"""Metrics of a run: TensorBoard, a JSONL file with the same values for programs, and optionally Weights & Biases."""

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ocdit_core.config import as_dict
from ocdit_core.errors import ConfigError
from ocdit_core.files import write_text
from ocdit_core.training.distributed import Runtime
from ocdit_core.training.settings import TrainSettings

LOG_FILE = "log.jsonl"
_BY_LEVEL = ("sigma", "error")  # values per sample, which are logged by noise level
_EDGES = np.geomspace(0.002, 80, 9)


class MetricsLogger:
    """Collects the values of every step and writes their means at intervals; only rank 0 writes.

    Values stay on the device until they are written.

    Args:
        settings: settings of the run.
        step: first step; values that an interrupted run logged after it are dropped.
        runtime: processes of the run.
    """

    def __init__(self, settings: TrainSettings, *, step: int, runtime: Runtime):
        loop, run = settings.loop, Path(settings.run)
        self._runtime, self._episodes = runtime, loop.batch_groups * loop.accumulate * runtime.world
        self._log = run / LOG_FILE
        self._writer: SummaryWriter | None = None
        self._wandb: Any = None
        if runtime.rank == 0:
            lines = read_log(run)
            kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
            write_text(self._log, kept, guard=False)
            self._writer = SummaryWriter(run / "tensorboard", purge_step=step + 1 if step else None)
            self._wandb = _open_wandb(settings) if loop.wandb else None
        self._bar = tqdm(
            total=loop.steps, initial=step, desc=run.name, unit="step", mininterval=2, disable=runtime.rank > 0
        )
        self._reset()

    def _reset(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as waiting for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the values of a batch."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def step(self) -> None:
        """Count a step."""
        self._steps += 1
        self._bar.update()

    def write(self, step: int, **more: float) -> None:
        """Write the means over all processes since the last call; every process must call it."""
        levels = {name: _flat(self._values.pop(name)) for name in _BY_LEVEL if name in self._values}
        means = {name: _finite_mean(values) for name, values in self._values.items()}
        seconds = max(time.monotonic() - self._since, 1e-9)
        scalars = self._runtime.mean({**means, "data_wait_share": self._waited / seconds})
        scalars |= more
        scalars["groups_per_second"] = self._episodes * self._steps / seconds
        scalars["memory_gib"] = peak_memory() / 2**30
        if levels:
            scalars |= _error_by_level(levels["sigma"], levels["error"])
        self._put("train", scalars, step)
        if self._writer is not None:
            if levels:
                self._writer.add_histogram("train/log10_sigma", np.log10(levels["sigma"]), step)
            self._bar.set_postfix({name: f"{scalars[name]:.3f}" for name in means})
        self._reset()

    def write_validation(self, step: int, metrics: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Write the metrics of a validation and (H, W, 3) uint8 RGB images by name."""
        # The time of the validation is not counted for training.
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0
        self._put("validation", metrics, step)
        if self._writer is not None:
            for name, image in images.items():
                self._writer.add_image(f"validation/{name}", image, step, dataformats="HWC")
            tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        if self._wandb is not None:
            import wandb

            self._wandb.log({f"validation/{name}": wandb.Image(image) for name, image in images.items()}, step=step)

    def _put(self, group: str, scalars: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            return
        named = {f"{group}/{name}": value for name, value in scalars.items()}
        for name, value in named.items():
            self._writer.add_scalar(name, value, step)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **named}) + "\n")
        if self._wandb is not None:
            self._wandb.log(named, step=step)

    def close(self) -> None:
        """Flush and close all outputs."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's JSONL log; a last line that a crash has cut off is skipped."""
    lines = []
    path = run / LOG_FILE
    for text in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def peak_memory() -> int:
    """Return the peak memory of this process in bytes: of the GPU if it uses one, else of main memory."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _open_wandb(settings: TrainSettings) -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError("loop.wandb: needs the package wandb: pip install wandb") from None
    run = Path(settings.run)
    logging.getLogger("wandb").setLevel(logging.WARNING)
    # A fixed id: a resumed run continues its own curves.
    run_id = run.resolve().as_posix().strip("/").replace("/", "-")[-64:]
    return wandb.init(
        project=settings.loop.wandb, name=run.name, id=run_id, resume="allow", dir=run, config=as_dict(settings)
    )


def _finite_mean(values: list[Tensor]) -> float:
    """Return the mean of the finite values; NaN without any."""
    stacked = torch.stack(values).float()
    return float(stacked[stacked.isfinite()].mean())


def _flat(values: list[Tensor]) -> np.ndarray:
    return torch.cat([value.flatten() for value in values]).float().cpu().numpy()


def _error_by_level(sigma: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """Return the mean weighted squared error in each bin of noise levels that is not empty."""
    bins = np.clip(np.digitize(sigma, _EDGES) - 1, 0, len(_EDGES) - 2)
    means = {}
    for i in np.unique(bins):
        mean = float(error[bins == i].mean())
        if math.isfinite(mean):
            means[f"error_sigma_{_EDGES[i]:.3g}_to_{_EDGES[i + 1]:.3g}"] = mean
    return means
