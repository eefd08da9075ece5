"""Multi-head attention whose keys and values can be computed ahead of time."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (batch, heads, tokens, channels / heads)."""


class Projection(nn.Linear):
    """A linear layer of which some outputs alone can be computed."""

    def rows(self, x: Tensor, begin: int, end: int) -> Tensor:
        """(..., in) -> (..., end - begin): the outputs from `begin` on, before `end`."""
        return F.linear(x, self.weight[begin:end], self.bias[begin:end])


class Attention(nn.Module):
    """Attention with one packed projection for queries, keys and values.

    The keys and values of a memory that stays the same over many calls (the templates, over all noise levels and
    frames) are computed once by `keys_values`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj = Projection(width, 3 * width)
        self.out_proj: nn.Linear = nn.Linear(width, width)

    def keys_values(self, memory: Tensor) -> KeysValues:
        """(B, N, D) -> keys and values."""
        width = memory.shape[-1]
        packed = self.in_proj.rows(memory, width, 3 * width)
        keys, values = rearrange(packed, "b n (two a d) -> two b a n d", two=2, a=self.heads)
        return keys, values

    def attend(self, queries: Tensor, memory: KeysValues) -> Tensor:
        """(B, M, D) and the keys and values of the memory -> (B, M, D)."""
        width = queries.shape[-1]
        q = self.in_proj.rows(queries, 0, width)
        q = rearrange(q, "b m (a d) -> b a m d", a=self.heads)
        attended = F.scaled_dot_product_attention(q, *memory)
        return self.out_proj(rearrange(attended, "b a m d -> b m (a d)"))

    def forward(self, tokens: Tensor) -> Tensor:
        """Self-attention: (B, N, D) -> (B, N, D)."""
        q, k, v = rearrange(self.in_proj(tokens), "b n (three a d) -> three b a n d", three=3, a=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(rearrange(attended, "b a n d -> b n (a d)"))
