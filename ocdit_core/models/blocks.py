"""The transformer block of OC-DiT (paper fig. 4): attention to templates, attention over all objects, MLP."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.models.attention import Attention, KeysValues


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


class MLP(nn.Module):
    """Two linear layers with a tanh GELU between."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


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

    def forward(self, tokens: Tensor, noise_embedding: Tensor, templates: KeysValues) -> Tensor:
        """Return the tokens after the block.

        Args:
            tokens: (B, E, O, P, D).
            noise_embedding: (B, E, D).
            templates: keys and values of each object's own template tokens, (B O, heads, V T, D / heads).
        """
        batch, members, objects, cells, _ = tokens.shape

        shift, scale, gate = self.cross_modulation(noise_embedding)
        x = self.cross_norm(tokens) * (1 + scale) + shift
        # Members share an object's templates: they stand side by side on the query axis.
        x = self.cross_attention.attend(rearrange(x, "b e o p d -> (b o) (e p) d"), templates)
        x = rearrange(x, "(b o) (e p) d -> b e o p d", b=batch, o=objects, e=members, p=cells)
        tokens = tokens + gate * x

        shift, scale, gate = self.self_modulation(noise_embedding)
        x = self.self_norm(tokens) * (1 + scale) + shift
        x = self.self_attention(rearrange(x, "b e o p d -> (b e) (o p) d"))
        x = rearrange(x, "(b e) (o p) d -> b e o p d", b=batch, e=members, o=objects, p=cells)
        tokens = tokens + gate * x

        shift, scale, gate = self.mlp_modulation(noise_embedding)
        return tokens + gate * self.mlp(self.mlp_norm(tokens) * (1 + scale) + shift)


class Head(nn.Module):
    """LayerNorm, shift and scale, MLP to the latent channels."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = Modulation(width, 2)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, channels)
        )

    def forward(self, tokens: Tensor, noise_embedding: Tensor) -> Tensor:
        """(B, E, O, P, D) -> (B, E, O, P, z)."""
        shift, scale = self.modulation(noise_embedding)
        return self.mlp(self.norm(tokens) * (1 + scale) + shift)
