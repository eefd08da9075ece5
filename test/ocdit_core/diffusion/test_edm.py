import math

import pytest
import torch

from ocdit_core.diffusion.edm import (
    SIGMA_DATA,
    c_in,
    c_noise,
    c_out,
    c_skip,
    denoising_loss,
    draw_sigma,
    karras_schedule,
    loss_weight,
)


def test_preconditioning_gives_unit_variance_in_and_unit_weight_out():
    sigma = torch.tensor([0.002, 0.5, 80.0])
    assert torch.allclose(c_in(sigma) ** 2 * (sigma**2 + SIGMA_DATA**2), torch.ones(3))
    # eq. (6): lambda makes the effective weight of the raw network 1 at every noise level.
    assert torch.allclose(loss_weight(sigma) * c_out(sigma) ** 2, torch.ones(3))
    assert torch.allclose(c_skip(sigma), torch.tensor([1.0, 0.5, 0.0]), atol=1e-4)
    assert torch.allclose(c_noise(torch.tensor([math.e**4])), torch.ones(1))


def test_schedule_matches_the_published_numbers():
    sigmas = karras_schedule(9, rho=9)
    published = [80, 35, 14, 5.4, 1.75, 0.49, 0.11, 0.018, 0.002, 0]
    assert sigmas == pytest.approx(published, rel=0.06)
    assert karras_schedule(1) == [80.0, 0.0]


def test_noise_levels_are_log_uniform():
    sigma = draw_sigma((200_000,), generator=torch.Generator().manual_seed(0)).log()
    low, high = math.log(0.002), math.log(80)
    assert sigma.mean().item() == pytest.approx((low + high) / 2, abs=0.03)
    assert sigma.std().item() == pytest.approx((high - low) / math.sqrt(12), abs=0.03)
    assert low - 1e-3 <= sigma.min() < sigma.max() <= high + 1e-3


def test_high_noise_share_moves_that_share_to_the_top():
    plain, shifted = (draw_sigma((100_000,), share, torch.Generator().manual_seed(0)) for share in (0, 0.5))
    at_top = (plain >= 20).float().mean().item()
    assert (shifted >= 20).float().mean().item() == pytest.approx(0.5 + 0.5 * at_top, abs=0.01)


def test_loss_is_least_where_the_uncertainty_is_the_logarithm_of_the_error():
    target, denoised = torch.zeros(1), torch.full((1,), 0.3)
    weight = torch.tensor(2.0)
    best = math.log(2.0 * 0.3**2)
    losses = [denoising_loss(denoised, target, weight, torch.tensor(best + d)).item() for d in (-0.5, 0.0, 0.5)]
    assert losses[1] == min(losses)
