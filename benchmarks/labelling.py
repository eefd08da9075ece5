#!/usr/bin/env python3
"""Accuracy of the labelling mode (paper table 3): ground-truth boxes or masks stand for those of a detector.

    python benchmarks/held_out_sets.py --out data/held_out_procedural
    python benchmarks/labelling.py data/held_out_procedural

The targets of an image are two thirds of the objects of its targets file, some of which are absent. Regions are the
visible instances, which must be labelled, or refused if they are no target; and as many boxes of background, which must
be refused. Boxes are jittered by a tenth of their size, except with `--exact`.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

from ocdit_core.commands.options import add_settings
from ocdit_core.data.dataset import open_dataset
from ocdit_core.data.frame import Frame
from ocdit_core.errors import OcditError
from ocdit_core.evaluation.targets import choose_targets, image_key, names_of_objects
from ocdit_core.inference.labelling import LABEL_THRESHOLD
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.inference.settings import recommended_settings
from ocdit_core.masks import Box, tight_box
from ocdit_core.objects.library import ObjectLibrary

SEED = 0
VISIBLE = 0.3


def instances(frame: Frame) -> list[tuple[int, np.ndarray]]:
    """Return the obj_ids and masks of the objects that are visible enough."""
    return [
        (annotation.object_id, frame.mask(index).astype(bool))
        for index, annotation in enumerate(frame.annotations)
        if annotation.visible_fraction >= VISIBLE
    ]


def jittered(box: Box, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """Return the box with its edges moved by up to a tenth of its sides, inside the image."""
    x, y, width, height = box
    moves = rng.uniform(-0.1, 0.1, 4) * (width, height, width, height)
    left, top = max(round(x + moves[0]), 0), max(round(y + moves[1]), 0)
    right, bottom = min(round(x + width + moves[2]), size[1]), min(round(y + height + moves[3]), size[0])
    return left, top, max(right - left, 1), max(bottom - top, 1)


def background(masks: list[np.ndarray], size: tuple[int, int], rng: np.random.Generator) -> Box | None:
    """Return a random box of an instance's size that shows no object; None if 50 attempts find none."""
    taken = np.any(masks, axis=0)
    for _ in range(50):
        _, _, width, height = tight_box(masks[rng.integers(len(masks))])
        x, y = (int(rng.integers(0, side - length + 1)) for side, length in ((size[1], width), (size[0], height)))
        if not taken[y : y + height, x : x + width].any():
            return x, y, width, height
    return None


def label_images(options: argparse.Namespace) -> tuple[dict[str, Counter[str]], float]:
    """Return the counts for boxes and for masks at each threshold, and the seconds of a region."""
    rng = np.random.default_rng(SEED)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    dataset = open_dataset(str(options.dataset), None)
    targets = choose_targets(dataset, options.dataset / "targets.json")
    targets = dict(list(targets.items())[: options.images])
    library = ObjectLibrary(options.dataset / "templates")
    names = names_of_objects(library, options.dataset)
    settings = recommended_settings(options.weights, overrides=options.settings)
    thresholds = sorted({*options.thresholds, LABEL_THRESHOLD})
    segmenter = Segmenter.from_pretrained(options.weights, settings=settings)
    seconds, regions_seen = 0.0, 0
    for frame in dataset.frames(targets):
        image, shown = frame.image(), instances(frame)
        asked = [number for place, number in enumerate(targets[image_key(frame)]) if place % 3 != 2]
        if not shown or not asked:
            continue
        segmenter.set_objects(library, [names[number] for number in asked])
        size, masks = (image.shape[0], image.shape[1]), [mask for _, mask in shown]
        boxes = [tight_box(mask) for mask in masks]
        if not options.exact:
            boxes = [jittered(box, size, rng) for box in boxes]
        free = [box for box in (background(masks, size, rng) for _ in masks) if box is not None]
        expected = [names[number] if number in asked else None for number, _ in shown]
        for kind, regions in (("boxes", [*boxes, *free]), ("masks", masks)):
            began = time.perf_counter()
            labels = segmenter.label(image, regions)
            seconds += time.perf_counter() - began
            regions_seen += len(regions)
            for index, label in enumerate(labels):
                right = expected[index] if index < len(shown) else None
                what = "target" if right else "other object" if index < len(shown) else "background"
                best = max(label.scores, key=lambda name: label.scores[name])
                for threshold in thresholds:
                    count = counts[f"{kind} from {threshold:g}"]
                    said = best if label.scores[best] >= threshold else None
                    count[what] += 1
                    count[f"{what} right"] += said == right
                    # The best target, whatever its score.
                    count["best right"] += right is not None and label.scores[best] > 0 and best == right
    return counts, seconds / max(regions_seen, 1)


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="made by benchmarks/held_out_sets.py")
    parser.add_argument("--weights", default="ocdit-small", help="embedded model or folder (default ocdit-small)")
    parser.add_argument("--images", type=int, default=100, help="most images (default 100)")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[], help="besides the model's own")
    parser.add_argument("--exact", action="store_true", help="ground-truth boxes without jitter")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    add_settings(parser, "an inference setting")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        counts, seconds = label_images(options)
    except OcditError as error:
        print(f"labelling.py: error: {error}", file=sys.stderr)
        return 2
    columns = (
        ("targets labelled", "target right", "target"),
        ("best target is right", "best right", "target"),
        ("other objects refused", "other object right", "other object"),
        ("background refused", "background right", "background"),
    )
    print(f"{'':<16}" + "".join(f"{title:>24}" for title, _, _ in columns))
    for kind, count in counts.items():
        print(f"{kind:<16}" + "".join(f"{f'{count[right]} of {count[all_]}':>24}" for _, right, all_ in columns))
    print(f"{1000 * seconds:.0f} ms a region")
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
