"""`ocdit ablate`: an evaluation for each of many combinations of settings."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ocdit_core.commands.common import add_command, fraction, positive, print_table
from ocdit_core.commands.evaluate import add_dataset, add_work, task_of

EXAMPLES = """\
  ocdit ablate --config config/evaluate/steps.yaml --dataset data/rooms --split test --targets targets.json \\
      --objects data/rooms/library --out runs/steps
  ocdit report runs/steps --out steps.html

CONFIG holds lists of values by dotted key, of which all combinations are tried:
  title: Steps
  settings: {refine.enabled: false}       # the same everywhere
  grids:
    - {sampler.steps: [3, 9, 18], sampler.rho: [7.0, 9.0]}

Each combination has a folder in OUT, as `ocdit evaluate` writes it. A grid that was broken off goes on with the same
command; combinations that are finished are not done again.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "ablate", "evaluate many combinations of settings", EXAMPLES)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the grid, a YAML file")
    add_dataset(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="folder of the results (made if new)")
    parser.add_argument("--objects", type=Path, metavar="LIBRARY", help="the objects' views, made by `ocdit render`")
    parser.add_argument("--weights", default="ocdit-tiny", help="an embedded model's name or a folder (ocdit-tiny)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument(
        "--threshold", type=fraction, help="of the scores, for all but AP and AR (default: the model's)"
    )
    parser.add_argument(
        "--resamples", type=positive, default=1000, metavar="N", help="of the bootstrap (default: 1000)"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of all cells, beside the file's")
    add_work(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the grid; returns 0."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from ocdit_core.data.dataset import open_dataset
    from ocdit_core.evaluation.ablate import ablate, read_grid
    from ocdit_core.evaluation.comparison import compare, comparison_table

    grid = read_grid(arguments.config)
    arguments.method, arguments.preset = grid.method, grid.preset
    with logging_redirect_tqdm([logging.getLogger("ocdit_core")]):
        result = ablate(
            arguments.out,
            grid,
            task_of(open_dataset(arguments.dataset, arguments.split), arguments),
            jobs=arguments.jobs,
            shard=arguments.shard,
            progress=lambda name, number, count: tqdm.write(f"{number} of {count}: {name}"),
        )
    if result.cells:
        print_table(*comparison_table(compare([cell for _, cell in result.cells], resamples=arguments.resamples)))
    unfinished = f", {result.unfinished} not finished" if result.unfinished else ""
    print(f"{arguments.out}: {len(result.cells)} combinations{unfinished}; `ocdit report {arguments.out}` draws curves")
    return 0
