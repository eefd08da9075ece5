"""The transformer block of OC-DiT (paper fig. 4): attention to templates, attention over all objects, MLP."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (batch, heads, tokens, channels / heads)."""


class FoldedNorm(NamedTuple):
    """A LayerNorm and its adaLN modulation at one noise level, for all samples and members.

    Attributes:
        weight: (D,) weight of the LayerNorm times (1 + scale).
        bias: (D,) bias of the LayerNorm times (1 + scale), plus shift.
        gate: (D,); None for a modulation without gate.
    """

    weight: Tensor
    bias: Tensor
    gate: Tensor | None


BlockLevel = tuple[FoldedNorm, FoldedNorm, FoldedNorm]
"""Modulations of a block at one noise level: cross-attention, self-attention, MLP."""


class SplitLinear(nn.Linear):
    """A linear layer that can compute a range of its outputs."""

    def rows(self, x: Tensor, begin: int, end: int) -> Tensor:
        """(..., in) -> (..., end - begin): outputs begin, ..., end - 1."""
        return F.linear(x, self.weight[begin:end], self.bias[begin:end])


class Attention(nn.Module):
    """Multi-head attention with one packed projection for queries, keys and values.

    Keys and values of a constant memory (the templates, for all noise levels and frames) are computed once by
    `keys_values`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj = SplitLinear(width, 3 * width)
        self.out_proj: nn.Linear = nn.Linear(width, width)

    def keys_values(self, memory: Tensor) -> KeysValues:
        """(B, N, D) -> keys and values."""
        width = memory.shape[-1]
        packed = self.in_proj.rows(memory, width, 3 * width)
        keys, values = rearrange(packed, "b n (two a d) -> two b a n d", two=2, a=self.heads)
        return keys, values

    def attend(self, queries: Tensor, memory: KeysValues) -> Tensor:
        """Cross-attention: (B, M, D), and the keys and values of the memory -> (B, M, D)."""
        q = rearrange(self.in_proj.rows(queries, 0, queries.shape[-1]), "b m (a d) -> b a m d", a=self.heads)
        attended = F.scaled_dot_product_attention(q, *memory)
        return self.out_proj(rearrange(attended, "b a m d -> b m (a d)"))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Self-attention: (B, N, D) -> (B, N, D), to the tokens of the mask (B, N) bool; None: to all.

        Outputs of the other tokens are undefined.
        """
        if mask is not None and len(tokens) == 1:
            kept = mask[0].nonzero()[:, 0]
            attended = self(tokens[:, kept])
            return attended.new_zeros(tokens.shape).index_copy_(1, kept, attended)
        q, k, v = rearrange(self.in_proj(tokens), "b n (three a d) -> three b a n d", three=3, a=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        return self.out_proj(rearrange(attended, "b a n d -> b n (a d)"))


class Modulation(nn.Module):
    """adaLN-Zero: shift, scale and gate from the noise embedding, zero at initialisation (Peebles and Xie 2023)."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, noise_embedding: Tensor) -> tuple[Tensor, ...]:
        """(B, E, D) -> `parts` tensors (B, E, 1, 1, D), which broadcast over tokens (B, E, O, P, D)."""
        return self.linear(F.silu(noise_embedding))[:, :, None, None].chunk(self.parts, dim=-1)

    def fold(self, norm: nn.LayerNorm, noise_embedding: Tensor) -> FoldedNorm:
        """Return the modulation at one noise level (D,), folded into the LayerNorm before it."""
        shift, scale, *gate = self.linear(F.silu(noise_embedding)).float().chunk(self.parts, dim=-1)
        return FoldedNorm(norm.weight * (1 + scale), norm.bias * (1 + scale) + shift, gate[0] if gate else None)


def modulate(
    norm: nn.LayerNorm, modulation: Modulation, tokens: Tensor, noise: Tensor | FoldedNorm
) -> tuple[Tensor, ...]:
    """Return the tokens normalised, scaled and shifted, and the gate of a modulation that has one.

    Args:
        norm: the LayerNorm.
        modulation: modulation of its output.
        tokens: (B, E, O, P, D).
        noise: (B, E, D) noise embedding, or the modulation as `Modulation.fold` returns it.
    """
    if isinstance(noise, FoldedNorm):
        gates = () if noise.gate is None else (noise.gate,)
        return F.layer_norm(tokens, norm.normalized_shape, noise.weight, noise.bias, norm.eps), *gates
    shift, scale, *gates = modulation(noise)
    return norm(tokens) * (1 + scale) + shift, *gates


class MLP(nn.Module):
    """Two linear layers with a tanh GELU between them."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.activation: nn.Module = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """One block. Tokens are (B, E, O, P, D): sample, ensemble member, object, cell, channel."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.cross_modulation = Modulation(width, 3)
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.self_modulation = Modulation(width, 3)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.mlp_modulation = Modulation(width, 3)

    def level(self, noise_embedding: Tensor) -> BlockLevel:
        """Return the block's modulations at one noise level (D,), which stand for the noise embedding in `forward`."""
        return (
            self.cross_modulation.fold(self.cross_norm, noise_embedding),
            self.self_modulation.fold(self.self_norm, noise_embedding),
            self.mlp_modulation.fold(self.mlp_norm, noise_embedding),
        )

    def forward(
        self, tokens: Tensor, noise: Tensor | BlockLevel, templates: KeysValues, mask: Tensor | None = None
    ) -> Tensor:
        """Return the tokens after the block.

        Args:
            tokens: (B, E, O, P, D).
            noise: (B, E, D) noise embedding, or one noise level as `level` returns it.
            templates: keys and values of each object's own template tokens, (B O, heads, V T, D / heads).
            mask: (B E, O P) bool, tokens that all attend to; None: all of them.
        """
        batch, members, objects, cells, _ = tokens.shape
        for_cross, for_self, for_mlp = (noise, noise, noise) if isinstance(noise, Tensor) else noise

        x, gate = modulate(self.cross_norm, self.cross_modulation, tokens, for_cross)
        # Members share an object's templates: they are stacked along the query axis.
        x = self.cross_attention.attend(rearrange(x, "b e o p d -> (b o) (e p) d"), templates)
        x = rearrange(x, "(b o) (e p) d -> b e o p d", b=batch, o=objects, e=members, p=cells)
        tokens = torch.addcmul(tokens, gate, x)

        x, gate = modulate(self.self_norm, self.self_modulation, tokens, for_self)
        x = self.self_attention(rearrange(x, "b e o p d -> (b e) (o p) d"), mask)
        x = rearrange(x, "(b e) (o p) d -> b e o p d", b=batch, e=members, o=objects, p=cells)
        tokens = torch.addcmul(tokens, gate, x)

        x, gate = modulate(self.mlp_norm, self.mlp_modulation, tokens, for_mlp)
        return torch.addcmul(tokens, gate, self.mlp(x))


class Head(nn.Module):
    """LayerNorm, shift and scale, and an MLP to the latent channels."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = Modulation(width, 2)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, channels)
        )

    def level(self, noise_embedding: Tensor) -> FoldedNorm:
        """Return the modulation at one noise level (D,)."""
        return self.modulation.fold(self.norm, noise_embedding)

    def forward(self, tokens: Tensor, noise: Tensor | FoldedNorm) -> Tensor:
        """(B, E, O, P, D), and (B, E, D) or one noise level -> (B, E, O, P, z)."""
        (x,) = modulate(self.norm, self.modulation, tokens, noise)
        return self.mlp(x)
