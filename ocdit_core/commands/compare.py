"""`ocdit compare`: evaluations side by side, with confidence intervals."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ocdit_core.commands.common import add_command, fraction, positive, print_table
from ocdit_core.errors import ConfigError

if TYPE_CHECKING:
    from ocdit_core.evaluation.run import Run

EXAMPLES = """\
  ocdit compare runs/cnos runs/fast runs/paper
  ocdit compare runs/fast cnos_ycbv-test.json --dataset data/bop/ycbv --split test --targets test_targets_bop19.json

The values in brackets are 95% confidence intervals, by the bootstrap over images or scenes. The differences are those
to the first run; a star marks those that are more than chance.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "compare", "compare evaluations, with confidence intervals", EXAMPLES)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="an evaluation's folder, or a BOP results file"
    )
    parser.add_argument(
        "--resamples", type=positive, default=1000, metavar="N", help="of the bootstrap (default: 1000)"
    )
    parser.add_argument(
        "--unit", choices=["image", "scene"], help="what is drawn (default: scenes where there are 20 or more)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there as well")
    files = parser.add_argument_group("for results files")
    files.add_argument("--dataset", metavar="DATASET", help="a folder in BOP's layout, or shards")
    files.add_argument("--split", metavar="NAME", help="such as test (default: the only one)")
    files.add_argument(
        "--targets", default="present", metavar="WHICH", help="as in `ocdit evaluate` (default: present)"
    )
    files.add_argument("--threshold", type=fraction, default=0.5, help="of the scores (default: 0.5)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare; returns 0."""
    from ocdit_core.evaluation.comparison import compare, comparison_json, comparison_table
    from ocdit_core.evaluation.run import read_run
    from ocdit_core.files import check_output, protecting, write_text

    if len(arguments.runs) < 2:
        raise ConfigError("one run alone cannot be compared; name two or more")
    if arguments.json is not None:
        with protecting(file for run in arguments.runs for file in run.glob("*")):
            check_output(arguments.json)
    with ExitStack() as stack:
        runs = [
            _evaluated(path, arguments, stack) if path.suffix == ".json" else read_run(path) for path in arguments.runs
        ]
        comparison = compare(runs, resamples=arguments.resamples, unit=arguments.unit)
    print_table(*comparison_table(comparison))
    print(
        f"{comparison.dataset}: {comparison.images} images; 95% confidence intervals by {comparison.resamples} "
        f"resamples of {comparison.unit}s"
    )
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(comparison_json(comparison), indent=1, ensure_ascii=False) + "\n")
    return 0


def _evaluated(path: Path, arguments: argparse.Namespace, stack: ExitStack) -> Run:
    """Evaluate a results file into a folder that goes away with `stack`."""
    from ocdit_core.data.dataset import open_dataset
    from ocdit_core.evaluation.run import evaluate_file, read_run
    from ocdit_core.evaluation.targets import choose_targets

    if arguments.dataset is None:
        raise ConfigError(f"--dataset is missing: {path} is a results file, which is compared with the truth")
    dataset = open_dataset(arguments.dataset, arguments.split)
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="ocdit_")))
    targets = choose_targets(dataset, arguments.targets)
    evaluate_file(folder, path, dataset, targets, threshold=arguments.threshold)
    return read_run(folder, path.stem)
