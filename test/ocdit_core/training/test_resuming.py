"""Interrupted anywhere and started again, a run gives the same as one that went through."""

import os
import random
import signal
import stat

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from ocdit_core.errors import WeightsError
from ocdit_core.training.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    random_states,
    read_rank,
    set_random_states,
)
from ocdit_core.training.diffusion_stage import DiffusionStage

STEPS = 6


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
    """Everything in the newest checkpoint: tensors of model, average and optimiser, and the process's own state."""
    path = find_checkpoint(lab.folder / run)
    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()}
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return {**tensors, **read_rank(path, 0)}


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
        ("plain", 3, ["loop.workers=0"]),
        ("workers", 1, ["loop.workers=2"]),
        ("float16", 2, ["loop.precision=float16", "loop.workers=0"]),
        ("accumulating", 4, ["loop.accumulate=2", "loop.batch_groups=1", "loop.workers=1"]),
    ],
)
def test_a_run_stopped_by_sigterm_resumes_as_if_it_had_gone_on(lab, vae, monkeypatch, name, step, overrides):
    overrides = [
        *overrides,
        *(f"vae={vae}", f"loop.steps={STEPS}", "diffusion_loss.prior_only_steps=2"),
        *("loop.validate_every=3", "loop.checkpoint_every=3"),
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
    overrides = [f"vae={vae}", "loop.steps=6", "diffusion_loss.prior_only_steps=6"]
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
    overrides = [f"vae={vae}"]
    assert lab.train("smoke_coarse", "coarse", *overrides, "resume=never") == 2
    assert "resume: never, but" in capsys.readouterr().err
    # Another run goes on from there: its first own step is the 21st.
    source = f"resume={lab.folder / 'coarse'}"
    assert lab.train("smoke_coarse", "continued", *overrides, source, "loop.steps=22") == 0
    assert set(lab.logged("continued")) == {21, 22}
    assert lab.train("smoke_coarse", "nothing", *overrides, "resume=/nowhere") == 2
    assert "/nowhere: no such checkpoint" in capsys.readouterr().err


def test_a_slurm_job_is_put_back_into_the_queue(lab, vae, tmp_path, monkeypatch):
    """The real signal that #SBATCH --signal=USR1@120 sends; scontrol is a script that notes what it is told."""
    note, scontrol = tmp_path / "note", tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {note}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    overrides = [f"vae={vae}", "loop.steps=8", "diffusion_loss.prior_only_steps=8"]
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


def test_a_damaged_checkpoint_is_skipped_and_few_are_kept(lab, vae, caplog, capsys):
    overrides = [
        f"vae={vae}",
        "diffusion_loss.prior_only_steps=9",
        "loop.checkpoint_every=1",
        "loop.validate_every=100",
    ]
    assert lab.train("smoke_coarse", "damaged", *overrides, "loop.steps=3") == 0
    run = lab.folder / "damaged"
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_00000003", "step_00000002"]
    with pytest.raises(WeightsError, match="no checkpoint of step 7; it holds 2, 3"):
        find_checkpoint(run, 7)
    (shard,) = (run / "checkpoints" / "step_00000003").glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:-100])
    assert find_checkpoint(run).name == "step_00000002"
    assert "step_00000003: damaged checkpoint" in caplog.text
    with pytest.raises(WeightsError, match="missing or truncated"):
        find_checkpoint(run, 3)
    # An interrupted write leaves no checkpoint behind, and the run continues from the intact one.
    (run / "checkpoints" / ".step_00000003.part").mkdir()
    assert lab.train("smoke_coarse", "damaged", *overrides, "loop.steps=4") == 0
    assert find_checkpoint(run).name == "step_00000004"
    assert not list((run / "checkpoints").glob(".*"))
    (run / "checkpoints" / "step_00000004" / "rank_0.pt").write_bytes(b"")
    assert find_checkpoint(run).name == "step_00000003"
    assert lab.train("smoke_coarse", "wider", *overrides, f"resume={run}", "model.denoiser.width=96") == 2
    assert "has shape" in capsys.readouterr().err


def test_random_states_come_back(tmp_path):
    states = random_states()
    torch.save(states, tmp_path / "states.pt")
    first = (torch.rand(3), np.random.rand(3), np.random.randn(), random.random())
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    again = (torch.rand(3), np.random.rand(3), np.random.randn(), random.random())
    assert torch.equal(first[0], again[0])
    assert (first[1] == again[1]).all()
    assert first[2:] == again[2:]
