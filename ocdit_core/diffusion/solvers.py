"""Solvers of the probability-flow ODE, eq. (4), along given noise levels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Evaluate = Callable[[Tensor, float], Tensor]
"""(x float64, sigma) -> denoised x float64, the D_theta of eq. (5)."""


def heun(
    evaluate: Evaluate,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    raised: Sequence[float] | None = None,
    churn_noise: float = 1.0,
    generator: torch.Generator | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """Integrate by Heun's rule, second order: two evaluations a step, one for the step to 0.

    Source: Karras et al. 2022, algorithm 2.

    Args:
        evaluate: D_theta.
        x: the state at sigmas[0].
        sigmas: falling noise levels, of which the last one may be 0.
        raised: the level that fresh noise raises each of them to; by default none is raised.
        churn_noise: S_noise, inflation of the fresh noise.
        generator: of the fresh noise, on the CPU: results do not depend on the device.
        first: D_theta at the start where it is known already; the first level is then not raised.
    """
    for number, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        denoised = first if number == 0 else None
        if raised is not None and raised[number] > sigma and denoised is None:
            fresh = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
            x = x + math.sqrt(raised[number] ** 2 - sigma**2) * churn_noise * fresh
            sigma = raised[number]
        if denoised is None:
            denoised = evaluate(x, sigma)
        # eq. (4)
        here = (x - denoised) / sigma
        x_next = x + (sigma_next - sigma) * here
        if sigma_next > 0:
            there = (x_next - evaluate(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * 0.5 * (here + there)
        x = x_next
    return x


def dpm_solver_2m(evaluate: Evaluate, x: Tensor, sigmas: Sequence[float], *, first: Tensor | None = None) -> Tensor:
    """Integrate by DPM-Solver++(2M), second order: one evaluation a step, and what the step before has told.

    Exact in the linear part of eq. (4); its time is lambda = -ln sigma. The first and the last step are of first order.
    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2, with alpha = 1.

    Args:
        evaluate: D_theta.
        x: the state at sigmas[0].
        sigmas: falling noise levels, of which the last one may be 0.
        first: D_theta at the start where it is known already.
    """
    before: Tensor | None = None
    step_before = 0.0
    for number, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
        denoised = first if number == 0 and first is not None else evaluate(x, sigma)
        if sigma_next == 0:
            return denoised
        step = math.log(sigma / sigma_next)
        towards = denoised
        if before is not None:
            towards = denoised + step / (2 * step_before) * (denoised - before)
        share = sigma_next / sigma
        x = share * x + (1 - share) * towards
        before, step_before = denoised, step
    return x
