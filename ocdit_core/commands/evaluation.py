"""`ocdit evaluate`, `ocdit ablate`, `ocdit compare` and `ocdit report`: accuracy on labelled datasets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdit_core.commands.options import (
    add_command,
    add_dataset,
    add_model,
    add_workers,
    fraction,
    positive,
    print_table,
)
from ocdit_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ocdit_core.data.dataset import Dataset
    from ocdit_core.evaluation.run import EvaluationTask

EVALUATE_EXAMPLES = """\
  ocdit evaluate --dataset data/bop/ycbv --split test --targets test_targets_bop19.json --objects ycbv_objects/ \\
      --weights my_model --out runs/ycbv
  ocdit evaluate --dataset data/rooms --split test --objects data/rooms/templates --method colour --out runs/colour
  ocdit evaluate --dataset data/bop/ycbv --split test --results cnos_ycbv-test.json --out runs/cnos
  ocdit evaluate ... --regions truth --out runs/crops       # the paper's table 3 (b); (a) with --labels
  ocdit evaluate --dataset data/clips --split test --objects data/clips/templates --tracking --out runs/clips
  ocdit evaluate ... --out runs/many --set ensemble=4 --set sampler.steps=9 --shard 0/8 --jobs 4

OUT holds metrics.json, results.json (BOP results file), records.jsonl (each image and object) and evaluation.json (what
was evaluated). The same command continues an interrupted run.
"""
ABLATE_EXAMPLES = """\
  ocdit ablate --config config/evaluate/steps.yaml --dataset data/rooms --split test --targets targets.json \\
      --objects data/rooms/library --out runs/steps
  ocdit report runs/steps --out steps.html

CONFIG lists values for dotted keys; all their combinations are evaluated:
  title: Steps
  settings: {refine.enabled: false}       # the same for all
  grids:
    - {sampler.steps: [3, 9, 18], sampler.rho: [7.0, 9.0]}

Each combination has a folder in OUT, in the format of `ocdit evaluate`. The same command continues an interrupted grid.
"""
COMPARE_EXAMPLES = """\
  ocdit compare runs/cnos runs/fast runs/paper

RUN is a folder of `ocdit evaluate`; for a results file of another program, `ocdit evaluate --results FILE` makes it.
Brackets hold 95% confidence intervals, by the bootstrap over scenes if there are 20 or more, else over images.
Differences are to the first run; a star marks an interval that excludes 0.
"""
REPORT_EXAMPLES = """\
  ocdit report runs/fast runs/paper --out report.html
  ocdit report runs/fast runs/cnos --dataset data/rooms --split test --objects data/rooms/templates --out report.html
  ocdit report runs/steps --out steps.html
  ocdit report runs/fast --out report.html --plot reliability.png

