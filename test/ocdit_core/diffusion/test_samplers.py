"""Solvers against the exact solution: for Gaussian data, eq. (4) can be solved by hand."""

import dataclasses
import itertools
import math

import pytest
import torch

from ocdit_core.diffusion.edm import karras_schedule
from ocdit_core.diffusion.samplers import SamplerConfig, dpm_solver_2m, guide, heun, sample
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
        (SamplerConfig(steps=6, method="euler_maruyama"), 6),
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


@pytest.mark.parametrize("steps", [2, 5, 64])
def test_euler_maruyama_has_the_mean_and_variance_that_its_steps_give_by_hand(steps):
    noise = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    config = SamplerConfig(steps=steps, method="euler_maruyama", rho=7)
    found = sample(Counting(), noise, config, torch.Generator().manual_seed(1))
    mean, variance = 0.0, 80.0**2
    for sigma, sigma_next in itertools.pairwise(karras_schedule(steps, rho=7)):
        left, share = (sigma_next / sigma) ** 2, SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2)
        factor = left + (1 - left) * share
        mean = factor * mean + (1 - left) * (1 - share)
        variance = factor**2 * variance + sigma_next**2 * (1 - left)
    assert found.mean().item() == pytest.approx(mean, abs=0.01)
    assert found.var().item() == pytest.approx(variance, rel=0.03, abs=1e-4)


def test_euler_maruyama_reproduces_the_data_distribution_and_is_stochastic():
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    config = SamplerConfig(steps=400, method="euler_maruyama", rho=7)
    found, other = (sample(Counting(), noise, config, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert found.mean().item() == pytest.approx(1, abs=0.02)
    assert found.std().item() == pytest.approx(SIGMA_DATA, abs=0.02)
    # What the start still says of the result is nearly nothing, unlike that of the ODE.
    assert torch.corrcoef(torch.stack([found, other]))[0, 1].abs() < 0.05


def away(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """D of other data, those of N(-1, sigma_data^2)."""
    return Counting()(x + 2, sigma) - 2


@pytest.mark.parametrize("method", ["heun", "dpm++2m", "euler_maruyama"])
def test_guidance_of_one_equals_no_guidance_bit_for_bit(method):
    plain = SamplerConfig(steps=4, method=method)
    results = []
    for config in (plain, dataclasses.replace(plain, token_guidance=2.0)):
        denoise = guide(Counting(), away, config, tokens=100)
        results.append(sample(denoise, NOISE, config, torch.Generator().manual_seed(1)))
    unguided = sample(Counting(), NOISE, plain, torch.Generator().manual_seed(1))
    assert torch.equal(results[0], unguided)
    # Of the last channels, the tokens, alone.
    assert torch.equal(results[1][:-100], unguided[:-100])
    assert (results[1][-100:] - unguided[-100:]).abs().min() > 0.1


def test_guidance_extrapolates_from_the_negative_in_its_interval_alone():
    config = SamplerConfig(guidance=3.0, guidance_interval=(0.5, 4.0))
    asked = []

    def negative(x, sigma):
        asked.append(sigma)
        return away(x, sigma)

    denoise, x = guide(Counting(), negative, config), NOISE.double()
    for sigma in (0.4, 0.5, 2.0, 4.0, 4.1):
        expected = plain = Counting()(x, sigma)
        if 0.5 <= sigma <= 4:
            expected = away(x, sigma) + 3 * (plain - away(x, sigma))
        torch.testing.assert_close(denoise(x, sigma), expected)
    assert asked == [0.5, 2.0, 4.0]


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
        ({"method": "euler"}, r"method: 'euler' is not one of heun, dpm\+\+2m, euler_maruyama"),
        ({"guidance_interval": (3.0, 1.0)}, r"guidance_interval: \[3.0, 1.0\] must be rising"),
        ({"method": "dpm++2m", "churn": 1.0}, "churn: 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SamplerConfig(**changes)
