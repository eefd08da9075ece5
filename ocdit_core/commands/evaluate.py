"""`ocdit evaluate`: average precision and more on a BOP dataset."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdit_core.commands.common import add_command, fraction, positive, print_table
from ocdit_core.errors import ConfigError

if TYPE_CHECKING:
    from ocdit_core.data.dataset import Dataset
    from ocdit_core.evaluation.methods import MethodSpec
    from ocdit_core.evaluation.run import EvaluationTask
    from ocdit_core.evaluation.targets import Targets

EXAMPLES = """\
  ocdit evaluate --dataset data/bop/ycbv --split test --targets test_targets_bop19.json --objects ycbv_objects/ \\
      --weights my_model --out runs/ycbv
  ocdit evaluate --dataset data/rooms --split test --objects data/rooms/templates --method colour --out runs/colour
  ocdit evaluate --dataset data/bop/ycbv --split test --results cnos_ycbv-test.json --out runs/cnos
  ocdit evaluate ... --out runs/many ensemble=4 sampler.steps=9 --shard 0/8 --jobs 4

OUT holds: metrics.json, results.json (BOP's results file), records.jsonl (each image and object in numbers),
evaluation.json (what was evaluated). A run that was broken off goes on with the same command.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "evaluate", "measure how well objects are found in a labelled dataset", EXAMPLES)
    add_dataset(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="folder of the results (made if new)")

    method = parser.add_argument_group("what is evaluated")
    method.add_argument("--objects", type=Path, metavar="LIBRARY", help="the objects' views, made by `ocdit render`")
    method.add_argument(
        "--method", default="ocdit", metavar="NAME", help="ocdit, or a baseline: colour, cnos (default: ocdit)"
    )
    method.add_argument("--weights", default="ocdit-tiny", help="an embedded model's name or a folder (ocdit-tiny)")
    method.add_argument("--preset", metavar="NAME", help="fast (as the model recommends; default) or paper")
    method.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    method.add_argument(
        "--threshold",
        type=fraction,
        help="score from which on an instance counts as reported, for all but AP and AR (default: the model's)",
    )
    method.add_argument(
        "--results", type=Path, metavar="FILE", help="evaluate this BOP results file instead of running a method"
    )
    method.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the inference: ensemble=4 ...")

    add_work(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; returns 0."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ocdit_core.data.dataset import open_dataset

    with logging_redirect_tqdm([logging.getLogger("ocdit_core")]):
        dataset = open_dataset(arguments.dataset, arguments.split)
        metrics = _from_file(dataset, arguments) if arguments.results else _by_method(dataset, arguments)
    if metrics is None:
        print(f"{arguments.out}: this share is done; the metrics come with the last of the others")
        return 0
    from ocdit_core.evaluation.metrics import table

    header, *rows = ([*row, *[""] * (6 - len(row))] for row in table(metrics))
    print_table(header, rows)
    print(f"{arguments.out}: metrics.json, results of {metrics['images']:,} images")
    return 0


def task_of(dataset: Dataset, arguments: argparse.Namespace) -> Callable[[list[str]], EvaluationTask]:
    """Return what makes evaluations with these overrides of settings; raises what is wrong with the arguments."""
    from ocdit_core.evaluation.methods import method_spec
    from ocdit_core.evaluation.run import EvaluationTask
    from ocdit_core.evaluation.targets import choose_targets, names_of_objects, require_templates
    from ocdit_core.objects.library import ObjectLibrary

    if arguments.objects is None:
        raise ConfigError("--objects is missing: the library of the objects' views, made by `ocdit render`")
    library = ObjectLibrary(arguments.objects)

    def method(overrides: list[str]) -> MethodSpec:
        return method_spec(
            arguments.method,
            weights=arguments.weights,
            device=arguments.device,
            preset=arguments.preset,
            overrides=overrides,
            threshold=arguments.threshold,
        )

    # Settings are the first thing to be wrong, and the targets of a large dataset take long to find.
    method(arguments.settings)
    targets: Targets = choose_targets(dataset, arguments.targets)
    names = names_of_objects(library, dataset.path)
    require_templates(library, targets, names)
    return lambda overrides: EvaluationTask(
        dataset=arguments.dataset,
        split=arguments.split,
        targets=targets,
        library=library.path,
        names=names,
        method=method([*arguments.settings, *overrides]),
    )


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what is looked for where."""
    parser.add_argument("--dataset", required=True, metavar="DATASET", help="a folder in BOP's layout, or shards")
    parser.add_argument("--split", metavar="NAME", help="such as test (default: the only one)")
    parser.add_argument(
        "--targets",
        default="present",
        metavar="WHICH",
        help="what is looked for: all (every object in every image), present (those that an image shows), or a targets "
        "file such as test_targets_bop19.json, where inst_count 0 asks for what is not there (default: present)",
    )


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that share the work out."""
    work = parser.add_argument_group("who does the work")
    work.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes (default: 1)")
    work.add_argument(
        "--shard",
        type=_share,
        default=(0, 1),
        metavar="I/N",
        help="do the I-th of N shares of the images only, from 0 on: for several machines with one OUT",
    )


def _by_method(dataset: Dataset, arguments: argparse.Namespace) -> dict[str, Any] | None:
    from ocdit_core.evaluation.run import evaluate

    task = task_of(dataset, arguments)([])
    return evaluate(arguments.out, task, jobs=arguments.jobs, shard=arguments.shard, progress=True)


def _from_file(dataset: Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    from ocdit_core.evaluation.run import evaluate_file
    from ocdit_core.evaluation.targets import choose_targets

    threshold = 0.5 if arguments.threshold is None else arguments.threshold
    targets = choose_targets(dataset, arguments.targets)
    return evaluate_file(arguments.out, arguments.results, dataset, targets, threshold=threshold)


def _share(text: str) -> tuple[int, int]:
    try:
        index, count = (int(number) for number in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 0/4") from None
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"{text}: shares of {count} are counted from 0 to {count - 1}")
    return index, count
