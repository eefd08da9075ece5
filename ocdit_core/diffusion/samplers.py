"""From noise to clean latents: the stochastic Heun sampler (Karras et al. 2022, algorithm 2) and the posterior mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocdit_core.diffusion.schedule import karras_schedule
from ocdit_core.errors import ConfigError

Denoise = Callable[[Tensor, Any], Tensor]
"""(x float32, noise level) -> denoised x, the D_theta of eq. (5)."""

LevelOf = Callable[[float], Any]
"""sigma -> the noise level as a Denoise takes it; by default a float32 scalar on the device of x."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How latents are generated.

    Attributes:
        steps: 0 for the posterior mean (one evaluation at sigma_max), otherwise Heun steps: 2 steps - 1 evaluations.
        sigma_min: smallest noise level before 0.
        sigma_max: noise level that sampling starts from.
        rho: bend of the schedule of eq. (7).
        churn: S_churn, the total noise put back on the way; 0 gives the deterministic ODE.
        churn_min: S_min, no noise is put back below this level.
        churn_max: S_max, nor above this one.
        churn_noise: S_noise, inflation of the noise that is put back.
    """

    steps: int = 9
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 9.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps: {self.steps} is negative; 0 is the posterior mean, 9 the paper's choice")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(
                f"sigma_min, sigma_max: {self.sigma_min}, {self.sigma_max} must satisfy 0 < sigma_min < sigma_max"
            )
        if self.rho <= 0:
            raise ConfigError(f"rho: {self.rho} is not positive")


def sample(
    denoise: Denoise,
    noise: Tensor,
    config: SamplerConfig,
    generator: torch.Generator | None = None,
    level_of: LevelOf | None = None,
) -> Tensor:
    """Return clean latents of the shape of `noise`, which is drawn from N(0, I)."""
    if config.steps == 0:
        return posterior_mean(denoise, noise, config.sigma_max, level_of)
    return heun(denoise, noise, config, generator, level_of)


def noise_levels(config: SamplerConfig) -> list[float]:
    """Return every sigma that `sample` evaluates the network at, each once."""
    if config.steps == 0:
        return [config.sigma_max]
    sigmas = karras_schedule(config.steps, config.sigma_min, config.sigma_max, config.rho).tolist()[:-1]
    return list(dict.fromkeys([*(_raised(sigma, config) for sigma in sigmas), *sigmas[1:]]))


def posterior_mean(denoise: Denoise, noise: Tensor, sigma_max: float, level_of: LevelOf | None = None) -> Tensor:
    """Return D(sigma_max noise; sigma_max): the mean over all latents that the model believes in.

    At sigma_max the input says next to nothing, so one evaluation gives what an ensemble of samples would average to.
    """
    level = (level_of or _scalars_for(noise))(sigma_max)
    return denoise((noise * sigma_max).float(), level)


def heun(
    denoise: Denoise,
    noise: Tensor,
    config: SamplerConfig,
    generator: torch.Generator | None = None,
    level_of: LevelOf | None = None,
) -> Tensor:
    """Integrate eq. (4) from sigma_max to 0; the state is float64, the network sees float32."""
    sigmas = karras_schedule(config.steps, config.sigma_min, config.sigma_max, config.rho).tolist()
    level_of = level_of or _scalars_for(noise)
    x = noise.double() * sigmas[0]

    def slope(x: Tensor, sigma: float) -> Tensor:
        # eq. (4)
        return (x - denoise(x.float(), level_of(sigma)).double()) / sigma

    for sigma, sigma_next in itertools.pairwise(sigmas):
        raised = _raised(sigma, config)
        if raised > sigma:
            fresh = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            x = x + math.sqrt(raised**2 - sigma**2) * config.churn_noise * fresh
            sigma = raised
        here = slope(x, sigma)
        x_next = x + (sigma_next - sigma) * here
        if sigma_next > 0:
            x_next = x + (sigma_next - sigma) * 0.5 * (here + slope(x_next, sigma_next))
        x = x_next
    return x.float()


def _raised(sigma: float, config: SamplerConfig) -> float:
    """The level that churn raises sigma to."""
    if config.churn > 0 and config.churn_min <= sigma <= config.churn_max:
        return sigma * (1 + min(config.churn / config.steps, math.sqrt(2) - 1))
    return sigma


def _scalars_for(x: Tensor) -> LevelOf:
    return lambda sigma: torch.tensor(sigma, dtype=torch.float32, device=x.device)
