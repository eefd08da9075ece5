"""`ocdit synthesize`, `ocdit fetch` and `ocdit inspect`: make, download and check labelled datasets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ocdit_core.commands.options import add_command, add_dataset, add_workers, counted, fraction, positive, print_table
from ocdit_core.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from ocdit_core.data.dataset import Dataset
    from ocdit_core.data.frame import Frame
    from ocdit_core.data.statistics import DatasetStatistics
    from ocdit_core.synthesis.generation import Synthesised
    from ocdit_core.synthesis.plan import SynthesisSettings

SYNTHESIZE_EXAMPLES = """\
  ocdit synthesize --out data/train --images 2000 --objects 200
  ocdit synthesize --out data/train --images 20000 --meshes ~/cad
  ocdit synthesize --out data/clips --images 480 --video --targets 2 6 --repeats 1 --bop-split test
  ocdit synthesize --out data/shards --images 1000000 --objects 5000 --format shards --ray auto
"""
FETCH_EXAMPLES = """\
  ocdit fetch ycbv --out data/bop
  ocdit fetch tudl --out data/bop --parts base models train_pbr
"""
INSPECT_EXAMPLES = """\
  ocdit inspect data/bop/ycbv --split test
  ocdit inspect data/scenes --html scenes.html
  ocdit inspect data/shards/train_pbr_web --thorough
