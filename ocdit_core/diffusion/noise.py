"""Noise levels drawn in training (paper section 4.1; Karras et al. 2022, table 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ocdit_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """How the noise level sigma of a training sample is drawn.

    Attributes:
        distribution: log_uniform over [sigma_min, sigma_max] (the paper's choice), log_normal (EDM's),
            or log_normal_truncated (the same, redrawn inside the range).
        sigma_min: smallest noise level.
        sigma_max: largest noise level.
        log_mean: mean of ln(sigma), for the log-normal choices.
        log_std: standard deviation of ln(sigma), likewise.
        high_noise_share: probability of drawing log-uniformly from [sigma_max / 4, sigma_max] instead: the levels
            that decide where an object is, and those that a single-evaluation sampler asks for. 0 in the paper.
    """

    distribution: Literal["log_uniform", "log_normal", "log_normal_truncated"] = "log_uniform"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    log_mean: float = -0.4
    log_std: float = 1.2
    high_noise_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(
                f"sigma_min, sigma_max: {self.sigma_min}, {self.sigma_max} must satisfy 0 < sigma_min < sigma_max"
            )
        if not 0 <= self.high_noise_share <= 1:
            raise ConfigError(f"high_noise_share: {self.high_noise_share} is not in [0, 1]")


def draw_sigma(config: NoiseConfig, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Return float32 noise levels of the given shape."""
    low, high = math.log(config.sigma_min), math.log(config.sigma_max)
    if config.distribution == "log_uniform":
        log_sigma = low + (high - low) * torch.rand(shape, generator=generator)
    elif config.distribution == "log_normal":
        log_sigma = config.log_mean + config.log_std * torch.randn(shape, generator=generator)
    else:
        # Inverse transform sampling: exact, and without a loop of unknown length.
        normal = torch.distributions.Normal(config.log_mean, config.log_std)
        bounds = normal.cdf(torch.tensor([low, high]))
        log_sigma = normal.icdf(bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator))
        log_sigma = log_sigma.clamp(low, high)
    if config.high_noise_share > 0:
        from_top = high - math.log(4) * torch.rand(shape, generator=generator)
        log_sigma = torch.where(torch.rand(shape, generator=generator) < config.high_noise_share, from_top, log_sigma)
    return log_sigma.exp()
