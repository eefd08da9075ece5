"""Where the time of a training step goes: data, backbone, the rest of the network, optimiser.

    python benchmarks/training_step.py [--config config/train/tiny_coarse.yaml] [--steps 30] [key=value ...]

The default is the embedded model at its own settings, on the CPU with its own number of threads and loader workers.
The VAE is a fresh one; its weights change nothing in the time. A backward pass is the backbone's from the moment that
the first gradient arrives at its output: it is the last thing that is computed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ocdit_core.config import apply_overrides, build, read_yaml
from ocdit_core.models.mask_vae import MaskVAE
from ocdit_core.training.average import WeightAverage
from ocdit_core.training.data import TrainingData
from ocdit_core.training.diffusion import DiffusionStage
from ocdit_core.training.engine import Engine
from ocdit_core.training.export import write_model
from ocdit_core.training.loop import clip_gradients, make_optimiser
from ocdit_core.training.settings import TrainSettings
from ocdit_core.training.watch import peak_memory

WARM_UP = 5
PARTS = ("data", "backbone", "denoiser and prior", "optimiser and average")


class BackboneClock:
    """Adds up the seconds that a backbone takes, forward and backward."""

    def __init__(self, backbone: nn.Module):
        self.seconds = 0.0
        self.reached: float | None = None
        self._started = 0.0
        # Both kinds keep their layers in one child, whichever method is asked for features.
        (layers,) = backbone.children()
        layers.register_forward_pre_hook(lambda *_: self._start())
        layers.register_forward_hook(lambda _, __, output: self._stop(output))

    def _start(self) -> None:
        self._started = _now()

    def _stop(self, output: Any) -> None:
        self.seconds += _now() - self._started
        features = output if isinstance(output, torch.Tensor) else output[0]
        if features.requires_grad:
            features.register_hook(self._arrived)

    def _arrived(self, gradient: torch.Tensor) -> None:
        self.reached = self.reached or _now()

    def finished(self) -> float:
        """Seconds since the last call; the backward pass has just ended."""
        seconds = self.seconds + (_now() - self.reached if self.reached else 0.0)
        self.seconds, self.reached = 0.0, None
        return seconds


def main() -> int:
    """Measure and print the split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/train/tiny_coarse.yaml"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    values = apply_overrides(read_yaml(options.config), options.overrides)
    with tempfile.TemporaryDirectory() as folder:
        plain = build(TrainSettings, values)
        vae = MaskVAE(plain.model.vae, plain.model.sigma_data)
        write_model(Path(folder), vae.config, {"model": vae.state_dict(), "average": {}})
        settings = build(TrainSettings, apply_overrides(values, [f"vae={folder}", "init=null"]))
        stage = DiffusionStage(settings)
    loop = settings.loop
    engine = Engine(loop)
    module = engine.setup(stage)
    clock = BackboneClock(stage.model.backbone)
    optimiser, average = make_optimiser(stage.model, loop), WeightAverage(stage.model, loop.ema_decay)
    batches = iter(TrainingData(settings))
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    for step in range(WARM_UP + options.steps):
        started = _now()
        batch = engine.to_device(next(batches))
        loaded = _now()
        loss, _ = module("loss", batch, settings.diffusion_loss.prior_only_steps)
        engine.backward(loss, module)
        learned = _now()
        backbone = clock.finished()
        clip_gradients(stage.model, loop.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(step + 1)
        if step >= WARM_UP:
            spent = (loaded - started, backbone, learned - loaded - backbone, _now() - learned)
            for name, seconds in zip(PARTS, spent, strict=True):
                times[name].append(seconds)

    means = {name: statistics.fmean(seconds) for name, seconds in times.items()}
    whole = sum(means.values())
    samples = loop.batch_groups * batch["images"].shape[1]
    print(f"{options.config}: {options.steps} steps of {samples} pictures on {engine.device}")
    for name, mean in means.items():
        print(f"{name:24s} {1000 * mean:8.1f} ms  {100 * mean / whole:5.1f}%")
    network = means["backbone"] + means["denoiser and prior"]
    print(f"{'step':24s} {1000 * whole:8.1f} ms  {samples / whole:.1f} pictures/s")
    print(f"{'network':24s} {1000 * network:8.1f} ms  {100 * network / whole:5.1f}%")
    print(f"peak memory {peak_memory() / 2**30:.2f} GiB")
    return 0


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
