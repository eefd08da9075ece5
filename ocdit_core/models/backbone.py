"""Where image and template features come from: a pretrained vision transformer, or a small network of our own.

Both give one feature vector for each cell of the latent grid. A vision transformer with patch size p reaches that by
resizing its input to p/16: the mask VAE's latents are 16 times coarser than the masks (method section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.errors import ConfigError, WeightsError
from ocdit_core.models.mask_vae import DOWNSAMPLING


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network gives the features.

    Attributes:
        kind: vit (DINOv2, DINOv2 with registers, DINOv3: whatever transformers' AutoModel builds) or conv (small,
            trained together with the denoiser).
        name: for vit: a hub id such as facebook/dinov2-small, or a local folder; empty: built from `architecture`.
        architecture: for vit: the transformers config as a dictionary (model_type and sizes). Written by
            save_pretrained, so that a saved model loads without a hub.
        frozen: no gradients, always in eval mode.
        channels: for conv: channels at strides 4, 8 and 16.
        blocks: for conv: residual blocks at each stride.
    """

    kind: Literal["vit", "conv"] = "vit"
    name: str = "facebook/dinov2-small"
    architecture: dict[str, Any] | None = None
    frozen: bool = True
    channels: tuple[int, ...] = (32, 64, 96)
    blocks: int = 2

    def __post_init__(self) -> None:
        if self.kind == "conv" and len(self.channels) != 3:
            raise ConfigError(f"channels: {self.channels} must be three numbers, for strides 4, 8 and 16")


def normalise(images: Tensor) -> Tensor:
    """Map [0, 1] to [-1, 1]: mean 0.5 and standard deviation 0.5, as the published model does."""
    return images * 2 - 1


class ViTBackbone(nn.Module):
    """A vision transformer through the transformers library: patch tokens after the final norm."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        import transformers

        if config.architecture is not None:
            settings = dict(config.architecture)
            try:
                vit_config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
            except (KeyError, ValueError) as error:
                raise ConfigError(f"backbone.architecture: not a transformers config: {error}") from error
            self.vit = transformers.AutoModel.from_config(vit_config)
        else:
            try:
                self.vit = transformers.AutoModel.from_pretrained(config.name)
            except (OSError, ValueError) as error:
                first_line = str(error).strip().splitlines()[0]
                raise WeightsError(
                    f"backbone {config.name!r} is neither a local folder nor a hub id that can be reached: {first_line}"
                ) from error
        self.patch = int(self.vit.config.patch_size)
        self.channels = int(self.vit.config.hidden_size)
        self.prefix = 1 + int(getattr(self.vit.config, "num_register_tokens", 0) or 0)

    def architecture(self) -> dict[str, Any]:
        """Return the transformers config that rebuilds this network without a hub."""
        return self.vit.config.to_diff_dict() | {"model_type": self.vit.config.model_type}

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16 -> (B, C, H/16, W/16)."""
        return self.with_summary(images)[0]

    def with_summary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features of `forward`, and the class token, (B, C)."""
        grid = (images.shape[2] // DOWNSAMPLING, images.shape[3] // DOWNSAMPLING)
        if self.patch != DOWNSAMPLING:
            size = (grid[0] * self.patch, grid[1] * self.patch)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        tokens = self.vit(pixel_values=normalise(images)).last_hidden_state
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, grid), tokens[:, 0]


class ConvBlock(nn.Module):
    """Two normalised 3x3 convolutions with a residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class ConvBackbone(nn.Module):
    """A small residual network; nothing runs at full resolution but the first, strided convolution."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        c4, c8, c16 = config.channels
        self.channels = c16
        self.layers = nn.Sequential(
            nn.Conv2d(3, c4, 4, stride=4),
            *(ConvBlock(c4) for _ in range(config.blocks)),
            nn.Conv2d(c4, c8, 2, stride=2),
            *(ConvBlock(c8) for _ in range(config.blocks)),
            nn.Conv2d(c8, c16, 2, stride=2),
            *(ConvBlock(c16) for _ in range(config.blocks)),
            nn.GroupNorm(8, c16),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16 -> (B, C, H/16, W/16)."""
        return self.layers(normalise(images).contiguous(memory_format=torch.channels_last))

    def with_summary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features of `forward`, and their mean over the cells, (B, C): it has no class token."""
        features = self(images)
        return features, features.mean((2, 3))


def build_backbone(config: BackboneConfig) -> ViTBackbone | ConvBackbone:
    """Return the network that `config` asks for; raises WeightsError where pretrained weights cannot be had."""
    if config.kind == "conv":
        return ConvBackbone(config)
    if config.architecture is None and not config.name:
        raise ConfigError("backbone: kind vit needs a name (hub id or folder) or an architecture")
    return ViTBackbone(config)
