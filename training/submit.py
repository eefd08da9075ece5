#!/usr/bin/env python3
"""Submit a training run to SLURM by submitit (`pip install submitit`); without SLURM, start it in the background.

    python training/submit.py --nodes 2 --gpus 8 --timeout 1440 --partition gpu --config config/train/paper_coarse.yaml
    python training/submit.py --gpus 4 --sbatch account=robots --config config/train/train_gso.yaml --set run=runs/gso

All other options are those of `ocdit train`. The job starts one process per GPU. Before its time ends, or when it is
preempted, it saves a checkpoint and goes back into the queue, until the run is complete. Logs are in RUN/jobs.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import yaml

from ocdit_core.cli import main as ocdit

try:
    from submitit import AutoExecutor
    from submitit.core.utils import FailedSubmissionError
    from submitit.helpers import Checkpointable, TorchDistributedEnvironment
except ImportError:
    sys.exit("training/submit.py: needs the package submitit: pip install submitit")

_REQUEUES = 1000
_SAVE_SECONDS = 120  # between the signal and the end of a job's time


class Training(Checkpointable):
    """One process of a training job; a requeued job calls it again, and the run resumes."""

    def __call__(self, arguments: list[str]) -> None:
        """Train by `ocdit train`; the exit status is not 0 if it fails."""
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if status := ocdit(["train", *arguments]):
            sys.exit(status)


def main() -> int:
    """Check the settings, submit, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    parser.add_argument(
        "--gpus", type=int, default=1, help="GPUs, and processes, of each (default: 1; 0: one on the CPU)"
    )
    parser.add_argument("--timeout", type=int, default=1440, metavar="MINUTES", help="time limit (default: 1440)")
    parser.add_argument("--partition", help="SLURM partition (default: the cluster's)")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="KEY[=VALUE]", help="any other option of sbatch; repeatable"
    )
    arguments, training = parser.parse_known_args()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if status := ocdit(["train", *training, "--print-config"]):
            return status
    settings = yaml.safe_load(printed.getvalue())
    run = Path(settings["run"])
    options = [one.partition("=") for one in arguments.sbatch]
    try:
        timeouts: dict[str, Any] = {"slurm_max_num_timeout": _REQUEUES, "local_max_num_timeout": _REQUEUES}
        executor = AutoExecutor(folder=run / "jobs", **timeouts)
        executor.update_parameters(
            name=run.name,
            nodes=arguments.nodes,
            gpus_per_node=arguments.gpus,
            tasks_per_node=max(arguments.gpus, 1),
            cpus_per_task=settings["loop"]["workers"] + 1,
            timeout_min=arguments.timeout,
            slurm_partition=arguments.partition,
            slurm_signal_delay_s=_SAVE_SECONDS,
            slurm_additional_parameters={"requeue": True, **{key: value or True for key, _, value in options}},
        )
        job = executor.submit(Training(), training)
    except (ValueError, FailedSubmissionError) as error:
        print(f"training/submit.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{executor.cluster} job {job.job_id}: {job.paths.stdout}, {job.paths.stderr.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
