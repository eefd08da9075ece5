"""EDM preconditioning (Karras et al. 2022): how the raw network becomes a denoiser at every noise level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Preconditioning:
    """The coefficients of eq. (5).

    Attributes:
        sigma_data: standard deviation of the standardised latents.
    """

    sigma_data: float = 0.5

    # eq. (5): D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)
    def c_skip(self, sigma: Tensor) -> Tensor:
        """Share of the input that passes by the network."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Scale of the network's output."""
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        """Scale that brings the network's input to unit variance."""
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the network is told of the noise level."""
        return sigma.log() / 4

    # eq. (6): lambda, which gives every noise level the same weight at initialisation
    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight lambda of the squared error."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
