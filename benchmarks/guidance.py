#!/usr/bin/env python3
"""Does representation entanglement pay, and does guidance? Trains and measures the cells of docs/training.md.

    python benchmarks/guidance.py train --data data/rooms/train --library data/rooms/templates --out runs/guidance
    python benchmarks/guidance.py measure --out runs/guidance --dataset data/val_procedural data/val_meshes

Only the denoiser is trained, on features of a few hundred images that are computed once; backbone, mask VAE and
matching prior are the embedded model's, frozen. A run that is interrupted continues with the next cell.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocdit_core.config import build, read_yaml
from ocdit_core.inference.settings import find_weights
from ocdit_core.models.checkpoints import CONFIG_FILE
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet, TemplateFeatures
from ocdit_core.training.checkpoints import WeightAverage
from ocdit_core.training.data import Batch, TrainingData
from ocdit_core.training.diffusion_stage import DiffusionStage
from ocdit_core.training.loop import CLIP_NORM, _make_optimiser, learning_rate_factor
from ocdit_core.training.settings import TrainSettings

MODEL = "ocdit-small"
# Parts of representation entanglement, and whether the denoiser starts from the embedded model's weights.
CELLS: dict[str, tuple[tuple[str, ...], bool]] = {
    "neither": ((), False),
    "projection": (("projection",), False),
    "token": (("presence_token",), False),
    "both": (("projection", "presence_token"), False),
    "tuned": ((), True),
    "tuned, both": (("projection", "presence_token"), True),
}
DROPPED = 0.2  # probability of dropping the templates
SIZE = (128, 192)  # of the training crops
NEW_EPOCH = 1_000_000  # added to the numbers of episodes, for other noise


def settings_of(cell: str, seed: int, options: argparse.Namespace) -> TrainSettings:
    """Return the settings of a run."""
    parts, tuned = CELLS[cell]
    model = read_yaml(find_weights(MODEL) / CONFIG_FILE)
    # The learned positions are interpolated from those of the embedded model's grid.
    model |= {"grid": [side // 16 for side in model["image_size"]], "image_size": list(SIZE)}
    if parts:
        model["denoiser"]["representation"] = {name: name in parts for name in ("projection", "presence_token")}
    values: dict[str, Any] = {
        "stage": "coarse",
        "run": str(options.out / f"{cell} {seed}"),
        "init": str(find_weights(MODEL)),
        "model": model,
        "data": {
            "datasets": [{"path": str(options.data), "library": str(options.library)}],
            "sample": {"objects": 4, "views": 4, "crops": 2, "absent_probability": 0.25, "crop_scale": [0.35, 0.95]},
        },
        "diffusion_loss": {"high_noise_share": 0.5, "min_targets": 4, "drop_templates": DROPPED},
        "loop": {
            "steps": options.steps,
            "batch_groups": 1,
            "learning_rate": 3e-4 if tuned else 1e-3,
            "warmup_steps": 20,
            "ema_decay": 0.98,
            "workers": 0,
            "seed": seed,
        },
    }
    return build(TrainSettings, values)


class Cached(DiffusionStage):
    """A stage whose batches carry the features and the matching prior's maps."""

    def __init__(self, settings: TrainSettings, source: OCDiT, *, tuned: bool):
        self.settings, self.seed, self.cache = settings.diffusion_loss, settings.loop.seed, None
        torch.manual_seed(settings.loop.seed)
        self.model = OCDiT(settings.model)
        state = source.state_dict()
        if not tuned:
            state = {key: value for key, value in state.items() if not key.startswith("denoiser.")}
        self.model.load_state_dict(state, strict=False)
        for part in (self.model.backbone, self.model.vae, self.model.prior):
            part.requires_grad_(False)
        self.model.match = self.match  # type: ignore[method-assign]
        self.model.encode_masks = lambda masks: self._now["latents"]  # type: ignore[method-assign]
        self._now: dict[str, Any] = {}

    def use(self, cached: dict[str, Any]) -> None:
        """Take the features of a batch from here."""
        self._now = cached

    def encode(self, batch: Batch) -> tuple[ImageFeatures, TemplateFeatures]:
        """See `DiffusionStage`."""
        return self._now["image"], self._now["templates"]

    def match(self, image: ImageFeatures, targets: TargetSet) -> Any:
        """See `OCDiT`."""
        return self._now["match"]

    def presence(self, batch: Batch, masks: Tensor) -> Tensor | None:
        """See `DiffusionStage`."""
        return self._now["clean"] if self.model.denoiser.presence is not None else None


