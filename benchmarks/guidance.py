#!/usr/bin/env python3
"""Does representation entanglement pay, and does guidance? Trains and measures the cells of docs/training.md.

    python benchmarks/guidance.py train --data data/rooms/train --library data/rooms/templates --out runs/guidance
    python benchmarks/guidance.py measure --out runs/guidance --dataset data/val_procedural data/val_meshes
    python benchmarks/guidance.py table --out runs/guidance

Only the denoiser is trained, on features of a few hundred images that are computed once; backbone, mask VAE and
matching prior are the embedded model's, frozen. A run that is interrupted continues with the next cell.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from samplers import NUMBERS, _apart
from torch import Tensor

from ocdit_core.config import build, read_yaml
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Frame
from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.evaluation.average_precision import Matches
from ocdit_core.evaluation.bop_results import rows_of
from ocdit_core.evaluation.records import ImageRecord, record_image
from ocdit_core.evaluation.targets import choose_targets, image_key, names_of_objects
from ocdit_core.inference.crops import CropMean, full_crop
from ocdit_core.inference.network import Network
from ocdit_core.inference.postprocess import coarse_candidates, resolve
from ocdit_core.inference.results import Segmentation
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.inference.settings import InferenceSettings, find_weights
from ocdit_core.models.checkpoints import CONFIG_FILE
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet, TemplateFeatures
from ocdit_core.models.representation import PresenceToken
from ocdit_core.objects.library import ObjectLibrary
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
    "tuned, both": (("projection", "presence_token"), True),
}
DROPPED = 0.2  # probability of dropping the templates
SIZE = (128, 192)  # of the training crops
INPUT = (192, 256)  # of the measured images
SAMPLERS = {
    "mean": SamplerConfig(steps=0),
    # Guidance that its interval leaves out: without any, cells that the matching prior rules out are not computed.
    "mean, all cells": SamplerConfig(steps=0, guidance=1.5, guidance_interval=(0.0, 20.0)),
    "mean, guided 1.5": SamplerConfig(steps=0, guidance=1.5, token_guidance=1.5),
    "mean, guided 2.5": SamplerConfig(steps=0, guidance=2.5, token_guidance=2.5),
    "mean, look-alike 1.5": SamplerConfig(steps=0, guidance=1.5, token_guidance=1.5, negative="look_alike"),
    "dpm 4": SamplerConfig(steps=4, method="dpm++2m"),
    "dpm 4, guided 1.5": SamplerConfig(steps=4, method="dpm++2m", guidance=1.5, token_guidance=1.5),
    "dpm 4, guided 1.5 in [0.3, 20]": SamplerConfig(
        steps=4, method="dpm++2m", guidance=1.5, token_guidance=1.5, guidance_interval=(0.3, 20.0)
    ),
    "euler_maruyama 4": SamplerConfig(steps=4, method="euler_maruyama"),
    "heun 3": SamplerConfig(steps=3),
}
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
            "sample": {"objects": 3, "views": 4, "crops": 2, "absent_probability": 0.25, "crop_scale": [0.35, 0.95]},
        },
        "diffusion_loss": {"high_noise_share": 0.5, "min_targets": 3, "drop_templates": DROPPED},
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

    def match(self, image: ImageFeatures, targets: TargetSet, prompts: Tensor | None = None) -> Any:
        """See `OCDiT`."""
        return self._now["match"]

    def presence(self, batch: Batch, masks: Tensor) -> Tensor | None:
        """See `DiffusionStage`."""
        return self._now["clean"] if self.model.denoiser.presence is not None else None


@torch.no_grad()
def make_pool(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Return batches with their features, and mean and variance of the global features of present targets."""
    stage = DiffusionStage(settings_of("neither", 0, options))
    stage.model.eval()
    pool = []
    for batch in itertools.islice(TrainingData(settings_of("neither", 0, options)), options.batches):
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
    began = time.process_time()
    pool, mean, variance = make_pool(options)
    print(f"{len(pool)} batches in {time.process_time() - began:.0f} s", flush=True)
    for seed, cell in itertools.product(range(options.seeds), CELLS):
        run = Path(settings_of(cell, seed, options).run)
        if (run / f"step_{options.steps}" / CONFIG_FILE).is_file():
            continue
        began = time.process_time()
        losses = run_cell(cell, seed, pool, mean, variance, source, options)
        run.mkdir(parents=True, exist_ok=True)
        (run / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
        last = {name: float(np.mean([row[name] for row in losses[-50:] if name in row])) for name in losses[-1]}
        print(f"{run.name}: {time.process_time() - began:.0f} s, last 50 steps {last}", flush=True)


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


class Scene(NamedTuple):
    """An image with what all models share: features, templates and the matching prior's maps."""

    frame: Frame
    asked: tuple[int, ...]
    names: tuple[str, ...]
    numbers: dict[str, int]
    offset: int
    image: ImageFeatures
    runs: tuple[TargetSet, ...]
    matches: tuple[Any, ...]


@torch.inference_mode()
def scenes(options: argparse.Namespace) -> list[Scene]:
    """Return the first images of each dataset."""
    settings = InferenceSettings(image_size=INPUT)
    # Without a cache, whose features of templates are those of the embedded model: it needs no global ones.
    segmenter = Segmenter.from_pretrained(MODEL, settings=settings, refine=None, device="cpu", feature_cache=None)
    network, found = segmenter._coarse._network, []
    # Global features of the templates, too.
    network.model.denoiser.presence = PresenceToken(1, 1)
    for number, path in enumerate(options.dataset):
        library, dataset = ObjectLibrary(path / "templates"), BopFolder(path, "test")
        names, targets = names_of_objects(library, path), choose_targets(dataset, "targets.json")
        for frame in itertools.islice(dataset.frames(targets), options.images):
            frame.mask = functools.cache(frame.mask)  # type: ignore[method-assign]
            asked = targets[image_key(frame)]
            chosen = tuple(names[one] for one in asked)
            objects = segmenter.encode_objects(library, chosen)
            image = frame.image()
            features = network.encode(full_crop(image.shape[:2], INPUT).forward(image)[None])
            matches = tuple(network.model.match(features, run) for run in objects.runs)
            numbers = {name: one for one, name in names.items()}
            features = ImageFeatures(features=features.features)
            found.append(Scene(frame, asked, chosen, numbers, NUMBERS * number, features, objects.runs, matches))
    return found


class Measured:
    """Results of one model with one sampler on all images: records, and estimates of each target's presence."""

    def __init__(self, model: OCDiT, sampler: SamplerConfig, shared: list[Scene]):
        settings = InferenceSettings(image_size=INPUT, sampler=sampler, mask_threshold=0.3, score="expected_iou")
        self._network, self._settings = Network(model, torch.device("cpu"), settings), settings
        self._tokens: list[tuple[Tensor, Tensor]] = []
        if (token := self._network.model.denoiser.presence) is not None:
            score = token.score
            token.score = lambda *given: self._tokens.append(given[:2]) or score(*given)  # type: ignore[method-assign]
        self.records: list[ImageRecord] = []
        self.factors: dict[str, dict[tuple[int, int], float]] = {"prior": {}, "cosine": {}, "projection": {}}
        for scene in shared:
            self._add(scene)

    @torch.inference_mode()
    def _add(self, scene: Scene) -> None:
        network, size = self._network, scene.frame.image().shape[:2]
        parts: dict[str, list[Tensor]] = {name: [] for name in self.factors}
        masks = []
        for run, match in zip(scene.runs, scene.matches, strict=True):
            network.model.match = lambda *_, match=match, **__: match  # type: ignore[method-assign]
            self._tokens.clear()
            targets = network.model.encode_targets(run.templates)
            masks.append(network.generate(scene.image, targets)[0][0, 0])
            parts["prior"].append(match[1].presence[0].sigmoid())
            for denoised, templates in self._tokens:
                views = network.model.denoiser.presence.standardised(templates)[0]
                along = torch.einsum("oc,ovc->ov", denoised[0, 0].float(), views)
                parts["cosine"].append((along / denoised[0, 0].norm(dim=-1)[:, None] / views.norm(dim=-1)).amax(1))
                parts["projection"].append((along / views.square().sum(-1)).amax(1))
        probabilities = CropMean(sum(map(len, masks)), size)
        probabilities.add(full_crop(size, INPUT), np.concatenate(masks))
        candidates = coarse_candidates(probabilities.result(), len(scene.names), self._settings)
        instances = resolve(candidates, scene.names, size, score_threshold=0.0, max_instances=4)
        result = Segmentation(instances=instances, image_size=size, target_ids=scene.names)
        rows = rows_of(image_key(scene.frame), result, scene.numbers, -1.0)
        record = _apart(record_image(scene.frame, scene.asked, rows), scene.offset)
        self.records.append(record)
        for name, found in parts.items():
            for number, factor in zip(scene.asked, torch.cat(found).tolist() if found else (), strict=False):
                self.factors[name][record.scene_id, number + scene.offset] = min(max(factor, 0.0), 1.0)

    def figures(self) -> dict[str, float]:
        """Return average precision, and masks of absent targets, without and with each presence estimate as a factor.

        The latter is counted at the threshold at which 90% of the right masks remain; and with it the area under the
        ROC curve of each estimate, present against absent targets.
        """
        figures = {}
        for name in ("", "prior", "cosine", "projection", "prior*projection"):
            factors = [self.factors[part] for part in name.split("*") if part]
            if not all(factors):
                continue
            records = [self._scaled(record, factors) for record in self.records]
            every = [one for record in records for one in record.targets if one.asked]
            right = [one.scores[one.overlaps.max(1) >= 0.5].max(initial=0.0) for one in every if not one.absent]
            threshold = np.quantile([score for score in right if score > 0], 0.1)
            absent = [one.scores.max(initial=0.0) for one in every if one.absent]
            label = name and f" x {name}"
            figures[f"ap{label}"] = Matches(records).average_precision()[0].ap
            figures[f"absent{label}"] = float(np.mean(np.array(absent) >= threshold))
        for name, found in self.factors.items():
            if found:
                keys = [(r.scene_id, one.object_id, one.absent) for r in self.records for one in r.targets if one.asked]
                score = {kind: [found[a, b] for a, b, absent in keys if absent == kind] for kind in (False, True)}
                above = np.subtract.outer(score[False], score[True])
                figures[f"auc {name}"] = float((above > 0).mean() + (above == 0).mean() / 2)
        return figures

    @staticmethod
    def _scaled(record: ImageRecord, factors: list[dict[tuple[int, int], float]]) -> ImageRecord:
        scale = {
            one.object_id: float(np.prod([part.get((record.scene_id, one.object_id), 1.0) for part in factors]))
            for one in record.targets
        }
        targets = (dataclasses.replace(one, scores=one.scores * scale[one.object_id]) for one in record.targets)
        return dataclasses.replace(record, targets=tuple(targets))


def plan(options: argparse.Namespace) -> Iterator[tuple[str, int, int, str]]:
    """Yield cell, seed, step and name of the sampler of each measurement, the most telling ones first."""
    seeds, last = range(options.seeds), options.steps
    yield from ((cell, seed, last, "mean") for seed in seeds for cell in CELLS)
    yield from (("tuned, both", seed, last, name) for seed in seeds for name in SAMPLERS if name != "mean")
    scratch = [cell for cell, (_, tuned) in CELLS.items() if not tuned]
    yield from ((cell, seed, last * part // 4, "mean") for part in (2, 1, 3) for seed in seeds for cell in scratch)


def measure(options: argparse.Namespace) -> None:
    """Measure what is trained and not measured yet; one JSON line each."""
    path, done = options.out / "measured.jsonl", set()
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        done = {(row["cell"], row["seed"], row["step"], row["sampler"]) for row in rows}
    shared = scenes(options)
    for one in [("shipped", 0, 0, "mean"), *plan(options)]:
        cell, seed, step, name = one
        folder = find_weights(MODEL) if cell == "shipped" else options.out / f"{cell} {seed}" / f"step_{step}"
        if one in done or not (folder / CONFIG_FILE).is_file():
            continue
        began = time.process_time()
        figures = Measured(OCDiT.from_pretrained(folder), SAMPLERS[name], shared).figures()
        row = {"cell": cell, "seed": seed, "step": step, "sampler": name, "cpu": time.process_time() - began, **figures}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def table(options: argparse.Namespace) -> None:
    """Print mean and standard deviation over the seeds of all that is measured."""
    text = (options.out / "measured.jsonl").read_text(encoding="utf-8")
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in map(json.loads, text.splitlines()):
        groups.setdefault((row["cell"], row["step"], row["sampler"]), []).append(row)
    for key, rows in sorted(groups.items()):
        print(*key, f"({len(rows)} seeds)")
        for name in (name for name in rows[0] if name not in ("cell", "seed", "step", "sampler", "cpu")):
            values = [100 * row[name] for row in rows]
            print(f"    {name:<24} {np.mean(values):5.1f} ± {np.std(values, ddof=len(values) > 1):.1f}")


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    of = {run.__name__: actions.add_parser(run.__name__, help=run.__doc__) for run in (train, measure, table)}
    of["train"].add_argument("--data", type=Path, required=True, help="BOP folder or shards to train on")
    of["train"].add_argument("--library", type=Path, required=True, help="templates of its objects")
    of["train"].add_argument("--batches", type=int, default=48, help="batches of 2 crops (default 48)")
    of["measure"].add_argument("--dataset", type=Path, nargs="+", required=True, help="BOP folders, with templates")
    of["measure"].add_argument("--images", type=int, default=8, help="images of each dataset (default 8)")
    for action in of.values():
        action.add_argument("--out", type=Path, required=True, help="folder of the runs")
        action.add_argument("--steps", type=int, default=100, help="steps of each run (default 100)")
        action.add_argument("--seeds", type=int, default=3, help="seeds (default 3)")
        action.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"train": train, "measure": measure, "table": table}[options.action](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
