"""Tokens of queries, templates and noise levels (paper 3.2), and their learned positions (paper 4.3, A.4)."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def random_positions(batch: int, count: int, capacity: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw the learned positions of the objects, or views, of training samples: a random interval (paper 4.3, (iv)).

    Args:
        batch: B samples.
        count: N objects of a sample.
        capacity: M learned positions, at least N.
        generator: random generator.

    Returns:
        (B, N) int64 indices; those of a sample are contiguous.

    Raises:
        ValueError: there are fewer positions than objects.
    """
    if count > capacity:
        raise ValueError(f"{count} objects do not fit into {capacity} learned positions")
    return torch.randint(0, capacity - count + 1, (batch, 1), generator=generator) + torch.arange(count)


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
    """The noise level c_noise as the vector that modulates every block."""

    def __init__(self, width: int):
        super().__init__()
        self.fourier = FourierFeatures(width)
        self.linear = nn.Linear(width, width)

    def forward(self, c_noise: Tensor) -> Tensor:
        """(B, E) -> (B, E, D)."""
        return F.silu(self.linear(self.fourier(c_noise)))


class PatchPosition(nn.Module):
    """Learned positions on a grid, interpolated for other grids."""

    def __init__(self, grid: tuple[int, int], width: int):
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], width))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Return the positions (h w, D) of a grid (h, w)."""
        # A graph that is traced for export takes any size.
        if grid == self.grid and not torch.jit.is_tracing():
            return self.table
        table = rearrange(self.table, "(h w) d -> 1 d h w", h=self.grid[0])
        resized = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
        return rearrange(resized, "1 d h w -> (h w) d")


class IndexPosition(nn.Module):
    """Learned positions on an index axis: objects or views."""

    def __init__(self, capacity: int, width: int):
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(capacity, width))

    def forward(self, indices: Tensor) -> Tensor:
        """(...) int64 indices -> (..., D)."""
        return self.table[indices]

    def resized(self, capacity: int) -> Tensor:
        """Return the table interpolated to another number of positions, (capacity, D)."""
        table = F.interpolate(self.table.T[None], size=capacity, mode="linear", align_corners=True)
        return table[0].T


class QueryEmbedding(nn.Module):
    """Query tokens of each object: a 1x1 convolution over image features and noisy latent, plus positions.

    The convolution is linear, so it is split: the image's part is the same for all noise levels.
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
    """Template tokens, which the queries of the same object attend to."""

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