@torch.no_grad()
def make_pool(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Return batches with their features, and mean and variance of the global features of present targets."""
    stage = DiffusionStage(settings_of("tuned", 0, options))
    stage.model.eval()
    pool = []
    for batch in itertools.islice(TrainingData(settings_of("tuned", 0, options)), options.batches):
        # In the order of the objects in the batch, all of them: `choose_targets` shuffles.
        image, templates = stage.encode(batch)
        targets = stage.model.encode_targets(templates)
        masks = batch["masks"].flatten(0, 1).float()
        pool.append(
            {
                "batch": batch,
                "image": ImageFeatures(features=image.features),
                "templates": TemplateFeatures(features=templates.features),
                "match": stage.model.match(image, targets),
                "latents": stage.model.encode_masks(masks),
                "clean": stage.model.target_features(batch["images"].flatten(0, 1).float() / 255, masks),
                "there": masks.flatten(2).any(2),
            }
        )
    seen = torch.cat([one["clean"][one["there"]] for one in pool])
    return pool, seen.mean(0), seen.var(0)


def train(options: argparse.Namespace) -> None:
    """Train every cell that is not finished, seed by seed."""
    import ocdit_core.training.diffusion_stage as module

    module.choose_targets = lambda batch, *_: batch
    source = OCDiT.from_pretrained(find_weights(MODEL))
    began = time.time()
    pool, mean, variance = make_pool(options)
    print(f"{len(pool)} batches in {time.time() - began:.0f} s", flush=True)
    for seed, cell in itertools.product(range(options.seeds), CELLS):
        run = Path(settings_of(cell, seed, options).run)
        if (run / f"step_{options.steps}" / CONFIG_FILE).is_file():
            continue
        began = time.time()
        losses = run_cell(cell, seed, pool, mean, variance, source, options)
        run.mkdir(parents=True, exist_ok=True)
        (run / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
        last = {name: float(np.mean([row[name] for row in losses[-50:] if name in row])) for name in losses[-1]}
        print(f"{run.name}: {time.time() - began:.0f} s, last 50 steps {last}", flush=True)


def run_cell(
    cell: str,
    seed: int,
    pool: list[dict[str, Any]],
    mean: Tensor,
    variance: Tensor,
    source: OCDiT,
    options: argparse.Namespace,
) -> list[dict[str, float]]:
    """Train one cell, write its averaged weights at each quarter of the steps, and return the losses of each step."""
    settings = settings_of(cell, seed, options)
    loop = settings.loop
    stage = Cached(settings, source, tuned=CELLS[cell][1])
    stage.model.train()
    if (token := stage.model.denoiser.presence) is not None:
        token.mean.copy_(mean)
        token.variance.copy_(variance)
        for one in pool:
            one["standardised"] = token.standardised(one["clean"]) * one["there"][..., None]
    average = WeightAverage(stage.model, loop.ema_decay)
    optimiser = _make_optimiser(stage.model, loop.learning_rate)
    order, losses = np.random.default_rng(seed), []
    queue: list[int] = []
    epoch = 0
    for step in range(loop.steps):
        if not queue:
            queue, epoch = order.permutation(len(pool)).tolist(), epoch + 1
        one = pool[queue.pop()]
        stage.use({**one, "clean": one.get("standardised")})
        batch = {**one["batch"], "number": one["batch"]["number"] + epoch * NEW_EPOCH}
        for group in optimiser.param_groups:
            group["lr"] = loop.learning_rate * learning_rate_factor(step, loop)
        loss, parts = stage.loss(batch, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in stage.model.parameters() if p.requires_grad], CLIP_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        average.update(step + 1)
        losses.append({name: float(value.mean()) for name, value in parts.items()})
        if (step + 1) % (loop.steps // 4) == 0:
            with average.swapped():
                stage.model.save_pretrained(Path(settings.run) / f"step_{step + 1}", half=True)
    return losses


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    training = actions.add_parser("train")
    training.add_argument("--data", type=Path, required=True, help="BOP folder or shards to train on")
    training.add_argument("--library", type=Path, required=True, help="templates of its objects")
    training.add_argument("--batches", type=int, default=110, help="batches of 2 crops (default 110)")
    training.add_argument("--steps", type=int, default=160, help="steps of each run (default 160)")
    training.add_argument("--seeds", type=int, default=3, help="seeds (default 3)")
    for action in (training,):
        action.add_argument("--out", type=Path, required=True, help="folder of the runs")
        action.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
