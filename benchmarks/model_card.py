#!/usr/bin/env python3
"""Draw the images of a model card from finished evaluations: objects, failures, examples, learning curve.

    python benchmarks/model_card.py runs/procedural --dataset data/held_out_procedural --out docs/ocdit-small
    python benchmarks/model_card.py --curve docs/ocdit-small/learning_curve.csv --out docs/ocdit-small

A run is a folder of `ocdit evaluate`; the images are OUT/NAME_objects.png, NAME_failures.jpg, NAME_images.jpg and
NAME_reliability.svg. The table of the curve has the columns steps, ap and series. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ocdit_core.data.dataset import open_dataset
from ocdit_core.errors import OcditError
from ocdit_core.evaluation.charts import reliability_diagram
from ocdit_core.evaluation.failures import KINDS, draw_comparison, draw_failure, find_failures, rank_images
from ocdit_core.evaluation.run import Run, read_run
from ocdit_core.evaluation.targets import image_key, names_of_objects
from ocdit_core.files import replacing, write_bytes
from ocdit_core.objects.library import ObjectLibrary

OBJECT_COLUMNS, FAILURE_COLUMNS = 12, 6


class Tile(NamedTuple):
    """An image with a title."""

    title: str
    image: np.ndarray


def main() -> int:
    """Draw what was asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished `ocdit evaluate`")
    parser.add_argument("--dataset", type=Path, help="of the run; its library is in DATASET/templates")
    parser.add_argument("--split", default="test", help="default test")
    parser.add_argument("--name", help="of the images (default: the dataset's)")
    parser.add_argument("--curve", type=Path, metavar="CSV", help="table of the learning curve")
    parser.add_argument("--out", type=Path, required=True, help="folder of the images")
    options = parser.parse_args()
    if (options.run is None) != (options.dataset is None) or not (options.run or options.curve):
        parser.error("name a run together with its --dataset, or a --curve, or both")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.curve:
            draw_curve(options.curve, options.out / "learning_curve.png")
        if options.run:
            name = options.name or options.dataset.resolve().name
            draw_run(read_run(options.run), options.dataset, options.split, options.out, name)
    except OcditError as error:
        print(f"model_card.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def draw_run(run: Run, path: Path, split: str, out: Path, name: str) -> None:
    """Draw objects by AP, the reliability diagram, failures by kind, and the best, middle and worst images."""
    dataset = open_dataset(str(path), split)
    library = ObjectLibrary(path / "templates")
    names = names_of_objects(library, path)
    save(objects(run, library, names), OBJECT_COLUMNS, out / f"{name}_objects.png", size=1.0)
    if run.metrics.get("reliability") is not None:
        chart = reliability_diagram({name: run.metrics["reliability"]["bins"]})
        write_bytes(out / f"{name}_reliability.svg", chart, guard=False)

    rows, asked = run.rows(), run.asked
    threshold = float(run.metrics["score_threshold"])
    failures = find_failures(dataset.frames(asked), asked, rows, threshold)
    counts = Counter(failure.kind for failure in failures)
    by_kind = [[failure for failure in failures if failure.kind == kind] for kind in KINDS]
    shown = [failure for some in by_kind for failure in spread(some, FAILURE_COLUMNS)]
    ranked = rank_images(run.records, threshold)
    middle = len(ranked) // 2
    chosen = [*ranked[:3], *ranked[middle - 1 : middle + 2], *ranked[-3:]]
    wanted = {image for image, _ in chosen} | {failure.image for failure in shown}
    frames = {image_key(frame): frame for frame in dataset.frames(wanted)}

    tiles = []
    for kind in KINDS:
        some = [failure for failure in shown if failure.kind == kind]
        for failure in some:
            title = f"{kind} ({counts[kind]})\n{names[failure.object_id]}"
            tiles.append(Tile(title, draw_failure(frames[failure.image].image(), failure)))
        tiles += [Tile("", np.full((1, 1, 3), 255, np.uint8))] * (FAILURE_COLUMNS - len(some) if some else 0)
    save(tiles, FAILURE_COLUMNS, out / f"{name}_failures.jpg", size=1.6)
    drawn = [
        Tile(f"mean IoU {100 * iou:.0f}", draw_comparison(frames[key], asked[key], rows[key], names, threshold))
        for key, iou in chosen
    ]
    save(drawn, 3, out / f"{name}_images.jpg", size=(5.4, 1.9))


def objects(run: Run, library: ObjectLibrary, names: dict[int, str]) -> list[Tile]:
    """Return a template of each object with its AP and instances, by descending AP."""
    found = run.metrics["by_object"]
    known = sorted((key for key in found if found[key].get("ap") is not None), key=lambda key: -found[key]["ap"])
    tiles = []
    for key in known:
        one, title = found[key], names[int(key)]
        view = library[title].best_views(1).rgb[0]
        tiles.append(Tile(f"{title[:14]}\nAP {100 * one['ap']:.0f} ({one['instances']})", view))
    return tiles


def spread(some: Sequence, count: int) -> list:
    """Return at most `count` of a sequence, evenly spaced."""
    if len(some) <= count:
        return list(some)
    return [some[round(place)] for place in np.linspace(0, len(some) - 1, count)]


def save(tiles: Sequence[Tile], columns: int, path: Path, size: float | tuple[float, float]) -> None:
    """Write tiles as a grid; `size`: (width, height) of a tile in inches."""
    from matplotlib.figure import Figure

    width, height = size if isinstance(size, tuple) else (size, size)
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(columns * width, rows * (height + 0.35)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, tile in zip(axes, tiles, strict=False):
        axis.imshow(tile.image)
        axis.set_title(tile.title, fontsize=7, pad=2)
    write(figure, path)


def draw_curve(table: Path, path: Path) -> None:
    """Draw AP against steps of training, a line for each series."""
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            lines[row["series"]].append((float(row["steps"]), float(row["ap"])))
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    for name, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axis.set(xlabel="training steps on rooms", ylabel="AP (%)", ylim=(0, None))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    write(figure, path)


def write(figure, path: Path) -> None:
    """Write a figure atomically."""
    with replacing(path, guard=False) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:])
    print(path)


if __name__ == "__main__":
    sys.exit(main())
