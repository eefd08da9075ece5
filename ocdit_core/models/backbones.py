"""Image and template features: a pretrained vision transformer, EfficientNet-Lite0, or a small network of our own.

Each gives one feature vector per cell of the latent grid, which is 16 times coarser than the masks. A vision
transformer with patch size p reaches that by resizing its input to p/16 of its size.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.errors import ConfigError, WeightsError
from ocdit_core.models.checkpoints import check_state, read_weights
from ocdit_core.models.mask_vae import DOWNSAMPLING


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Backbone configuration.

    Attributes:
        kind: vit (DINOv2, with or without registers, DINOv3: whatever transformers' AutoModel builds),
            efficientnet_lite (EfficientNet-Lite0, ImageNet weights), or conv (small, trained with the denoiser).
        name: vit: hub id such as facebook/dinov2-small, or a local folder; empty: built from `architecture`.
            efficientnet_lite: weights file of training/convert_backbone.py; anything else: random weights, which
            loading a model replaces.
        architecture: vit: the transformers config as a dictionary (model_type and sizes). Written by
            save_pretrained, so that a saved model loads without a hub.
        frozen: keep the weights fixed and the network in evaluation mode.
    """

    kind: Literal["vit", "efficientnet_lite", "conv"] = "vit"
    name: str = "facebook/dinov2-small"
    architecture: dict[str, Any] | None = None
    frozen: bool = True


