"""`ocdit report`: evaluations as one web page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ocdit_core.commands.common import add_command, positive

EXAMPLES = """\
  ocdit report runs/fast runs/paper --out report.html
  ocdit report runs/fast runs/cnos --dataset data/rooms --split test --objects data/rooms/templates --out report.html
  ocdit report runs/steps --out steps.html

RUN is a folder of `ocdit evaluate` or of `ocdit ablate`. The page is one file that loads nothing from elsewhere. With
--dataset it shows pictures, failures and confusions between objects.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "report", "write a web page about evaluations", EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder of an evaluation, or of a grid")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the page, such as report.html")
    parser.add_argument("--title", help="of the page (default: the dataset's name)")
    parser.add_argument("--dataset", metavar="DATASET", help="of the runs; with it there are pictures")
    parser.add_argument("--split", metavar="NAME", help="such as test (default: the only one)")
    parser.add_argument("--objects", type=Path, metavar="LIBRARY", help="the objects' views, for their names")
    parser.add_argument(
        "--pictures",
        type=positive,
        default=6,
        metavar="N",
        help="of the best, the worst, and each failure (default: 6)",
    )
    parser.add_argument(
        "--resamples", type=positive, default=1000, metavar="N", help="of the bootstrap (default: 1000)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page; returns 0."""
    from ocdit_core.data.dataset import open_dataset
    from ocdit_core.evaluation.ablate import is_ablation, read_ablation
    from ocdit_core.evaluation.report import write_report
    from ocdit_core.evaluation.run import read_run
    from ocdit_core.evaluation.targets import names_of_objects
    from ocdit_core.files import check_output, protecting
    from ocdit_core.objects.library import ObjectLibrary

    with protecting(file for run in arguments.runs for file in run.glob("*")):
        check_output(arguments.out)
    runs = [read_run(path) for path in arguments.runs if not is_ablation(path)]
    ablations = [read_ablation(path) for path in arguments.runs if is_ablation(path)]
    dataset = open_dataset(arguments.dataset, arguments.split) if arguments.dataset else None
    names = None
    if arguments.objects is not None:
        folder = Path(getattr(dataset, "path", arguments.dataset or "."))
        names = names_of_objects(ObjectLibrary(arguments.objects), folder)
    known = [run.plan["dataset"] for run in runs] or [ablation.title for ablation in ablations]
    size = write_report(
        arguments.out,
        runs,
        ablations,
        title=arguments.title or f"Evaluation: {known[0]}",
        dataset=dataset,
        names=names,
        images=arguments.pictures,
        resamples=arguments.resamples,
    )
    print(f"{arguments.out}: {size / 1e6:.1f} MB")
    return 0
