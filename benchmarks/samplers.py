#!/usr/bin/env python3
"""Average precision against evaluations of the network, for each sampler and ensemble size.

    python benchmarks/samplers.py --dataset data/validation_procedural data/validation_meshes   # held_out_sets.py's
    python benchmarks/samplers.py --dataset ... --images 20 --only mean,heun --json curve.json --plot curve.png

Each image goes through all variants before the next one, so that an interrupted run has results. What the variants
share is computed once; `ocdit benchmark` measures times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Frame
from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import OcditError
from ocdit_core.evaluation.bop_results import rows_of
from ocdit_core.evaluation.metrics import summarise
from ocdit_core.evaluation.records import ImageRecord, record_image
from ocdit_core.evaluation.targets import choose_targets, image_key, names_of_objects
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.inference.settings import InferenceSettings, find_weights, recommended_settings, refine_weights
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet
from ocdit_core.objects.library import ObjectLibrary

# Above any number of objects of a dataset, whose obj_ids start at 1 in each.
NUMBERS = 100_000


def ways(settings: InferenceSettings) -> dict[str, dict[str, Any]]:
    """Return the changed settings of each variant by its name, whose first word is its group."""
    mean = SamplerConfig(steps=0)
    found: dict[str, dict[str, Any]] = {}
    for members in (1, 4, 16):
        found[f"mean x{members}"] = {"sampler": mean, "ensemble": members}
    for steps in (2, 3, 5, 9):
        found[f"heun {steps}"] = {"sampler": SamplerConfig(steps=steps)}
    for steps in (2, 3, 4, 5, 6, 8):
        found[f"dpm {steps}"] = {"sampler": SamplerConfig(steps=steps, method="dpm++2m")}
    dpm = SamplerConfig(steps=4, method="dpm++2m")
    for members in (4, 16):
        found[f"ensemble dpm 4 x{members}"] = {"sampler": dpm, "ensemble": members}
    found["bfloat16 mean"] = {"sampler": mean, "precision": "bfloat16"}
    found["bfloat16 heun 5"] = {"sampler": SamplerConfig(steps=5), "precision": "bfloat16"}
    return found


class Shared:
    """Features and matching prior of an image, computed once for all variants."""

    def __init__(self, model: OCDiT) -> None:
        self._encode, self._match = model.encode_image, model.match
        self.forget()

    def serve(self, way: Way) -> None:
        """Replace the methods of a variant's model."""
        model = way.segmenter._coarse._network.model
        model.encode_image, model.match = self.encode_image, self.match  # type: ignore[method-assign]

    def forget(self) -> None:
        """Forget the last image."""
        self._features: list[tuple[torch.Tensor, ImageFeatures]] = []
        self._parts: list[tuple[ImageFeatures, TargetSet, Any]] = []

    def encode_image(self, images: torch.Tensor) -> ImageFeatures:
        """See `OCDiT`."""
        for known, features in self._features:
            if torch.equal(known, images):
                return features
        self._features.append((images, self._encode(images)))
        return self._features[-1][1]

    def match(self, image: ImageFeatures, targets: TargetSet) -> Any:
        """See `OCDiT`."""
        for known, of, found in self._parts:
            if known is image and of is targets:
                return found
        self._parts.append((image, targets, self._match(image, targets)))
        return self._parts[-1][2]


class Way:
    """One variant, and its results so far."""

    def __init__(self, coarse: OCDiT, refine: OCDiT | None, settings: InferenceSettings, device: str) -> None:
        self.segmenter = Segmenter(coarse, name="", device=device, settings=settings, refine=refine)
        self.records: list[ImageRecord] = []
        self.evaluations: list[float] = []
        self.threshold = settings.score_threshold

    def run(self, frame: Frame, objects: Any, asked: tuple[int, ...], numbers: dict[str, int]) -> None:
        """Segment a frame and record the result."""
        passes = 0

        def count(_: object, inputs: tuple[torch.Tensor, ...], __: object) -> None:
            nonlocal passes
            passes += inputs[0].shape[1] * inputs[0].shape[2]

        handle = self.segmenter._coarse._network.model.denoiser.register_forward_hook(count)
        result = self.segmenter.segment(frame.image(), objects)
        handle.remove()
        self.records.append(record_image(frame, asked, rows_of(image_key(frame), result, numbers, -1.0)))
        self.evaluations.append(passes / objects.count)

    def figures(self) -> dict[str, float]:
        """Return the metrics."""
        metrics = summarise(self.records, threshold=self.threshold)
        at = metrics["at_threshold"]
        return {
            "evaluations": float(np.mean(self.evaluations)),
            **{name: metrics[name] for name in ("ap", "ap50", "ap75", "ar")},
            "mean_iou": at["mean_iou"] or 0.0,
            "false_mask_rate": at["false_mask_rate"] or 0.0,
        }


