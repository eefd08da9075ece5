"""What colours alone say: histograms of cells and views, and their back-projection. Nothing here is learned."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ocdit_core.models.mask_vae import DOWNSAMPLING

CELL_BINS = (4, 4, 4)
FINE_BINS = (5, 16, 16)
IMAGE_WEIGHT = 0.7
RIVAL_WEIGHT = 0.1
SUBCELL = 4
"""Back-projections are kept at a quarter of a cell's side."""


def colour_axes(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 3, H, W) in [0, 1] -> brightness, red-green and yellow-blue, each (..., H, W) in [0, 1].

    Chromaticity hardly changes with the light; brightness gets an axis of its own.
    """
    red, green, blue = images.unbind(-3)
    brightness = (red + green + blue) / 3
    scale = 1 / (brightness + 0.15)
    return (
        brightness.sqrt().clamp(0, 1),
        (0.5 + (red - green) * scale / 2).clamp(0, 1),
        (0.5 + ((red + green) / 2 - blue) * scale / 2).clamp(0, 1),
    )


def _soft_bins(x: Tensor, bins: int) -> Tensor:
    """Spread values in [0, 1] over bins by triangular kernels: (...) -> (..., bins)."""
    centres = torch.arange(bins, device=x.device, dtype=x.dtype)
    return (1 - (x[..., None] * (bins - 1) - centres).abs()).clamp(min=0)


def cell_histograms(images: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return square-rooted soft colour histograms of cells: their scalar product is the Bhattacharyya coefficient.

    Args:
        images: (B, 3, H, W) in [0, 1].
        weights: (B, 1, H, W) in [0, 1], how much a pixel counts (a template's mask); all count where it is None.

    Returns:
        (B, bins, H/16, W/16); a cell without weight is zero.
    """
    axes = zip(colour_axes(F.avg_pool2d(images, 2)), CELL_BINS, strict=True)
    first, second, third = (_soft_bins(axis, bins) for axis, bins in axes)
    histogram = (first[..., :, None, None] * second[..., None, :, None] * third[..., None, None, :]).flatten(-3)
    histogram = rearrange(histogram, "b h w k -> b k h w")
    cell = DOWNSAMPLING // 2
    if weights is None:
        return F.avg_pool2d(histogram, cell).clamp(min=1e-6).sqrt()
    weights = F.avg_pool2d(weights, 2)
    mass = F.avg_pool2d(weights, cell)
    mean = F.avg_pool2d(histogram * weights, cell) / mass.clamp(min=1e-3)
    return mean.clamp(min=1e-6).sqrt() * (mass > 0)


def fine_bins(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> the number of each pixel's fine colour bin, (..., H, W) int64."""
    brightness, *chromatic = colour_axes(images)
    # Most colours lie close to grey: the square root gives these the finer bins.
    bent = [0.5 + 0.5 * (2 * x - 1).sign() * (2 * x - 1).abs().sqrt() for x in chromatic]
    places = [(x * n).long().clamp(0, n - 1) for x, n in zip((brightness, *bent), FINE_BINS, strict=True)]
    return (places[0] * FINE_BINS[1] + places[1]) * FINE_BINS[2] + places[2]


def fine_histograms(bins: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return smoothed histograms that sum to 1: (N, pixels) bin numbers and weights -> (N, bins)."""
    count = FINE_BINS[0] * FINE_BINS[1] * FINE_BINS[2]
    weights = torch.ones_like(bins, dtype=torch.float32) if weights is None else weights
    histogram = torch.zeros(len(bins), count, device=bins.device).scatter_add_(1, bins, weights)
    cube = histogram.view(-1, 1, *FINE_BINS)
    # Neighbouring bins share: tolerance for other light.
    kernel = torch.exp(-0.5 * torch.arange(-2.0, 3.0, device=bins.device) ** 2)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        padding = [0, 0, 0]
        shape[2 + axis], padding[axis] = 5, 2
        cube = F.conv3d(cube, kernel.view(shape), padding=padding)
    smooth = cube.flatten(1)
    return smooth / smooth.sum(1, keepdim=True).clamp(min=1e-6)


def back_projection(image_bins: Tensor, objects: Tensor) -> Tensor:
    """Return how much each quarter cell's colours speak for each object, against the image and the other objects.

    Args:
        image_bins: (B, H, W) fine bins of the images.
        objects: (B, O, bins), histograms of the objects.

    Returns:
        (B, O, H/4, W/4) in [0, 1].
    """
    batch, height, width = image_bins.shape
    against = IMAGE_WEIGHT * fine_histograms(image_bins.flatten(1))[:, None]
    rivals = RIVAL_WEIGHT * (objects.sum(1, keepdim=True) - objects)
    ratio = objects / (objects + against + rivals + 1e-6)
    pixels = image_bins.flatten(1)[:, None].expand(-1, objects.shape[1], -1)
    return F.avg_pool2d(ratio.gather(2, pixels).view(batch, -1, height, width), SUBCELL)
