import math

import pytest
import torch

from ocdit_core.diffusion.loss import denoising_loss
from ocdit_core.diffusion.noise import NoiseConfig, draw_sigma
from ocdit_core.diffusion.preconditioning import Preconditioning
from ocdit_core.diffusion.samplers import SamplerConfig, noise_levels, sample
from ocdit_core.diffusion.schedule import karras_schedule
from ocdit_core.errors import ConfigError

SIGMA_DATA = 0.5


def ideal_denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The exact D for data distributed as N(1, sigma_data^2)."""
    share = SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2)
    return 1 + share * (x - 1)


def test_preconditioning_gives_unit_variance_in_and_unit_weight_out():
    p = Preconditioning(sigma_data=SIGMA_DATA)
    sigma = torch.tensor([0.002, 0.5, 80.0])
    assert torch.allclose(p.c_in(sigma) ** 2 * (sigma**2 + SIGMA_DATA**2), torch.ones(3))
    # eq. (6): lambda makes the effective weight of the raw network 1 at every noise level.
    assert torch.allclose(p.loss_weight(sigma) * p.c_out(sigma) ** 2, torch.ones(3))
    assert torch.allclose(p.c_skip(sigma), torch.tensor([1.0, 0.5, 0.0]), atol=1e-4)
    assert torch.allclose(p.c_noise(torch.tensor([math.e**4])), torch.ones(1))


def test_schedule_matches_the_published_numbers():
    sigmas = karras_schedule(9, rho=9)
    published = [80, 35, 14, 5.4, 1.75, 0.49, 0.11, 0.018, 0.002, 0]
    assert torch.allclose(sigmas, torch.tensor(published, dtype=torch.float64), rtol=0.06)
    assert karras_schedule(1).tolist() == [80.0, 0.0]


@pytest.mark.parametrize("distribution", ["log_uniform", "log_normal", "log_normal_truncated"])
def test_noise_distributions(distribution):
    config = NoiseConfig(distribution=distribution)
    sigma = draw_sigma(config, (200_000,), torch.Generator().manual_seed(0)).log()
    if distribution == "log_uniform":
        low, high = math.log(0.002), math.log(80)
        assert sigma.mean().item() == pytest.approx((low + high) / 2, abs=0.03)
        assert sigma.std().item() == pytest.approx((high - low) / math.sqrt(12), abs=0.03)
    else:
        assert sigma.mean().item() == pytest.approx(-0.4, abs=0.03)
        assert sigma.std().item() == pytest.approx(1.2, abs=0.03)
    if distribution != "log_normal":
        assert sigma.exp().min() >= 0.002 * 0.999
        assert sigma.exp().max() <= 80 * 1.001


def test_high_noise_share_moves_that_share_to_the_top():
    plain = draw_sigma(NoiseConfig(), (100_000,), torch.Generator().manual_seed(0))
    shifted = draw_sigma(NoiseConfig(high_noise_share=0.5), (100_000,), torch.Generator().manual_seed(0))
    at_top = (plain >= 20).float().mean().item()
    assert (shifted >= 20).float().mean().item() == pytest.approx(0.5 + 0.5 * at_top, abs=0.01)


def test_heun_reproduces_the_data_distribution():
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    x = sample(ideal_denoiser, noise, SamplerConfig(steps=32, rho=7))
    assert x.mean().item() == pytest.approx(1, abs=0.02)
    assert x.std().item() == pytest.approx(SIGMA_DATA, abs=0.02)


def test_churn_puts_noise_back_and_keeps_the_distribution():
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    plain = sample(ideal_denoiser, noise, SamplerConfig(steps=32, rho=7))
    config = SamplerConfig(steps=32, rho=7, churn=20, churn_min=0.05, churn_max=50)
    churned = sample(ideal_denoiser, noise, config, torch.Generator().manual_seed(1))
    assert not torch.allclose(plain, churned, atol=0.1)
    assert churned.std().item() == pytest.approx(SIGMA_DATA, abs=0.03)


def test_posterior_mean_is_one_evaluation_at_sigma_max():
    seen = []

    def denoise(x, sigma):
        seen.append((x.std().item(), sigma.item()))
        return ideal_denoiser(x, sigma)

    x = sample(denoise, torch.randn(1000, generator=torch.Generator().manual_seed(0)), SamplerConfig(steps=0))
    assert len(seen) == 1
    assert seen[0][1] == 80
    assert seen[0][0] == pytest.approx(80, rel=0.1)
    # The mean of the data, to within the little that the noise says.
    assert x.mean().item() == pytest.approx(1, abs=0.01)
    assert x.std().item() < 0.01


def test_number_of_evaluations():
    count = 0

    def denoise(x, sigma):
        nonlocal count
        count += 1
        return ideal_denoiser(x, sigma)

    sample(denoise, torch.zeros(1), SamplerConfig(steps=9))
    assert count == 17


@pytest.mark.parametrize(
    "config", [SamplerConfig(steps=0), SamplerConfig(steps=1), SamplerConfig(steps=4), SamplerConfig(steps=9, churn=5)]
)
def test_noise_levels_are_those_that_the_network_is_asked_for(config):
    seen = set()

    def denoise(x, level):
        seen.add(level)
        return ideal_denoiser(x, torch.tensor(level, dtype=torch.float32))

    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    found = sample(denoise, noise, config, random, level_of=lambda sigma: sigma)
    assert seen == set(noise_levels(config))
    assert torch.equal(found, sample(ideal_denoiser, noise, config, random.manual_seed(1)))


def test_loss_is_least_where_the_uncertainty_is_the_logarithm_of_the_error():
    target, denoised = torch.zeros(1), torch.full((1,), 0.3)
    weight = torch.tensor(2.0)
    best = math.log(2.0 * 0.3**2)
    losses = [denoising_loss(denoised, target, weight, torch.tensor(best + d)).item() for d in (-0.5, 0.0, 0.5)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseConfig(sigma_min=1, sigma_max=0.5), "sigma_min"),
        (lambda: NoiseConfig(high_noise_share=2), "high_noise_share: 2"),
        (lambda: SamplerConfig(steps=-1), "steps: -1"),
        (lambda: SamplerConfig(rho=0), "rho: 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
