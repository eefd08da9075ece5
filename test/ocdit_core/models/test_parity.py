"""Our network against numbers that the published code computes with the same, deterministically filled weights."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ocdit_core.diffusion.edm import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN
from ocdit_core.diffusion.samplers import SamplerConfig, sample
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, OCDiTConfig, TemplateFeatures
from ocdit_core.models.published import load_published, published_name

sys.path.insert(0, str(Path(__file__).parent))
from fill import array, value_of

DATA = Path(__file__).parents[2] / "data" / "parity"
CASE = json.loads((DATA / "case_a.json").read_text())
META = CASE["meta"]
EXPECTED = np.load(DATA / "case_a.npz")
BAR = 1e-5


def backbone_of(channels: int) -> dict[str, Any]:
    return {"model_type": "dinov2", "hidden_size": channels, "num_hidden_layers": 1, "num_attention_heads": 1}


def build(parameters: dict[str, list[int]]) -> OCDiT:
    height, width = (16 * side for side in META["grid"])
    config = OCDiTConfig(
        image_size=(height, width),
        template_size=tuple(16 * side for side in META["template_grid"]),
        backbone=BackboneConfig(architecture=backbone_of(META["feature_channels"])),
        denoiser=DenoiserConfig(
            width=META["hidden_size"],
            depth=META["depth"],
            heads=META["num_heads"],
            max_objects=META["max_objects"],
            max_views=META["max_views"],
        ),
    )
    model = OCDiT(config).eval()
    load_published(model, {name: torch.from_numpy(value_of(name, tuple(s))) for name, s in parameters.items()})
    return model


@pytest.fixture(scope="module")
def model() -> OCDiT:
    return build(CASE["parameters"])


@pytest.fixture(scope="module")
def conditioning(model):
    channels, objects, views = META["feature_channels"], META["objects"], META["views"]
    image = torch.from_numpy(array("case_a/image_features", (1, channels, *META["grid"])))
    templates = torch.from_numpy(
        array("case_a/template_features", (1, objects, views, channels, *META["template_grid"]))
    )
    with torch.no_grad():
        targets = model.encode_targets(TemplateFeatures(features=templates))
        return model.condition(ImageFeatures(features=image), targets)


def relative_error(ours: torch.Tensor, name: str) -> float:
    theirs = torch.from_numpy(EXPECTED[name])
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("sigma", [0.02, 0.5, 7.0])
@torch.no_grad()
def test_denoiser(model, conditioning, sigma):
    shape = (1, META["objects"], META["latent_channels"], *META["grid"])
    x = torch.from_numpy(array(f"case_a/x/{sigma}", shape, scale=np.sqrt(0.25 + sigma**2)))
    level = torch.full((1, 1), sigma)
    denoised = model.denoiser(x[:, None], level, conditioning).latents[:, 0]
    assert relative_error(denoised, f"denoised/{sigma}") < BAR
    uncertainty = model.denoiser.uncertainty(level)
    assert relative_error(uncertainty.reshape(EXPECTED[f"logvar/{sigma}"].shape), f"logvar/{sigma}") < BAR


@torch.no_grad()
def test_sampler_and_decoder(model, conditioning):
    shape = (META["ensemble"], META["objects"], META["latent_channels"], *META["grid"])
    noise = torch.from_numpy(array("case_a/noise", shape))[None]
    assert (META["sigma_min"], META["sigma_max"], META["sigma_data"]) == (SIGMA_MIN, SIGMA_MAX, SIGMA_DATA)
    config = SamplerConfig(steps=META["num_steps"], rho=META["rho"])
    latents = sample(lambda x, sigma: model.denoiser(x, sigma, conditioning).latents, noise, config)
    assert relative_error(latents[0], "sample") < BAR
    probability = model.decode_masks(latents).mean(1)
    assert relative_error(probability, "probability") < BAR


@torch.no_grad()
def test_vae(model):
    height, width = (16 * side for side in META["grid"])
    rows, columns = np.mgrid[:height, :width]
    discs = np.stack(
        [
            (rows - height * (0.3 + 0.1 * i)) ** 2 + (columns - width * (0.4 + 0.1 * i)) ** 2
            < (min(height, width) * (0.2 + 0.05 * i)) ** 2
            for i in range(3)
        ]
    )
    mean, log_variance = model.vae.encoder(torch.from_numpy(discs.astype(np.float32))[:, None])
    assert relative_error(mean, "vae/mean") < BAR
    assert relative_error(log_variance, "vae/logvar") < BAR
    latent = torch.from_numpy(array("case_a/latent", (META["objects"], META["latent_channels"], *META["grid"]), 0.5))
    decoded = model.decode_masks(latent)
    assert relative_error(decoded.reshape(EXPECTED["vae/decoded_probability"].shape), "vae/decoded_probability") < BAR


def test_full_size_names_map_one_to_one():
    published = json.loads((DATA / "published_state_dict.json").read_text())
    with torch.device("meta"):
        model = OCDiT(OCDiTConfig(backbone=BackboneConfig(architecture=backbone_of(384))))
        state = {name: torch.empty(shape) for name, shape in published.items()}
    load_published(model, state)
    own = [name for name in model.state_dict() if not name.startswith(("backbone.", "vae.latent_"))]
    mapped = [published_name(name) for name in own]
    assert len(set(mapped)) == len(own)
    assert set(mapped) == set(published)
