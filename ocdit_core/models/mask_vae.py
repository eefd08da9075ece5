"""The mask VAE: binary masks to latents on a 16 times coarser grid, and back to probabilities (paper 3.2, A.2)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.errors import ConfigError

DOWNSAMPLING = 16


@dataclass(frozen=True, kw_only=True)
class MaskVAEConfig:
    """Configuration of the mask VAE; the defaults are the published ones.

    Attributes:
        encoder_channels: channels of the stem, then of each level, which ends by halving the grid.
        decoder_channels: channels of the lowest grid, then of each level, which ends by doubling the grid.
        latent_channels: channels z of the latent.
        patch: side in pixels of the patches that the stem takes as channels; patch times 2^levels is 16.
        encoder_blocks: residual blocks of each encoder level.
        decoder_blocks: residual blocks of each decoder level.
        groups: groups of the GroupNorms outside of attention.
        attention_heads: attention heads, and groups of the GroupNorms of attention.
        attention_levels: number of the decoder's lowest levels with attention.
        stem_kernel: kernel size of the encoder's first convolution.
        head_kernel: kernel size of the decoder's last convolution.
    """

    encoder_channels: tuple[int, ...] = (32, 64, 128, 256, 256)
    decoder_channels: tuple[int, ...] = (256, 256, 128, 64, 32)
    latent_channels: int = 32
    patch: int = 1
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    groups: int = 16
    attention_heads: int = 8
    attention_levels: int = 2
    stem_kernel: int = 7
    head_kernel: int = 5

    def __post_init__(self) -> None:
        if len(self.encoder_channels) != len(self.decoder_channels):
            raise ConfigError(
                f"encoder_channels and decoder_channels: {len(self.encoder_channels)} and "
                f"{len(self.decoder_channels)} entries, must be equally many"
            )
        if self.patch * 2 ** (len(self.encoder_channels) - 1) != DOWNSAMPLING:
            raise ConfigError(
                f"patch: {self.patch} times 2^{len(self.encoder_channels) - 1} levels must be {DOWNSAMPLING}"
            )
        for channels in (*self.encoder_channels, *self.decoder_channels):
            if channels % self.groups:
                raise ConfigError(f"groups: {self.groups} does not divide {channels} channels")


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

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(heads, channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = rearrange(self.qkv(tokens), "b n (three a d) -> three b a n d", three=3, a=self.heads)
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
        channels, z = config.encoder_channels, config.latent_channels
        self.patch = config.patch
        self.stem = nn.Conv2d(config.patch**2, channels[0], config.stem_kernel, padding=config.stem_kernel // 2)
        layers: list[nn.Module] = []
        for level, (c_in, c_out) in enumerate(itertools.pairwise(channels)):
            for block in range(config.encoder_blocks):
                layers.append(ResidualBlock(c_in if block == 0 else c_out, c_out, config.groups))
            if level == len(channels) - 2:
                layers.append(SpatialAttention(c_out, config.attention_heads))
            layers.append(Downsample(c_out))
        layers.append(SpatialAttention(channels[-1], config.attention_heads))
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
        channels, z = config.decoder_channels, config.latent_channels
        self.patch = config.patch
        self.prior = nn.Conv2d(z, z, 1)
        self.stem = nn.Conv2d(z, channels[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, (c_in, c_out) in enumerate(itertools.pairwise(channels)):
            for block in range(config.decoder_blocks):
                layers.append(ResidualBlock(c_in if block == 0 else c_out, c_out, config.groups))
            if level < config.attention_levels:
                layers.append(SpatialAttention(c_out, config.attention_heads))
            layers.append(Upsample(c_out))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(config.groups, channels[-1], eps=1e-6)
        self.head = nn.Conv2d(channels[-1], config.patch**2, config.head_kernel, padding=config.head_kernel // 2)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, z, h, w) -> logits (B, 1, 16h, 16w)."""
        x = self.layers(self.stem(self.prior(latents)))
        return F.pixel_shuffle(self.head(F.silu(self.norm(x))), self.patch)


class MaskVAE(nn.Module):
    """A beta-VAE of binary masks, whose latents are standardised to mean 0 and standard deviation sigma_data."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: MaskVAEConfig, sigma_data: float = 0.5):
        super().__init__()
        self.config = config
        self.sigma_data = sigma_data
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        # Of each channel, measured on the training masks after training.
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.latent_channels, 1, 1))

    def encode(self, masks: Tensor) -> Tensor:
        """Return the posterior mean: masks (B, H, W) in [0, 1] -> standardised latents (B, z, H/16, W/16)."""
        mean, _ = self.encoder(masks[:, None])
        return (mean - self.latent_mean) * (self.sigma_data / self.latent_std)

    def decode_logits(self, latents: Tensor) -> Tensor:
        """Standardised latents (B, z, h, w) -> logits (B, 16h, 16w)."""
        return self.decoder(latents * (self.latent_std / self.sigma_data) + self.latent_mean)[:, 0]

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents (B, z, h, w) -> probabilities (B, 16h, 16w)."""
        return self.decode_logits(latents).sigmoid()

    def elbo_terms(self, masks: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return both terms of the ELBO of each mask.

        Args:
            masks: (N, H, W).
            noise: (N, z, H/16, W/16) samples of N(0, I) for the latents; default: new ones.

        Returns:
            (N,) binary cross-entropy per pixel, and (N,) KL divergence per latent value.
        """
        mean, log_variance = self.encoder(masks[:, None])
        z = mean + (0.5 * log_variance).exp() * (torch.randn_like(mean) if noise is None else noise)
        reconstruction = F.binary_cross_entropy_with_logits(self.decoder(z)[:, 0], masks, reduction="none")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return reconstruction.mean((1, 2)), kl.mean((1, 2, 3))
