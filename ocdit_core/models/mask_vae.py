"""The mask VAE: binary masks to latents on a 16 times coarser grid, and back to probabilities (paper 3.2, A.2)."""

import itertools
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.diffusion.edm import SIGMA_DATA
from ocdit_core.errors import ConfigError

DOWNSAMPLING = 16
_ATTENTION_HEADS = 8
_GROUPS = 16  # of the GroupNorms outside of attention, at most


@dataclass(frozen=True, kw_only=True)
class MaskVAEConfig:
    """Configuration of the mask VAE; the defaults are the published ones.

    Attributes:
        channels: encoder channels of the stem, then of each level, which ends by halving the grid; the decoder has them
            in reverse. With fewer than four levels, the stem takes patches of pixels as channels, so that latents are
            on a 16 times coarser grid.
        latent_channels: channels z of the latent.
        blocks: residual blocks of each encoder level; the decoder has one more.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256, 256)
    latent_channels: int = 32
    blocks: int = 2

    def __post_init__(self) -> None:
        if not 2 <= len(self.channels) <= 5:
            raise ConfigError(f"channels: {len(self.channels)} entries, must be 2 to 5: the stem and 1 to 4 levels")
        for number, channels in enumerate(self.channels):
            divisor = _ATTENTION_HEADS if number == self.levels else self.groups
            if channels % divisor or channels % self.groups:
                raise ConfigError(f"channels: {channels} of {list(self.channels)} must be a multiple of {divisor}")

    @property
    def levels(self) -> int:
        """Number of times that the grid is halved."""
        return len(self.channels) - 1

    @property
    def patch(self) -> int:
        """Side in pixels of the patches that the stem takes as channels."""
        return int(DOWNSAMPLING // 2**self.levels)

    @property
    def groups(self) -> int:
        """Groups of the GroupNorms outside of attention."""
        return min(min(self.channels) // 2, _GROUPS)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice; the shortcut is a 1x1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=1e-6)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=1e-6)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.shortcut(x) + hidden


class SpatialAttention(nn.Module):
    """Self-attention over the cells of a grid, with a residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(_ATTENTION_HEADS, channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = rearrange(self.qkv(tokens), "b n (three a d) -> three b a n d", three=3, a=_ATTENTION_HEADS)
        attended = F.scaled_dot_product_attention(q, k, v)
        attended = self.linear(self.out(rearrange(attended, "b a n d -> b n (a d)")))
        return x + rearrange(attended, "b (h w) c -> b c h w", h=x.shape[2])


class Downsample(nn.Module):
    """Halve the grid by a strided 3x3 convolution, padded at the right and the bottom."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the grid: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Encoder(nn.Module):
    """Parameters of the posterior from masks."""

    def __init__(self, config: MaskVAEConfig):
        super().__init__()
        channels, z = config.channels, config.latent_channels
        self.patch = config.patch
        # A kernel of 3 patches sees as much as one of 7 pixels.
        kernel = 7 if config.patch == 1 else 3
        self.stem = nn.Conv2d(config.patch**2, channels[0], kernel, padding=kernel // 2)
        layers: list[nn.Module] = []
        for level, (c_in, c_out) in enumerate(itertools.pairwise(channels)):
            for block in range(config.blocks):
                layers.append(ResidualBlock(c_in if block == 0 else c_out, c_out, config.groups))
            if level == len(channels) - 2:
                layers.append(SpatialAttention(c_out))
            layers.append(Downsample(c_out))
        layers.append(SpatialAttention(channels[-1]))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(config.groups, channels[-1], eps=1e-6)
        self.head = nn.Conv2d(channels[-1], 2 * z, 3, padding=1)
        self.posterior = nn.Conv2d(2 * z, 2 * z, 1)

    def forward(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) in [0, 1] -> mean and log-variance, each (B, z, H/16, W/16)."""
        x = self.layers(self.stem(F.pixel_unshuffle(masks, self.patch)))
        mean, log_variance = self.posterior(self.head(F.silu(self.norm(x)))).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)


class Decoder(nn.Module):
    """Mask logits from latents."""

    def __init__(self, config: MaskVAEConfig):
        super().__init__()
        channels, z = config.channels[::-1], config.latent_channels
        self.patch = config.patch
        self.prior = nn.Conv2d(z, z, 1)
        self.stem = nn.Conv2d(z, channels[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, (c_in, c_out) in enumerate(itertools.pairwise(channels)):
            for block in range(config.blocks + 1):
                layers.append(ResidualBlock(c_in if block == 0 else c_out, c_out, config.groups))
            if level < config.levels // 2:
                layers.append(SpatialAttention(c_out))
            layers.append(Upsample(c_out))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(config.groups, channels[-1], eps=1e-6)
        kernel = 5 if config.patch == 1 else 3
        self.head = nn.Conv2d(channels[-1], config.patch**2, kernel, padding=kernel // 2)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, z, h, w) -> logits (B, 1, 16h, 16w)."""
        x = self.layers(self.stem(self.prior(latents)))
        return F.pixel_shuffle(self.head(F.silu(self.norm(x))), self.patch)


class MaskVAE(nn.Module):
    """A beta-VAE of binary masks, whose latents are standardised to mean 0 and standard deviation SIGMA_DATA."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: MaskVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        # Of each channel, measured on the training masks after training.
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))

    def encode(self, masks: Tensor) -> Tensor:
        """Return the posterior mean: masks (B, H, W) in [0, 1] -> standardised latents (B, z, H/16, W/16)."""
        mean, _ = self.encoder(masks[:, None])
        return (mean - self.latent_mean) * (SIGMA_DATA / self.latent_std)

    def decode_logits(self, latents: Tensor) -> Tensor:
        """Standardised latents (B, z, h, w) -> logits (B, 16h, 16w)."""
        return self.decoder(latents * (self.latent_std / SIGMA_DATA) + self.latent_mean)[:, 0]

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents (B, z, h, w) -> probabilities (B, 16h, 16w)."""
        return self.decode_logits(latents).sigmoid()

    def elbo_terms(self, masks: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return both terms of the ELBO of each mask.

        Args:
            masks: (N, H, W).
            noise: (N, z, H/16, W/16) samples of N(0, I) for the latents.

        Returns:
            (N,) binary cross-entropy per pixel, and (N,) KL divergence per latent value.
        """
        mean, log_variance = self.encoder(masks[:, None])
        z = mean + (0.5 * log_variance).exp() * noise
        reconstruction = F.binary_cross_entropy_with_logits(self.decoder(z)[:, 0], masks, reduction="none")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return reconstruction.mean((1, 2)), kl.mean((1, 2, 3))
