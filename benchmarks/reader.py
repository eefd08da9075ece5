#!/usr/bin/env python3
"""Samples a second that training gets from BOP folders and shards, augmentation included.

    python benchmarks/reader.py                                  # coarse and refine, folder and shards, 2 workers
    python benchmarks/reader.py --workers 0 --profile            # where the time goes
    python benchmarks/reader.py --sheet sheets                   # pictures of the samples

The data is composed for the occasion: 640 x 480 JPEG, 8 annotated objects in a picture.
"""

import argparse
import cProfile
import itertools
import pstats
import resource
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from ocdit_core.colours import PALETTE
from ocdit_core.data.augment import NO_AUGMENTATION, AugmentSettings
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.sampling import SampleSettings
from ocdit_core.data.shards import ShardDataset
from ocdit_core.data.streaming import Source, TrainingLoader, TrainingStream
from ocdit_core.data.templates import TemplateCache
from ocdit_core.data.writers import LabelledFrame, LabelledObject, shard_path, write_scene, write_shard
from ocdit_core.errors import OcditError
from ocdit_core.images import write_image
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.onboarding import add_objects
from ocdit_core.objects.renderer import Renderer
from ocdit_core.objects.viewpoints import TUDL_K
from ocdit_core.synthesis.bank import render_sprites
from ocdit_core.synthesis.composed import SceneSettings, compose_scene
from ocdit_core.synthesis.procedural import procedural_object

IN_A_PICTURE = 8


def make_dataset(folder: Path, *, objects: int, pictures: int, scenes: int = 4) -> None:
    """Write objects/ (a library), folder/train/ (a BOP folder) and shards/ with the same pictures."""
    meshes = [procedural_object(seed) for seed in range(objects)]
    with tempfile.TemporaryDirectory() as temporary:
        files = [Path(temporary) / f"obj_{number:06d}.glb" for number in range(1, objects + 1)]
        for mesh, file in zip(meshes, files, strict=True):
            mesh.export(file)
        add_objects(folder / "objects", files, unit="m")
    rng = np.random.default_rng(0)
    sprites = []
    with Renderer() as renderer:
        for mesh in meshes:
            handle = renderer.upload(mesh)
            sprites.append(render_sprites(renderer, handle, rng, 4, 256))
            handle.release()
    for scene in range(scenes):
        frames = [compose(rng, sprites) for _ in range(pictures // scenes)]
        write_scene(folder / "folder", "train", scene, frames)
        keyed = ((f"{scene:06d}_{number:06d}", frame) for number, frame in enumerate(frames))
        write_shard(shard_path(folder / "shards", scene), keyed)


def compose(rng: np.random.Generator, sprites: list[np.ndarray]) -> LabelledFrame:
    """A picture with its truth; poses are of no account here."""
    shown = rng.choice(len(sprites), IN_A_PICTURE, replace=False)
    settings = SceneSettings(image_size=(480, 640), object_size=(0.15, 0.5))
    scene = compose_scene(rng, [sprites[i][rng.integers(len(sprites[i]))] for i in shown], settings)
    objects = [
        LabelledObject(
            object_id=int(number) + 1,
            rotation=np.eye(3),
            translation=np.array([0.0, 0.0, 1.0]),
            visible=mask,
            silhouette=mask,
        )
        for number, mask in zip(shown, scene.masks, strict=True)
    ]
    return LabelledFrame(image=scene.image, K=TUDL_K, objects=objects)


def open_stream(folder: Path, kind: str, settings: SampleSettings) -> TrainingStream:
    """Return the stream over the folder or the shards."""
    templates = TemplateCache(ObjectLibrary(folder / "objects"), size=settings.template_size)
    frames = BopFolder(folder / "folder", "train") if kind == "folder" else ShardDataset(folder / "shards")
    return TrainingStream([Source(frames=frames, templates=templates)], settings)


def rate(stream: TrainingStream, *, workers: int, seconds: float, batch_size: int = 8) -> tuple[float, float, float]:
    """Return samples a second, CPU milliseconds a sample in all processes, and seconds to the first batch."""
    before = cpu_seconds()
    batches = iter(TrainingLoader(stream, batch_size=batch_size, workers=workers))
    began = time.perf_counter()
    next(batches)
    start = time.perf_counter() - began
    for _ in range(2 * workers):  # what was prefetched meanwhile does not count
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
        count += batch_size
    taken = time.perf_counter() - began
    made = count + (1 + 2 * workers) * batch_size  # what is in the queue at the end comes on top, uncounted
    batches.close()
    return count / taken, 1000 * (cpu_seconds() - before) / made, start


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def sheet(stream: TrainingStream, count: int) -> np.ndarray:
    """Draw samples: the picture with outlined masks, and beside it the first views of each object in its colour."""
    cells = []
    for sample in itertools.islice(stream, count):
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
    parser.add_argument("--data", type=Path, help="keep the composed data here, and take it from here when there")
    parser.add_argument("--objects", type=int, default=60, help="objects of the data (default 60)")
    parser.add_argument("--pictures", type=int, default=240, help="pictures of the data (default 240)")
    parser.add_argument("--workers", type=int, default=2, help="loader workers (default 2)")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (default 10)")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"), help="of a sample, pixels")
    parser.add_argument("--targets", type=int, default=4, help="objects of a coarse sample (default 4)")
    parser.add_argument("--views", type=int, default=6, help="templates of an object (default 6)")
    parser.add_argument("--backgrounds", help="folder of pictures for replaced backgrounds (default: drawn ones)")
    parser.add_argument("--no-augmentation", action="store_true", help="samples as they are")
    parser.add_argument("--profile", action="store_true", help="print where the time goes (with --workers 0)")
    parser.add_argument("--sheet", type=Path, help="write 40 samples of each mode as a picture into this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        try:
            if not (folder / "shards").exists():
                make_dataset(folder, objects=options.objects, pictures=options.pictures)
            size = (options.size[0], options.size[1])
            augment = NO_AUGMENTATION if options.no_augmentation else AugmentSettings(backgrounds=options.backgrounds)
            modes = {
                "coarse": SampleSettings(
                    mode="coarse", image_size=size, objects=options.targets, views=options.views, augment=augment
                ),
                "refine": SampleSettings(
                    mode="refine", image_size=size, objects=1, views=options.views, augment=augment
                ),
            }
            for name, settings in modes.items():
                if options.sheet:
                    write_image(options.sheet / f"{name}.png", sheet(open_stream(folder, "folder", settings), 40))
                    continue
                for kind in ("folder", "shards"):
                    stream = open_stream(folder, kind, settings)
                    profile = cProfile.Profile()
                    if options.profile:
                        profile.enable()
                    samples, cpu, start = rate(stream, workers=options.workers, seconds=options.seconds)
                    profile.disable()
                    print(
                        f"{name} from {kind}: {samples:.0f} samples/s, {cpu:.1f} ms of CPU a sample, "
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
