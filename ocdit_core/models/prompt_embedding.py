"""Location prompts as a part of the query tokens: an addition to each cell (after UniFusion of InstanceDiffusion)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.models.mask_vae import DOWNSAMPLING

KINDS = 4
"""Channels of a prompt map: points or line on the object, points that are not on it, box, mask."""
STRIDE = 4
"""Pixels of a side of the squares of a prompt map."""

_REACHES = (1.0, 4.0)  # cells within which a point is felt
_PER_CELL = (DOWNSAMPLING // STRIDE) ** 2


class PromptEmbedding(nn.Module):
    """Embeds where prompts are, seen beside the matching prior's read-out; a new one changes nothing.

    Args:
        width: channels D of the query tokens.
    """

    def __init__(self, width: int):
        super().__init__()
        channels = 2 * len(_REACHES) + 3 * _PER_CELL + KINDS
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, prompts: Tensor, logits: Tensor) -> Tensor:
        """Return the addition to the query tokens, (B, O, h w, D); 0 for objects without a prompt.

        Args:
            prompts: (B, O, KINDS, 4h, 4w) prompt maps in [0, 1], 0 for what is not given.
            logits: (B, O, 4h, 4w) of the matching prior's read-out.
        """
        maps, scores = prompts.flatten(0, 1).float(), logits.detach().flatten(0, 1).float()
        given = maps.amax((2, 3))
        cells = [_near(maps[:, kind], reach) for kind in (0, 1) for reach in _REACHES]
        shuffled = torch.stack([maps[:, 2], maps[:, 3], scores / 4], dim=1)
        shuffled = F.pixel_unshuffle(shuffled, DOWNSAMPLING // STRIDE)
        flags = given[:, :, None, None].expand(-1, -1, *shuffled.shape[2:])
        added = self.layers(torch.cat([torch.stack(cells, dim=1), shuffled, flags], dim=1))
        added = added * given.amax(1)[:, None, None, None].sign()
        return added.flatten(2).transpose(1, 2).unflatten(0, prompts.shape[:2])


def _near(points: Tensor, reach: float) -> Tensor:
    """Return how near the nearest point of (N, 4h, 4w) is to each cell, (N, h, w): exp(-distance / reach)."""
    high, wide = points.shape[1:]
    side = DOWNSAMPLING // STRIDE
    rows, columns = (torch.arange(length, device=points.device) / side for length in (high, wide))
    squares = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    centres = squares.view(high, wide, 2)[::side, ::side].flatten(0, 1) + (side - 1) / (2 * side)
    nearness = torch.exp(-torch.cdist(centres, squares) / reach)
    found = torch.stack([(nearness * one.flatten()).amax(1) for one in points])
    return found.view(-1, high // side, wide // side)
