"""The training command on the smoke configs, with a bank drawn for the test."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ocdit_core.config import apply_overrides, build, read_yaml
from ocdit_core.data.synthetic.bank import BankSettings, build_bank
from ocdit_core.data.synthetic.procedural import HELD_OUT_SEED
from ocdit_core.models.checkpoint import read_weights
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.training import checkpoints
from ocdit_core.training.diffusion import DiffusionStage, random_interval
from ocdit_core.training.loop import learning_rate_factor, loader
from ocdit_core.training.main import main
from ocdit_core.training.settings import LoopSettings, TrainSettings
from ocdit_core.training.vae import augment_masks

CONFIGS = Path(__file__).parents[3] / "config" / "train"
TRAIN = Path(__file__).parents[3] / "training" / "train.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    small = {"template_size": 64, "sprites": 2, "sprite_size": 48}
    build_bank(folder / "bank", BankSettings(objects=8, **small), progress=False)
    build_bank(folder / "held_out", BankSettings(objects=8, first_seed=HELD_OUT_SEED, **small), progress=False)
    return folder


def train(folder: Path, config: str, *overrides: str) -> int:
    paths = (f"data.bank={folder / 'bank'}", f"held_out_bank={folder / 'held_out'}")
    return main(["--config", str(CONFIGS / config), *paths, *overrides])


@pytest.fixture(scope="module")
def vae(folder):
    assert train(folder, "smoke_vae.yaml", f"run={folder / 'vae'}") == 0
    return folder / "vae" / "model"


def checkpoint(run: Path) -> dict:
    state = checkpoints.load_newest(run / "checkpoints")
    assert state is not None
    return state


def test_vae_stage_stores_the_statistics_of_its_latents(vae):
    settings = yaml.safe_load((vae / "config.yaml").read_text())
    assert settings["latent_channels"] == 8
    state = read_weights(vae / "model.safetensors")
    assert (state["latent_std"] > 0).all()
    assert not torch.equal(state["latent_std"], torch.ones(8, 1, 1))


def test_a_run_stopped_by_sigterm_resumes_as_if_it_had_gone_on(folder, vae, monkeypatch):
    def run(name):
        overrides = ("loop.steps=12", "diffusion_loss.prior_only_steps=4")
        return train(folder, "smoke.yaml", f"run={folder / name}", f"vae={vae}", *overrides)

    assert run("whole") == 0

    original = DiffusionStage.loss

    def interrupted(self, batch, step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionStage, "loss", interrupted)
        assert run("parts") == 0
    assert checkpoint(folder / "parts")["step"] == 7
    assert run("parts") == 0
    whole, parts = checkpoint(folder / "whole"), checkpoint(folder / "parts")
    assert whole["step"] == parts["step"] == 12
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    loaded = OCDiT.from_pretrained(folder / "whole" / "model")
    assert loaded.prior is not None
    # Trained at all: the gates that start at zero have moved, and the VAE has not.
    assert loaded.denoiser.blocks[0].mlp_modulation.linear.weight.abs().max() > 0
    frozen = {k: v for k, v in whole["model"].items() if k.startswith("vae.decoder.")}
    trained = read_weights(vae / "model.safetensors")
    assert all(torch.equal(v, trained[k.removeprefix("vae.")]) for k, v in frozen.items())


def test_two_processes_train_one_model(folder, vae):
    run = folder / "together"
    overrides = [f"data.bank={folder / 'bank'}", f"held_out_bank={folder / 'held_out'}", f"run={run}", f"vae={vae}"]
    overrides += ["loop.steps=4", "diffusion_loss.prior_only_steps=2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(TRAIN), "--config", str(CONFIGS / "smoke.yaml"), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    state = checkpoint(run)
    assert state["step"] == 4
    trained = read_weights(vae / "model.safetensors")
    assert torch.equal(state["model"]["vae.decoder.head.bias"], trained["decoder.head.bias"])
    assert OCDiT.from_pretrained(run / "model").prior is not None


def test_a_tiny_model_learns_to_overfit(folder, vae):
    """Some steps on one batch bring both losses far down: the gradient reaches everything."""
    overrides = [f"data.bank={folder / 'bank'}", f"held_out_bank={folder / 'held_out'}", f"vae={vae}"]
    settings = build(TrainSettings, apply_overrides(read_yaml(CONFIGS / "smoke.yaml"), overrides))
    torch.manual_seed(0)
    stage = DiffusionStage(settings)
    batch = next(iter(loader(settings, start=0, held_out=False)))
    stage.model.train()
    optimiser = torch.optim.AdamW([p for p in stage.model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(50):
        _, parts = stage.loss(batch, step=10_000)
        (parts["prior"] + parts["diffusion"]).backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append((parts["prior"].item(), parts["diffusion"].item()))
    first, last = torch.tensor(losses[:10]).mean(0), torch.tensor(losses[-10:]).mean(0)
    assert last[0] < 0.6 * first[0]
    assert last[1] < first[1] - 0.3


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    checkpoints.save(tmp_path, 1, {"step": 1}, keep=2)
    newest = checkpoints.save(tmp_path, 2, {"step": 2}, keep=2)
    newest.write_bytes(newest.read_bytes()[:100])
    assert checkpoints.load_newest(tmp_path) == {"step": 1}
    assert newest.name in caplog.text
    checkpoints.save(tmp_path, 3, {"step": 3}, keep=2)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loop.stepps=3"], "loop.stepps: unknown setting; did you mean 'steps'"),
        (["loop.learning_rate=-1"], "loop.learning_rate: -1.0 must be positive"),
        (["vae=null"], "needs the exported folder of a VAE run"),
        (["vae=/nowhere"], "no such file"),
        (["loop.device=tpu7"], "is not a device"),
        (["data.bank=/nowhere"], "/nowhere"),
        (["model.vae.latent_channels=4"], "holds another VAE"),
    ],
)
def test_mistakes_get_one_line(folder, vae, capsys, overrides, message):
    assert train(folder, "smoke.yaml", f"run={folder / 'bad'}", f"vae={vae}", *overrides) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith("train.py: error: ")


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml"), key=str), ids=lambda path: path.stem)
def test_every_config_is_valid(config, capsys):
    assert main(["--config", str(config), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["stage"] in ("vae", "diffusion")


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    loop = LoopSettings(steps=110, warmup_steps=10, final_learning_rate=0.1)
    factors = [learning_rate_factor(step, loop) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1
    assert factors[60] == pytest.approx(0.55)
    assert factors[110] == pytest.approx(0.1)


def test_random_interval_is_contiguous_and_reaches_both_ends():
    torch.manual_seed(0)
    indices = random_interval(500, 3, 8)
    assert (indices.diff(dim=1) == 1).all()
    assert set(indices[:, 0].tolist()) == set(range(6))


def test_augmented_masks_stay_binary_and_move():
    mask = torch.zeros(1, 32, 48)
    mask[:, 10:20, 10:30] = 1
    torch.manual_seed(0)
    moved = augment_masks(mask.expand(50, -1, -1))
    assert set(moved.unique().tolist()) <= {0.0, 1.0}
    assert (moved != mask).any(2).any(1).float().mean() > 0.9
    assert moved.sum((1, 2)).mean() == pytest.approx(mask.sum().item(), rel=0.5)
