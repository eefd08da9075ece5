"""The matching prior: a first draft of each object's mask from plain similarity, given to the queries.

Cross-attention has to discover from nothing that a query should look like its object's templates; on a small budget
that is what training spends its steps on. This module hands the answer's first draft to the network: similarities
between the image's cells and the templates' foreground cells, standardised; the back-projection of the objects'
colours; and the soft mask that a small read-out makes of both. It is an option of ours; the published architecture
has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.models.colour_statistics import (
    SUBCELL,
    back_projection,
    cell_histograms,
    fine_bins,
    fine_histograms,
)
from ocdit_core.models.mask_vae import DOWNSAMPLING

# Learned and colour descriptors of single cells, then both of 3 x 3 cells; the backbone's own come after them.
MEASURES = 4
BACKBONE_MEASURES = 2
CHANNELS_PER_MEASURE = 4
SUBCELLS = (DOWNSAMPLING // SUBCELL) ** 2


@dataclass(frozen=True, kw_only=True)
class MatchingPriorConfig:
    """Sizes of the matching prior.

    Attributes:
        metric_channels: channels of the learned metric that features are projected to.
        context_channels: channels of the image's own features that the read-out sees: edges, objectness.
        hidden_channels: channels of the read-out.
        top: how many of the best matching template cells are averaged.
        backbone_similarity: compare the backbone's features as they are, too: a pretrained backbone's tell unseen
            objects apart better than a metric that was learned from few objects.
    """

    metric_channels: int = 32
    context_channels: int = 24
    hidden_channels: int = 64
    top: int = 4
    backbone_similarity: bool = False


@dataclass(frozen=True, kw_only=True)
class PriorMaps:
    """What the matching prior finds in an image.

    Attributes:
        channels: (B, O, channels, h, w), similarities and back-projections, standardised.
        logits: (B, O, 4h, 4w) of the read-out: does this quarter of a cell's side show the object?
        shares: (B, M, O + 1, h, w), log-probabilities that a cell shows each object, or last the background, as each
            of the M learned measures alone would have it.
    """

    channels: Tensor
    logits: Tensor
    shares: Tensor


class MatchingPrior(nn.Module):
    """Similarities to drafts of the masks, and both to an addition to the query tokens."""

    def __init__(self, config: MatchingPriorConfig, features: int, latents: int, width: int):
        super().__init__()
        self.config = config
        self.metric = nn.Conv2d(features, config.metric_channels, 1)
        self.context = nn.Conv2d(features, config.context_channels, 1)
        self.temperature = nn.Parameter(torch.tensor(8.0))
        self.measures = MEASURES + BACKBONE_MEASURES * config.backbone_similarity
        self.background = nn.Parameter(torch.zeros(self.measures))
        channels = self.measures * CHANNELS_PER_MEASURE + SUBCELLS
        # Raw similarities vary too little over cells to be learned from.
        self.standardise = nn.BatchNorm2d(channels, affine=False)
        hidden = config.hidden_channels
        self.read_out = nn.Sequential(
            nn.Conv2d(channels + config.context_channels, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, SUBCELLS, 1),
        )
        self.embed = nn.Sequential(nn.Linear(channels + SUBCELLS + latents, width), nn.GELU(), nn.Linear(width, width))

    def describe_image(self, images: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        """Return what an image is compared by.

        (B, 3, H, W) in [0, 1] and (B, C, h, w) -> unit descriptors of each cell and of its neighbourhood (learned,
        colour, both once more, and the backbone's own of both), each (B, ., h, w); fine colour bins (B, H, W);
        features for the read-out.
        """
        metric, colours = self.metric(features), cell_histograms(images)
        wide_colours = _wide(colours.square()).sqrt()
        units = [metric, colours, _wide(metric), wide_colours]
        if self.config.backbone_similarity:
            units += [features.detach(), _wide(features.detach())]
        # Cells' colour histograms are of unit length already.
        units = [unit if unit is colours else F.normalize(unit, dim=1) for unit in units]
        return *units, fine_bins(images), self.context(features)

    def describe_templates(self, templates: Tensor, masks: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        """Return what objects are compared by.

        (B, O, V, 3, h, w), masks (B, O, V, h, w) and (B, O, V, C, t, t) -> unit descriptors of each template cell
        (learned, colour), (B, O, V T, .), cells that hold no object being zero; of each whole view (both),
        (B, O, V, .); the backbone's own, of cells and of whole views; and the object's fine colour histogram
        (B, O, bins).
        """
        batch, objects, views = templates.shape[:3]
        flat, flat_masks = templates.flatten(0, 2), masks.flatten(0, 2)
        metric = rearrange(self.metric(features.flatten(0, 2)), "(b o v) c h w -> b o v (h w) c", b=batch, o=objects)
        colours = rearrange(
            cell_histograms(flat, flat_masks[:, None]), "(b o v) k h w -> b o v (h w) k", b=batch, o=objects
        )
        share = F.avg_pool2d(flat_masks[:, None], DOWNSAMPLING)
        share = rearrange(share, "(b o v) 1 h w -> b o v (h w) 1", b=batch, o=objects)
        inside = (share > 0.3).to(metric.dtype)
        # The outermost pixels are mixed with the black around them.
        inner = 1 - F.max_pool2d(1 - flat_masks[:, None], 3, stride=1, padding=1)[:, 0]
        histogram = fine_histograms(fine_bins(flat).flatten(1), inner.float().flatten(1))
        own: list[Tensor] = []
        if self.config.backbone_similarity:
            cells = rearrange(features.detach(), "b o v c h w -> b o v (h w) c")
            own = [
                rearrange(F.normalize(cells, dim=-1) * inside, "b o v t c -> b o (v t) c"),
                F.normalize((cells * share).sum(3), dim=-1),
            ]
        return (
            rearrange(F.normalize(metric, dim=-1) * inside, "b o v t c -> b o (v t) c"),
            rearrange(colours * inside, "b o v t k -> b o (v t) k"),
            F.normalize((metric * share).sum(3), dim=-1),
            F.normalize((colours.square() * share).sum(3).clamp(min=1e-6).sqrt(), dim=-1),
            *own,
            histogram.view(batch, objects, views, -1).mean(2),
        )

    def _similarities(self, image: tuple[Tensor, ...], templates: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the raw channels (B, O, channels, h w) and every measure's log-shares (B, measures, O + 1, h w)."""
        maps, shares = [], []
        for number in range(self.measures):
            similarity = torch.einsum("bdp,bond->bonp", image[number].flatten(2), templates[number])
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
        """Compare what `describe_image` gave of B images with what `describe_templates` gave of B sets of objects."""
        *_, bins, context = image
        height, width = context.shape[2:]
        raw, shares = self._similarities(image, templates)
        batch, objects = raw.shape[:2]
        projected = F.pixel_unshuffle(back_projection(bins, templates[-1])[:, :, None], DOWNSAMPLING // SUBCELL)
        raw = torch.cat([raw.unflatten(3, (height, width)), projected], dim=2)
        channels = self.standardise(raw.flatten(0, 1))
        seen = torch.cat([channels, context.repeat_interleave(objects, 0)], dim=1)
        logits = F.pixel_shuffle(self.read_out(seen), DOWNSAMPLING // SUBCELL)[:, 0]
        return PriorMaps(
            channels=channels.unflatten(0, (batch, objects)),
            logits=logits.unflatten(0, (batch, objects)),
            # The colour measures have nothing to learn but a threshold.
            shares=shares[:, ::2].unflatten(3, (height, width)),
        )

    def query_part(self, maps: PriorMaps, draft: Tensor) -> Tensor:
        """Return what is added to the query tokens, (B, O, h w, D).

        Args:
            maps: of `forward`.
            draft: (B, O, z, h, w), the read-out's soft mask as a latent.
        """
        logits = F.pixel_unshuffle(maps.logits.detach()[:, :, None] / 4, DOWNSAMPLING // SUBCELL)
        cells = torch.cat([maps.channels, logits, draft], dim=2)
        return self.embed(rearrange(cells, "b o c h w -> b o (h w) c"))


def _wide(cells: Tensor) -> Tensor:
    """Return the mean of each cell's 3 x 3 neighbourhood."""
    return F.avg_pool2d(cells, 3, stride=1, padding=1, count_include_pad=False)
