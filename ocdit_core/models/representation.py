"""Representation entanglement, an option of ours: two pulls of the denoiser towards what the backbone knows.

The projection (REPA: Yu et al. 2025) asks the query tokens of a middle block for the backbone's features. The presence
token (REG: Wu et al. 2025) is one more token for each target: the backbone's summary of the target as the image shows
it, denoised together with the masks. An absent target has the summary zero, so at inference the token's likeness to the
templates' summaries says whether the object is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.diffusion.edm import Preconditioning
from ocdit_core.models.blocks import Modulation


@dataclass(frozen=True, kw_only=True)
class RepresentationConfig:
    """Which of the two parts a model has.

    Attributes:
        projection: whether query tokens are projected to backbone features, in training only.
        block: after how many blocks; 0 is half of them.
        hidden: channels of the projection's MLP.
        presence_token: whether each target has a presence token.
        sigma_data: standard deviation of the standardised presence tokens.
    """

    projection: bool = True
    block: int = 0
    hidden: int = 512
    presence_token: bool = True
    sigma_data: float = 0.5


class Projection(nn.Module):
    """Query tokens to backbone features."""

    def __init__(self, width: int, hidden: int, features: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, features)
        )

    def loss(self, tokens: Tensor, features: Tensor, occupancy: Tensor) -> Tensor:
        """Return 1 - cosine between projected tokens and features, averaged over the cells that show a target.

        Args:
            tokens: (B, E, O, h w, D) query tokens.
            features: (B, C, h, w) of the image; no gradient flows into them.
            occupancy: (B, O, h, w), the share of each cell that shows each target. Cells without it say nothing.
        """
        projected = F.normalize(self.layers(tokens).float(), dim=-1)
        wanted = F.normalize(rearrange(features.detach(), "b c h w -> b 1 1 (h w) c").float(), dim=-1)
        weight = rearrange(occupancy, "b o h w -> b 1 o (h w)").expand(projected.shape[:-1])
        distance = 1 - (projected * wanted).sum(-1)
        return (weight * distance).sum() / weight.sum().clamp(min=1)


class PresenceToken(nn.Module):
    """The extra token: its embedding, its read-out, and the standardisation of what it stands for."""

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, width: int, features: int, sigma_data: float):
        super().__init__()
        self.preconditioning = Preconditioning(sigma_data=sigma_data)
        self.embed = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width)
        self.modulation = Modulation(width, 2)
        self.head = nn.Linear(width, features)
        # As adaLN-Zero: at first the token adds nothing of its own.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def tokens_in(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """(B, E, O, C) and (B, E) -> one token for each target, (B, E, O, 1, D)."""
        return self.embed(self.preconditioning.c_in(sigma[:, :, None, None]) * noisy)[:, :, :, None]

    def denoised(self, tokens: Tensor, noisy: Tensor, sigma: Tensor, noise_embedding: Tensor) -> Tensor:
        """Read the tokens (B, E, O, 1, D) out, eq. (5) -> (B, E, O, C)."""
        shift, scale = self.modulation(noise_embedding)
        raw = self.head(self.norm(tokens) * (1 + scale) + shift)[:, :, :, 0]
        level, p = sigma[:, :, None, None], self.preconditioning
        return p.c_skip(level) * noisy + p.c_out(level) * raw

    @torch.no_grad()
    def update(self, summaries: Tensor) -> None:
        """Take the running mean and variance further, by summaries (N, C) of objects that are there."""
        if len(summaries) < 2:
            return
        self.batches += 1
        share = max(0.01, 1 / float(self.batches))
        self.mean.lerp_(summaries.float().mean(0), share)
        self.variance.lerp_((summaries.float() - self.mean).square().mean(0), share)

    def standardised(self, summaries: Tensor) -> Tensor:
        """(..., C) of the backbone -> mean 0 and deviation sigma_data in each channel."""
        scale = self.preconditioning.sigma_data / (self.variance + 1e-6).sqrt()
        return (summaries.float() - self.mean) * scale

    def score(self, denoised: Tensor, templates: Tensor) -> Tensor:
        """Return how present each target is, -1 to 1: its token's cosine to the most alike of the target's views.

        Args:
            denoised: (B, E, O, C) tokens; the members' mean is taken.
            templates: (B, O, V, C) the backbone's summaries of the views.
        """
        found = F.normalize(denoised.mean(1), dim=-1)
        views = F.normalize(self.standardised(templates), dim=-1)
        return torch.einsum("boc,bovc->bov", found, views).amax(-1)


def target_crops(images: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut every target out of its image as its templates show it: on black, in the square around its box.

    Args:
        images: (B, 3, H, W) in [0, 1].
        masks: (B, O, H, W) in [0, 1]; where one is empty the crop is black.
        size: (height, width) of the crops.

    Returns:
        (B, O, 3, height, width).
    """
    batch, objects, height, width = masks.shape
    seen = masks > 0.5
    rows, columns = seen.any(3), seen.any(2)
    top, left = rows.int().argmax(2), columns.int().argmax(2)
    bottom, right = height - rows.flip(2).int().argmax(2), width - columns.flip(2).int().argmax(2)
    side = torch.maximum(bottom - top, right - left).clamp(min=1) / 2
    # grid_sample's coordinates run from -1 to 1 over the picture.
    x, y = (left + right) / width - 1, (top + bottom) / height - 1
    zero = torch.zeros_like(x)
    maps = torch.stack(
        [torch.stack([2 * side / width, zero, x], -1), torch.stack([zero, 2 * side / height, y], -1)], -2
    )
    grid = F.affine_grid(maps.flatten(0, 1).to(images), [batch * objects, 3, *size], align_corners=False)
    cut = (images[:, None] * masks[:, :, None]).flatten(0, 1)
    return F.grid_sample(cut, grid, align_corners=False).unflatten(0, (batch, objects))
