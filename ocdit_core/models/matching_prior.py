"""The matching prior: a first estimate of each object's mask from feature and colour similarity, not part of the paper.

On a small budget, training spends most of its steps until cross-attention compares queries with templates at all. This
module computes that comparison: standardised similarities between the cells of the image and the templates' foreground
cells, the back-projection of the objects' colours, and the soft mask that a small read-out predicts from both. Their
embedding is added to the query tokens.
"""

import math
from dataclasses import dataclass

import cv2
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.models.mask_vae import DOWNSAMPLING

# Side of a subcell in pixels: the resolution of back-projections and of the read-out.
SUBCELL = 4
SUBCELLS = (DOWNSAMPLING // SUBCELL) ** 2

# Measures of similarity: metric and colours of single cells, metric and colours of 3 x 3 cells; then the backbone's
# features of both.
MEASURES = 6
CHANNELS_PER_MEASURE = 4
# The measures of single cells.
_OF_CELLS = (0, 1, 4)
# Number of best matching template cells that are averaged.
TOP = 4
# Channels of the projected image features that the read-out takes.
CONTEXT_CHANNELS = 24
# Cells where an object has at most this probability, as do their neighbours, keep its draft.
RULED_OUT = 0.05

# Colour histograms: bins of brightness, red-green and yellow-blue.
CELL_BINS = (4, 4, 4)
FINE_BINS = (5, 16, 16)
# Weights of the image's and of the other objects' histograms in the back-projection.
IMAGE_WEIGHT = 0.7
RIVAL_WEIGHT = 0.1


@dataclass(frozen=True, kw_only=True)
class MatchingPriorConfig:
    """Configuration of the matching prior.

    Attributes:
        metric_channels: channels of the learned metric that features are projected to.
        hidden_channels: hidden channels of the read-out.
    """

    metric_channels: int = 64
    hidden_channels: int = 64


@dataclass(frozen=True, kw_only=True)
class PriorMaps:
    """Output of the matching prior for an image.

    Attributes:
        channels: (B, O, channels, h, w) similarities and back-projections, standardised.
        logits: (B, O, 4h, 4w) mask logits of the read-out.
        log_assignment: (B, M, O + 1, h, w) log-probabilities that a cell shows each object or, last, the background, by
            each of the M feature measures alone.
        draft: (B, O, z, h, w) estimates of the standardised latents of the masks.
        presence: (B, O) logits of each object being in the image at all.
    """

    channels: Tensor
    logits: Tensor
    log_assignment: Tensor
    draft: Tensor
    presence: Tensor


class _DilatedBlock(nn.Sequential):
    """Residual block with a dilated convolution, zero at initialisation."""

    def __init__(self, channels: int, dilation: int):
        last = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        super().__init__(nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation), nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return x + super().forward(x)


class MatchingPrior(nn.Module):
    """Compares images with templates, and embeds the result for the query tokens."""

    def __init__(self, config: MatchingPriorConfig, features: int, latents: int, width: int):
        super().__init__()
        self.metric = nn.Conv2d(features, config.metric_channels, 1)
        self.context = nn.Conv2d(features, CONTEXT_CHANNELS, 1)
        self.temperature = nn.Parameter(torch.tensor(8.0))
        self.background = nn.Parameter(torch.zeros(MEASURES))
        channels = MEASURES * CHANNELS_PER_MEASURE + SUBCELLS
        # Raw similarities vary little over the cells.
        self.standardise = nn.BatchNorm2d(channels, affine=False)
        hidden = config.hidden_channels
        self.read_out = nn.Sequential(
            nn.Conv2d(channels + CONTEXT_CHANNELS, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, SUBCELLS, 1),
        )
        self.dilated = nn.ModuleList(_DilatedBlock(hidden, dilation) for dilation in (2, 4))
        self.draft = nn.Sequential(
            nn.Conv2d(hidden + SUBCELLS, hidden, 3, padding=1), nn.GELU(), nn.Conv2d(hidden, latents, 1)
        )
        self.presence = nn.Sequential(nn.Linear(2 * (channels + hidden) + 2, 64), nn.GELU(), nn.Linear(64, 1))
        self.embed = nn.Sequential(nn.Linear(channels + SUBCELLS + latents, width), nn.GELU(), nn.Linear(width, width))

    def describe_image(self, images: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        """Return the descriptors of images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            features: (B, C, h, w) backbone features.

        Returns:
            Unit descriptors (B, ., h, w) for each measure; fine colour bins (B, H, W); context features (B, ., h, w)
            for the read-out.
        """
        metric, colours = self.metric(features), cell_histograms(images)
        own = features.detach()
        units = [metric, colours, _wide(metric), _wide(colours.square()).sqrt(), own, _wide(own)]
        # Colour histograms of cells have unit length already.
        units = [unit if unit is colours else F.normalize(unit, dim=1) for unit in units]
        return *units, fine_bins(images), self.context(features)

    def describe_templates(self, templates: Tensor, masks: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        """Return the descriptors of objects.

        Args:
            templates: (B, O, V, 3, h, w) in [0, 1].
            masks: (B, O, V, h, w) object masks in [0, 1].
            features: (B, O, V, C, t, t) backbone features.

        Returns:
            Unit descriptors for each measure: of template cells (B, O, V T, .), zero without the object, or of whole
            views (B, O, V, .) in place of 3 x 3 cells; and the fine colour histograms (B, O, bins) of the objects.
        """
        batch, objects, views = templates.shape[:3]
        flat, flat_masks = templates.flatten(0, 2), masks.flatten(0, 2)
        metric = rearrange(self.metric(features.flatten(0, 2)), "(b o v) c h w -> b o v (h w) c", b=batch, o=objects)
        colours = rearrange(
            cell_histograms(flat, flat_masks[:, None]), "(b o v) k h w -> b o v (h w) k", b=batch, o=objects
        )
        coverage = F.avg_pool2d(flat_masks[:, None], DOWNSAMPLING)
        coverage = rearrange(coverage, "(b o v) 1 h w -> b o v (h w) 1", b=batch, o=objects)
        inside = (coverage > 0.3).to(metric.dtype)
        # The outermost pixels of the mask are blended with the black background.
        inner = 1 - F.max_pool2d(1 - flat_masks[:, None], 3, stride=1, padding=1)[:, 0]
        histogram = fine_histograms(fine_bins(flat).flatten(1), inner.float().flatten(1))
        own = rearrange(features.detach(), "b o v c h w -> b o v (h w) c")
        return (
            rearrange(F.normalize(metric, dim=-1) * inside, "b o v t c -> b o (v t) c"),
            rearrange(colours * inside, "b o v t k -> b o (v t) k"),
            F.normalize((metric * coverage).sum(3), dim=-1),
            F.normalize((colours.square() * coverage).sum(3).clamp(min=1e-6).sqrt(), dim=-1),
            rearrange(F.normalize(own, dim=-1) * inside, "b o v t c -> b o (v t) c"),
            F.normalize((own * coverage).sum(3), dim=-1),
            histogram.view(batch, objects, views, -1).mean(2),
        )

    def _similarities(self, image: tuple[Tensor, ...], templates: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the raw channels (B, O, channels, h w) and the log-assignments (B, measures, O + 1, h w)."""
        maps, assignments = [], []
        for number in range(MEASURES):
            similarity = _similarity(image[number], templates[number])
            top = similarity.topk(min(TOP, similarity.shape[3]), dim=3).values
            best, mean = top[..., 0], top.mean(3)
            background = self.background[number].expand(best.shape[0], 1, best.shape[2])
            scores = torch.cat([self.temperature * (best - best.mean(2, keepdim=True)), background], dim=1)
            assignment = scores.float().log_softmax(dim=1)
            # A single object has itself as its rival, without a branch on the number of objects, which an exported
            # graph would not have.
            alone = torch.ones_like(best).sum(1, keepdim=True) == 1
            rivals = torch.cat([best, best[:, :1].masked_fill(~alone, -torch.inf)], dim=1)
            first, second = rivals.topk(2, dim=1).values.chunk(2, dim=1)
            margin = best - torch.where(best == first, second, first)
            maps += [best, mean, assignment[:, :-1].exp(), margin]
            assignments.append(assignment)
        return torch.stack(maps, dim=2), torch.stack(assignments, dim=1)

    def forward(self, image: tuple[Tensor, ...], templates: tuple[Tensor, ...]) -> PriorMaps:
        """Compare descriptors of B images (`describe_image`) with those of B sets of objects (`describe_templates`)."""
        *_, bins, context = image
        height, width = context.shape[2:]
        raw, assignments = self._similarities(image, templates)
        batch, objects = raw.shape[:2]
        projected = _unshuffled(back_projection(bins, templates[-1]))
        raw = torch.cat([raw.unflatten(3, (height, width)), projected], dim=2)
        channels = self.standardise(raw.flatten(0, 1))
        read = torch.cat([channels, context.repeat_interleave(objects, 0)], dim=1)
        hidden = self.read_out[:-1](read)
        for block in self.dilated:
            hidden = block(hidden)
        cells = self.read_out[-1](hidden)
        draft = self.draft(torch.cat([hidden, cells / 4], dim=1))
        presence = self._presence(torch.cat([channels, hidden], dim=1), cells)
        logits = F.pixel_shuffle(cells, DOWNSAMPLING // SUBCELL)[:, 0]
        return PriorMaps(
            channels=channels.unflatten(0, (batch, objects)),
            logits=logits.unflatten(0, (batch, objects)),
            # Without the measures of colours, which have no weights to train but a threshold.
            log_assignment=assignments[:, ::2].unflatten(3, (height, width)),
            draft=draft.unflatten(0, (batch, objects)),
            presence=presence.view(batch, objects),
        )

    def _presence(self, cells: Tensor, logits: Tensor) -> Tensor:
        """Return the logit of each object being in the image at all, (N,).

        What the read-out saw is averaged over the mask that it drafts, and around its most probable cell.

        Args:
            cells: (N, C, h, w), what the read-out saw and its hidden channels.
            logits: (N, 16, h, w) of the read-out; no gradient flows back through them.
        """
        logits, cells = logits.detach().float(), cells.float().flatten(2)
        weight, peak = logits.sigmoid().mean(1).flatten(1), logits.amax(1).flatten(1)
        mean = (cells * weight[:, None]).sum(2) / (weight.sum(1) + 1e-3)[:, None]
        best = (cells * peak.softmax(1)[:, None]).sum(2)
        size = torch.stack([weight.sum(1).clamp(min=1e-3).log(), peak.amax(1) / 4], dim=1)
        return self.presence(torch.cat([mean, best, size], dim=1))[:, 0]

    def query_part(self, maps: PriorMaps) -> Tensor:
        """Return the embedding (B, O, h w, D) of the maps, which is added to the query tokens."""
        cells = torch.cat([maps.channels, _unshuffled(maps.logits.detach() / 4), maps.draft], dim=2)
        return self.embed(rearrange(cells, "b o c h w -> b o (h w) c"))


def _similarity(image: Tensor, templates: Tensor) -> Tensor:
    """Return the dot products of cells (B, d, h, w) and template cells (B, O, N, d): (B, O, h w, N).

    The template cells come last: topk is many times faster where they are contiguous.
    """
    if image.device.type != "cpu" or torch.onnx.is_in_onnx_export():
        return torch.einsum("bdp,bond->bopn", image.flatten(2), templates)
    # A convolution runs in oneDNN: half the time of MKL's matrix product on CPUs of AMD, the same on those of Intel.
    batch, objects = templates.shape[:2]
    pixels = image.flatten(0, 1)[None].contiguous(memory_format=torch.channels_last)
    products = F.conv2d(pixels, templates.flatten(0, 2)[:, :, None, None], groups=batch)
    return rearrange(products, "1 (b o n) h w -> b o (h w) n", b=batch, o=objects)


def _probable(maps: PriorMaps) -> Tensor:
    """Return the highest probability of each object in each cell and its neighbours, (B, O, h, w)."""
    return F.max_pool2d(F.max_pool2d(maps.logits.float().sigmoid(), SUBCELL), 3, stride=1, padding=1)


def relevant_cells(maps: PriorMaps) -> tuple[Tensor, Tensor]:
    """Return the cells of each object that the maps do not rule out, and their neighbours.

    Returns:
        (B, O, P) int64 cells, as many for all objects; (B, O, P) bool, which of them count: at least one.
    """
    probable = _probable(maps).flatten(2)
    most = max(int((probable > RULED_OUT).sum(2).max()), 1)
    values, cells = probable.topk(most, dim=2)
    mask = values > RULED_OUT
    mask[..., 0] = True
    return cells, mask


def relevant_windows(maps: PriorMaps) -> list[tuple[int, slice, slice]]:
    """Return the window around each connected region of an object's relevant cells (see `relevant_cells`).

    Windows of the same size are decoded in one batch, so that their sides are rounded up to multiples of 4 cells, at
    least 8 and at most those of the grid.

    Returns:
        Index of the object among all B O, rows and columns of cells.
    """
    windows = []
    for number, relevant in enumerate((_probable(maps) > RULED_OUT).flatten(0, 1).byte().cpu().numpy()):
        _, _, regions, _ = cv2.connectedComponentsWithStats(relevant)
        for left, top, columns, rows, _ in regions[1:].tolist():
            spans = []
            for begin, length, side in ((top, rows, relevant.shape[0]), (left, columns, relevant.shape[1])):
                rounded = min(max(4 * math.ceil(length / 4), 8), side)
                start = min(max(begin - (rounded - length) // 2, 0), side - rounded)
                spans.append(slice(start, start + rounded))
            windows.append((number, spans[0], spans[1]))
    return windows


def without_empty_cells(templates: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return descriptors of objects (`describe_templates`) with less of the template cells that show no object.

    Their similarity to all cells of an image is 0. TOP of them stay, so that the best ones are the same.
    """
    filled = templates[0].any(-1)
    count = min(int(filled.sum(2).max()) + TOP, filled.shape[2])
    order = filled.byte().argsort(dim=2, descending=True, stable=True)[:, :, :count, None]
    return tuple(
        part.take_along_dim(order, 2) if number in _OF_CELLS else part for number, part in enumerate(templates)
    )


def _unshuffled(values: Tensor) -> Tensor:
    """Return the subcells of each cell side by side: (B, O, 4h, 4w) -> (B, O, 16, h, w)."""
    cells = F.pixel_unshuffle(values.flatten(0, 1)[:, None], DOWNSAMPLING // SUBCELL)
    return cells.unflatten(0, values.shape[:2])


def _wide(cells: Tensor) -> Tensor:
    """Return the mean of each cell's 3 x 3 neighbourhood."""
    return F.avg_pool2d(cells, 3, stride=1, padding=1, count_include_pad=False)


def colour_axes(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return brightness, red-green and yellow-blue, each (..., H, W) in [0, 1], of images (..., 3, H, W) in [0, 1].

    Chromaticity hardly changes with the light, so brightness has an axis of its own.
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
    """Distribute values in [0, 1] over bins by triangular kernels: (..., N) -> (..., bins, N)."""
    centres = torch.arange(bins, device=x.device, dtype=x.dtype)[:, None]
    return (1 - (x[..., None, :] * (bins - 1) - centres).abs()).clamp(min=0)


def cell_histograms(images: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return square roots of soft colour histograms: their dot product is the Bhattacharyya coefficient.

    Args:
        images: (B, 3, H, W) in [0, 1].
        weights: (B, 1, H, W) pixel weights in [0, 1] (a template's mask); None: 1.

    Returns:
        (B, bins, H/16, W/16); zero in cells without weight.
    """
    side = DOWNSAMPLING // 2

    def pixels_of_cells(values: Tensor) -> Tensor:
        return rearrange(values, "... (h i) (w j) -> ... h w (i j)", i=side, j=side)

    axes = pixels_of_cells(torch.stack(colour_axes(F.avg_pool2d(images, 2)))).unbind()
    first, second, third = (_soft_bins(axis, bins) for axis, bins in zip(axes, CELL_BINS, strict=True))
    chromatic = (second[..., :, None, :] * third[..., None, :, :]).flatten(-3, -2)
    weight = pixels_of_cells(F.avg_pool2d(weights, 2)[:, 0]) if weights is not None else torch.ones_like(axes[0])
    mass = weight.mean(-1)[:, None]
    # The sum over a cell's pixels of the products of their bins.
    histogram = ((first * weight[..., None, :]) @ chromatic.transpose(-1, -2)).flatten(-2) / side**2
    histogram = rearrange(histogram, "b h w k -> b k h w") / mass.clamp(min=1e-3)
    return histogram.clamp(min=1e-6).sqrt() * (mass > 0)


def fine_bins(images: Tensor) -> Tensor:
    """Return the fine colour bin of each pixel, (..., H, W) int64, of images (..., 3, H, W) in [0, 1]."""
    brightness, *chromatic = colour_axes(images)
    # Most colours are close to grey, where the square root makes the bins finer.
    bent = [0.5 + 0.5 * (2 * x - 1).sign() * (2 * x - 1).abs().sqrt() for x in chromatic]
    places = [(x * n).long().clamp(0, n - 1) for x, n in zip((brightness, *bent), FINE_BINS, strict=True)]
    return (places[0] * FINE_BINS[1] + places[1]) * FINE_BINS[2] + places[2]


def fine_histograms(bins: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return smoothed histograms that sum to 1: bins and weights of (N, pixels) -> (N, bins)."""
    count = FINE_BINS[0] * FINE_BINS[1] * FINE_BINS[2]
    weights = torch.ones_like(bins, dtype=torch.float32) if weights is None else weights
    histogram = torch.zeros(bins.shape[0], count, device=bins.device).scatter_add_(1, bins, weights)
    cube = histogram.view(-1, 1, *FINE_BINS)
    # Smoothed over neighbouring bins: tolerance for other light.
    kernel = torch.exp(-0.5 * torch.arange(-2.0, 3.0, device=bins.device) ** 2)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        padding = [0, 0, 0]
        shape[2 + axis], padding[axis] = 5, 2
        cube = F.conv3d(cube, kernel.view(shape), padding=padding)
    smooth = cube.flatten(1)
    return smooth / smooth.sum(1, keepdim=True).clamp(min=1e-6)


def back_projection(image_bins: Tensor, objects: Tensor) -> Tensor:
    """Return the histogram back-projection of each object, relative to the image and the other objects.

    Args:
        image_bins: (B, H, W) fine colour bins of the images.
        objects: (B, O, bins) fine colour histograms of the objects.

    Returns:
        (B, O, H/4, W/4) in [0, 1].
    """
    batch, height, width = image_bins.shape
    against = IMAGE_WEIGHT * fine_histograms(image_bins.flatten(1))[:, None]
    rivals = RIVAL_WEIGHT * (objects.sum(1, keepdim=True) - objects)
    ratio = objects / (objects + against + rivals + 1e-6)
    pixels = image_bins.flatten(1)[:, None].expand(-1, objects.shape[1], -1)
    return F.avg_pool2d(ratio.gather(2, pixels).view(batch, -1, height, width), SUBCELL)
