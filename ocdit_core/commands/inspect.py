"""`ocdit inspect`: what a dataset holds, whether it is sound, and what it looks like."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ocdit_core.commands.common import add_command, positive, print_table
from ocdit_core.errors import DataError, ImageError

if TYPE_CHECKING:
    import numpy as np

    from ocdit_core.data.dataset import Dataset
    from ocdit_core.data.frame import Frame
    from ocdit_core.data.statistics import DatasetStatistics

EXAMPLES = """\
  ocdit inspect data/bop/ycbv --split test
  ocdit inspect data/scenes --html scenes.html --sheet scenes.png
  ocdit inspect data/shards/shard-{000000..000009}.tar --thorough
"""

DRAWN_WIDTH, SHEET_WIDTH = 640, 400


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "inspect", "show what a dataset holds, and check that it is sound", EXAMPLES)
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="a folder in BOP's layout; or a shard (.tar), a folder with shards, or a {000..099} pattern",
    )
    parser.add_argument("--split", metavar="NAME", help="such as train_pbr or test (default: the only one)")
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="look at N pictures only, spread evenly over folders, the first of shards (default: all)",
    )
    parser.add_argument(
        "--samples", type=positive, default=40, metavar="N", help="pictures that are drawn and checked (default: 40)"
    )
    parser.add_argument(
        "--thorough", action="store_true", help="decode and check all that is looked at, not the samples only"
    )
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a web page with tables and annotated samples")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write a picture of the annotated samples")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Inspect; returns 2 when something is damaged, else 0."""
    from ocdit_core.data.dataset import open_dataset
    from ocdit_core.files import check_output
    from ocdit_core.images import SUFFIXES, write_image

    if arguments.sheet is not None and arguments.sheet.suffix.lower() not in SUFFIXES:
        raise ImageError(f"{arguments.sheet}: --sheet needs a picture's suffix, such as .png")
    check_output(*(path for path in (arguments.sheet, arguments.html) if path is not None))
    dataset = open_dataset(arguments.dataset, arguments.split)
    survey, samples = _survey(dataset, arguments)
    _print(dataset, survey)
    if arguments.html is not None:
        from ocdit_core.commands.inspection_page import write_page

        drawings = _drawn(samples, DRAWN_WIDTH)
        write_page(arguments.html, dataset.title, summary(survey), survey, drawings)
        print(f"{arguments.html}: page with {_count(len(drawings), 'sample')}")
    if arguments.sheet is not None and samples:
        from ocdit_core.commands.inspection_page import sheet

        # Drawn anew: labels of larger drawings could not be read.
        write_image(arguments.sheet, sheet([drawing for _, drawing in _drawn(samples, SHEET_WIDTH)]))
        print(f"{arguments.sheet}: sheet of {_count(len(samples), 'sample')}")
    for problem in survey.problems:
        print(f"ocdit: error: {problem}", file=sys.stderr)
    hidden = survey.damaged.total() - len(survey.problems)
    if hidden:
        print(f"ocdit: error: and {hidden} more", file=sys.stderr)
    return 2 if survey.damaged else 0


def _survey(dataset: Dataset, arguments: argparse.Namespace) -> tuple[DatasetStatistics, list[Frame]]:
    """Count all frames; return the sound ones among the samples as well."""
    from tqdm import tqdm

    from ocdit_core.data.bop import spread
    from ocdit_core.data.statistics import DatasetStatistics

    survey = DatasetStatistics()
    samples: list[Frame] = []
    total = None if dataset.count is None else min(dataset.count, arguments.limit or dataset.count)
    chosen = None if total is None else set(spread(total, arguments.samples))
    frames = dataset.frames(limit=arguments.limit, on_error=survey.note)
    # None: a bar on a terminal only, so that log files stay readable.
    for number, frame in enumerate(tqdm(frames, total=total, desc="looking", unit="image", disable=None)):
        # How many frames shards hold is known at their end only: the first ones are the samples there.
        sample = number in chosen if chosen is not None else len(samples) < arguments.samples
        if survey.add(frame, thorough=sample or arguments.thorough) and sample:
            samples.append(frame)
    if not survey.frames and not survey.damaged:
        raise DataError(f"{arguments.dataset}: holds no picture")
    return survey, samples


def _drawn(samples: list[Frame], width: int) -> list[tuple[str, np.ndarray]]:
    from ocdit_core.commands.inspection_page import draw_frame

    return [(frame.key, draw_frame(frame, width)) for frame in samples]


def summary(survey: DatasetStatistics) -> str:
    """Return the numbers that come first, in a line."""
    sizes = ", ".join(f"{width} x {height}" for (height, width), _ in survey.image_sizes.most_common(3))
    more = ", ..." if len(survey.image_sizes) > 3 else ""
    per_frame = survey.instances / survey.frames if survey.frames else 0.0
    parts = [
        _count(survey.frames, "image") + (f" of {sizes}{more}" if sizes else ""),
        _count(len(survey.scenes), "scene"),
        _count(len(survey.objects), "object"),
        f"{_count(survey.instances, 'instance')} ({per_frame:.1f} an image)",
        f"{survey.damaged.total():,} damaged",
    ]
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _print(dataset: Dataset, survey: DatasetStatistics) -> None:
    print(f"{dataset.title}: {summary(survey)}")
    for name, rows in survey.histograms().items():
        total = sum(count for _, count in rows) or 1
        print()
        print_table(
            [name, "instances", "share"], [[label, f"{count}", f"{count / total:.1%}"] for label, count in rows]
        )
    if survey.damaged:
        print()
        print_table(["damaged", "count"], [[kind, str(count)] for kind, count in survey.damaged.most_common()])