RUN is a folder of `ocdit evaluate` or `ocdit ablate`. The page is one file without external content. With --dataset it
shows images, failures and confusions between objects. Needs `pip install 'ocdit_ros[report]'`.
"""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    parser = add_command(subparsers, "evaluate", "measure accuracy on a labelled dataset", EVALUATE_EXAMPLES)
    _add_task(parser)
    method = parser.add_argument_group("method")
    text = "ocdit, or a baseline: colour, cnos (default: ocdit)"
    method.add_argument("--method", default="ocdit", metavar="NAME", help=text)
    add_model(method)
    text = (
        "label these regions instead of segmenting the image: truth (boxes of the ground truth), or a BOP results file"
    )
    method.add_argument("--regions", metavar="truth|FILE", help=text)
    method.add_argument("--labels", action="store_true", help="with --regions: keep their objects, segment them only")
    text = "give location prompts, drawn from the ground truth: point, scribble, box or mask"
    method.add_argument("--prompts", metavar="KIND", choices=("point", "scribble", "box", "mask"), help=text)
    text = "take the images of a scene for the frames of a video: run a tracker over the results, and measure the ids"
    method.add_argument("--tracking", action="store_true", help=text)
    text = "evaluate this BOP results file instead of a method"
    method.add_argument("--results", type=Path, metavar="FILE", help=text)
    add_workers(parser, "images", jobs=1)
    parser.set_defaults(run=evaluate)

    parser = add_command(subparsers, "ablate", "evaluate many combinations of settings", ABLATE_EXAMPLES)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file with the grid")
    _add_task(parser)
    add_model(parser, preset=False)
    _add_resamples(parser)
    add_workers(parser, "images", jobs=1)
    parser.set_defaults(run=ablate)

    parser = add_command(subparsers, "compare", "compare evaluations, with confidence intervals", COMPARE_EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="evaluation folder")
    _add_resamples(parser)
    parser.set_defaults(run=compare)

    parser = add_command(subparsers, "report", "write a web page about evaluations", REPORT_EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of an evaluation or of a grid")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="page to write, such as report.html")
    parser.add_argument("--title", help="title of the page (default: the name of the dataset)")
    add_dataset(parser, required=False)
    parser.add_argument("--objects", type=Path, metavar="LIBRARY", help="object library, for the names of the objects")
    text = "best, worst and failed images to show (default: 6)"
    parser.add_argument("--images", type=positive, default=6, metavar="N", help=text)
    text = "also write the reliability diagram: a .png, .svg or .pdf file"
    parser.add_argument("--plot", type=Path, metavar="FILE", help=text)
    _add_resamples(parser)
    parser.set_defaults(run=write_report)


def _add_task(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument(
        "--targets",
        default="present",
        metavar="WHICH",
        help="objects to search for: all (each object in each image), present (those in the image), or a targets file "
        "such as test_targets_bop19.json, where inst_count 0 asks for an absent object (default: present)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="output folder")
    parser.add_argument("--objects", type=Path, metavar="LIBRARY", help="object library, made by `ocdit render`")
    parser.add_argument(
        "--threshold", type=fraction, help="score threshold for all metrics but AP and AR (default: that of the method)"
    )


def _add_resamples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resamples", type=positive, default=1000, metavar="N", help="bootstrap resamples (default: 1000)"
    )


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate; return 0."""
    from ocdit_core.data.dataset import open_dataset
    from ocdit_core.evaluation import run
    from ocdit_core.evaluation.metrics import table
    from ocdit_core.evaluation.targets import choose_targets
    from ocdit_core.evaluation.tracking import evaluate_tracking, tracking_table
    from ocdit_core.inference.settings import TrackSettings

    metrics: dict[str, Any] | None
    regions, labels = arguments.regions, arguments.labels
    if labels and regions is None:
        raise ConfigError("--labels: keeps the objects of regions; give --regions, too")
    for option, given in (("--regions", regions), ("--prompts", arguments.prompts)):
        if given is not None and (arguments.method != "ocdit" or arguments.results is not None):
            raise ConfigError(f"{option}: is for --method ocdit alone, and without --results")
    if regions is not None and arguments.prompts is not None:
        raise ConfigError("--regions and --prompts: give one of them")
    dataset = open_dataset(arguments.dataset, arguments.split)
    track = TrackSettings()
    if arguments.results is None:
        task = replace(_task_of(dataset, arguments)([]), regions=regions, labels=labels, prompts=arguments.prompts)
        track = track if task.method.settings is None else task.method.settings.track
        metrics = run.evaluate(arguments.out, task, jobs=arguments.jobs, shard=arguments.shard, progress=True)
    else:
        threshold = 0.5 if arguments.threshold is None else arguments.threshold
        targets = choose_targets(dataset, arguments.targets)
        metrics = run.evaluate_file(arguments.out, arguments.results, dataset, targets, threshold=threshold)
    if metrics is None:
        print(f"{arguments.out}: this shard is done; the last of the others writes the metrics")
        return 0
    if arguments.tracking:
        finished = run.read_run(arguments.out)
        metrics = run.add_metrics(finished, tracking=evaluate_tracking(dataset, finished, track))
    header, *rows = ([*row, *[""] * (6 - len(row))] for row in table(metrics))
    print_table(header, rows)
    if arguments.tracking:
        print()
        print_table(*tracking_table(metrics["tracking"]))
    print(f"{arguments.out}: metrics.json, results of {metrics['images']:,} images")
    return 0


