"""What a run tells about itself: TensorBoard, and log.jsonl with the same figures for programs."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ocdit_core.files import write_text
from ocdit_core.training.engine import Engine
from ocdit_core.training.log import LOG_FILE, read_log
from ocdit_core.training.stage import Picture

# Per-sample figures, which are shown by noise level.
_BY_LEVEL = ("sigma", "error")
_EDGES = np.geomspace(0.002, 80, 9)


class Watch:
    """Collects figures of every batch and writes their means now and then; only the first process writes.

    Args:
        run: folder of the run.
        step: that the run starts at; what was logged after it, by a run that was killed, is dropped.
        steps: of the whole run.
        engine: all processes log together.
        groups_per_step: of all processes.
    """

    def __init__(self, run: Path, *, step: int, steps: int, engine: Engine, groups_per_step: int):
        self._engine, self._groups = engine, groups_per_step
        self._log = run / LOG_FILE
        self._writer: SummaryWriter | None = None
        if engine.rank == 0:
            lines = read_log(run)
            write_text(
                self._log, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step), guard=False
            )
            self._writer = SummaryWriter(run / "tensorboard", purge_step=step + 1 if step else None)
        self._bar = tqdm(total=steps, initial=step, desc=run.name, unit="step", mininterval=2, disable=engine.rank > 0)
        self._forget()

    def _forget(self) -> None:
        self._figures: dict[str, list[Tensor]] = {}
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time inside as waiting for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    def add(self, loss: Tensor, figures: dict[str, Tensor]) -> None:
        """Take in one batch's loss and figures; they are read only when they are written: a GPU need not wait."""
        for name, value in {"loss": loss.detach(), **figures}.items():
            self._figures.setdefault(name, []).append(value)

    def stepped(self) -> None:
        """Count a step."""
        self._steps += 1
        self._bar.update()

    def write(self, step: int, **more: float) -> None:
        """Write the means since the last time, over all processes; every process must call it."""
        levels = {name: _flat(self._figures.pop(name)) for name in _BY_LEVEL if name in self._figures}
        means = {name: float(torch.stack(values).mean()) for name, values in self._figures.items()}
        seconds = max(time.monotonic() - self._since, 1e-9)
        scalars = self._engine.mean({**means, "data_wait_share": self._waited / seconds})
        scalars |= more
        scalars["groups_per_second"] = self._groups * self._steps / seconds
        scalars["memory_gib"] = peak_memory() / 2**30
        if levels:
            scalars |= _error_by_level(levels["sigma"], levels["error"])
        if self._writer is not None:
            self._put("train", scalars, step)
            if levels:
                self._writer.add_histogram("train/log10_sigma", np.log10(levels["sigma"]), step)
            self._bar.set_postfix({name: f"{scalars[name]:.3f}" for name in means})
        self._forget()

    def validated(self, step: int, figures: dict[str, float], pictures: Sequence[Picture]) -> None:
        """Write a validation's figures and pictures."""
        # The time it took is not training's.
        self._since, self._waited, self._steps = time.monotonic(), 0.0, 0
        if self._writer is None:
            return
        self._put("validation", figures, step)
        for picture in pictures:
            self._writer.add_image(f"validation/{picture.name}", picture.pixels, step, dataformats="HWC")
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))

    def say(self, text: str) -> None:
        """Print a line beside the progress bar, in the first process."""
        if self._writer is not None:
            tqdm.write(text)

    def _put(self, group: str, scalars: dict[str, float], step: int) -> None:
        assert self._writer is not None
        for name, value in scalars.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{f"{group}/{name}": v for name, v in scalars.items()}}) + "\n")

    def close(self) -> None:
        """Finish writing."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()


def peak_memory() -> int:
    """Return the most bytes this process has held: of the GPU where there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _flat(values: list[Tensor]) -> np.ndarray:
    return torch.cat([value.flatten() for value in values]).float().cpu().numpy()


def _error_by_level(sigma: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """The weighted squared error in each bin of noise levels that has any."""
    bins = np.clip(np.digitize(sigma, _EDGES) - 1, 0, len(_EDGES) - 2)
    figures = {}
    for i in np.unique(bins):
        mean = float(error[bins == i].mean())
        if math.isfinite(mean):
            figures[f"error_sigma_{_EDGES[i]:.3g}_to_{_EDGES[i + 1]:.3g}"] = mean
    return figures
