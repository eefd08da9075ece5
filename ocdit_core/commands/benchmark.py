"""`ocdit benchmark`: time of segmentation on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdit_core.commands.options import add_command, add_model, positive, print_table

if TYPE_CHECKING:
    from ocdit_core.inference.benchmark import Case, Measured

EXAMPLES = """\
  ocdit benchmark
  ocdit benchmark --full --json latency.json
  ocdit benchmark --sizes paper --device cuda --objects 8 --ensembles 1 4 16 --set sampler.steps=9
  ocdit benchmark --sizes small --image-sizes 224x224 --objects 1 4 --threads 2

Times are medians for one image, in milliseconds, for all combinations of --objects, --ensembles and --image-sizes.
"""

QUICK: dict[str, tuple[int, ...]] = {"objects": (1, 4, 8), "ensembles": (1,)}
FULL: dict[str, tuple[int, ...]] = {"objects": (1, 4, 8, 16, 24), "ensembles": (1, 4, 16)}
_POST_PROCESSING = ("proposals", "instances")


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "benchmark", "measure the time of segmentation on this machine", EXAMPLES)
    add_model(parser, preset=False)
    parser.add_argument("--sizes", choices=("small", "guide", "paper"), help="random weights of these sizes instead")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: those of torch)")
    parser.add_argument("--full", action="store_true", help="up to 24 objects, ensembles of 16 and two image sizes")
    parser.add_argument("--objects", type=positive, nargs="+", metavar="N", help="numbers of target objects")
    parser.add_argument("--ensembles", type=positive, nargs="+", metavar="N", help="sizes of the ensemble")
    parser.add_argument("--image-sizes", type=_size, nargs="+", metavar="HxW", help="sizes of the model input")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="measurements of each (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure; returns 0."""
    import torch
    from tqdm import tqdm

    from ocdit_core.config import apply_overrides, build
    from ocdit_core.files import check_output, write_text
    from ocdit_core.inference import benchmark
    from ocdit_core.inference.network import computes_in_half
    from ocdit_core.inference.settings import InferenceSettings, find_weights, recommended_settings, refine_weights
    from ocdit_core.models.checkpoints import pick_device
    from ocdit_core.models.ocdit import OCDiT

    if arguments.json is not None:
        check_output(arguments.json)
    device = pick_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = InferenceSettings() if arguments.sizes else recommended_settings(arguments.weights)
    settings = build(InferenceSettings, apply_overrides(dataclasses.asdict(settings), arguments.settings))
    refine = None
    if arguments.sizes:
        model = benchmark.random_model(arguments.sizes)
    else:
        folder = find_weights(arguments.weights)
        model, second = OCDiT.from_pretrained(folder), refine_weights(folder)
        refine = OCDiT.from_pretrained(second) if second and settings.refine.enabled else None
    half = computes_in_half(settings.precision, device)
    header: dict[str, Any] = {
        "model": arguments.sizes or arguments.weights,
        "precision": "bfloat16" if half else "float32",
        **benchmark.machine(device),
        "evaluations": settings.sampler.evaluations,
    }
    print(", ".join(f"{key} {value}" for key, value in header.items() if value is not None))
    cases = _cases(arguments, settings.image_size or model.config.image_size)
    work = benchmark.measure(model, cases, settings, device=str(device), repeats=arguments.repeats, refine=refine)
    measured = list(tqdm(work, total=len(cases), desc="measuring", unit="case", disable=None))
    print_table(*table(measured))
    if arguments.json:
        rows = [dataclasses.asdict(one) for one in measured]
        write_text(arguments.json, json.dumps({"machine": header, "cases": rows}, indent=1) + "\n")
    return 0


def table(measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the printed table; times in milliseconds."""
    header = ["objects", "ensemble", "size", "encode", "backbone", "sampling", "decoding", "post", "refine", "total"]
    rows = []
    for one in measured:
        # As shown: post-processing together, all of refine together.
        seconds = [one.encoding, *(one.stages.get(stage, 0.0) for stage in ("backbone", "sampling", "decoding"))]
        seconds.append(sum(one.stages.get(stage, 0.0) for stage in _POST_PROCESSING))
        seconds.append(sum(value for stage, value in one.stages.items() if stage.startswith("refine_")))
        cells = [str(one.case.objects), str(one.case.ensemble), "x".join(map(str, one.case.image_size))]
        cells += [f"{1000 * value:.1f}" for value in (*seconds, one.stages["total"])]
        rows.append(cells)
    return header, rows


def _cases(arguments: argparse.Namespace, image_size: tuple[int, int]) -> list[Case]:
    from ocdit_core.inference.benchmark import Case

    chosen = FULL if arguments.full else QUICK
    half = (max(image_size[0] // 32, 1) * 16, max(image_size[1] // 32, 1) * 16)
    combinations = product(
        arguments.image_sizes or ([image_size, half] if arguments.full else [image_size]),
        arguments.ensembles or chosen["ensembles"],
        arguments.objects or chosen["objects"],
    )
    return [Case(objects=objects, ensemble=ensemble, image_size=size) for size, ensemble, objects in combinations]


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    try:
        size = (int(height), int(width))
    except ValueError:
        size = (0, 0)
    if any(side < 16 or side % 16 for side in size):
        raise argparse.ArgumentTypeError(f"{text} is not HEIGHTxWIDTH, both multiples of 16: 480x640")
    return size
