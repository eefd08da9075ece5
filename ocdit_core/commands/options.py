"""Options and output that the subcommands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ocdit_core.errors import ImageError, OcditError

if TYPE_CHECKING:
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.objects.library import ObjectLibrary

DEFAULT_MODEL = "ocdit-small"
"""The embedded model that is used unless --weights names another one."""


def add_command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, examples: str
) -> argparse.ArgumentParser:
    """Return the parser of a new subcommand, with examples below its help."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


Options = argparse.ArgumentParser | argparse._ArgumentGroup


def add_model(parser: Options, *, preset: bool = True) -> None:
    """Add --weights, --device, --preset and --set."""
    text = f"name of an embedded model, or a model folder (default: {DEFAULT_MODEL})"
    parser.add_argument("--weights", default=DEFAULT_MODEL, metavar="MODEL", help=text)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    if preset:
        parser.add_argument("--preset", metavar="NAME", help="fast or paper (default: the settings of the model)")
    add_settings(parser, "an inference setting, such as ensemble=4 or sampler.steps=9")


def add_settings(parser: Options, text: str) -> None:
    """Add --set."""
    text += "; may be given several times"
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_targets(parser: Options) -> None:
    """Add --objects, --targets and --threshold, as `open_library` and `load_segmenter` read them."""
    text = "object library, made by `ocdit render`"
    parser.add_argument("--objects", required=True, type=Path, metavar="LIBRARY", help=text)
    text = "objects to search for (default: all of the library)"
    parser.add_argument("--targets", nargs="+", metavar="NAME", help=text)
    text = "lowest score of an instance, 0 to 1 (default: that of the model)"
    parser.add_argument("--threshold", type=fraction, help=text)


def add_dataset(parser: Options, *, required: bool = True, positional: bool = False) -> None:
    """Add the dataset, by position or as --dataset, and --split."""
    text = "dataset folder in the BOP format, a shard (.tar), or a folder of shards"
    if positional:
        parser.add_argument("dataset", metavar="DATASET", help=text)
    else:
        parser.add_argument("--dataset", required=required, metavar="DATASET", help=text)
    parser.add_argument("--split", metavar="NAME", help="such as train_pbr or test (default: the only one)")


def add_workers(parser: argparse.ArgumentParser, work: str, *, jobs: int | None) -> argparse._ArgumentGroup:
    """Add --jobs and --shard in a group of their own, and return it.

    Args:
        parser: parser of the subcommand.
        work: what is split into shards, such as "images".
        jobs: default number of processes; None: one for each core.
    """
    group = parser.add_argument_group("parallel work")
    text = "one for each core" if jobs is None else str(jobs)
    group.add_argument("--jobs", type=positive, default=jobs, metavar="N", help=f"processes (default: {text})")
    group.add_argument(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="I/N",
        help=f"process only shard I (from 0) of N of the {work}, for several machines with a common file system",
    )
    return group


def add_pages(parser: Options, what: str) -> None:
    """Add --sheet and --html, which `check_pages` checks."""
    parser.add_argument("--sheet", type=Path, metavar="PNG", help=f"also write {what} as an image")
    parser.add_argument("--html", type=Path, metavar="PAGE", help=f"also write {what} as a web page")


def check_pages(arguments: argparse.Namespace) -> None:
    """Raise ImageError or OutputError if --sheet or --html could not be written in the end."""
    from ocdit_core.files import check_output
    from ocdit_core.images import SUFFIXES

    if arguments.sheet is not None and arguments.sheet.suffix.lower() not in SUFFIXES:
        raise ImageError(f"{arguments.sheet}: --sheet needs the suffix of an image file, such as .png")
    check_output(*(path for path in (arguments.sheet, getattr(arguments, "html", None)) if path is not None))


def open_library(arguments: argparse.Namespace) -> tuple[ObjectLibrary, list[str]]:
    """Return the library and the names of the target objects; raises LibraryError."""
    from ocdit_core.objects.library import ObjectLibrary

    library = ObjectLibrary(arguments.objects)
    targets = list(dict.fromkeys(arguments.targets or library.object_ids))
    library.select(targets)
    return library, targets


def load_segmenter(arguments: argparse.Namespace, library: ObjectLibrary, targets: list[str]) -> Segmenter:
    """Return the model with its targets set; raises WeightsError or ConfigError."""
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.settings import recommended_settings

    settings = recommended_settings(arguments.weights, preset=arguments.preset, overrides=arguments.settings)
    if arguments.threshold is not None:
        settings = replace(settings, score_threshold=arguments.threshold)
    segmenter = Segmenter.from_pretrained(arguments.weights, device=arguments.device, settings=settings)
    segmenter.set_objects(library, targets)
    return segmenter


def report(error: OcditError) -> None:
    """Print one problem on stderr, where the work continues with the next item."""
    from tqdm import tqdm

    # tqdm's own print keeps a progress bar on its line.
    tqdm.write(error_line(error), file=sys.stderr)


def error_line(error: object) -> str:
    """Return the line for an error; a file name that it quotes may hold line breaks."""
    return f"ocdit: error: {error}".replace("\n", "\\n").replace("\r", "\\r")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns on stdout, numbers aligned right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        cells = (
            text.rjust(width) if row is not header and text[:1].isdigit() else text.ljust(width)
            for text, width in zip(row, widths, strict=True)
        )
        print("  ".join(cells).rstrip())


def counted(number: int, noun: str) -> str:
    """Return "1 image" or "2,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def positive(text: str) -> int:
    """Parse a number above 0 (for argparse)."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def fraction(text: str) -> float:
    """Parse a number from 0 to 1 (for argparse)."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 to 1")
    return value


def shard(text: str) -> tuple[int, int]:
    """Parse I/N (for argparse)."""
    try:
        index, count = (int(number) for number in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 0/4") from None
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"{text}: shards of {count} are counted from 0 to {count - 1}")
    return index, count
