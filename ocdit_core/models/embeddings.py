"""Queries, templates and noise levels as tokens (paper 3.2)."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class FourierFeatures(nn.Module):
    """Fixed random Fourier features that preserve magnitude (Karras et al. 2024)."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (..., channels)."""
        return math.sqrt(2) * (x[..., None] * self.frequencies + self.phases).cos()


class NoiseEmbedding(nn.Module):
    """c_noise to the vector that modulates every block."""

    def __init__(self, width: int):
        super().__init__()
        self.fourier = FourierFeatures(width)
        self.linear = nn.Linear(width, width)

    def forward(self, c_noise: Tensor) -> Tensor:
        """(B, E) -> (B, E, D)."""
        return F.silu(self.linear(self.fourier(c_noise)))


class PatchPosition(nn.Module):
    """Learned positions on a grid, interpolated when the grid changes."""

    def __init__(self, grid: tuple[int, int], width: int):
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], width))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Return (h w, D) for a grid (h, w)."""
        if grid == self.grid:
            return self.table
        table = rearrange(self.table, "(h w) d -> 1 d h w", h=self.grid[0])
        resized = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return rearrange(resized, "1 d h w -> (h w) d")


class IndexPosition(nn.Module):
    """Learned positions on an index axis: objects or views."""

    def __init__(self, capacity: int, width: int):
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(capacity, width))

    @property
    def capacity(self) -> int:
        """How many indices have a position of their own."""
        return self.table.shape[0]

    def forward(self, indices: Tensor) -> Tensor:
        """(...) indices, whole or in between -> (..., D); between two whole indices it is linear."""
        if not indices.is_floating_point():
            return self.table[indices]
        position = indices.clamp(0, self.capacity - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=self.capacity - 1)
        return torch.lerp(self.table[low], self.table[high], (position - low)[..., None].to(self.table.dtype))


class QueryEmbedding(nn.Module):
    """Image features and a noisy latent, cell by cell, to the query tokens of each object.

    The 1x1 convolution over their concatenation is split in two: the image's part is the same for all noise levels.
    """

    def __init__(self, features: int, latents: int, width: int, grid: tuple[int, int], max_objects: int):
        super().__init__()
        self.features = features
        self.proj = nn.Linear(features + latents, width)
        self.patch_position = PatchPosition(grid, width)
        self.object_position = IndexPosition(max_objects, width)

    def image_part(self, image_features: Tensor, object_indices: Tensor) -> Tensor:
        """(B, C, h, w) and (B, O) -> (B, O, h w, D): all that does not depend on the latent."""
        grid = (image_features.shape[2], image_features.shape[3])
        cells = rearrange(image_features, "b c h w -> b (h w) c")
        cells = F.linear(cells, self.proj.weight[:, : self.features], self.proj.bias) + self.patch_position(grid)
        return cells[:, None] + self.object_position(object_indices)[:, :, None]

    def latent_part(self, latents: Tensor) -> Tensor:
        """(B, E, O, z, h, w) -> (B, E, O, h w, D)."""
        cells = rearrange(latents, "b e o z h w -> b e o (h w) z")
        return F.linear(cells, self.proj.weight[:, self.features :])


class TemplateEmbedding(nn.Module):
    """Template features to the tokens that an object's queries attend to."""

    def __init__(self, features: int, width: int, grid: tuple[int, int], max_objects: int, max_views: int):
        super().__init__()
        self.proj = nn.Linear(features, width)
        self.patch_position = PatchPosition(grid, width)
        self.object_position = IndexPosition(max_objects, width)
        self.view_position = IndexPosition(max_views, width)

    def forward(self, features: Tensor, object_indices: Tensor, view_indices: Tensor) -> Tensor:
        """(B, O, V, C, h, w), (B, O) and (B, V) -> (B, O, V h w, D)."""
        grid = (features.shape[4], features.shape[5])
        tokens = self.proj(rearrange(features, "b o v c h w -> b o v (h w) c")) + self.patch_position(grid)
        tokens = tokens + self.object_position(object_indices)[:, :, None, None]
        tokens = tokens + self.view_position(view_indices)[:, None, :, None]
        return rearrange(tokens, "b o v t d -> b o (v t) d")
