"""Solvers against the exact solution: for Gaussian data, eq. (4) can be solved by hand."""

import itertools
import math

import pytest
import torch

from ocdit_core.diffusion.samplers import SamplerConfig, noise_levels, sample
from ocdit_core.diffusion.schedule import karras_schedule
from ocdit_core.diffusion.solvers import dpm_solver_2m, heun
from ocdit_core.errors import ConfigError

SIGMA_DATA = 0.5
NOISE = torch.randn(500, generator=torch.Generator().manual_seed(0))


class Counting:
    """The exact D for data distributed as N(1, sigma_data^2), which counts and remembers."""

    def __init__(self):
        self.sigmas = []

    def __call__(self, x, sigma):
        self.sigmas.append(float(sigma))
        share = SIGMA_DATA**2 / (SIGMA_DATA**2 + float(sigma) ** 2)
        return 1 + share * (x - 1)


def exact(x: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """Where the ODE leads x from one noise level to another."""
    return 1 + (x - 1) * math.sqrt((SIGMA_DATA**2 + sigma_next**2) / (SIGMA_DATA**2 + sigma**2))


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return (found - truth).square().mean().sqrt().item()


@pytest.mark.parametrize("solver", [heun, dpm_solver_2m])
def test_solvers_are_of_second_order(solver):
    x = 80 * NOISE.double()
    errors = []
    for steps in (20, 40, 80, 160):
        sigmas = karras_schedule(steps + 1, 0.02, 80.0, 7.0).tolist()[:-1]
        errors.append(error(solver(Counting(), x, sigmas), exact(x, 80.0, 0.02)))
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(1.8 < order < 2.4 for order in orders[1:]), orders


@pytest.mark.parametrize("rho", [7.0, 9.0])
def test_six_evaluations_of_dpm_solver_come_closer_than_seven_of_heun(rho):
    errors = {}
    for name, config in {
        "dpm 6": SamplerConfig(method="dpm++2m", steps=6, rho=rho),
        "heun 7": SamplerConfig(method="heun", steps=4, rho=rho),
    }.items():
        denoise = Counting()
        found = sample(denoise, NOISE, config)
        assert len(denoise.sigmas) == config.evaluations == int(name[-1])
        errors[name] = error(found, exact(80 * NOISE, 80.0, 0.0))
    assert errors["dpm 6"] < 0.7 * errors["heun 7"]


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(steps=0),
        SamplerConfig(steps=1),
        SamplerConfig(steps=9),
        SamplerConfig(steps=9, churn=5),
        SamplerConfig(steps=9, stop_sigma=0.1),
        SamplerConfig(steps=1, method="dpm++2m"),
        SamplerConfig(steps=6, method="dpm++2m", stop_sigma=0.05),
        SamplerConfig(steps=3, start="mean", start_sigma=2.0),
        SamplerConfig(steps=3, start="mean", start_sigma=2.0, method="dpm++2m", stop_sigma=0.01),
    ],
)
def test_evaluations_and_levels_are_those_that_the_network_sees(config):
    denoise = Counting()
    sample(denoise, NOISE, config, torch.Generator().manual_seed(1), level_of=lambda sigma: sigma)
    assert len(denoise.sigmas) == config.evaluations
    assert set(denoise.sigmas) == set(noise_levels(config))


def test_stopping_early_returns_the_estimate_of_the_last_level():
    config = SamplerConfig(steps=9, stop_sigma=0.1)
    assert config.evaluations == 13
    denoise = Counting()
    found = sample(denoise, NOISE, config)
    whole = karras_schedule(9).tolist()
    assert denoise.sigmas[-1] == pytest.approx(whole[6])
    assert whole[6] >= 0.1 > whole[7]
    x = heun(Counting(), 80 * NOISE.double(), whole[:7])
    assert torch.allclose(found, Counting()(x, whole[6]).float(), atol=1e-6)


def test_starting_from_the_mean_gives_samples_of_the_data():
    denoise = Counting()
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    config = SamplerConfig(steps=32, start="mean", start_sigma=5.0, method="dpm++2m")
    found = sample(denoise, noise, config)
    assert denoise.sigmas[:2] == [80.0, 5.0]
    assert found.mean().item() == pytest.approx(1, abs=0.02)
    # It begins as if the data were all at their mean: at noise of 5 that is nearly so.
    assert found.std().item() == pytest.approx(SIGMA_DATA, rel=0.02)


@pytest.mark.parametrize("method", ["heun", "dpm++2m"])
def test_a_known_estimate_saves_its_evaluation_and_changes_nothing(method):
    for start in ("noise", "mean"):
        config = SamplerConfig(steps=4, method=method, start=start)
        mean = sample(Counting(), NOISE, SamplerConfig(steps=0))
        denoise = Counting()
        found = sample(denoise, NOISE, config, estimate=mean)
        assert len(denoise.sigmas) == config.evaluations - 1
        assert 80.0 not in denoise.sigmas
        assert torch.allclose(found, sample(Counting(), NOISE, config), atol=1e-5)


def test_latents_of_another_picture_are_a_start():
    latents = torch.full_like(NOISE, 1.4)
    denoise = Counting()
    config = SamplerConfig(steps=1, start="mean", start_sigma=0.5)
    found = sample(denoise, NOISE, config, estimate=latents)
    assert denoise.sigmas == [0.5]
    assert torch.allclose(found, Counting()(latents + 0.5 * NOISE, 0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_sigma": 0.001}, "start_sigma: 0.001"),
        ({"start_sigma": 100.0}, "start_sigma: 100.0"),
        ({"stop_sigma": 80.0}, "stop_sigma: 80.0"),
        ({"start": "mean", "start_sigma": 1.0, "stop_sigma": 2.0}, r"stop_sigma: 2\.0 .* below 1\.0"),
        ({"method": "dpm++2m", "churn": 1.0}, "churn: 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SamplerConfig(**changes)
