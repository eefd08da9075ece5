"""Samplers: from noise to clean latents along eq. (4).

A sampler is one subclass of `Sampler`, listed in `SAMPLERS` under the name that `SamplerConfig.method` selects.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ocdit_core.diffusion.edm import SIGMA_MAX, SIGMA_MIN, karras_schedule
from ocdit_core.errors import ConfigError

Denoise = Callable[[Tensor, float], Tensor]
"""D_theta of eq. (5): float32 noisy latents and their noise level -> denoised latents of the same shape."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Sampler and noise schedule.

    Attributes:
        steps: steps of the solver; 0 is the posterior mean, one evaluation of the network at sigma_max.
        method: heun (the paper's; two evaluations a step, one for the last) or dpm++2m (one evaluation a step).
        sigma_min: lowest noise level above 0.
        sigma_max: noise level that sampling starts from.
        rho: exponent of the schedule, eq. (7).
        churn: S_churn, the noise added back along the way; 0 is the deterministic ODE. heun only.
        churn_min: S_min, the lowest noise level at which noise is added.
        churn_max: S_max, the highest noise level at which noise is added.
        churn_noise: S_noise, scale of the added noise.
    """

    steps: int = 9
    method: str = "heun"
    sigma_min: float = SIGMA_MIN
    sigma_max: float = SIGMA_MAX
    rho: float = 9.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in SAMPLERS:
            raise ConfigError(f"method: {self.method!r} is not one of {', '.join(SAMPLERS)}")
        if self.steps < 0:
            raise ConfigError(f"steps: {self.steps} is negative; 0 is the posterior mean, 9 the paper's choice")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ConfigError(
                f"sigma_min, sigma_max: {self.sigma_min}, {self.sigma_max} must satisfy 0 < sigma_min < sigma_max"
            )
        if self.rho <= 0:
            raise ConfigError(f"rho: {self.rho} is not positive")
        if self.churn < 0 or (self.churn > 0 and self.method != "heun"):
            raise ConfigError(f"churn: {self.churn} must be 0, or positive with method heun")

    @property
    def evaluations(self) -> int:
        """Number of network evaluations that a sample takes."""
        return build_sampler(self).evaluations


class Sampler(ABC):
    """Generates latents from noise.

    Args:
        config: noise schedule and the sampler's own parameters.
    """

    def __init__(self, config: SamplerConfig) -> None:
        self.config = config

    @property
    def sigmas(self) -> list[float]:
        """Noise levels of the steps, falling; the last one is 0."""
        return karras_schedule(self.config.steps, self.config.sigma_min, self.config.sigma_max, self.config.rho)

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Number of network evaluations that `sample` takes."""

    @abstractmethod
    def solve(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], generator: torch.Generator | None) -> Tensor:
        """Integrate eq. (4) from the first to the last noise level.

        Args:
            denoise: D_theta, taking and returning float64.
            x: float64 latents at the first noise level.
            sigmas: falling noise levels; the last one may be 0.
            generator: random generator of added noise, on the CPU.
        """

    def sample(self, denoise: Denoise, noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return clean latents, float32 of the shape of `noise`.

        Args:
            denoise: D_theta.
            noise: samples of N(0, I).
            generator: random generator of noise that is added along the way, on the CPU: results do not depend on the
                device.
        """

        def in_double(x: Tensor, sigma: float) -> Tensor:
            return denoise(x.float(), sigma).double()

        sigmas = self.sigmas
        return self.solve(in_double, noise.double() * sigmas[0], sigmas, generator).float()


class PosteriorMean(Sampler):
    """The posterior mean E[x0 | image, templates], by one evaluation at sigma_max.

    At sigma_max the input carries nearly no information on x0, so D_theta returns the mean over all samples.
    """

    @property
    def sigmas(self) -> list[float]:
        """The highest noise level alone."""
        return [self.config.sigma_max]

    @property
    def evaluations(self) -> int:
        """Number of network evaluations that `sample` takes."""
        return 1

    def solve(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], generator: torch.Generator | None) -> Tensor:
        """Evaluate once; see `Sampler.solve`."""
        return denoise(x, sigmas[0])


class Heun(Sampler):
    """Heun's second-order method with optional stochasticity (Karras et al. 2022, algorithm 2)."""

    @property
    def evaluations(self) -> int:
        """Number of network evaluations that `sample` takes."""
        return 2 * self.config.steps - 1

    def solve(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], generator: torch.Generator | None) -> Tensor:
        """Take two evaluations a step, one for a step to 0; see `Sampler.solve`."""
        config = self.config
        for sigma, sigma_next in itertools.pairwise(sigmas):
            if config.churn > 0 and config.churn_min <= sigma <= config.churn_max:
                raised = sigma * (1 + min(config.churn / config.steps, math.sqrt(2) - 1))
                fresh = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
                x = x + math.sqrt(raised**2 - sigma**2) * config.churn_noise * fresh
                sigma = raised
            # eq. (4)
            slope = (x - denoise(x, sigma)) / sigma
            x_next = x + (sigma_next - sigma) * slope
            if sigma_next > 0:
                slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
                x_next = x + (sigma_next - sigma) * 0.5 * (slope + slope_next)
            x = x_next
        return x


class DPMSolver2M(Sampler):
    """DPM-Solver++(2M), a second-order multistep method (Lu et al. 2022, arXiv 2211.01095, algorithm 2, alpha = 1).

    It solves the linear part of eq. (4) exactly, with lambda = -ln sigma as its time. The first and the last step are
    of first order.
    """

    @property
    def evaluations(self) -> int:
        """Number of network evaluations that `sample` takes."""
        return self.config.steps

    def solve(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float], generator: torch.Generator | None) -> Tensor:
        """Take one evaluation a step and reuse the one before; see `Sampler.solve`."""
        previous: Tensor | None = None
        previous_step = 0.0
        for sigma, sigma_next in itertools.pairwise(sigmas):
            denoised = denoise(x, sigma)
            if sigma_next == 0:
                return denoised
            step = math.log(sigma / sigma_next)
            extrapolated = denoised
            if previous is not None:
                extrapolated = denoised + step / (2 * previous_step) * (denoised - previous)
            ratio = sigma_next / sigma
            x = ratio * x + (1 - ratio) * extrapolated
            previous, previous_step = denoised, step
        return x


SAMPLERS: dict[str, type[Sampler]] = {"heun": Heun, "dpm++2m": DPMSolver2M}


def build_sampler(config: SamplerConfig) -> Sampler:
    """Return the sampler of a configuration."""
    return PosteriorMean(config) if config.steps == 0 else SAMPLERS[config.method](config)


def sample(denoise: Denoise, noise: Tensor, config: SamplerConfig, generator: torch.Generator | None = None) -> Tensor:
    """Return clean latents by the sampler of a configuration; see `Sampler.sample`."""
    return build_sampler(config).sample(denoise, noise, generator)
