#!/usr/bin/env python3
"""Samples a second that training gets from BOP folders and shards, augmentation included.

    python benchmarks/reader.py                                  # coarse and refine, folder and shards, 2 workers
    python benchmarks/reader.py --workers 0 --profile            # where the time goes
    python benchmarks/reader.py --sheet sheets                   # images of the samples

The data is generated for the occasion: rooms of 640 x 480, 8 annotated objects in a scene.
"""

import argparse
import cProfile
import pstats
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import cv2
import numpy as np

from ocdit_core.colours import PALETTE
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.sampling import Mode, SampleSettings
from ocdit_core.data.shards import ShardDataset
from ocdit_core.data.streaming import Source, TrainingSamples, load_batches
from ocdit_core.data.templates import TemplateCache
from ocdit_core.errors import OcditError
from ocdit_core.images import write_image
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.synthesis.generation import synthesize
from ocdit_core.synthesis.plan import SynthesisSettings


def make_dataset(folder: Path, *, objects: int, images: int) -> None:
    """Generate rooms as BOP folders and, of the same images, as shards."""
    settings = SynthesisSettings(
        images=images, objects=objects, targets=(8, 8), distractors=(0, 0), format="both", scenes_a_shard=5, depth=False
    )
    synthesize(folder, settings, progress=True)


def open_samples(folder: Path, kind: str, mode: Mode, options: argparse.Namespace) -> TrainingSamples:
    """Return the samples of the folder or the shards."""
    templates = TemplateCache(ObjectLibrary(folder / "templates"))
    frames = BopFolder(folder, "train_pbr") if kind == "folder" else ShardDataset(folder / "train_pbr_web")
    settings = SampleSettings(objects=options.targets if mode == "coarse" else 1, views=options.views)
    source = Source(frames=frames, templates=templates)
    return TrainingSamples([source], settings, mode=mode, image_size=(options.size[0], options.size[1]))


def rate(samples: TrainingSamples, *, workers: int, seconds: float, size: int = 8) -> tuple[float, float, float]:
    """Return samples a second, CPU milliseconds a sample in all processes, and seconds to the first batch."""
    before = cpu_seconds()
    batches = load_batches(samples, size, workers=workers)
    began = time.perf_counter()
    next(batches)
    start = time.perf_counter() - began
    for _ in range(2 * workers):  # what was prefetched meanwhile does not count
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
        count += size
    taken = time.perf_counter() - began
    made = count + (1 + 2 * workers) * size  # what is in the queue at the end comes on top, uncounted
    batches.close()
    return count / taken, 1000 * (cpu_seconds() - before) / made, start


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def sheet(samples: TrainingSamples, count: int) -> np.ndarray:
    """Draw samples: the image with outlined masks, and beside it the first views of each object in its colour."""
    cells = []
    for sample in (samples[number] for number in range(count)):
        image = np.ascontiguousarray(sample["images"][0].numpy().transpose(1, 2, 0))
        side = image.shape[0] // max(len(sample["object_ids"]), 2)
        strip = np.zeros((image.shape[0], 2 * side, 3), np.uint8)
        for number, (masks, views) in enumerate(
            zip(sample["masks"][0].numpy(), sample["templates"].numpy(), strict=True)
        ):
            colour = PALETTE[number]
            contours, _ = cv2.findContours(masks, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(image, contours, -1, colour, 1, cv2.LINE_AA)
            for column, view in enumerate(views[:2]):
                cell = cv2.resize(np.ascontiguousarray(view.transpose(1, 2, 0)), (side, side))
                cv2.rectangle(
                    cell, (0, 0), (side - 1, side - 1), colour if sample["present"][0, number] else (90,) * 3, 2
                )
                strip[number * side : (number + 1) * side, column * side : (column + 1) * side] = cell
        cells.append(np.concatenate([image, strip], axis=1))
    columns = 5
    rows = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells) - columns + 1, columns)]
    return np.concatenate(rows, axis=0)


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="keep the generated data here, and continue with it")
    parser.add_argument("--objects", type=int, default=60, help="objects of the data (default 60)")
    parser.add_argument("--images", type=int, default=240, help="images of the data (default 240)")
    parser.add_argument("--workers", type=int, default=2, help="loader workers (default 2)")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default 10)")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"), help="of a sample, pixels")
    parser.add_argument("--targets", type=int, default=4, help="objects of a coarse sample (default 4)")
    parser.add_argument("--views", type=int, default=6, help="templates of an object (default 6)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes (with --workers 0)")
    parser.add_argument("--sheet", type=Path, help="write 40 samples of each mode as an image into this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        try:
            make_dataset(folder, objects=options.objects, images=options.images)
            for mode in get_args(Mode):
                if options.sheet:
                    samples = open_samples(folder, "folder", mode, options)
                    write_image(options.sheet / f"{mode}.png", sheet(samples, 40))
                    continue
                for kind in ("folder", "shards"):
                    samples = open_samples(folder, kind, mode, options)
                    profile = cProfile.Profile()
                    if options.profile:
                        profile.enable()
                    speed, cpu, start = rate(samples, workers=options.workers, seconds=options.seconds)
                    profile.disable()
                    print(
                        f"{mode} from {kind}: {speed:.0f} samples/s, {cpu:.1f} ms of CPU a sample, "
                        f"first batch after {start:.2f} s",
                        flush=True,
                    )
                    if options.profile:
                        pstats.Stats(profile).sort_stats("tottime").print_stats(14)
        except OcditError as error:
            print(f"reader.py: error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