def ablate(arguments: argparse.Namespace) -> int:
    """Evaluate the grid; return 0."""
    from tqdm import tqdm

    from ocdit_core.data.dataset import open_dataset
    from ocdit_core.evaluation.ablate import ablate, read_grid
    from ocdit_core.evaluation.comparison import compare, comparison_table

    grid = read_grid(arguments.config)
    arguments.method, arguments.preset = "ocdit", grid.preset
    result = ablate(
        arguments.out,
        grid,
        _task_of(open_dataset(arguments.dataset, arguments.split), arguments),
        jobs=arguments.jobs,
        shard=arguments.shard,
        progress=lambda name, number, count: tqdm.write(f"{number} of {count}: {name}"),
    )
    if result.cells:
        print_table(*comparison_table(compare([cell for _, cell in result.cells], resamples=arguments.resamples)))
    unfinished = f", {result.unfinished} not finished" if result.unfinished else ""
    print(f"{arguments.out}: {len(result.cells)} combinations{unfinished}; `ocdit report {arguments.out}` draws curves")
    return 0


def _task_of(dataset: Dataset, arguments: argparse.Namespace) -> Callable[[list[str]], EvaluationTask]:
    """Return a function of further settings that returns the evaluation; raises OcditError for wrong arguments."""
    from ocdit_core.evaluation.methods import MethodSpec, method_spec
    from ocdit_core.evaluation.run import EvaluationTask
    from ocdit_core.evaluation.targets import choose_targets, names_of_objects, require_templates
    from ocdit_core.objects.library import ObjectLibrary

    if arguments.objects is None:
        raise ConfigError("--objects is missing: the object library, made by `ocdit render`")
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

    # Check the settings first: finding the targets of a large dataset takes long.
    method(arguments.settings)
    targets = choose_targets(dataset, arguments.targets)
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


def compare(arguments: argparse.Namespace) -> int:
    """Compare; return 0."""
    from ocdit_core.evaluation.comparison import compare, comparison_table
    from ocdit_core.evaluation.run import read_run

    if len(arguments.runs) < 2:
        raise ConfigError("give two or more runs to compare")
    runs = [read_run(path) for path in arguments.runs]
    with _naming(arguments.runs):
        comparison = compare(runs, resamples=arguments.resamples)
    print_table(*comparison_table(comparison))
    print(comparison.note)
    return 0


@contextmanager
def _naming(runs: list[Path]) -> Iterator[None]:
    """Name the evaluations in errors from numbers of their files, which may have been edited."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        names = " or ".join(map(str, dict.fromkeys(runs)))
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise DataError(f"{names}: metrics.json or records.jsonl is damaged ({reason}); evaluate again") from error


def write_report(arguments: argparse.Namespace) -> int:
    """Write the page; return 0."""
    from ocdit_core.data.dataset import open_dataset
    from ocdit_core.evaluation.ablate import is_ablation, read_ablation
    from ocdit_core.evaluation.charts import reliability_diagram
    from ocdit_core.evaluation.report import reliability_bins, write_report
    from ocdit_core.evaluation.run import read_run
    from ocdit_core.evaluation.targets import names_of_objects
    from ocdit_core.files import check_output, protecting, write_bytes
    from ocdit_core.objects.library import ObjectLibrary

    plot = arguments.plot
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot: {plot} must end in .png, .svg or .pdf")
    with protecting(file for run in arguments.runs for file in run.glob("*")):
        check_output(arguments.out, *([] if plot is None else [plot]))
    runs = [read_run(path) for path in arguments.runs if not is_ablation(path)]
    ablations = [read_ablation(path) for path in arguments.runs if is_ablation(path)]
    dataset = open_dataset(arguments.dataset, arguments.split) if arguments.dataset else None
    names = None
    if arguments.objects is not None:
        folder = Path(".") if dataset is None else dataset.path
        names = names_of_objects(ObjectLibrary(arguments.objects), folder)
    known = [run.plan["dataset"] for run in runs] or [ablation.title for ablation in ablations]
    with _naming(arguments.runs):
        size = write_report(
            arguments.out,
            runs,
            ablations,
            title=arguments.title or f"Evaluation: {known[0]}",
            dataset=dataset,
            names=names,
            images=arguments.images,
            resamples=arguments.resamples,
        )
    print(f"{arguments.out}: {size / 1e6:.1f} MB")
    if plot is not None and (bins := reliability_bins(runs)):
        write_bytes(plot, reliability_diagram(bins, plot.suffix[1:]))
        print(f"{plot}: reliability diagram")
    return 0
