"""The noise levels that a sampler steps through."""

from __future__ import annotations

import torch
from torch import Tensor


def karras_schedule(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 9.0) -> Tensor:
    """Return the (steps + 1,) float64 noise levels of eq. (7), from sigma_max down to sigma_min, then 0."""
    if steps < 1:
        raise ValueError(f"steps: {steps} is not a positive number")
    if steps == 1:
        return torch.tensor([sigma_max, 0.0], dtype=torch.float64)
    # eq. (7)
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])
