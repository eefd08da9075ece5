"""Memory over many frames: segments one image again and again, and prints the memory after each tenth of them.

    python benchmarks/leak.py [--frames 10000] [--image-size 64x96] [--device cuda] [--set key=value ...]

The targets change every hundred frames, and each tenth frame has another size. The exit status is 1 if the mean memory
of the last tenth is more than 1% above that of the second one; the first one fills caches.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import cv2
import torch
from tqdm import trange

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.commands.options import add_settings
from ocdit_core.config import apply_overrides, build
from ocdit_core.inference.benchmark import synthetic_scene
from ocdit_core.inference.settings import InferenceSettings, recommended_settings

OBJECTS = 3
GROWTH = 0.01


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="ocdit-small")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--image-size", default="64x96", metavar="HxW", help="size of the model input")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    add_settings(parser, "an inference setting")
    options = parser.parse_intermixed_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    height, width = map(int, options.image_size.split("x"))
    settings = dataclasses.replace(recommended_settings(options.weights), image_size=(height, width))
    settings = build(InferenceSettings, apply_overrides(dataclasses.asdict(settings), options.settings))
    every = max(options.frames // 10, 1)
    with tempfile.TemporaryDirectory() as folder:
        image = cv2.resize(synthetic_scene(Path(folder), OBJECTS + 1), (2 * width, 2 * height))
        library = ObjectLibrary(folder)
        segmenter = Segmenter.from_pretrained(options.weights, device=options.device, settings=settings)
        means: list[tuple[float, float]] = []
        seen: list[tuple[float, float]] = []
        for frame in trange(options.frames, disable=None):
            if frame % 100 == 0:
                first = frame // 100 % 2
                segmenter.set_objects(library, library.object_ids[first : first + OBJECTS])
            segmenter.segment(image if frame % 10 else image[: height + 3])
            if frame % max(every // 100, 1) == 0:
                seen.append((resident(), held(segmenter.device)))
            if (frame + 1) % every == 0:
                means.append((sum(a for a, _ in seen) / len(seen), sum(b for _, b in seen) / len(seen)))
                seen.clear()
                print(f"to frame {frame + 1}: {means[-1][0]:.1f} MiB in memory, {means[-1][1]:.1f} MiB of CUDA's")
    growth = max((late - early) / early for early, late in zip(means[1], means[-1], strict=True) if early)
    print(f"growth from the second tenth to the last: {100 * growth:.2f}%")
    return int(growth > GROWTH)


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def held(device: str) -> float:
    """Return the memory that torch has reserved on a GPU in MiB."""
    return torch.cuda.memory_reserved(device) / 2**20 if device.startswith("cuda") else 0.0


if __name__ == "__main__":
    sys.exit(main())
