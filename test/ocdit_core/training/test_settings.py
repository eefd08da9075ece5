"""Mistakes in settings and data, and what can be asked for without training."""

import pytest
import torch
import yaml

from ocdit_core.config import build
from ocdit_core.errors import ConfigError
from ocdit_core.training.checkpoints import find_checkpoint, read_rank, read_weights
from ocdit_core.training.diffusion_stage import DiffusionStage
from ocdit_core.training.loop import learning_rate_factor
from ocdit_core.training.settings import LoopSettings, TrainSettings, read_settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loop.stepps=3"], "loop.stepps: unknown setting; did you mean 'steps'"),
        (["data.sample.objekts=2"], "data.sample.objekts: unknown setting; did you mean 'objects'"),
        (["loop.learning_rate=-1"], "loop.learning_rate: -1.0 must be positive"),
        (["loop.accumulate=0"], "loop.accumulate: 0 must be at least 1"),
        (["loop.decay_from=1"], "loop.decay_from: 1.0 is not in [0, 1)"),
        (["data.sample.flip_probability=2"], "data.sample.flip_probability: 2.0 is not in 0..1"),
        (["loop.precision=float16", "loop.strategy=fsdp2"], "loop.precision: float16 needs the strategy ddp"),
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


def test_float16_halves_its_scale_where_gradients_overflow(lab, vae, monkeypatch):
    spoil_loss(monkeypatch, {1})
    overrides = [f"vae={vae}", "loop.steps=4", "diffusion_loss.prior_only_steps=0", "loop.validate_every=100"]
    for precision in ("float16", "float32", "tf32"):
        assert lab.train("smoke_coarse", precision, *overrides, f"loop.precision={precision}") == 0
    assert lab.logged("float16", "train/skipped_steps") == {1: 0, 2: 1, 3: 0, 4: 0}
    scaler = read_rank(find_checkpoint(lab.folder / "float16"), 0)["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2**15, 2)
    expected = lab.logged("float32")
    for step in (1, 3, 4):
        assert lab.logged("float16")[step] == pytest.approx(expected[step], rel=0.02)
        assert lab.logged("float16")[step] != expected[step]
    gradients = lab.logged("float32", "train/gradient_norm")
    assert lab.logged("float16", "train/gradient_norm")[1] == pytest.approx(gradients[1], rel=0.05)
    assert lab.logged("tf32") == expected  # on a CPU


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
    loop = LoopSettings(steps=100, warmup_steps=10, decay_from=0.6)
    assert {learning_rate_factor(step, loop) for step in range(10, 61)} == {1}
    assert learning_rate_factor(80, loop) == pytest.approx(0.505)
    assert learning_rate_factor(100, loop) == pytest.approx(0.01)
    # Not before the end of the warm-up.
    assert learning_rate_factor(10, LoopSettings(steps=20, warmup_steps=10, decay_from=0.1)) == 1


def test_a_file_changes_the_settings_of_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "{run: a, loop: {steps: 5, seed: 1}, model: {matching_prior: {}}, data: [1, 2]}"
    )
    path = tmp_path / "own.yaml"
    path.write_text("{base: base.yaml, run: b, loop: {steps: 6}, model: {matching_prior: null}, data: [3]}")
    loop = {"steps": 6, "seed": 1}
    assert read_settings(path) == {"run": "b", "loop": loop, "model": {"matching_prior": None}, "data": [3]}
    path.write_text("base: other.yaml")
    with pytest.raises(ConfigError, match=r"other\.yaml: no such file"):
        read_settings(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_missing_device_is_named(lab, vae, capsys):
    assert lab.train("smoke_coarse", "bad", f"vae={vae}", "--device=cuda") == 2
    assert "device: 'cuda' torch finds no CUDA device; use auto or cpu" in capsys.readouterr().err