def frames(options: argparse.Namespace) -> Iterator[tuple[Path, Frame, tuple[int, ...]]]:
    """Yield the first images of each dataset, in turns, with the obj_ids of their targets."""
    every = []
    for path in options.dataset:
        dataset = BopFolder(path, options.split)
        targets = choose_targets(dataset, options.targets)
        every.append([(path, frame, targets[image_key(frame)]) for frame in dataset.frames(targets)])
    for row in range(max(map(len, every))):
        if row < (options.images or row + 1):
            yield from (of_one[row] for of_one in every if row < len(of_one))


def run(options: argparse.Namespace, chosen: dict[str, Way], shared: Shared) -> None:
    """Run all images; an interrupt ends it early."""
    libraries = {path: ObjectLibrary(path / options.library) for path in options.dataset}
    offsets = {path: NUMBERS * number for number, path in enumerate(options.dataset)}
    names = {path: names_of_objects(library, path) for path, library in libraries.items()}
    first = next(iter(chosen.values()))
    try:
        for path, frame, asked in tqdm(list(frames(options)), unit="image", mininterval=10):
            objects = first.segmenter.encode_objects(libraries[path], [names[path][number] for number in asked])
            numbers = {name: number for number, name in names[path].items()}
            # Ground-truth masks are read once for all variants.
            frame.mask = cache(frame.mask)
            shared.forget()
            for way in chosen.values():
                way.run(frame, objects, asked, numbers)
                way.records[-1] = _apart(way.records[-1], offsets[path])
            if options.json:
                save(options.json, chosen)
    except KeyboardInterrupt:
        print("interrupted: the metrics are those of the images so far", file=sys.stderr)


def _apart(record: ImageRecord, offset: int) -> ImageRecord:
    """Return the record with obj_ids that no other dataset has."""
    targets = tuple(dataclasses.replace(one, object_id=one.object_id + offset) for one in record.targets)
    return dataclasses.replace(record, scene_id=record.scene_id + offset, targets=targets)


def save(path: Path, chosen: dict[str, Way]) -> None:
    """Write the metrics so far."""
    figures = {name: way.figures() for name, way in chosen.items() if way.records}
    path.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def draw(path: Path, figures: dict[str, dict[str, float]], title: str) -> None:
    """Plot average precision against evaluations, a line for each group."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    groups: dict[str, list[dict[str, float]]] = {}
    for name, row in figures.items():
        words = name.split()
        group = words[0]
        groups.setdefault(group, []).append(row)
    for axis, key, label in zip(axes, ("ap", "false_mask_rate"), ("AP", "false masks for absent targets"), strict=True):
        for number, (group, rows) in enumerate(groups.items()):
            rows = sorted(rows, key=lambda row: row["evaluations"])
            points = [row["evaluations"] for row in rows], [100 * row[key] for row in rows]
            axis.plot(*points, marker="osD^vP*X"[number % 8], markersize=5, linewidth=1, label=group)
        axis.set(xscale="log", xlabel="evaluations of the network for each object", ylabel=f"{label}, %")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7, ncols=2)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, nargs="+", required=True, help="BOP folders, with templates")
    parser.add_argument("--split", default="test", help="of the datasets (default test)")
    parser.add_argument("--targets", default="targets.json", help="file in the datasets' folders, all, or present")
    parser.add_argument("--library", default="templates", help="folder of the templates in each dataset")
    parser.add_argument("--images", type=int, help="number of images of each dataset (default all)")
    parser.add_argument("--weights", default="ocdit-small", help="embedded model or folder (default ocdit-small)")
    parser.add_argument("--no-refine", action="store_true", help="the coarse stage alone")
    parser.add_argument("--only", help="comma-separated names of variants or of their groups")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--json", type=Path, help="write the metrics to this file after each image")
    parser.add_argument("--plot", type=Path, help="draw the curve to this PNG")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = recommended_settings(options.weights)
    folder = find_weights(options.weights)
    second = None if options.no_refine else refine_weights(folder)
    coarse = OCDiT.from_pretrained(folder)
    refine = OCDiT.from_pretrained(second) if second else None
    shared = Shared(coarse)
    only = options.only.split(",") if options.only else []
    chosen = {
        name: Way(coarse, refine, dataclasses.replace(settings, **changes), options.device)
        for name, changes in ways(settings).items()
        if not only or name in only or name.split()[0] in only
    }
    for way in chosen.values():
        shared.serve(way)
    run(options, chosen, shared)
    figures = {name: way.figures() for name, way in chosen.items()}
    first = next(iter(chosen.values()))
    images = len(first.records)
    print(f"{images} images, {'coarse and refine' if refine else 'coarse'}, {first.segmenter.device}")
    print(f"{'variant':<28} {'evaluations':>11} {'AP':>6} {'AP50':>6} {'AP75':>6} {'IoU':>6} {'false masks':>11}")
    for name, row in figures.items():
        print(
            f"{name:<28} {row['evaluations']:11.1f} {100 * row['ap']:6.1f} {100 * row['ap50']:6.1f} "
            f"{100 * row['ap75']:6.1f} {row['mean_iou']:6.3f} {row['false_mask_rate']:11.0%}"
        )
    if options.plot:
        draw(options.plot, figures, f"{options.weights}, {images} images")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OcditError as error:
        print(f"samplers.py: error: {error}", file=sys.stderr)
        sys.exit(2)