"""
_OBJECTS = 200
"""Procedural objects, if neither their number nor meshes are given."""
_RANGES = (
    ("--size", (480, 640), ("H", "W"), "image height and width in pixels"),
    ("--targets", (2, 16), ("MIN", "MAX"), "labelled objects in a scene"),
    ("--distractors", (0, 4), ("MIN", "MAX"), "unlabelled objects in a scene"),
    ("--views-per-scene", (5, 20), ("MIN", "MAX"), "images of a scene, except in clips"),
)
_CLIP = 24
"""Images of a clip."""
_WIDTH = 640
"""Width of drawn samples in pixels."""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    _add_synthesize(subparsers)
    parser = add_command(subparsers, "fetch", "download a public BOP dataset", FETCH_EXAMPLES)
    parser.add_argument("name", metavar="NAME", help="short name of the dataset, such as ycbv, tudl, lmo or hb")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder for the dataset's folder")
    text = "parts of the dataset (default: base models test_bop19)"
    parser.add_argument("--parts", nargs="+", metavar="PART", help=text)
    parser.set_defaults(run=fetch)
    parser = add_command(subparsers, "inspect", "count and check the contents of a dataset", INSPECT_EXAMPLES)
    add_dataset(parser, positional=True)
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="read only N images: spread evenly over a folder, the first ones of shards (default: all)",
    )
    parser.add_argument(
        "--samples", type=positive, default=40, metavar="N", help="images to draw and check (default: 40)"
    )
    parser.add_argument("--thorough", action="store_true", help="decode and check all images, not only the samples")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="also write annotated samples as a web page")
    parser.set_defaults(run=inspect)


def _add_synthesize(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers, "synthesize", "generate labelled training data, or continue to do so", SYNTHESIZE_EXAMPLES
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DATASET", help="dataset folder")
    parser.add_argument("--images", type=positive, default=2000, metavar="N", help="images in total (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")

    objects = parser.add_argument_group("objects")
    text = f"procedural objects (default: {_OBJECTS}, or none with --meshes)"
    objects.add_argument("--objects", type=int, metavar="N", help=text)
    text = "number of the first procedural object; from 1000000000 on they are for evaluation (default: 0)"
    objects.add_argument("--first-object", type=int, default=0, metavar="N", help=text)
    objects.add_argument("--meshes", type=Path, metavar="FOLDER", help="folder of mesh files, with its subfolders")
    objects.add_argument("--split", type=Path, metavar="FILE", help='JSON: {"train": [names], "test": [names]}')
    objects.add_argument("--part", default="train", choices=("train", "test"), help="part of --split (default: train)")

    scenes = parser.add_argument_group("scenes")
    scenes.add_argument("--textures", type=Path, metavar="FOLDER", help="images for rooms and for parts of objects")
    for name, default, metavar, text in _RANGES:
        text += f" (default: {default[0]} {default[1]})"
        scenes.add_argument(name, type=int, nargs=2, default=default, metavar=metavar, help=text)
    text = "probability that a target is a further instance of an object of the scene (default: 0)"
    scenes.add_argument("--repeats", type=fraction, default=0.0, metavar="PROBABILITY", help=text)
    text = f"make clips of {_CLIP} frames: the camera moves, and two equal objects (--repeats) cross each other"
    scenes.add_argument("--video", action="store_true", help=text)
    text = "good: four samples per pixel (default: fast)"
    scenes.add_argument("--quality", default="fast", choices=("fast", "good"), help=text)
    text = "fraction of the images to render by path tracing (Mitsuba), seconds for each (default: 0)"
    scenes.add_argument("--path-traced", type=fraction, default=0.0, metavar="FRACTION", help=text)

    output = parser.add_argument_group("output")
    text = "BOP folders, webdataset shards, or both (default: bop)"
    output.add_argument("--format", default="bop", choices=("bop", "shards", "both"), help=text)
    text = "folder of the scenes (default: train_pbr)"
    output.add_argument("--bop-split", default="train_pbr", metavar="NAME", help=text)
    text = "scenes in a shard (default: 20)"
    output.add_argument("--scenes-per-shard", type=positive, default=20, metavar="N", help=text)
    text = "write depth maps (default: yes)"
    output.add_argument("--depth", action=argparse.BooleanOptionalAction, default=True, help=text)

    add_workers(parser, "scenes", jobs=None).add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help='generate on a Ray cluster; "auto": that of this machine; without ADDRESS: a new one on this machine',
    )
    parser.set_defaults(run=synthesize)


def fetch(arguments: argparse.Namespace) -> int:
    """Download; return 0."""
    from ocdit_core.data.fetch import PARTS, fetch_dataset

    added = fetch_dataset(arguments.name, arguments.out, arguments.parts or PARTS)
    print(f"{arguments.out / arguments.name}: added {', '.join(path.name for path in added) or 'nothing'}")
    return 0


def synthesize(arguments: argparse.Namespace) -> int:
    """Generate the dataset; return 0."""
    from ocdit_core.synthesis.generation import synthesize
    from ocdit_core.synthesis.ray_engine import RayEngine

    settings, jobs = _settings(arguments), arguments.jobs or 0
    opened: AbstractContextManager[RayEngine | None]
    opened = nullcontext() if arguments.ray is None else RayEngine(arguments.ray, jobs)
    with opened as engine:
        done = synthesize(arguments.out, settings, jobs=jobs, engine=engine, shard=arguments.shard, progress=True)
    print(f"{arguments.out}: {_summary(done)}")
    return 0


def _settings(arguments: argparse.Namespace) -> SynthesisSettings:
    from ocdit_core.synthesis.plan import SynthesisSettings

    objects = arguments.objects
    return SynthesisSettings(
        images=arguments.images,
        seed=arguments.seed,
        objects=(_OBJECTS if arguments.meshes is None else 0) if objects is None else objects,
        first_object=arguments.first_object,
        meshes=_absolute(arguments.meshes),
        split=_absolute(arguments.split),
        part=arguments.part,
        textures=_absolute(arguments.textures),
        size=tuple(arguments.size),
        targets=tuple(arguments.targets),
        repeats=arguments.repeats,
        distractors=tuple(arguments.distractors),
        views=(_CLIP, _CLIP) if arguments.video else tuple(arguments.views_per_scene),
        video=arguments.video,
        format=arguments.format,
        depth=arguments.depth,
        quality=arguments.quality,
        path_traced=arguments.path_traced,
        scenes_a_shard=arguments.scenes_per_shard,
        bop_split=arguments.bop_split,
    )


def _absolute(path: Path | None) -> str | None:
    # The plan must name the same folder wherever the command is repeated.
    return None if path is None else str(path.expanduser().resolve())


def _summary(done: Synthesised) -> str:
    parts = [counted(done.images + done.there, "image") + (f" ({done.there:,} were there)" if done.there else "")]
    parts.append(f"{done.objects:,} objects" + (f" ({done.skipped:,} left out)" if done.skipped else ""))
    if done.images:
        parts.append(f"{done.images / max(done.seconds, 1e-9):.1f} images/s")
    if done.missing:
        parts.append(f"{done.missing:,} of the dataset are still missing")
    return ", ".join(parts)


def inspect(arguments: argparse.Namespace) -> int:
    """Inspect; return 2 if something is damaged, else 0."""
    from ocdit_core.data.dataset import open_dataset
    from ocdit_core.files import check_output

    if arguments.html is not None:
        check_output(arguments.html)
    dataset = open_dataset(arguments.dataset, arguments.split)
    statistics, samples = _count(dataset, arguments)
    _print(dataset, statistics)
    if arguments.html is not None:
        _write_page(arguments.html, dataset, statistics, samples)
        print(f"{arguments.html}: page with {counted(len(samples), 'sample')}")
    for problem in statistics.problems:
        print(f"ocdit: error: {problem}", file=sys.stderr)
    hidden = statistics.damaged.total() - len(statistics.problems)
    if hidden:
        print(f"ocdit: error: and {hidden} more", file=sys.stderr)
    return 2 if statistics.damaged else 0


def _count(dataset: Dataset, arguments: argparse.Namespace) -> tuple[DatasetStatistics, list[Frame]]:
    """Count all frames; return the sound ones among the samples as well."""
    from tqdm import tqdm

    from ocdit_core.data.bop import spread
    from ocdit_core.data.statistics import DatasetStatistics

    statistics = DatasetStatistics()
    samples: list[Frame] = []
    total = None if dataset.count is None else min(dataset.count, arguments.limit or dataset.count)
    chosen = None if total is None else set(spread(total, arguments.samples))
    frames = dataset.frames(limit=arguments.limit, on_error=statistics.note)
    # disable=None: a progress bar on a terminal only, so that log files stay readable.
    for number, frame in enumerate(tqdm(frames, total=total, desc="reading", unit="image", disable=None)):
        # The number of frames in shards is known at their end only: their samples are the first frames.
        sample = number in chosen if chosen is not None else len(samples) < arguments.samples
        if statistics.add(frame, thorough=sample or arguments.thorough) and sample:
            samples.append(frame)
    if not statistics.frames and not statistics.damaged:
        raise DataError(f"{arguments.dataset}: holds no image")
    return statistics, samples


def summary(statistics: DatasetStatistics) -> str:
    """Return the main numbers in one line."""
    sizes = ", ".join(f"{width} x {height}" for (height, width), _ in statistics.image_sizes.most_common(3))
    more = ", ..." if len(statistics.image_sizes) > 3 else ""
    per_frame = statistics.instances / statistics.frames if statistics.frames else 0.0
    parts = [
        counted(statistics.frames, "image") + (f" of {sizes}{more}" if sizes else ""),
        counted(len(statistics.scenes), "scene"),
        counted(len(statistics.objects), "object"),
        f"{counted(statistics.instances, 'instance')} ({per_frame:.1f} per image)",
        f"{statistics.damaged.total():,} damaged",
    ]
    return ", ".join(parts)


def _print(dataset: Dataset, statistics: DatasetStatistics) -> None:
    print(f"{dataset.title}: {summary(statistics)}")
    for name, rows in statistics.histograms().items():
        total = sum(count for _, count in rows) or 1
        print()
        print_table(
            [name, "instances", "fraction"], [[label, f"{count}", f"{count / total:.1%}"] for label, count in rows]
        )
    if statistics.damaged:
        print()
        print_table(["damaged", "count"], [[kind, str(count)] for kind, count in statistics.damaged.most_common()])


def _write_page(path: Path, dataset: Dataset, statistics: DatasetStatistics, samples: Sequence[Frame]) -> None:
    from ocdit_core.web_page import write_page

    counts = [
        *statistics.histograms().items(),
        ("most frequent objects", [(str(number), count) for number, count in statistics.objects.most_common(20)]),
        ("instances per image", [(str(number), count) for number, count in sorted(statistics.per_frame.items())]),
    ]
    write_page(
        path,
        "inspection.html",
        title=dataset.title,
        summary=summary(statistics),
        statistics=statistics,
        counts=counts,
        # Drawn one by one, while the page is written.
        samples=((frame.key, draw_frame(frame, _WIDTH)) for frame in samples),
    )


def draw_frame(frame: Frame, width: int) -> np.ndarray:
    """Draw the visible masks of a frame over its image, labelled with object number and visible fraction.

    Returns:
        (H, width, 3) uint8 RGB.

    Raises:
        DataError: the image or a mask is missing or damaged.
    """
    from ocdit_core.evaluation.failures import draw_masks

    masks = [
        (str(annotation.object_id), annotation.visible_fraction, frame.mask(index))
        for index, annotation in enumerate(frame.annotations)
    ]
    return draw_masks(frame.image(), masks, width)
