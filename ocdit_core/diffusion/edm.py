"""The diffusion model of EDM (Karras et al. 2022, 2024): preconditioning, noise levels, schedule and loss.

Equation numbers are those of the OC-DiT paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ocdit_core.errors import ConfigError

# Range of the noise levels in training (paper section 4.1); samplers start at the same maximum by default.
SIGMA_MIN = 0.002
SIGMA_MAX = 80.0

# Mean and standard deviation of ln(sigma) for the log-normal distributions (EDM: -1.2 and 1.2, EDM2: -0.4 and 1.0).
LOG_SIGMA_MEAN = -0.4
LOG_SIGMA_STD = 1.2


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """The coefficients of eq. (5), D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

    Attributes:
        sigma_data: standard deviation of the standardised latents.
    """

    sigma_data: float = 0.5

    # eq. (5)
    def c_skip(self, sigma: Tensor) -> Tensor:
        """Return the weight of the skip connection."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Return the scale of the network's output."""
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        """Return the scale that gives the network's input unit variance."""
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Return the noise level as the network's input."""
        return sigma.log() / 4

    # eq. (6)
    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return lambda, the weight of the squared error: at initialisation all noise levels then count the same."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Distribution of the noise level sigma of a training sample.

    Attributes:
        distribution: log_uniform over [SIGMA_MIN, SIGMA_MAX] (paper section 4.1), log_normal (EDM), or
            log_normal_truncated to that range.
        high_noise_share: probability of drawing log-uniformly from [SIGMA_MAX / 4, SIGMA_MAX] instead: the levels that
            a single-evaluation sampler uses. 0 in the paper.
    """

    distribution: Literal["log_uniform", "log_normal", "log_normal_truncated"] = "log_uniform"
    high_noise_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.high_noise_share <= 1:
            raise ConfigError(f"high_noise_share: {self.high_noise_share} is not in [0, 1]")


def draw_sigma(config: NoiseConfig, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Return random noise levels, float32 of the given shape.

    Args:
        config: the distribution.
        shape: shape of the result.
        generator: random generator, on the CPU.
    """
    low, high = math.log(SIGMA_MIN), math.log(SIGMA_MAX)
    if config.distribution == "log_uniform":
        log_sigma = low + (high - low) * torch.rand(shape, generator=generator)
    elif config.distribution == "log_normal":
        log_sigma = LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.randn(shape, generator=generator)
    else:
        # Inverse transform sampling needs no rejection loop.
        normal = torch.distributions.Normal(LOG_SIGMA_MEAN, LOG_SIGMA_STD)
        bounds = normal.cdf(torch.tensor([low, high]))
        log_sigma = normal.icdf(bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator))
        log_sigma = log_sigma.clamp(low, high)
    if config.high_noise_share > 0:
        from_top = high - math.log(4) * torch.rand(shape, generator=generator)
        log_sigma = torch.where(torch.rand(shape, generator=generator) < config.high_noise_share, from_top, log_sigma)
    return log_sigma.exp()


def karras_schedule(
    steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 9.0
) -> list[float]:
    """Return the steps + 1 noise levels of eq. (7): from sigma_max down to sigma_min, then 0."""
    if steps < 1:
        raise ValueError(f"steps: {steps} is not positive")
    if steps == 1:
        return [sigma_max, 0.0]
    # eq. (7)
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return [*sigmas.tolist(), 0.0]


def denoising_loss(denoised: Tensor, target: Tensor, weight: Tensor, log_variance: Tensor) -> Tensor:
    """Return the loss of eq. (6) for each element, shaped like `target`.

    Args:
        denoised: D_theta(y + n; sigma).
        target: the clean latents y, same shape.
        weight: lambda(sigma), broadcastable to it.
        log_variance: u(sigma), the network's own estimate of its error at this noise level, broadcastable to it.
    """
    # eq. (6)
    return weight * (-log_variance).exp() * (denoised - target) ** 2 + log_variance
