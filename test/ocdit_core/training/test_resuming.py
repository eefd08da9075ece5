"""Interrupted anywhere and started again, a run gives the same as one that went through."""

import os
import random
import signal
import stat

import numpy as np
import pytest
import torch

from ocdit_core.errors import WeightsError
from ocdit_core.training import checkpoints
from ocdit_core.training.diffusion import DiffusionStage
from ocdit_core.training.state import random_states, set_random_states

STEPS = 10


def interrupted_at(patch, step, number=signal.SIGTERM):
    """Let a signal come in while step `step` is computed."""
    original, sent = DiffusionStage.loss, []

    def loss(self, batch, now):
        if now == step and not sent:
            sent.append(now)  # a second signal would end the program at once
            os.kill(os.getpid(), number)
        return original(self, batch, now)

    patch.setattr(DiffusionStage, "loss", loss)


def newest(lab, run):
    return checkpoints.find(lab.folder / run)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize(
    ("name", "step", "overrides"),
    [
        ("plain", 5, ["loop.workers=0"]),
        ("workers", 1, ["loop.workers=2"]),
        ("accumulating", 7, ["loop.accumulate=2", "loop.batch_groups=1", "loop.workers=1"]),
    ],
)
def test_a_run_stopped_by_sigterm_resumes_as_if_it_had_gone_on(lab, vae, monkeypatch, name, step, overrides):
    overrides = [
        *overrides,
        *(f"vae={vae}", f"loop.steps={STEPS}", "diffusion_loss.prior_only_steps=3", "loop.log_every=1"),
        *("loop.validate_every=4", "loop.checkpoint_every=4", "loop.pictures=0"),
    ]
    assert lab.train("smoke_coarse", f"{name}_whole", *overrides) == 0
    with monkeypatch.context() as patch:
        interrupted_at(patch, step)
        assert lab.train("smoke_coarse", f"{name}_parts", *overrides) == 0
    assert newest(lab, f"{name}_parts")["step"] == step + 1
    assert lab.train("smoke_coarse", f"{name}_parts", *overrides) == 0
    # Bit for bit: losses, weights, averages, optimiser, random states, place in the data.
    assert lab.logged(f"{name}_whole") == lab.logged(f"{name}_parts")
    assert lab.logged(f"{name}_whole", "validation/iou") == lab.logged(f"{name}_parts", "validation/iou")
    whole, parts = newest(lab, f"{name}_whole"), newest(lab, f"{name}_parts")
    assert set(lab.logged(f"{name}_whole")) == set(range(1, STEPS + 1))
    for key in whole:
        assert equal(whole[key], parts[key]), key


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_forgets_what_it_logged_since(lab, vae, monkeypatch):
    overrides = [f"vae={vae}", "loop.steps=6", "diffusion_loss.prior_only_steps=6", "loop.log_every=1"]
    overrides += ["loop.checkpoint_every=2", "loop.validate_every=100"]

    class KilledError(Exception):
        pass

    original = DiffusionStage.loss

    def loss(self, batch, step):
        if step == 5:
            raise KilledError
        return original(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionStage, "loss", loss)
        with pytest.raises(KilledError):
            lab.train("smoke_coarse", "killed", *overrides)
    assert newest(lab, "killed")["step"] == 4
    before = lab.logged("killed")
    assert set(before) == {1, 2, 3, 4, 5}
    assert lab.train("smoke_coarse", "killed", *overrides) == 0
    log = (lab.folder / "killed" / "log.jsonl").read_text()
    assert log.count('"step": 5, "train/loss"') == 1
    assert {step: loss for step, loss in lab.logged("killed").items() if step in before} == before


def test_resume_never_and_from_another_run(lab, vae, coarse, capsys):
    overrides = [f"vae={vae}", "loop.log_every=1", "loop.pictures=0"]
    assert lab.train("smoke_coarse", "coarse", *overrides, "resume=never") == 2
    assert "resume: never, but" in capsys.readouterr().err
    # Another run goes on from there: its first own step is the 61st.
    source = f"resume={lab.folder / 'coarse'}"
    assert lab.train("smoke_coarse", "continued", *overrides, source, "loop.steps=62") == 0
    assert set(lab.logged("continued")) == {61, 62}
    assert lab.train("smoke_coarse", "nothing", *overrides, "resume=/nowhere.pt") == 2
    assert "/nowhere.pt: no such checkpoint" in capsys.readouterr().err


def test_a_slurm_job_is_put_back_into_the_queue(lab, vae, tmp_path, monkeypatch):
    """The real signal that #SBATCH --signal=USR1@120 sends; scontrol is a script that notes what it is told."""
    note, scontrol = tmp_path / "note", tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {note}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    overrides = [f"vae={vae}", "loop.steps=8", "diffusion_loss.prior_only_steps=8", "loop.requeue=true"]
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2, signal.SIGUSR1)
        assert lab.train("smoke_coarse", "slurm", *overrides) == 0
    assert note.read_text().split() == ["requeue", "4711"]
    assert newest(lab, "slurm")["step"] == 3
    note.unlink()
    # A user's SIGTERM is meant to end it.
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5)
        assert lab.train("smoke_coarse", "slurm", *overrides) == 0
    assert not note.exists()


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    for step in (1, 2):
        checkpoints.save(tmp_path / "checkpoints", step, {"step": step}, keep=2)
    path = tmp_path / "checkpoints" / "step_00000002.pt"
    path.write_bytes(path.read_bytes()[:100])
    assert checkpoints.find(tmp_path) == {"step": 1}
    assert path.name in caplog.text
    with pytest.raises(WeightsError, match="not readable"):
        checkpoints.find(tmp_path, 2)
    with pytest.raises(WeightsError, match="no checkpoint of step 7; it holds 1, 2"):
        checkpoints.find(tmp_path, 7)
    checkpoints.save(tmp_path / "checkpoints", 3, {"step": 3}, keep=2)
    assert [p.name for p in checkpoints.listed(tmp_path / "checkpoints")] == ["step_00000003.pt", path.name]


def test_random_states_come_back(tmp_path):
    states = random_states()
    torch.save(states, tmp_path / "states.pt")
    first = (torch.rand(3), np.random.rand(3), np.random.randn(), random.random())
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    again = (torch.rand(3), np.random.rand(3), np.random.randn(), random.random())
    assert torch.equal(first[0], again[0])
    assert (first[1] == again[1]).all()
    assert first[2:] == again[2:]
