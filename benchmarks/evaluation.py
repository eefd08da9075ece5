#!/usr/bin/env python3
"""Where the time of `ocdit evaluate` goes: what share of it is not the method's own.

    python benchmarks/evaluation.py data/held_out_procedural --split test --targets targets.json
    python benchmarks/evaluation.py data/rooms --method colour --images 50

Runs the evaluation in this process and prints the seconds an image of each stage, and all but the method's own as a
share of the method's.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.dataset import open_dataset
from ocdit_core.data.frame import Frame
from ocdit_core.errors import ConfigError, OcditError
from ocdit_core.evaluation import run
from ocdit_core.evaluation.baselines import ColourBackProjection
from ocdit_core.evaluation.finders import finder_spec
from ocdit_core.evaluation.targets import choose_targets, names_of_objects
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.objects.library import ObjectLibrary

METHOD = ("set_objects", "segment")


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="a folder in BOP's layout")
    parser.add_argument("--split", help="such as test (default: the only one)")
    parser.add_argument("--targets", default="present", help="as `ocdit evaluate` takes them (default: present)")
    parser.add_argument("--objects", type=Path, help="library (default: DATASET/templates)")
    parser.add_argument("--method", default="ocdit", help="as `ocdit evaluate` takes it (default: ocdit)")
    parser.add_argument("--weights", default="ocdit-tiny", help="embedded model or folder (default: ocdit-tiny)")
    parser.add_argument("--images", type=int, default=30, help="at most so many (default: 30)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        spent, images, total = measure(options)
    except OcditError as error:
        print(f"evaluation.py: error: {error}", file=sys.stderr)
        return 2
    spent["rest"] = total - sum(spent.values())
    method = sum(spent[stage] for stage in METHOD)
    print(f"{images} images, {options.method}, {options.threads} threads")
    for stage, seconds in spent.most_common():
        print(f"{stage:<32} {1000 * seconds / images:8.1f} ms an image {seconds / method:7.1%}")
    print(f"evaluation: {(total - method) / method:.1%} of the method's time")
    return 0


def measure(options: argparse.Namespace) -> tuple[Counter[str], int, float]:
    """Evaluate; return the seconds of each stage, the number of images, and the seconds of everything."""
    dataset = open_dataset(options.dataset, options.split)
    if not isinstance(dataset, BopFolder):
        raise ConfigError(f"{options.dataset}: this benchmark takes a folder in BOP's layout")
    library = ObjectLibrary(options.objects or options.dataset / "templates")
    targets = dict(list(choose_targets(dataset, options.targets).items())[: options.images])
    task = run.EvaluationTask(
        dataset=str(options.dataset),
        split=options.split,
        targets=targets,
        library=library.path,
        names=names_of_objects(library, options.dataset),
        finder=finder_spec(options.method, weights=options.weights),
    )
    spent: Counter[str] = Counter()
    for owner, name, stage in (
        (Segmenter, "set_objects", METHOD[0]),
        (ColourBackProjection, "set_objects", METHOD[0]),
        (Segmenter, "segment", METHOD[1]),
        (ColourBackProjection, "segment", METHOD[1]),
        (Frame, "image", "reading pictures"),
        (run, "rows_of", "run lengths of what was found"),
        (run, "write_result", "keeping results"),
        (run, "read_parts", "reading results again"),
        (run, "records_of", "comparing with the truth"),
        (run, "summarise", "metrics"),
        (run, "write_results", "BOP's results file"),
        (run, "write_records", "records"),
        (run, "plan_of", "digests"),
        (type(task.finder), "open", "loading the method"),
    ):
        setattr(owner, name, timed(getattr(owner, name), spent, stage))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run.evaluate(Path(folder), task)
        total = time.perf_counter() - began
    # What is done once for any number of images is no cost of one.
    total -= spent.pop("loading the method")
    return spent, len(targets), total


def timed(function: Callable[..., Any], spent: Counter[str], stage: str) -> Callable[..., Any]:
    """Return the function, its seconds added to `spent`."""

    @functools.wraps(function)
    def measured(*arguments: Any, **keywords: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            spent[stage] += time.perf_counter() - began

    return measured


if __name__ == "__main__":
    sys.exit(main())