class Backbone(Protocol):
    """What the model needs of a backbone, beside being an `nn.Module`."""

    channels: int
    """Channels C of the features."""

    def normalise(self, images: Tensor) -> Tensor:
        """Map images in [0, 1] to the range that the network was trained on."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16 -> features (B, C, H/16, W/16)."""
        ...

    def with_global_feature(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features, and one global feature of each image, (B, C)."""
        ...


class _Normalise:
    """Map [0, 1] to [-1, 1]: mean 0.5 and standard deviation 0.5, as the published model does."""

    def normalise(self, images: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1]."""
        return images * 2 - 1


def _dinov2_positions(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Return the positions of DINOv2 without registers for an image of another size, as the original code does.

    It resizes by the factor (cells + 0.1) / trained cells; transformers by the sizes alone, which shifts the positions.
    """
    table, patch = embeddings.get_parameter("position_embeddings"), int(embeddings.patch_size)
    # As numbers: a graph that is traced for export has one size.
    grid, side = (int(height) // patch, int(width) // patch), math.isqrt(table.shape[1] - 1)
    if grid == (side, side):
        return table
    cells = rearrange(table[:, 1:].float(), "1 (h w) d -> 1 d h w", h=side)
    factors = [(count + 0.1) / side for count in grid]
    resized = F.interpolate(cells, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], rearrange(resized, "1 d h w -> 1 (h w) d").to(table.dtype)], dim=1)


class ViTBackbone(_Normalise, nn.Module):
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
        if self.vit.config.model_type == "dinov2":
            self.vit.embeddings.interpolate_pos_encoding = partial(_dinov2_positions, self.vit.embeddings)

    def architecture(self) -> dict[str, Any]:
        """Return the transformers config that rebuilds this network without a hub."""
        return self.vit.config.to_diff_dict() | {"model_type": self.vit.config.model_type}

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16 -> (B, C, H/16, W/16)."""
        return self.with_global_feature(images)[0]

    def with_global_feature(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of `forward`, and the class token, (B, C)."""
        grid = (images.shape[2] // DOWNSAMPLING, images.shape[3] // DOWNSAMPLING)
        if self.patch != DOWNSAMPLING:
            size = (grid[0] * self.patch, grid[1] * self.patch)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        tokens = self.vit(pixel_values=self.normalise(images)).last_hidden_state
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


class ConvBackbone(_Normalise, nn.Module):
    """A small residual network; nothing runs at full resolution but the first, strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 32
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4),
            ConvBlock(16),
            nn.Conv2d(16, 16, 2, stride=2),
            ConvBlock(16),
            nn.Conv2d(16, self.channels, 2, stride=2),
            ConvBlock(self.channels),
            nn.GroupNorm(8, self.channels),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16 -> (B, C, H/16, W/16)."""
        return self.layers(self.normalise(images).contiguous(memory_format=torch.channels_last))

    def with_global_feature(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of `forward`, and their mean over the cells, (B, C)."""
        features = self(images)
        return features, features.mean((2, 3))


# Of each stage of EfficientNet-Lite0: blocks, kernel size, stride of the first block, expansion, output channels.
_LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STRIDE_8, _STRIDE_16, _STRIDE_32 = 4, 10, 15  # the last block at each stride
_CLAMP = 6.0  # standard deviations


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding, asymmetric at stride 2 and an even size; then, perhaps, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, relu6: bool = False
    ):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups)
        self.relu6 = relu6

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))."""
        if self.stride[0] == 2:
            # Sizes are tensors while the network is traced for export: no comparison of them.
            vertical, horizontal = (self.kernel_size[0] - 2 + n % 2 for n in x.shape[2:])
            top, left = vertical // 2, horizontal // 2
            x = F.pad(x, (left, horizontal - left, top, vertical - top))
        x = super().forward(x)
        return F.relu6(x) if self.relu6 else x


class MBConv(nn.Module):
    """Inverted residual block without squeeze-and-excite; batch norm is folded into the convolutions."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = SameConv2d(inputs, hidden, relu6=True) if expansion > 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, relu6=True)
        self.project = SameConv2d(hidden, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))."""
        hidden = x if self.expand is None else self.expand(x)
        hidden = self.project(self.depthwise(hidden))
        return x + hidden if self.residual else hidden


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019; Google's Lite variant), trained on ImageNet, without its classifier.

    Features are those of strides 8 (its 2 x 2 cells side by side in the channels), 16, and 32 (enlarged bilinearly),
    standardised by the mean and standard deviation of each channel over images. `training/convert_backbone.py` makes
    the weights; they are saved with the model.
    """

    STRIDES: tuple[int, int, int] = (8, 16, 32)
    BLOCKS: tuple[int, int, int] = (_STRIDE_8, _STRIDE_16, _STRIDE_32)

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 32, 3, 2, relu6=True)
        blocks, inputs = [], 32
        for count, kernel, stride, expansion, outputs in _LITE0_STAGES:
            for number in range(count):
                blocks.append(MBConv(inputs, outputs, kernel, 1 if number else stride, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        sizes = [int(blocks[index].project.out_channels) for index in self.BLOCKS]
        self.channels = 4 * sizes[0] + sizes[1] + sizes[2]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(self.channels))
        self.register_buffer("std", torch.ones(self.channels))

    def normalise(self, images: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1], as the published weights expect it."""
        return (images * 255 - 127) / 128

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [0, 1] -> block outputs at strides 8 (40 channels), 16 (112) and 32 (320)."""
        x = self.stem(self.normalise(images).contiguous(memory_format=torch.channels_last))
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.BLOCKS:
                outputs.append(x)
        return outputs

    def unstandardised(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16 -> (B, 592, H/16, W/16), as the network gives them."""
        fine, middle, coarse = self.pyramid(images)
        enlarged = F.interpolate(coarse, size=middle.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([F.pixel_unshuffle(fine, 2), middle, enlarged], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16 -> standardised features (B, 592, H/16, W/16)."""
        features = self.unstandardised(images)
        features = (features - self.mean[:, None, None]) / self.std[:, None, None]
        return features.clamp(-_CLAMP, _CLAMP)

    def with_global_feature(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of `forward`, and their mean over the cells, (B, 592)."""
        features = self(images)
        return features, features.mean((2, 3))


def build_backbone(config: BackboneConfig) -> ViTBackbone | EfficientNetLite | ConvBackbone:
    """Return the network of a configuration.

    Raises:
        WeightsError: pretrained weights cannot be had.
    """
    if config.kind == "efficientnet_lite":
        network = EfficientNetLite()
        if config.name.endswith(".safetensors"):
            state = read_weights(Path(config.name))
            check_state(network.state_dict(), state, config.name)
            network.load_state_dict(state)
        return network
    if config.kind == "conv":
        return ConvBackbone()
    if config.architecture is None and not config.name:
        raise ConfigError("backbone: kind vit needs a name (hub id or folder) or an architecture")
    return ViTBackbone(config)
