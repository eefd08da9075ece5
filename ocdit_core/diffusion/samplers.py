"""From noise to clean latents: which noise levels the network is asked at, how often, and by which solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ocdit_core.diffusion.schedule import karras_schedule
from ocdit_core.diffusion.solvers import dpm_solver_2m, heun
from ocdit_core.errors import ConfigError

Denoise = Callable[[Tensor, Any], Tensor]
"""(x float32, noise level) -> denoised x, the D_theta of eq. (5)."""

LevelOf = Callable[[float], Any]
"""sigma -> the noise level as a Denoise takes it; by default a float32 scalar on the device of x."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How latents are generated.

    Attributes:
        steps: 0 for the posterior mean, one evaluation of the network at sigma_max, whatever the rest says; otherwise
            steps of the solver.
        method: "heun" (the paper's) takes two evaluations a step, but one for the last; "dpm++2m" one a step.
        start: "noise" starts from noise at sigma_max (the paper's). "mean" starts lower: an evaluation at sigma_max
            gives the posterior mean, and sampling goes on from it with noise of start_sigma.
        start_sigma: noise level that the solver starts from with "mean".
        stop_sigma: levels of the schedule below this one are left out: what the network makes of the last one that is
            left is the result. 0 goes all the way.
        sigma_min: smallest noise level before 0.
        sigma_max: noise level that sampling starts from.
        rho: bend of the schedule of eq. (7).
        churn: S_churn, the total noise put back on the way; 0 gives the deterministic ODE. With "heun" only.
        churn_min: S_min, no noise is put back below this level.
        churn_max: S_max, nor above this one.
        churn_noise: S_noise, inflation of the noise that is put back.
    """

    steps: int = 9
    method: Literal["heun", "dpm++2m"] = "heun"
    start: Literal["noise", "mean"] = "noise"
    start_sigma: float = 2.0
    stop_sigma: float = 0.0
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
        if not self.sigma_min < self.start_sigma <= self.sigma_max:
            raise ConfigError(
                f"start_sigma: {self.start_sigma} is not above sigma_min {self.sigma_min} and up to {self.sigma_max}"
            )
        top = self.start_sigma if self.start == "mean" else self.sigma_max
        if not 0 <= self.stop_sigma < top:
            raise ConfigError(f"stop_sigma: {self.stop_sigma} is not from 0 to below {top}, where sampling starts")
        if self.rho <= 0:
            raise ConfigError(f"rho: {self.rho} is not positive")
        if self.churn > 0 and self.method != "heun":
            raise ConfigError(f"churn: {self.churn} is for method heun; {self.method} cannot take noise on the way")

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated."""
        if self.steps == 0:
            return 1
        levels = len(self.sigmas) - 1
        return (2 * levels - 1 if self.method == "heun" else levels) + (self.start == "mean")

    @property
    def sigmas(self) -> list[float]:
        """The noise levels that the solver steps through, the last of them 0; empty for the posterior mean alone."""
        if self.steps == 0:
            return []
        top = self.start_sigma if self.start == "mean" else self.sigma_max
        first, *others = karras_schedule(self.steps, self.sigma_min, top, self.rho).tolist()[:-1]
        return [first, *(sigma for sigma in others if sigma >= self.stop_sigma), 0.0]

    def raised(self, sigma: float) -> float:
        """Return the level that churn raises a level to."""
        if self.churn > 0 and self.churn_min <= sigma <= self.churn_max:
            return sigma * (1 + min(self.churn / self.steps, math.sqrt(2) - 1))
        return sigma


def sample(
    denoise: Denoise,
    noise: Tensor,
    config: SamplerConfig,
    generator: torch.Generator | None = None,
    level_of: LevelOf | None = None,
    estimate: Tensor | None = None,
) -> Tensor:
    """Return clean latents of the shape of `noise`; the state is float64, the network sees float32.

    Args:
        denoise: D_theta.
        noise: drawn from N(0, I).
        config: how latents are generated.
        generator: of the noise that churn puts back, on the CPU.
        level_of: how `denoise` takes noise levels.
        estimate: the posterior mean at sigma_max where it is known already, which saves its evaluation; with
            start "mean" any latents that sampling is to start from.
    """
    level_of = level_of or _scalars_for(noise)
    if estimate is None and (config.steps == 0 or config.start == "mean"):
        estimate = posterior_mean(denoise, noise, config.sigma_max, level_of)
    if estimate is not None and config.steps == 0:
        return estimate
    sigmas = config.sigmas
    x = noise.double() * sigmas[0]
    first = None if estimate is None else estimate.double()
    if first is not None and config.start == "mean":
        x, first = first + x, None

    def evaluate(x: Tensor, sigma: float) -> Tensor:
        return denoise(x.float(), level_of(sigma)).double()

    if config.method == "dpm++2m":
        return dpm_solver_2m(evaluate, x, sigmas, first=first).float()
    raised = [config.raised(sigma) for sigma in sigmas]
    return heun(
        evaluate, x, sigmas, raised=raised, churn_noise=config.churn_noise, generator=generator, first=first
    ).float()


def noise_levels(config: SamplerConfig) -> list[float]:
    """Return every sigma that `sample` evaluates the network at, each once."""
    sigmas = config.sigmas[:-1]
    levels = [*(config.raised(sigma) for sigma in sigmas), *sigmas[1:]]
    if config.steps == 0 or config.start == "mean":
        levels = [config.sigma_max, *levels]
    return list(dict.fromkeys(levels))


def posterior_mean(denoise: Denoise, noise: Tensor, sigma_max: float, level_of: LevelOf | None = None) -> Tensor:
    """Return D(sigma_max noise; sigma_max): the mean over all latents that the model believes in.

    At sigma_max the input says next to nothing, so one evaluation gives what an ensemble of samples would average to.
    """
    level = (level_of or _scalars_for(noise))(sigma_max)
    return denoise((noise * sigma_max).float(), level)


def _scalars_for(x: Tensor) -> LevelOf:
    return lambda sigma: torch.tensor(sigma, dtype=torch.float32, device=x.device)
