"""Solvers against the exact solution: for Gaussian data, eq. (4) can be solved by hand."""

import itertools
import math

import pytest
import torch

from ocdit_core.diffusion.edm import karras_schedule
from ocdit_core.diffusion.samplers import SamplerConfig, dpm_solver_2m, heun, sample
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


@pytest.mark.parametrize("solve", [heun, dpm_solver_2m])
def test_solvers_are_of_second_order(solve):
    x = 80 * NOISE.double()
    errors = []
    for steps in (20, 40, 80, 160):
        sigmas = karras_schedule(steps + 1, 0.02, 80.0, 7.0)[:-1]
        found = solve(Counting(), x, sigmas)
        errors.append(error(found, exact(x, 80.0, 0.02)))
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
    ("config", "evaluations"),
    [
        (SamplerConfig(steps=0), 1),
        (SamplerConfig(steps=1), 1),
        (SamplerConfig(steps=9), 17),
        (SamplerConfig(steps=9, churn=5), 17),
        (SamplerConfig(steps=1, method="dpm++2m"), 1),
        (SamplerConfig(steps=6, method="dpm++2m"), 6),
    ],
)
def test_a_sampler_knows_its_number_of_evaluations(config, evaluations):
    denoise = Counting()
    sample(denoise, NOISE, config, torch.Generator().manual_seed(1))
    assert len(denoise.sigmas) == config.evaluations == evaluations
    assert max(denoise.sigmas) > 79.9


def test_heun_reproduces_the_data_distribution():
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    x = sample(Counting(), noise, SamplerConfig(steps=32, rho=7))
    assert x.mean().item() == pytest.approx(1, abs=0.02)
    assert x.std().item() == pytest.approx(SIGMA_DATA, abs=0.02)


def test_churn_puts_noise_back_and_keeps_the_distribution():
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    plain = sample(Counting(), noise, SamplerConfig(steps=32, rho=7))
    config = SamplerConfig(steps=32, rho=7, churn=20)
    churned = sample(Counting(), noise, config, torch.Generator().manual_seed(1))
    assert not torch.allclose(plain, churned, atol=0.1)
    assert churned.std().item() == pytest.approx(SIGMA_DATA, abs=0.03)


def test_posterior_mean_is_one_evaluation_at_sigma_max():
    seen = []

    def denoise(x, sigma):
        seen.append((x.std().item(), sigma))
        return Counting()(x, sigma)

    x = sample(denoise, torch.randn(1000, generator=torch.Generator().manual_seed(0)), SamplerConfig(steps=0))
    assert len(seen) == 1
    assert seen[0][1] == 80
    assert seen[0][0] == pytest.approx(80, rel=0.1)
    # The mean of the data, to within the little that the noise says.
    assert x.mean().item() == pytest.approx(1, abs=0.01)
    assert x.std().item() < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps: -1"),
        ({"rho": 0}, "rho: 0"),
        ({"method": "euler"}, "method: 'euler' is not one of heun, dpm"),
        ({"method": "dpm++2m", "churn": 1.0}, "churn: 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SamplerConfig(**changes)
