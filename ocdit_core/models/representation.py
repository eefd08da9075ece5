"""Representation entanglement, not part of the paper: the denoiser learns to predict backbone features.

The projection (REPA, Yu et al. 2025) predicts the image's features from the query tokens of a middle block. The
presence token (REG, Wu et al. 2025) is one more token for each target: the backbone's global feature of the target as
the image shows it, denoised together with the masks. It is zero for an absent target, so at inference its cosine
similarity to the templates' global features scores whether the object is present.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.diffusion import edm
from ocdit_core.models.blocks import Modulation

_HIDDEN = 512  # channels of the projection's MLP


@dataclass(frozen=True, kw_only=True)
class RepresentationConfig:
    """Configuration of representation entanglement.

    Attributes:
        projection: project query tokens to backbone features, in training only.
        block: number of blocks before the projection; 0 is half of them.
        presence_token: give each target a presence token.
    """

    projection: bool = True
    block: int = 0
    presence_token: bool = True


class FeatureProjection(nn.Module):
    """MLP from query tokens to backbone features."""

    def __init__(self, width: int, features: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, features)
        )

    def loss(self, tokens: Tensor, features: Tensor, occupancy: Tensor) -> Tensor:
        """Return 1 - cosine similarity of projected tokens and features, averaged over the cells that show a target.

        Args:
            tokens: (B, E, O, h w, D) query tokens.
            features: (B, C, h, w) of the image; no gradient flows into them.
            occupancy: (B, O, h, w) fraction of each cell that each target covers, the weight of the cell.
        """
        projected = F.normalize(self.layers(tokens).float(), dim=-1)
        wanted = F.normalize(rearrange(features.detach(), "b c h w -> b 1 1 (h w) c").float(), dim=-1)
        weight = rearrange(occupancy, "b o h w -> b 1 o (h w)").expand(projected.shape[:-1])
        distance = 1 - (projected * wanted).sum(-1)
        return (weight * distance).sum() / weight.sum().clamp(min=1)


class PresenceToken(nn.Module):
    """Embedding, read-out and standardisation of the presence token."""

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, width: int, features: int):
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width)
        self.modulation = Modulation(width, 2)
        self.head = nn.Linear(width, features)
        # Zero at initialisation, as adaLN-Zero.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def tokens_in(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Embed noisy global features (B, E, O, C) at noise levels (B, E) -> (B, E, O, 1, D)."""
        return self.embed(edm.c_in(sigma[:, :, None, None]) * noisy)[:, :, :, None]

    def denoised(self, tokens: Tensor, noisy: Tensor, sigma: Tensor, noise_embedding: Tensor) -> Tensor:
        """Return the denoised global features of eq. (5): tokens (B, E, O, 1, D) -> (B, E, O, C)."""
        shift, scale = self.modulation(noise_embedding)
        raw = self.head(self.norm(tokens) * (1 + scale) + shift)[:, :, :, 0]
        level = sigma[:, :, None, None]
        return edm.c_skip(level) * noisy + edm.c_out(level) * raw

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Update the running mean and variance by global features (N, C) of objects that are present."""
        if len(features) < 2:
            return
        self.batches += 1
        momentum = max(0.01, 1 / float(self.batches))
        self.mean.lerp_(features.float().mean(0), momentum)
        self.variance.lerp_((features.float() - self.mean).square().mean(0), momentum)

    def standardised(self, features: Tensor) -> Tensor:
        """Return global features (..., C) with mean 0 and standard deviation SIGMA_DATA in each channel."""
        scale = edm.SIGMA_DATA / (self.variance + 1e-6).sqrt()
        return (features.float() - self.mean) * scale

    def score(self, denoised: Tensor, templates: Tensor, crops: int = 1) -> Tensor:
        """Return the presence score (B, W, O) of each target in [0, 1]: the highest cosine similarity to a view.

        Args:
            denoised: (B, W E, O, C) denoised global features, averaged over the E members of each crop.
            templates: (B, O, V, C) global features of the views, as the backbone returns them.
            crops: W.
        """
        found = F.normalize(denoised.float().unflatten(1, (crops, -1)).mean(2), dim=-1)
        views = F.normalize(self.standardised(templates), dim=-1)
        return torch.einsum("bwoc,bovc->bwov", found, views).amax(-1).clamp(min=0)


def target_crops(images: Tensor, masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop every target from its image as templates show objects: on black, in the square around its box.

    Args:
        images: (B, 3, H, W) in [0, 1].
        masks: (B, O, H, W) in [0, 1]; an empty mask gives a black crop.
        size: (height, width) of the crops in pixels.

    Returns:
        (B, O, 3, height, width).
    """
    batch, objects, height, width = masks.shape
    seen = masks > 0.5
    rows, columns = seen.any(3), seen.any(2)
    top, left = rows.int().argmax(2), columns.int().argmax(2)
    bottom, right = height - rows.flip(2).int().argmax(2), width - columns.flip(2).int().argmax(2)
    side = torch.maximum(bottom - top, right - left).clamp(min=1) / 2
    # Normalised coordinates run from -1 to 1 over the image.
    x, y = (left + right) / width - 1, (top + bottom) / height - 1
    zero = torch.zeros_like(x)
    maps = torch.stack(
        [torch.stack([2 * side / width, zero, x], -1), torch.stack([zero, 2 * side / height, y], -1)], -2
    )
    grid = F.affine_grid(maps.flatten(0, 1).to(images), [batch * objects, 3, *size], align_corners=False)
    cut = (images[:, None] * masks[:, :, None]).flatten(0, 1)
    return F.grid_sample(cut, grid, align_corners=False).unflatten(0, (batch, objects))
