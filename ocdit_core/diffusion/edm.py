"""The diffusion model of EDM (Karras et al. 2022, 2024): preconditioning, noise levels, schedule and loss.

Equation numbers are those of the OC-DiT paper.
"""

import math

import torch
from torch import Tensor

# Standard deviation of the standardised latents.
SIGMA_DATA = 0.5
# Range of the noise levels in training (paper section 4.1) and sampling.
SIGMA_MIN = 0.002
SIGMA_MAX = 80.0


# eq. (5): D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)
def c_skip(sigma: Tensor) -> Tensor:
    """Return the weight of the skip connection."""
    return SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


def c_out(sigma: Tensor) -> Tensor:
    """Return the scale of the network's output."""
    return sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()


def c_in(sigma: Tensor) -> Tensor:
    """Return the scale that gives the network's input unit variance."""
    return 1 / (sigma**2 + SIGMA_DATA**2).sqrt()


def c_noise(sigma: Tensor) -> Tensor:
    """Return the noise level as the network's input."""
    return sigma.log() / 4


# eq. (6)
def loss_weight(sigma: Tensor) -> Tensor:
    """Return lambda, the weight of the squared error: at initialisation all noise levels then count the same."""
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2


def denoising_loss(denoised: Tensor, target: Tensor, weight: Tensor, log_variance: Tensor) -> Tensor:
    """Return the loss of eq. (6) for each element, shaped like `target`.

    Args:
        denoised: D_theta(y + n; sigma).
        target: the clean latents y, same shape.
        weight: lambda(sigma), broadcastable to it.
        log_variance: u(sigma), the network's own estimate of its error at this noise level, broadcastable to it.
    """
    return weight * (-log_variance).exp() * (denoised - target) ** 2 + log_variance


def draw_sigma(
    shape: tuple[int, ...], high_noise_share: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Return random noise levels, float32 of the given shape, log-uniform over [SIGMA_MIN, SIGMA_MAX] (section 4.1).

    Args:
        shape: shape of the result.
        high_noise_share: probability of drawing from [SIGMA_MAX / 4, SIGMA_MAX] instead; 0 in the paper.
        generator: random generator, on the CPU.
    """
    low, high = math.log(SIGMA_MIN), math.log(SIGMA_MAX)
    log_sigma = low + (high - low) * torch.rand(shape, generator=generator)
    if high_noise_share > 0:
        from_top = high - math.log(4) * torch.rand(shape, generator=generator)
        log_sigma = torch.where(torch.rand(shape, generator=generator) < high_noise_share, from_top, log_sigma)
    return log_sigma.exp()


def karras_schedule(
    steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 9.0
) -> list[float]:
    """Return the steps + 1 noise levels of eq. (7): from sigma_max down to sigma_min, then 0."""
    if steps == 1:
        return [sigma_max, 0.0]
    # eq. (7)
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return [*sigmas.tolist(), 0.0]
