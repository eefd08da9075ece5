#!/usr/bin/env python3
"""Draw learned positions of objects, and test-time crops, as the paper does; no model is needed.

    python benchmarks/paper_figures.py examples/images/table.jpg --out runs/figures

Writes positions.png, the strategies of table 2 for training with 8 objects and inference with 16 (figure 8); and
crops.png, the test-time crops of figure 6c: the boxes, the whole image, its crops with `crops=5` (orange boxes) and
those that `crops=10` adds (blue).
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure

from ocdit_core.errors import OcditError
from ocdit_core.files import replacing
from ocdit_core.images import read_image, write_image
from ocdit_core.inference.crops import augmentation_crops, full_crop
from ocdit_core.models.embeddings import random_positions

TRAINED, TARGETS, SAMPLES = 8, 16, 3
TILE = (240, 320)


def strategies(random: torch.Generator) -> dict[str, tuple[int, list[torch.Tensor], list[torch.Tensor]]]:
    """Return the number of learned positions, and those of training samples and inference runs, by strategy."""

    def interpolated() -> torch.Tensor:
        length = int(torch.randint(TRAINED, TARGETS + 1, (1,), generator=random))
        start = int(random_positions(1, length, TARGETS, random)[0, 0])
        return torch.linspace(start, start + length - 1, TRAINED)

    few, many, draws = torch.arange(TRAINED), torch.arange(TARGETS), range(SAMPLES)
    return {
        "(i) train on 8, repeat inference": (TRAINED, [few] * SAMPLES, [few, few]),
        "(ii) train on 16": (TARGETS, [many] * SAMPLES, [many]),
        "(iii) interpolation at inference": (TRAINED, [few] * SAMPLES, [torch.linspace(0, TRAINED - 1, TARGETS)]),
        "(iv) random interval (ours)": (TARGETS, list(random_positions(SAMPLES, TRAINED, TARGETS, random)), [many]),
        "(v) random interpolation": (TARGETS, [interpolated() for _ in draws], [many]),
        "(vi) random permutation": (TARGETS, [torch.randperm(TARGETS, generator=random)[:8] for _ in draws], [many]),
    }


def draw_positions(path: Path) -> None:
    """Draw which learned position each object has, in training samples and at inference."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    panels = zip(figure.subplots(2, 3).flat, strategies(torch.Generator().manual_seed(0)).items(), strict=True)
    for axes, (title, (capacity, training, inference)) in panels:
        rows = [*training, *inference]
        for height, row in enumerate(rows):
            first = TRAINED if height > len(training) else 0  # the second run at inference has the other objects
            axes.scatter(row, [height] * len(row), c=range(first, first + len(row)), cmap="turbo", vmin=0, vmax=TARGETS)
            for number, position in enumerate(row.tolist(), first + 1):
                axes.text(position, height - 0.22, str(number), ha="center", fontsize=7 if len(row) <= capacity else 4)
        axes.axhline(len(training) - 0.5, color="grey", linewidth=0.5)
        axes.set(title=title, xlim=(-1, TARGETS), ylim=(len(rows) - 0.5, -0.6))
        axes.set_xticks(range(capacity), range(capacity), fontsize=8)
        axes.set_yticks(range(len(rows)), ["training"] * len(training) + ["inference"] * len(inference))
    figure.supxlabel("learned position; the numbers are objects")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def draw_crops(image: np.ndarray, path: Path) -> None:
    """Draw the boxes of all crops, the whole image, and the crops as the model sees them."""
    size = image.shape[0], image.shape[1]
    crops = [full_crop(size, TILE), *augmentation_crops(size, TILE, 10)]
    boxes = image.copy()
    for number, crop in enumerate(crops):
        x, y, width, height = crop.box
        colour = (255, 160, 0) if number <= 5 else (0, 160, 255)
        cv2.rectangle(boxes, (x, y), (x + width - 1, y + height - 1), colour, max(size[0] // 160, 1))
    tiles = np.stack([full_crop(size, TILE).forward(boxes), *(crop.forward(image) for crop in crops)])
    rows = [np.concatenate(list(tiles[start : start + 4]), axis=1) for start in range(0, len(tiles), 4)]
    write_image(path, np.concatenate(rows))


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the drawings")
    options = parser.parse_args()
    try:
        draw_crops(read_image(options.image), options.out / "crops.png")
        draw_positions(options.out / "positions.png")
    except OcditError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
