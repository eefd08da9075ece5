"""`ocdit synthesize`: training data, objects that came to rest in rooms."""

from __future__ import annotations

import argparse
import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ocdit_core.commands.common import add_command, fraction, positive
from ocdit_core.errors import ConfigError

if TYPE_CHECKING:
    from ocdit_core.synthesis.generation import Synthesised
    from ocdit_core.synthesis.plan import SynthesisSettings
    from ocdit_core.synthesis.ray_engine import RayEngine

EXAMPLES = """\
  ocdit synthesize --out data/train --images 2000 --objects 200
  ocdit synthesize --out data/train --images 20000 --meshes ~/cad --split split.json --test-share 0.1
  ocdit synthesize --out data/shards --images 1000000 --objects 5000 --format shards --ray auto
"""
_OBJECTS = 200  # where nothing is said of objects


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers, "synthesize", "make training data in BOP's layout; broken off, the same call goes on", EXAMPLES
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DATASET", help="the dataset's folder (made if new)")
    parser.add_argument("--images", type=positive, default=2000, metavar="N", help="pictures in all (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one gives other scenes (default: 0)")

    objects = parser.add_argument_group("objects")
    objects.add_argument(
        "--objects",
        type=int,
        metavar="N",
        help=f"procedural objects (default: {_OBJECTS}, with --meshes none)",
    )
    objects.add_argument(
        "--first-object",
        type=int,
        default=0,
        metavar="N",
        help="number of the first of them; 1000000000 and above are for evaluation (default: 0)",
    )
    objects.add_argument("--meshes", type=Path, metavar="FOLDER", help="mesh files, those in folders below too")
    objects.add_argument("--split", type=Path, metavar="FILE", help='JSON: {"train": [names], "test": [names]}')
    objects.add_argument("--part", default="train", choices=("train", "test"), help="of the split (default: train)")
    objects.add_argument(
        "--test-share",
        type=fraction,
        metavar="SHARE",
        help="write the split file first where it is missing, with this share of the objects for test",
    )

    scenes = parser.add_argument_group("scenes")
    scenes.add_argument(
        "--textures",
        type=Path,
        metavar="FOLDER",
        help="photographs for floors, walls, tables, and parts of procedural or grey objects",
    )
    _pair(scenes, "--size", (480, 640), ("H", "W"), "height and width in pixels")
    _pair(scenes, "--targets", (2, 16), ("MIN", "MAX"), "labelled objects in a scene")
    scenes.add_argument(
        "--repeats",
        type=fraction,
        default=0.0,
        metavar="SHARE",
        help="chance for a target to be one more instance of an object that is there already (default: 0)",
    )
    _pair(scenes, "--distractors", (0, 4), ("MIN", "MAX"), "objects without a label in a scene")
    _pair(scenes, "--views-per-scene", (5, 20), ("MIN", "MAX"), "pictures of a scene")
    scenes.add_argument(
        "--quality", default="fast", choices=("fast", "good"), help="good: four samples a pixel (default: fast)"
    )
    scenes.add_argument(
        "--path-traced",
        type=fraction,
        default=0.0,
        metavar="SHARE",
        help="of the pictures to be drawn by Mitsuba, which takes seconds for each (default: 0)",
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        default="bop",
        choices=("bop", "shards", "both"),
        help="BOP folders, webdataset shards, or both (default: bop)",
    )
    output.add_argument(
        "--bop-split", default="train_pbr", metavar="NAME", help="folder of the scenes: train_pbr, val, test ..."
    )
    output.add_argument(
        "--scenes-per-shard", type=positive, default=20, metavar="N", help="scenes that share a shard (default: 20)"
    )
    output.add_argument(
        "--depth", action=argparse.BooleanOptionalAction, default=True, help="write depth maps (default: yes)"
    )

    work = parser.add_argument_group("who does the work")
    work.add_argument("--jobs", type=positive, metavar="N", help="processes (default: one for each core)")
    work.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help='of a Ray cluster, "auto" for the one that this machine belongs to; without ADDRESS: one on this machine',
    )
    work.add_argument(
        "--shard-index",
        type=int,
        default=0,
        metavar="I",
        help="make the I-th share of the scenes only, from 0 on: for several machines with one file system",
    )
    work.add_argument("--shard-count", type=positive, default=1, metavar="N", help="how many shares there are")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the dataset; returns 0."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ocdit_core.synthesis.generation import synthesize

    with logging_redirect_tqdm([logging.getLogger("ocdit_core")]):
        settings = _settings(arguments)
        with _engine(arguments) as engine:
            done = synthesize(
                arguments.out,
                settings,
                jobs=arguments.jobs or 0,
                engine=engine,
                share=(arguments.shard_index, arguments.shard_count),
                progress=True,
            )
    print(f"{arguments.out}: {_summary(done)}")
    return 0


def _engine(arguments: argparse.Namespace) -> AbstractContextManager[RayEngine | None]:
    if arguments.ray is None:
        return nullcontext()
    from ocdit_core.synthesis.ray_engine import RayEngine

    return RayEngine(arguments.ray, arguments.jobs or 0)


def _pair(
    group: argparse._ArgumentGroup, name: str, default: tuple[int, int], metavar: tuple[str, str], text: str
) -> None:
    group.add_argument(
        name,
        type=int,
        nargs=2,
        default=default,
        metavar=metavar,
        help=f"{text} (default: {default[0]} {default[1]})",
    )


def _settings(arguments: argparse.Namespace) -> SynthesisSettings:
    from ocdit_core.synthesis.plan import SynthesisSettings

    if arguments.test_share is not None and arguments.split is None:
        raise ConfigError("--test-share needs --split FILE, the file to be written")
    objects = arguments.objects
    settings = SynthesisSettings(
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
        views=tuple(arguments.views_per_scene),
        format=arguments.format,
        depth=arguments.depth,
        quality=arguments.quality,
        path_traced=arguments.path_traced,
        scenes_a_shard=arguments.scenes_per_shard,
        bop_split=arguments.bop_split,
    )
    if arguments.test_share is not None and not arguments.split.exists():
        _write_split(settings, arguments.split, arguments.test_share)
    return settings


def _absolute(path: Path | None) -> str | None:
    # The plan is to mean the same folder wherever the command is given again.
    return None if path is None else str(path.expanduser().resolve())


def _write_split(settings: SynthesisSettings, path: Path, share: float) -> None:
    from dataclasses import replace

    from ocdit_core.synthesis.generation import open_source
    from ocdit_core.synthesis.sources import split_names, write_split

    parts = split_names(open_source(replace(settings, split=None, part="train")).names, test_share=share)
    write_split(path, parts)
    print(f"{path}: {len(parts['train'])} objects for training, {len(parts['test'])} for test")


def _summary(done: Synthesised) -> str:
    total = done.images + done.there
    parts = [f"{total:,} image{'' if total == 1 else 's'}" + (f" ({done.there:,} were there)" if done.there else "")]
    parts.append(f"{done.objects:,} objects" + (f" ({done.skipped:,} left out)" if done.skipped else ""))
    if done.images:
        parts.append(f"{done.images / max(done.seconds, 1e-9):.1f} images/s")
    if done.missing:
        parts.append(f"{done.missing:,} of the dataset are still to be made")
    return ", ".join(parts)
