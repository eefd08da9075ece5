"""The uncertainty-weighted denoising loss."""

from __future__ import annotations

from torch import Tensor


def denoising_loss(denoised: Tensor, target: Tensor, weight: Tensor, log_variance: Tensor) -> Tensor:
    """Return eq. (6) for each element, shaped like `target`.

    Args:
        denoised: D_theta(y + n; sigma).
        target: the clean latents y, same shape.
        weight: lambda(sigma), broadcastable to it.
        log_variance: u(sigma), the network's own estimate of its error at this noise level, broadcastable to it.
    """
    # eq. (6)
    return weight * (-log_variance).exp() * (denoised - target) ** 2 + log_variance
