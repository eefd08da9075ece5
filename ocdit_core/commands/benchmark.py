"""`ocdit benchmark`: time of segmentation on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
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
  ocdit benchmark --objects 1 4 8 --compare
  ocdit benchmark --compare engine=torch engine=openvino engine=openvino,precision=bfloat16

Times are medians for one image, in milliseconds, for all combinations of --objects, --ensembles and --image-sizes.
--compare measures settings one after the other, each in a process of its own, and prints how many times faster than the
first one they are, and the peak of memory in MB: of the GPU, or of the process.
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
    text = "settings to compare (default: the engines that are installed)"
    parser.add_argument("--compare", nargs="*", metavar="KEY=VALUE,...", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure; returns 0."""
    from ocdit_core.files import check_output, write_text

    if arguments.json is not None:
        check_output(arguments.json)
    if arguments.compare is None:
        found: Any = _measure(arguments, [])
        print_table(*table(found["cases"]))
    else:
        installed = [name for name in ("onnxruntime", "openvino") if find_spec(name)]
        compared = arguments.compare or ["engine=torch", *(f"engine={name}" for name in installed)]
        found = {}
        for one in compared:
            # A list's commas are no separators.
            settings = re.split(r",(?=[\w.]+=)", one)
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                found[one] = process.submit(_measure, arguments, settings).result()
        print_table(*compared_table(found))
    if arguments.json:
        write_text(arguments.json, json.dumps(found, indent=1, default=dataclasses.asdict) + "\n")
    return 0


def _measure(arguments: argparse.Namespace, further: list[str]) -> dict[str, Any]:
    """Print the machine and return it, the cases (`Measured`) and the peak of memory in bytes, for further settings."""
    import torch
    from tqdm import tqdm

    from ocdit_core.config import apply_overrides, build
    from ocdit_core.inference import benchmark
    from ocdit_core.inference.network import computes_in_half
    from ocdit_core.inference.settings import InferenceSettings, find_weights, recommended_settings, refine_weights
    from ocdit_core.models.checkpoints import pick_device
    from ocdit_core.models.ocdit import OCDiT

    device = pick_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = InferenceSettings() if arguments.sizes else recommended_settings(arguments.weights)
    overrides = [*arguments.settings, *further]
    settings = build(InferenceSettings, apply_overrides(dataclasses.asdict(settings), overrides))
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
        "engine": settings.engine,
        "precision": "bfloat16" if half else "float32",
        **benchmark.machine(device),
        "evaluations": settings.sampler.evaluations,
    }
    print(", ".join(f"{key} {value}" for key, value in header.items() if value is not None), flush=True)
    cases = _cases(arguments, settings.image_size or model.config.image_size)
    work = benchmark.measure(model, cases, settings, device=str(device), repeats=arguments.repeats, refine=refine)
    measured = list(tqdm(work, total=len(cases), desc="measuring", unit="case", disable=None))
    return {"machine": header, "peak_memory": benchmark.peak_memory(device), "cases": measured}


def compared_table(found: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of `--compare`: of each case, all settings; see `_measure`."""
    rows, firsts = [], next(iter(found.values()))["cases"]
    for number, first in enumerate(firsts):
        for name, own in found.items():
            header, (row,) = table([own["cases"][number]])
            ratio = first.stages["total"] / own["cases"][number].stages["total"]
            rows.append([name, *row, f"{ratio:.2f}", f"{own['peak_memory'] / 1e6:,.0f}"])
    return ["settings", *header, "times faster", "memory"], rows


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
