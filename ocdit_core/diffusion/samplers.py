"""Samplers: from noise to clean latents along eq. (4).

A solver is one function, listed in `SOLVERS` under the name that `SamplerConfig.method` selects.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ocdit_core.diffusion.edm import SIGMA_MAX, karras_schedule
from ocdit_core.errors import ConfigError

Denoise = Callable[[Tensor, float], Tensor]
"""D_theta of eq. (5): float32 noisy latents and their noise level -> denoised latents of the same shape."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Sampler and noise schedule.

    Attributes:
        steps: steps of the solver; 0 is the posterior mean, one evaluation of the network at the highest noise level.
        method: heun (the paper's; two evaluations a step, one for the last), dpm++2m (one evaluation a step) or
            euler_maruyama (one; stochastic).
        rho: exponent of the schedule, eq. (7).
        churn: S_churn, the noise added back along the way; 0 is the deterministic ODE. heun only.
        guidance: weight w of classifier-free guidance of the masks, N + w (D - N), where N is the denoiser's result for
            `negative`, one more evaluation each; 1: none.
        token_guidance: the same for presence tokens.
        guidance_interval: lowest and highest noise level that is guided.
        negative: what guidance leads away from. nothing: no templates, for models trained with `drop_templates`.
            look_alike: the templates of the other target that looks most like it; where there is one target, as in the
            refine stage, there is no guidance.
    """

    steps: int = 9
    method: str = "heun"
    rho: float = 9.0
    churn: float = 0.0
    guidance: float = 1.0
    token_guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, SIGMA_MAX)
    negative: Literal["nothing", "look_alike"] = "nothing"

    def __post_init__(self) -> None:
        if self.method not in SOLVERS:
            raise ConfigError(f"method: {self.method!r} is not one of {', '.join(SOLVERS)}")
        if self.steps < 0:
            raise ConfigError(f"steps: {self.steps} is negative; 0 is the posterior mean, 9 the paper's choice")
        if self.rho <= 0:
            raise ConfigError(f"rho: {self.rho} is not positive")
        if self.churn < 0 or (self.churn > 0 and self.method != "heun"):
            raise ConfigError(f"churn: {self.churn} must be 0, or positive with method heun")
        low, high = self.guidance_interval
        if not 0 <= low <= high:
            raise ConfigError(f"guidance_interval: [{low}, {high}] must be rising noise levels, 0 or more")

    @property
    def evaluations(self) -> int:
        """Number of network evaluations that a sample takes, without those of guidance."""
        return SOLVERS[self.method].evaluations(self.steps) if self.steps else 1

    @property
    def guided(self) -> bool:
        """Whether there is any guidance."""
        return (self.guidance, self.token_guidance) != (1, 1)


def guide(denoise: Denoise, negative: Denoise, config: SamplerConfig, tokens: int = 0) -> Denoise:
    """Return D_theta with classifier-free guidance (Ho and Salimans 2022) in an interval (Kynkaanniemi et al. 2024).

    Args:
        denoise: D_theta.
        negative: what it is led away from.
        config: weights and interval of the guidance.
        tokens: number of last channels, those of presence tokens, which have a weight of their own.
    """

    def guided(x: Tensor, sigma: float) -> Tensor:
        found = denoise(x, sigma)
        low, high = config.guidance_interval
        if not config.guided or not low <= sigma <= high:
            return found
        weight = torch.full(x.shape[-1:], config.guidance, device=x.device)
        weight[x.shape[-1] - tokens :] = config.token_guidance
        # Exactly D where the weight is 1.
        return found + (weight - 1) * (found - negative(x, sigma))

    return guided


def sample(denoise: Denoise, noise: Tensor, config: SamplerConfig, generator: torch.Generator | None = None) -> Tensor:
    """Return clean latents, float32 of the shape of `noise`.

    With 0 steps they are the posterior mean E[x0 | image, templates]: at the highest noise level the input carries
    nearly no information on x0, so D_theta returns the mean over all samples.

    Args:
        denoise: D_theta.
        noise: samples of N(0, I).
        config: sampler and noise schedule.
        generator: random generator of noise that is added along the way, on the CPU: results do not depend on the
            device.
    """

    def in_double(x: Tensor, sigma: float) -> Tensor:
        return denoise(x.float(), sigma).double()

    x = noise.double() * SIGMA_MAX
    if config.steps == 0:
        return in_double(x, SIGMA_MAX).float()
    sigmas = karras_schedule(config.steps, rho=config.rho)
    return SOLVERS[config.method].solve(in_double, x, sigmas, config.churn, generator).float()


def heun(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], churn: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Integrate eq. (4) by Heun's second-order method (Karras et al. 2022, algorithm 2, S_min 0, S_max inf, S_noise 1).

    Args:
        denoise: D_theta, taking and returning float64.
        x: float64 latents at the first noise level.
        sigmas: falling noise levels; the last one may be 0.
        churn: S_churn.
        generator: random generator of added noise, on the CPU.
    """
    for sigma, sigma_next in itertools.pairwise(sigmas):
        if churn > 0:
            raised = sigma * (1 + min(churn / (len(sigmas) - 1), math.sqrt(2) - 1))
            x = x + math.sqrt(raised**2 - sigma**2) * _fresh_noise(x, generator)
            sigma = raised
        # eq. (4)
        slope = (x - denoise(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * 0.5 * (slope + slope_next)
        x = x_next
    return x


def dpm_solver_2m(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], churn: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Integrate eq. (4) by DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2, alpha = 1); see `heun`.

    A second-order multistep method that solves the linear part exactly, with lambda = -ln sigma as its time. The first
    and the last step are of first order.
    """
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


def euler_maruyama(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], churn: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Integrate the SDE with eq. (4)'s marginals by the Euler-Maruyama method; see `heun`.

    It is dx = (x - D) / v dv + dw, with the variance v = sigma^2 as its time: a step's drift is then exact for a
    constant D. So is its noise: its variance from v to v' is v' (1 - v' / v), not the v - v' of an infinitesimal step.
    """
    for sigma, sigma_next in itertools.pairwise(sigmas):
        left = (sigma_next / sigma) ** 2
        x = left * x + (1 - left) * denoise(x, sigma)
        if sigma_next > 0:
            x = x + sigma_next * math.sqrt(1 - left) * _fresh_noise(x, generator)
    return x


def _fresh_noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)


class Solver(NamedTuple):
    """A solver of eq. (4), or of the SDE with the same marginals.

    Attributes:
        solve: integrates from the first to the last noise level, with the parameters of `heun`.
        evaluations: returns the number of network evaluations of a number of steps.
    """

    solve: Callable[[Denoise, Tensor, Sequence[float], float, torch.Generator | None], Tensor]
    evaluations: Callable[[int], int]


SOLVERS = {
    "heun": Solver(heun, lambda steps: 2 * steps - 1),
    "dpm++2m": Solver(dpm_solver_2m, lambda steps: steps),
    "euler_maruyama": Solver(euler_maruyama, lambda steps: steps),
}
