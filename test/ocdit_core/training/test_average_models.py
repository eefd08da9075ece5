"""training/average_models.py, with two tiny models."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig

SCRIPT = Path(__file__).parents[3] / "training" / "average_models.py"
CONFIG = OCDiTConfig(
    image_size=(64, 96),
    template_size=(32, 32),
    backbone=BackboneConfig(kind="conv", frozen=False, channels=(8, 16, 24), blocks=1),
    vae=MaskVAEConfig(
        patch=4,
        encoder_channels=(8, 8, 16),
        decoder_channels=(16, 8, 8),
        latent_channels=4,
        groups=4,
        attention_heads=4,
    ),
    denoiser=DenoiserConfig(width=32, depth=1, heads=4, max_objects=4, max_views=3),
)


@pytest.fixture
def run(monkeypatch):
    spec = importlib.util.spec_from_file_location("average_models", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["average_models.py", *map(str, arguments)])
        return module.main()

    return call


def model(folder, seed, **changes):
    torch.manual_seed(seed)
    made = OCDiT(dataclasses.replace(CONFIG, **changes))
    made.save_pretrained(folder)
    return made.state_dict()


def test_the_average_lies_between_the_models(run, tmp_path):
    first, second = model(tmp_path / "a", 0), model(tmp_path / "b", 1)
    assert run(tmp_path / "a", tmp_path / "b", "--share", 0.25, "--out", tmp_path / "c") == 0
    found = OCDiT.from_pretrained(tmp_path / "c").state_dict()
    assert found.keys() == first.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * second[name], atol=1e-3, rtol=1e-3)


def test_positions_are_interpolated_between_sizes(run, tmp_path):
    first = model(tmp_path / "a", 0)
    model(tmp_path / "b", 1, image_size=(96, 128))
    assert run(tmp_path / "a", tmp_path / "b", "--share", 0.0, "--out", tmp_path / "c") == 0
    found = OCDiT.from_pretrained(tmp_path / "c")
    assert found.config.image_size == (96, 128)
    positions = [name for name, value in found.state_dict().items() if value.shape != first[name].shape]
    assert positions == ["denoiser.query_embedding.patch_position.table"]
    for name in first.keys() - set(positions):
        torch.testing.assert_close(found.state_dict()[name], first[name], atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        coarse = found.denoiser.query_embedding.patch_position((4, 6))
    torch.testing.assert_close(coarse.mean(0), first[positions[0]].mean(0), atol=0.02, rtol=0.1)


def test_models_of_two_architectures_are_refused(run, tmp_path, capsys):
    model(tmp_path / "a", 0)
    model(tmp_path / "b", 0, denoiser=dataclasses.replace(CONFIG.denoiser, depth=2))
    assert run(tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c") == 2
    assert "only models of one architecture average" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
