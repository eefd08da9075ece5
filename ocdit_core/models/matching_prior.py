"""The matching prior: a first draft of each object's mask from plain similarity, given to the queries.

Cross-attention has to discover from nothing that a query should look like its object's templates; on a small budget
that is what training spends its steps on. This module hands the answer's first draft to the network: similarities
between the image's cells and the templates' foreground cells, standardised, and the soft mask that a small read-out
makes of them. It is an option of ours; the published architecture has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.models.mask_vae import DOWNSAMPLING

COLOUR_BINS = (4, 4, 4)
# Learned and colour descriptors of single cells, then both of wider surroundings.
CHANNELS_PER_MEASURE = 4
MEASURES = 4


@dataclass(frozen=True, kw_only=True)
class MatchingPriorConfig:
    """Sizes of the matching prior.

    Attributes:
        metric_channels: channels of the learned metric that features are projected to.
        hidden_channels: channels of the read-out.
        top: how many of the best matching template cells are averaged.
    """

    metric_channels: int = 32
    hidden_channels: int = 32
    top: int = 4


@dataclass(frozen=True, kw_only=True)
class PriorMaps:
    """What the matching prior finds in an image.

    Attributes:
        channels: (B, O, channels, h, w), similarities, standardised.
        logits: (B, O, h, w) of the read-out: does the cell show the object?
        shares: (B, M, O + 1, h, w), log-probabilities that a cell shows each object, or last the background, as each
            of the M learned measures alone would have it.
    """

    channels: Tensor
    logits: Tensor
    shares: Tensor


def _soft_bins(x: Tensor, bins: int) -> Tensor:
    """Spread values in [0, 1] over bins by triangular kernels: (...) -> (..., bins)."""
    centres = torch.arange(bins, device=x.device, dtype=x.dtype)
    return (1 - (x[..., None] * (bins - 1) - centres).abs()).clamp(min=0)


def colour_statistics(images: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return square-rooted soft colour histograms of cells: their scalar product is the Bhattacharyya coefficient.

    Args:
        images: (B, 3, H, W) in [0, 1].
        weights: (B, 1, H, W) in [0, 1], how much a pixel counts (a template's mask); all count where it is None.

    Returns:
        (B, bins, H/16, W/16); a cell without weight is zero.
    """
    images = F.avg_pool2d(images, 2)
    red, green, blue = images.unbind(1)
    # Chromaticity hardly changes with the light; brightness gets an axis of its own.
    brightness = (red + green + blue) / 3
    scale = 1 / (2 * (brightness + 0.15))
    axes = (
        brightness.sqrt().clamp(0, 1),
        (0.5 + (red - green) * scale).clamp(0, 1),
        (0.5 + ((red + green) / 2 - blue) * scale).clamp(0, 1),
    )
    first, second, third = (_soft_bins(axis, bins) for axis, bins in zip(axes, COLOUR_BINS, strict=True))
    histogram = (first[..., :, None, None] * second[..., None, :, None] * third[..., None, None, :]).flatten(-3)
    histogram = rearrange(histogram, "b h w k -> b k h w")
    cell = DOWNSAMPLING // 2
    if weights is None:
        return F.avg_pool2d(histogram, cell).clamp(min=1e-6).sqrt()
    weights = F.avg_pool2d(weights, 2)
    mass = F.avg_pool2d(weights, cell)
    mean = F.avg_pool2d(histogram * weights, cell) / mass.clamp(min=1e-3)
    return mean.clamp(min=1e-6).sqrt() * (mass > 0)


