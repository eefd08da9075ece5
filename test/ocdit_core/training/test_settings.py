"""Mistakes in settings and data, and what can be asked for without training."""

import pytest
import torch
import yaml

from ocdit_core.config import build
from ocdit_core.training.checkpoints import find_checkpoint, read_weights
from ocdit_core.training.diffusion_stage import DiffusionStage
from ocdit_core.training.loop import learning_rate_factor
from ocdit_core.training.settings import LoopSettings, TrainSettings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loop.stepps=3"], "loop.stepps: unknown setting; did you mean 'steps'"),
        (["data.sample.objekts=2"], "data.sample.objekts: unknown setting; did you mean 'objects'"),
        (["loop.learning_rate=-1"], "loop.learning_rate: -1.0 must be positive"),
        (["loop.accumulate=0"], "loop.accumulate: 0 must be at least 1"),
        (["loop.strategy=fsdp"], "'fsdp' is not one of 'ddp', 'fsdp2'"),
        (["diffusion_loss.high_noise_share=2"], "diffusion_loss.high_noise_share: 2.0 is not in [0, 1]"),
        (["model.denoiser.mlp_ratio=4"], "model.denoiser.mlp_ratio: unknown setting"),
        (["stage=diffusion"], "'diffusion' is not one of 'vae', 'coarse', 'refine'"),
        (["stage=refine"], "data.sample.objects: the stage refine asks for 1 object, not 3"),
        (["data.datasets=[]"], "data.datasets: empty; training needs at least one"),
        (["data.sample.objects=5"], "4 positions are too few for the 5 objects"),
        (["vae=null"], "vae: the stage coarse needs the exported folder of a VAE run"),
        (["vae=/nowhere"], "no such file"),
        (["data.datasets=[{path: /nowhere, library: /nowhere}]"], "/nowhere"),
        (["model.vae.latent_channels=4"], "holds a VAE of another configuration"),
    ],
)
def test_mistakes_get_one_line(lab, vae, capsys, overrides, message):
    assert lab.train("smoke_coarse", "bad", f"vae={vae}", *overrides) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith("ocdit: error: ")
    assert not (lab.folder / "bad").exists()


def test_print_config_shows_what_a_run_stores(lab, vae, capsys):
    assert lab.train("smoke_coarse", "x", "--print-config", "loop.steps=7") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["loop"]["steps"] == 7
    assert printed["data"]["datasets"][0]["path"].endswith("train")
    assert build(TrainSettings, printed) == lab.settings("smoke_coarse", "x", "loop.steps=7")
    stored = yaml.safe_load((lab.folder / "vae" / "settings.yaml").read_text())
    assert build(TrainSettings, stored) == lab.settings("smoke_vae", "vae", *lab.SHORT)


def test_a_dry_run_tells_what_a_run_costs_and_writes_nothing(lab, vae, capsys):
    assert lab.train("smoke_coarse", "dry", "--dry-run", f"vae={vae}", "loop.accumulate=2") == 0
    out = capsys.readouterr().out
    for line in (
        "batch       images [2, 2, 3, 64, 96] uint8",
        "parameters  vae 0.08 M (frozen)",
        "run         60 steps of 4 groups on 1 cpu: about 0:0",
    ):
        assert line in out
    for word in ("step ", "data ", "network ", "memory ", "validation ", "iou "):
        assert word in out
    assert not (lab.folder / "dry").exists()


def spoil_loss(monkeypatch, steps):
    """Make the loss of some steps infinite."""
    original = DiffusionStage.loss

    def loss(self, batch, step):
        value, parts = original(self, batch, step)
        return value * (torch.inf if step in steps else 1), parts

    monkeypatch.setattr(DiffusionStage, "loss", loss)


def test_a_step_whose_loss_is_not_finite_is_skipped(lab, vae, monkeypatch):
    spoil_loss(monkeypatch, {1})
    overrides = [f"vae={vae}", "loop.checkpoint_every=1", "loop.ema_decay=0"]
    overrides += ["diffusion_loss.prior_only_steps=9", "loop.validate_every=100"]
    assert lab.train("smoke_coarse", "first", *overrides, "loop.steps=1") == 0
    before = read_weights(find_checkpoint(lab.folder / "first"))
    assert lab.train("smoke_coarse", "spoilt", *overrides, "loop.steps=3") == 0
    skipped, third = (read_weights(find_checkpoint(lab.folder / "spoilt", step)) for step in (2, 3))
    for name, value in before.items():
        if value.is_floating_point():  # not the count of batches
            assert torch.equal(value, skipped[name]), name
    assert any(not torch.equal(value, third[name]) for name, value in before.items())
    assert lab.logged("spoilt", "train/skipped_steps") == {1: 0, 2: 1, 3: 0}


def test_a_loss_that_stays_infinite_ends_the_run_and_leaves_the_batch_and_the_weights(lab, vae, capsys, monkeypatch):
    spoil_loss(monkeypatch, range(2, 99))
    overrides = [f"vae={vae}", "diffusion_loss.prior_only_steps=99"]
    assert lab.train("smoke_coarse", "broken", *overrides) == 2
    assert "step 12: the gradient has not been finite for 10 steps" in capsys.readouterr().err
    left = torch.load(lab.folder / "broken" / "nan_batch_12.pt", weights_only=True)
    assert left["batches"][0]["images"].shape == (2, 2, 3, 64, 96)
    weights = read_weights(find_checkpoint(lab.folder / "broken", 12), averaged=False)
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    loop = LoopSettings(steps=110, warmup_steps=10)
    factors = [learning_rate_factor(step, loop) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1
    assert factors[60] == pytest.approx(0.505)
    assert factors[110] == pytest.approx(0.01)
