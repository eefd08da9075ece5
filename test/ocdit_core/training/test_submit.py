"""Jobs of submitit: on this machine for real, and what sbatch is given (a script that notes it)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import set_options

from ocdit_core.training.checkpoints import find_checkpoint, read_rank

pytest.importorskip("submitit")

ROOT = Path(__file__).parents[3]


def submit(lab, run, *options, env=None, overrides=()):
    config = ROOT / "config" / "train" / "smoke_vae.yaml"
    command = [sys.executable, "training/submit.py", *options, "--config", str(config)]
    command += set_options(lab.overrides(run, *overrides))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    # Files: a job in the background keeps the output of its parent open.
    out, err = lab.folder / f"{run}.out", lab.folder / f"{run}.err"
    with out.open("w") as stdout, err.open("w") as stderr:
        code = subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=stderr, env=environment, timeout=120).returncode
    return code, out.read_text(), err.read_text()


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_job_of_two_processes_goes_back_into_the_queue_and_completes(lab):
    # So many steps that it cannot end before the signal arrives.
    overrides = ["loop.steps=100", "loop.batch_groups=1", "loop.checkpoint_every=200", "loop.validate_every=200"]
    code, printed, error = submit(lab, "job", "--gpus=2", overrides=overrides)
    assert code == 0, error
    controller = re.match(r"local job (\d+): ", printed)[1]
    folder = lab.folder / "job"
    wait_for(lambda: (folder / "log.jsonl").is_file() and len(lab.logged("job")) >= 3)
    # What submitit sends to all processes before the end of a job's time.
    for process in Path(f"/proc/{controller}/task/{controller}/children").read_text().split():
        os.kill(int(process), signal.SIGUSR2)
    wait_for((folder / "jobs" / f"{controller}_0_result.pkl").is_file)
    messages = (folder / "jobs" / f"{controller}_0_log.out").read_text()
    assert messages.count(f"Requeued job {controller}") == 1
    assert messages.endswith("Exiting after successful completion\n")
    assert "resumed " in (folder / "jobs" / f"{controller}_0_log.err").read_text()
    steps = [
        json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines() if "train/loss" in line
    ]
    assert steps == list(range(1, 101))
    assert read_rank(find_checkpoint(folder), 1)["world"] == 2


def test_sbatch_is_given_the_job(lab, tmp_path):
    script = tmp_path / "script"
    for name, text in (("srun", ""), ("sbatch", f'cp "$1" {script}; echo "Submitted batch job 4711"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    options = [
        "--nodes=2",
        "--gpus=4",
        "--timeout=90",
        "--partition=gpu",
        "--sbatch=account=robots",
        "--sbatch=exclusive",
    ]
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    code, printed, error = submit(lab, "batch", *options, env=env, overrides=["loop.workers=3"])
    assert code == 0, error
    assert printed.startswith("slurm job 4711: ")
    found = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE))
    expected = {"nodes": "2", "gpus-per-node": "4", "ntasks-per-node": "4", "time": "90", "partition": "gpu"}
    expected |= {
        "account": "robots",
        "exclusive": "",
        "requeue": "",
        "signal": "USR2@120",
        "cpus-per-task": "4",
        "job-name": "batch",
    }
    assert {key: found.get(key) for key in expected} == expected


def test_wrong_settings_are_not_submitted(lab):
    code, _, error = submit(lab, "refused", overrides=["loop.steps=0"])
    assert (code, error) == (2, "ocdit: error: loop.steps: 0 must be at least 1\n")
    assert not (lab.folder / "refused").exists()
    code, _, error = submit(lab, "refused", "--nodes=2")
    assert (code, error) == (2, "training/submit.py: error: LocalExecutor can use only one node. Use nodes=1\n")