class MatchingPrior(nn.Module):
    """Similarities to drafts of the masks, and both to an addition to the query tokens."""

    def __init__(self, config: MatchingPriorConfig, features: int, latents: int, width: int):
        super().__init__()
        self.config = config
        self.metric = nn.Conv2d(features, config.metric_channels, 1)
        self.temperature = nn.Parameter(torch.tensor(8.0))
        self.background = nn.Parameter(torch.zeros(MEASURES))
        channels = MEASURES * CHANNELS_PER_MEASURE
        # Raw similarities vary too little over cells to be learned from.
        self.standardise = nn.BatchNorm2d(channels, affine=False)
        hidden = config.hidden_channels
        self.read_out = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, 1, 1),
        )
        self.embed = nn.Sequential(nn.Linear(channels + latents + 1, width), nn.GELU(), nn.Linear(width, width))

    def cell_descriptors(self, features: Tensor, colours: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return unit descriptors of each cell and of its neighbourhood: learned, colour, and both once more, pooled.

        (B, C, h, w) and (B, K, h, w) -> four tensors (B, ., h, w).
        """
        metric = self.metric(features)
        wide_metric = F.avg_pool2d(metric, 3, stride=1, padding=1, count_include_pad=False)
        wide_colours = F.avg_pool2d(colours.square(), 3, stride=1, padding=1, count_include_pad=False).sqrt()
        return F.normalize(metric, dim=1), colours, F.normalize(wide_metric, dim=1), F.normalize(wide_colours, dim=1)

    def template_descriptors(
        self, features: Tensor, colours: Tensor, foreground: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return unit descriptors of each template cell (learned, colour) and of each whole view (both).

        (B, O, V, C, t, t), (B, O, V, K, t, t) and the share of foreground (B, O, V, t, t) -> (B, O, V T, .) twice,
        (B, O, V, .) twice; cells that hold no object are zero.
        """
        batch, objects = features.shape[:2]
        metric = self.metric(rearrange(features, "b o v c h w -> (b o v) c h w"))
        metric = rearrange(metric, "(b o v) c h w -> b o v (h w) c", b=batch, o=objects)
        share = rearrange(foreground, "b o v h w -> b o v (h w) 1")
        inside = (share > 0.3).to(metric.dtype)
        cell_colours = rearrange(colours, "b o v k h w -> b o v (h w) k")
        whole_metric = F.normalize((metric * share).sum(3), dim=-1)
        whole_colours = F.normalize((cell_colours.square() * share).sum(3).clamp(min=1e-6).sqrt(), dim=-1)
        cells = F.normalize(metric, dim=-1) * inside
        return (
            rearrange(cells, "b o v t c -> b o (v t) c"),
            rearrange(cell_colours * inside, "b o v t k -> b o (v t) k"),
            whole_metric,
            whole_colours,
        )

    def _similarities(self, image: tuple[Tensor, ...], templates: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the raw channels (B, O, channels, h w) and every measure's log-shares (B, measures, O + 1, h w)."""
        maps, shares = [], []
        for number, (cells, candidates) in enumerate(zip(image, templates, strict=True)):
            similarity = torch.einsum("bdp,bond->bonp", cells.flatten(2), candidates)
            top = similarity.topk(min(self.config.top, similarity.shape[2]), dim=2).values
            best, mean = top[:, :, 0], top.mean(2)
            background = self.background[number].expand(best.shape[0], 1, best.shape[2])
            rivals = torch.cat([self.temperature * (best - best.mean(2, keepdim=True)), background], dim=1)
            share = rivals.float().log_softmax(dim=1)
            if best.shape[1] > 1:
                first, second = best.topk(2, dim=1).values.chunk(2, dim=1)
                margin = best - torch.where(best == first, second, first)
            else:
                margin = torch.zeros_like(best)
            maps += [best, mean, share[:, :-1].exp(), margin]
            shares.append(share)
        return torch.stack(maps, dim=2), torch.stack(shares, dim=1)

    def forward(self, image: tuple[Tensor, ...], templates: tuple[Tensor, ...]) -> PriorMaps:
        """Compare the descriptors of B images with those of B sets of O objects."""
        grid = image[0].shape[2:]
        raw, shares = self._similarities(image, templates)
        batch, objects = raw.shape[:2]
        channels = self.standardise(raw.unflatten(3, grid).flatten(0, 1))
        logits = self.read_out(channels)[:, 0]
        return PriorMaps(
            channels=channels.unflatten(0, (batch, objects)),
            logits=logits.unflatten(0, (batch, objects)),
            # The colour measures have nothing to learn but a threshold.
            shares=shares[:, ::2].unflatten(3, grid),
        )

    def query_part(self, maps: PriorMaps, draft: Tensor) -> Tensor:
        """Return what is added to the query tokens, (B, O, h w, D).

        Args:
            maps: of `forward`.
            draft: (B, O, z, h, w), the read-out's soft mask as a latent.
        """
        cells = torch.cat([maps.channels, maps.logits.detach()[:, :, None] / 4, draft], dim=2)
        return self.embed(rearrange(cells, "b o c h w -> b o (h w) c"))
