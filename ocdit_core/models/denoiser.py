"""The denoiser: F_theta, a transformer over the query tokens of all target objects, preconditioned to D_theta."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ocdit_core.diffusion import edm
from ocdit_core.errors import ConfigError
from ocdit_core.models.blocks import Block, BlockLevel, FoldedNorm, Head, KeysValues
from ocdit_core.models.embeddings import FourierFeatures, NoiseEmbedding, QueryEmbedding, TemplateEmbedding
from ocdit_core.models.matching_prior import PriorMaps
from ocdit_core.models.representation import FeatureProjection, PresenceToken, RepresentationConfig


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Denoiser configuration; the defaults are those of the published code (the paper's coarse model has 24 blocks).

    Attributes:
        width: channels D of the tokens.
        depth: number of blocks.
        heads: attention heads.
        max_objects: number of learned object positions.
        max_views: number of learned view positions.
        gradient_checkpointing: recompute the blocks' activations in the backward pass, to save memory.
        representation: representation entanglement, not part of the paper; None is the published architecture.
    """

    width: int = 1024
    depth: int = 12
    heads: int = 16
    max_objects: int = 8
    max_views: int = 12
    gradient_checkpointing: bool = False
    representation: RepresentationConfig | None = None

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"heads: {self.heads} does not divide width {self.width}")
        if self.representation and not 0 <= self.representation.block <= self.depth:
            raise ConfigError(f"representation.block: {self.representation.block} must be 0 to {self.depth}, the depth")


