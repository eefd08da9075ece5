"""The transformer block of OC-DiT (paper fig. 4): attention to templates, attention over all objects, MLP."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.models.attention import Attention, KeysValues


class Folded(NamedTuple):
    """A LayerNorm and its adaLN modulation at one noise level for all samples and members.

    Attributes:
        weight: (D,) of the LayerNorm, with the scale folded in.
        bias: (D,) of the LayerNorm, with scale and shift folded in.
        gate: (D,); None where there is none.
    """

    weight: Tensor
    bias: Tensor
    gate: Tensor | None


BlockLevel = tuple[Folded, Folded, Folded]
"""A block's three modulations at one noise level: of the attention to templates, the self-attention, the MLP."""


class Modulation(nn.Module):
    """adaLN-Zero: shift, scale and gate from the noise embedding, zero at initialisation (Peebles and Xie 2023)."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, noise_embedding: Tensor) -> tuple[Tensor, ...]:
        """(B, E, D) -> `parts` tensors (B, E, 1, 1, D), to be applied to tokens (B, E, O, P, D)."""
        return self.linear(F.silu(noise_embedding))[:, :, None, None].chunk(self.parts, dim=-1)

    def fold(self, norm: nn.LayerNorm, noise_embedding: Tensor) -> list[Folded]:
        """(L, D) -> the modulation at each of L noise levels, one with the LayerNorm before it."""
        shift, scale, *gate = self.linear(F.silu(noise_embedding)).float().chunk(self.parts, dim=-1)
        weights, biases = norm.weight * (1 + scale), norm.bias * (1 + scale) + shift
        gates = gate[0] if gate else [None] * len(weights)
        return [Folded(*level) for level in zip(weights, biases, gates, strict=True)]


def modulated(norm: nn.LayerNorm, modulation: Modulation, tokens: Tensor, noise: Tensor | Folded) -> tuple[Tensor, ...]:
    """Return the tokens (B, E, O, P, D) normalised, scaled and shifted; and the gate, for modulations that have one.

    Args:
        norm: the LayerNorm.
        modulation: of its output.
        tokens: (B, E, O, P, D).
        noise: (B, E, D) noise embedding; or the modulation as `fold` gives it.
    """
    if isinstance(noise, Folded):
        gates = () if noise.gate is None else (noise.gate,)
        return F.layer_norm(tokens, norm.normalized_shape, noise.weight, noise.bias, norm.eps), *gates
    shift, scale, *gates = modulation(noise)
    return norm(tokens) * (1 + scale) + shift, *gates


class MLP(nn.Module):
    """Two linear layers with a tanh GELU between."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.activation: nn.Module = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """One block; tokens are (B, E, O, P, D): sample, ensemble member, object, cell, channel."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.cross_modulation = Modulation(width, 3)
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.self_modulation = Modulation(width, 3)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)
        self.mlp_modulation = Modulation(width, 3)

    def levels(self, noise_embedding: Tensor) -> list[BlockLevel]:
        """(L, D) -> the block's modulations at each of L noise levels, to be used in place of the noise embedding."""
        return list(
            zip(
                self.cross_modulation.fold(self.cross_norm, noise_embedding),
                self.self_modulation.fold(self.self_norm, noise_embedding),
                self.mlp_modulation.fold(self.mlp_norm, noise_embedding),
                strict=True,
            )
        )

    def forward(self, tokens: Tensor, noise: Tensor | BlockLevel, templates: KeysValues) -> Tensor:
        """Return the tokens after the block.

        Args:
            tokens: (B, E, O, P, D).
            noise: (B, E, D) noise embedding; or one level for all, as `levels` gives it.
            templates: keys and values of each object's own template tokens, (B O, heads, V T, D / heads).
        """
        batch, members, objects, cells, _ = tokens.shape
        for_cross, for_self, for_mlp = (noise, noise, noise) if isinstance(noise, Tensor) else noise

        x, gate = modulated(self.cross_norm, self.cross_modulation, tokens, for_cross)
        # Members share an object's templates: they stand side by side on the query axis.
        x = self.cross_attention.attend(rearrange(x, "b e o p d -> (b o) (e p) d"), templates)
        x = rearrange(x, "(b o) (e p) d -> b e o p d", b=batch, o=objects, e=members, p=cells)
        tokens = torch.addcmul(tokens, gate, x)

        x, gate = modulated(self.self_norm, self.self_modulation, tokens, for_self)
        x = self.self_attention(rearrange(x, "b e o p d -> (b e) (o p) d"))
        x = rearrange(x, "(b e) (o p) d -> b e o p d", b=batch, e=members, o=objects, p=cells)
        tokens = torch.addcmul(tokens, gate, x)

        x, gate = modulated(self.mlp_norm, self.mlp_modulation, tokens, for_mlp)
        return torch.addcmul(tokens, gate, self.mlp(x))


class Head(nn.Module):
    """LayerNorm, shift and scale, MLP to the latent channels."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = Modulation(width, 2)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, channels)
        )

    def levels(self, noise_embedding: Tensor) -> list[Folded]:
        """(L, D) -> the modulation at each of L noise levels."""
        return self.modulation.fold(self.norm, noise_embedding)

    def forward(self, tokens: Tensor, noise: Tensor | Folded) -> Tensor:
        """(B, E, O, P, D), and (B, E, D) or one level of `levels` -> (B, E, O, P, z)."""
        (x,) = modulated(self.norm, self.modulation, tokens, noise)
        return self.mlp(x)