@dataclass(frozen=True, kw_only=True)
class TargetTokens:
    """Template tokens of target objects, the same for all images, noise levels and ensemble members.

    Attributes:
        keys_values: keys and values for each block, (B O, heads, V T, D / heads).
        object_indices: (B, O) learned position of each object.
    """

    keys_values: tuple[KeysValues, ...]
    object_indices: Tensor


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What the denoiser is conditioned on, the same for all noise levels and ensemble members.

    Attributes:
        queries: (B, W, O, h w, D) image part of the query tokens, for W crops that share one set of targets.
        templates: keys and values of the template tokens for each block, (B O, heads, V T, D / heads).
        grid: (h, w) of the latents.
        prior: maps of the matching prior for each crop; None without it.
        draft: (B, W, O, z, h, w) the matching prior's estimate of the latents; None without it.
        cells: (B, W, O, P) int64 cells of each object that are computed, F_theta being 0 in all others; None: all.
        mask: (B, W, O, P) bool, with `cells`: which of them count; the rest fill up the rows.
    """

    queries: Tensor
    templates: tuple[KeysValues, ...]
    grid: tuple[int, int]
    prior: PriorMaps | None = None
    draft: Tensor | None = None
    cells: Tensor | None = None
    mask: Tensor | None = None

    def where(self, kept: Tensor, other: Conditioning) -> Conditioning:
        """Return this conditioning with that of another in the sets of targets that are not kept, (B,) bool."""

        def merged(own: Tensor, given: Tensor) -> Tensor:
            rows = kept.repeat_interleave(len(own) // len(kept))
            return torch.where(rows.view(-1, *[1] * (own.ndim - 1)), own, given)

        draft = self.draft
        if draft is not None:
            draft = merged(draft, torch.zeros_like(draft) if other.draft is None else other.draft)
        pairs = zip(self.templates, other.templates, strict=True)
        return dataclasses.replace(
            self,
            queries=merged(self.queries, other.queries),
            templates=tuple((merged(a, c), merged(b, d)) for (a, b), (c, d) in pairs),
            draft=draft,
        )

    def exchanged(self, others: Tensor) -> Conditioning:
        """Return the conditioning of each object on the templates of another one, (B, O) int64 indices."""
        sets, objects = others.shape
        first = objects * torch.arange(sets, device=others.device)[:, None]
        rows = (first + others).flatten()

        def picked(part: Tensor) -> Tensor:
            return torch.stack([own[:, chosen] for own, chosen in zip(part, others, strict=True)])

        return dataclasses.replace(
            self,
            queries=picked(self.queries),
            templates=tuple((keys[rows], values[rows]) for keys, values in self.templates),
            draft=None if self.draft is None else picked(self.draft),
        )


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """One noise level for all samples and members, with all that depends on it alone.

    Attributes:
        sigma: (1, 1) noise level.
        embedding: (1, 1, D) noise embedding.
        blocks: modulations of each block.
        head: modulation of the head.
        c_skip: c_skip of eq. (5).
        c_out: c_out of eq. (5).
        c_in: c_in of eq. (5).
    """

    sigma: Tensor
    embedding: Tensor
    blocks: tuple[BlockLevel, ...]
    head: FoldedNorm
    c_skip: float
    c_out: float
    c_in: float


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """Result of one evaluation.

    Attributes:
        latents: (B, E, O, z, h, w) D_theta of the mask latents.
        presence: (B, E, O, C) D_theta of the presence tokens; None without them.
        middle: (B, E, O, h w, D) query tokens for the feature projection; None except in training with it.
    """

    latents: Tensor
    presence: Tensor | None = None
    middle: Tensor | None = None


class Denoiser(nn.Module):
    """F_theta with its embeddings, and D_theta of eq. (5) around it."""

    def __init__(
        self,
        config: DenoiserConfig,
        *,
        features: int,
        latents: int,
        grid: tuple[int, int],
        template_grid: tuple[int, int],
    ):
        super().__init__()
        self.config, self.latents = config, latents
        self.noise_embedding = NoiseEmbedding(config.width)
        self.query_embedding = QueryEmbedding(features, latents, config.width, grid, config.max_objects)
        self.template_embedding = TemplateEmbedding(
            features, config.width, template_grid, config.max_objects, config.max_views
        )
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.head = Head(config.width, latents)
        # eq. (6): u(sigma)
        self.log_variance = nn.Sequential(FourierFeatures(128), nn.Linear(128, 1))
        self._compiled: Callable[..., tuple[Tensor, Tensor, Tensor | None]] | None = None
        option = config.representation
        self.projection = FeatureProjection(config.width, features) if option and option.projection else None
        self.presence = PresenceToken(config.width, features) if option and option.presence_token else None

    def encode_targets(self, template_features: Tensor, object_indices: Tensor, view_indices: Tensor) -> TargetTokens:
        """Return the template tokens.

        Args:
            template_features: (B, O, V, C, t, t) backbone features of the templates.
            object_indices: (B, O) learned positions of the objects.
            view_indices: (B, V) learned positions of the views.
        """
        tokens = self.template_embedding(template_features, object_indices, view_indices)
        tokens = rearrange(tokens, "b o t d -> (b o) t d")
        return TargetTokens(
            keys_values=tuple(block.cross_attention.keys_values(tokens) for block in self._blocks()),
            object_indices=object_indices,
        )

    def condition(
        self,
        image_features: Tensor,
        targets: TargetTokens,
        query_addition: Tensor | None = None,
        prior: PriorMaps | None = None,
    ) -> Conditioning:
        """Return what all evaluations of an image share.

        Args:
            image_features: (B W, C, h, w) backbone features, W crops for each set of targets.
            targets: template tokens of B sets of targets.
            query_addition: (B W, O, h w, D) output of the matching prior, added to the query tokens.
            prior: maps of the matching prior, passed on.
        """
        sets = targets.object_indices.shape[0]
        indices = targets.object_indices.repeat_interleave(image_features.shape[0] // sets, dim=0)
        queries = self.query_embedding.image_part(image_features, indices)
        if query_addition is not None:
            queries = queries + query_addition
        return Conditioning(
            queries=rearrange(queries, "(b w) o p d -> b w o p d", b=sets),
            templates=targets.keys_values,
            grid=(image_features.shape[2], image_features.shape[3]),
            prior=prior,
            draft=None if prior is None else prior.draft.unflatten(0, (sets, -1)),
        )

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def level(self, sigma: float) -> NoiseLevel:
        """Return what depends on a noise level alone; `forward` takes it in place of the noise level."""
        # On the CPU and as numbers: no evaluation waits for the device to read them.
        here = torch.tensor(sigma, dtype=torch.float32)
        there = here.to(self.query_embedding.proj.weight.device)
        embedding = self.noise_embedding(edm.c_noise(there)).float()
        return NoiseLevel(
            sigma=there.view(1, 1),
            embedding=embedding.view(1, 1, -1),
            blocks=tuple(block.level(embedding) for block in self._blocks()),
            head=self.head.level(embedding),
            c_skip=edm.c_skip(here).item(),
            c_out=edm.c_out(here).item(),
            c_in=edm.c_in(here).item(),
        )

    @property
    def token_channels(self) -> int:
        """Channels C of the presence tokens; 0 without them."""
        return 0 if self.presence is None else len(self.presence.mean)

    def start(self, shape: Sequence[int], grid: tuple[int, int], generator: torch.Generator | None) -> Tensor:
        """Return samples of N(0, I), on the CPU, for `denoise`: (*shape, z h w + C)."""
        latents = torch.randn(*shape, self.latents, *grid, generator=generator).flatten(-3)
        return torch.cat([latents, torch.randn(*shape, self.token_channels, generator=generator)], dim=-1)

    def split(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Return the latents (..., z, h, w) of what `denoise` takes, and the presence tokens (..., C), if any."""
        latents = x[..., : x.shape[-1] - self.token_channels].unflatten(-1, (self.latents, *grid))
        return latents, x[..., -self.token_channels :] if self.token_channels else None

    def denoise(self, x: Tensor, sigma: float | NoiseLevel, conditioning: Conditioning) -> Tensor:
        """Evaluate D_theta of latents and presence tokens side by side, as samplers see them: (B, E, O, z h w + C)."""
        latents, presence = self.split(x, conditioning.grid)
        found = self(latents, sigma, conditioning, presence)
        denoised = found.latents.flatten(3)
        return denoised if found.presence is None else torch.cat([denoised, found.presence.to(denoised)], dim=-1)

    def forward(
        self,
        latents: Tensor,
        sigma: float | Tensor | NoiseLevel,
        conditioning: Conditioning,
        presence: Tensor | None = None,
    ) -> Denoised:
        """Evaluate D_theta.

        Args:
            latents: (B, E, O, z, h, w) noisy latents of E ensemble members or noise draws. With W crops, E is a
                multiple of W: the members of the first crop come first.
            sigma: (B, E) noise levels; or one for all, as a number, or as `level` returns it.
            conditioning: image and targets.
            presence: (B, E, O, C) noisy presence tokens, for a network that has them; by default their mean, which is
                what the highest noise level leaves of them.
        """
        c_skip: Tensor | float
        c_out: Tensor | float
        c_in: Tensor | float
        of_blocks: Sequence[Tensor | BlockLevel]
        of_head: Tensor | FoldedNorm
        if isinstance(sigma, NoiseLevel):
            c_skip, c_out, c_in, of_blocks, of_head = sigma.c_skip, sigma.c_out, sigma.c_in, sigma.blocks, sigma.head
            noise_embedding, sigma = sigma.embedding, sigma.sigma
        else:
            if isinstance(sigma, float):
                sigma = latents.new_full((1, 1), sigma)
            level = sigma[:, :, None, None, None, None]
            c_skip, c_out, c_in = edm.c_skip(level), edm.c_out(level), edm.c_in(level)
            noise_embedding = self.noise_embedding(edm.c_noise(sigma))
            of_blocks, of_head = [noise_embedding] * len(self.blocks), noise_embedding
        queries, crops = conditioning.queries, conditioning.queries.shape[1]
        if crops > 1:
            queries = queries.repeat_interleave(latents.shape[1] // crops, dim=1)
        tokens = self.query_embedding.latent_part(c_in * latents) + queries
        chosen, mask = conditioning.cells, conditioning.mask
        if chosen is not None and mask is not None:
            members = latents.shape[1] // crops
            chosen, mask = (part.repeat_interleave(members, dim=1)[..., None] for part in (chosen, mask))
            tokens = tokens.gather(3, chosen.expand(-1, -1, -1, -1, tokens.shape[4]))
        cells = tokens.shape[3]
        if self.presence is not None:
            if presence is None:
                presence = latents.new_zeros(*latents.shape[:3], len(self.presence.mean))
            tokens = torch.cat([tokens, self.presence.tokens_in(presence, sigma).to(tokens.dtype)], dim=3)

        transform = self._compiled or self.transform
        raw, tokens, middle = transform(tokens, of_blocks, of_head, conditioning.templates, cells, mask)
        if chosen is not None and mask is not None:
            everywhere = raw.new_zeros(*raw.shape[:3], queries.shape[3], raw.shape[4])
            raw = everywhere.scatter(3, chosen.expand_as(raw), raw * mask)
        raw = rearrange(raw, "b e o (h w) z -> b e o z h w", h=conditioning.grid[0])
        if self.presence is not None and presence is not None:
            presence = self.presence.denoised(tokens[:, :, :, cells:], presence, sigma, noise_embedding)
        # eq. (5)
        denoised = c_skip * latents + c_out * raw
        if conditioning.draft is not None:
            # The same with the draft as the mean of the data, in place of 0: F_theta only corrects it.
            members = latents.shape[1] // conditioning.draft.shape[1]
            denoised = denoised + (1 - c_skip) * conditioning.draft.repeat_interleave(members, dim=1)
        return Denoised(latents=denoised, presence=presence, middle=middle)

    def transform(
        self,
        tokens: Tensor,
        of_blocks: Sequence[Tensor | BlockLevel],
        of_head: Tensor | FoldedNorm,
        templates: Sequence[KeysValues],
        cells: int,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the blocks and the head.

        Args:
            tokens: (B, E, O, P, D); the first `cells` tokens of each object are queries.
            of_blocks: noise embedding or noise level for each block.
            of_head: noise embedding or noise level for the head.
            templates: keys and values for each block.
            cells: number of queries of each object.
            mask: (B, E, O, P, 1) bool, queries that all attend to; None: all of them.

        Returns:
            (B, E, O, cells, z) F_theta; (B, E, O, P, D) tokens after the last block; `Denoised.middle`.
        """
        middle, option = None, self.config.representation
        attended = None if mask is None else F.pad(mask[..., 0], (0, tokens.shape[3] - cells), value=True)
        attended = None if attended is None else rearrange(attended, "b e o p -> (b e) (o p)")
        of_all = zip(self._blocks(), of_blocks, templates, strict=True)
        for count, (block, noise, memory) in enumerate(of_all, start=1):
            if self.config.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, noise, memory, attended, use_reentrant=False)
            else:
                tokens = block(tokens, noise, memory, attended)
            projected = option is not None and count == (option.block or max(self.config.depth // 2, 1))
            if projected and self.projection is not None and self.training:
                middle = tokens[:, :, :, :cells]
        return self.head(tokens[:, :, :, :cells], of_head), tokens, middle

    def compile_transformer(self, mode: str) -> None:
        """Compile `transform` for inference, with a mode of torch.compile."""
        self._compiled = torch.compile(self.transform, mode=mode)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """Return u(sigma) of eq. (6): (B, E) -> (B, E)."""
        return self.log_variance(edm.c_noise(sigma))[..., 0]
