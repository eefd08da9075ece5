"""The network computed as published, with nothing saved between evaluations: the oracle of `Network.generate`.

Each ensemble member and each crop is evaluated on its own, by torch's attention modules; every evaluation embeds the
templates, projects them to keys and values and computes the modulations anew. Weights are shared with the model.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.diffusion import edm
from ocdit_core.diffusion.samplers import sample
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.blocks import Attention, Block
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet


class PlainNetwork:
    """Generates masks as `Network.generate` does."""

    def __init__(self, model: OCDiT, settings: InferenceSettings) -> None:
        self._model, self._settings = model, settings
        self._blocks = [PlainBlock(block) for block in model.denoiser.blocks if isinstance(block, Block)]

    @torch.inference_mode()
    def generate(self, image: ImageFeatures, targets: TargetSet, crops: int = 1) -> np.ndarray:
        """Return (B, W, O, h, w) float32 probabilities; see `Network.generate`."""
        sets, objects = targets.tokens.object_indices.shape
        windows, grid = len(image.features) // sets, image.features.shape[2:]
        generator = torch.Generator().manual_seed(0)
        shape = (crops * self._settings.ensemble, objects, self._model.config.vae.latent_channels, *grid)
        tokens = self._model.denoiser.token_channels
        noise = [torch.randn(shape, generator=generator), torch.randn(*shape[:2], tokens, generator=generator)]
        noise = torch.cat([part.flatten(2) for part in noise], dim=2).repeat(windows // crops, 1, 1)
        addition, maps = self._model.match(image, targets)
        members = self._settings.ensemble
        found = []
        for at in range(sets):
            templates, indices = targets.templates.features[at : at + 1], targets.tokens.object_indices[at : at + 1]
            for window in range(windows):
                number = at * windows + window
                part = None if addition is None else addition[number]
                draft = None if maps is None else maps.draft[number]
                features = image.features[number : number + 1]
                masks = []
                for member in range(members):

                    def denoise(x: Tensor, sigma: float) -> Tensor:
                        return self._denoise(x, x.new_tensor(sigma), features, templates, indices, part, draft)  # noqa: B023

                    clean = sample(denoise, noise[window * members + member], self._settings.sampler, generator)
                    latents = clean[:, : clean.shape[1] - tokens].unflatten(1, (-1, *grid))
                    masks.append(self._model.decode_masks(latents))
                found.append(torch.stack(masks).mean(0))
        return torch.stack(found).unflatten(0, (sets, windows)).numpy()

    def _denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        image: Tensor,
        templates: Tensor,
        indices: Tensor,
        addition: Tensor | None,
        draft: Tensor | None,
    ) -> Tensor:
        """Evaluate D_theta of eq. (5) for one member.

        Args:
            x: (O, z h w + C), noisy latents and presence tokens.
            sigma: () noise level.
            image: (1, C, h, w) features of the image.
            templates: (1, O, V, C, t, t) features of the templates.
            indices: (1, O) positions of the objects.
            addition: (O, h w, D) of the matching prior to the query tokens.
            draft: (O, z, h, w) of the matching prior.
        """
        denoiser = self._model.denoiser
        size = x.shape[1] - denoiser.token_channels
        latents, presence = x[:, :size].unflatten(1, (-1, *image.shape[2:])), x[:, size:]
        noise = denoiser.noise_embedding(edm.c_noise(sigma.view(1, 1)))
        tokens = self._queries(edm.c_in(sigma) * latents, image, indices)
        if addition is not None:
            tokens = tokens + addition
        cells = tokens.shape[1]
        if denoiser.presence is not None:
            tokens = torch.cat([tokens, denoiser.presence.embed(edm.c_in(sigma) * presence)[:, None]], dim=1)
        memory = self._templates(templates, indices)
        for block in self._blocks:
            tokens = block(tokens, noise, memory)
        raw = denoiser.head(tokens[None, None, :, :cells], noise)
        raw = rearrange(raw, "1 1 o (h w) z -> o z h w", h=latents.shape[2])
        # eq. (5)
        denoised = edm.c_skip(sigma) * latents + edm.c_out(sigma) * raw
        denoised = (denoised if draft is None else denoised + (1 - edm.c_skip(sigma)) * draft).flatten(1)
        if denoiser.presence is not None:
            shift, scale = (part.view(-1) for part in denoiser.presence.modulation(noise))
            raw = denoiser.presence.head(denoiser.presence.norm(tokens[:, cells]) * (1 + scale) + shift)
            denoised = torch.cat([denoised, edm.c_skip(sigma) * presence + edm.c_out(sigma) * raw], dim=1)
        return denoised

    def _queries(self, latents: Tensor, image: Tensor, indices: Tensor) -> Tensor:
        """(O, z, h, w) -> (O, h w, D): image features and latents concatenated, projected, and their positions."""
        embedding = self._model.denoiser.query_embedding
        cells = torch.cat([image.expand(len(latents), -1, -1, -1), latents], dim=1)
        tokens = embedding.proj(rearrange(cells, "o c h w -> o (h w) c"))
        tokens = tokens + embedding.patch_position((latents.shape[2], latents.shape[3]))
        return tokens + embedding.object_position(indices[0])[:, None]

    def _templates(self, features: Tensor, indices: Tensor) -> Tensor:
        """All template tokens of each object, (O, V T, D)."""
        denoiser = self._model.denoiser
        return denoiser.template_embedding(features, indices, torch.arange(features.shape[2])[None])[0]


class PlainBlock:
    """A block with torch's attention modules, on the weights of ours."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._cross_attention = as_torch(block.cross_attention)
        self._self_attention = as_torch(block.self_attention)

    def __call__(self, tokens: Tensor, noise: Tensor, templates: Tensor) -> Tensor:
        """Return the tokens (O, P, D) after the block, from (1, 1, D) and the template tokens (O, V T, D)."""
        block = self._block
        shift, scale, gate = (part.view(-1) for part in block.cross_modulation(noise))
        x = block.cross_norm(tokens) * (1 + scale) + shift
        tokens = tokens + gate * self._cross_attention(x, templates, templates)[0]

        shift, scale, gate = (part.view(-1) for part in block.self_modulation(noise))
        x = (block.self_norm(tokens) * (1 + scale) + shift).flatten(0, 1)[None]
        tokens = tokens + gate * self._self_attention(x, x, x)[0].view_as(tokens)

        shift, scale, gate = (part.view(-1) for part in block.mlp_modulation(noise))
        x = block.mlp_norm(tokens) * (1 + scale) + shift
        return tokens + gate * block.mlp.fc2(F.gelu(block.mlp.fc1(x), approximate="tanh"))


def as_torch(attention: Attention) -> nn.MultiheadAttention:
    """Return torch's own module, in evaluation mode, on the same weights."""
    width = attention.out_proj.in_features
    module = nn.MultiheadAttention(width, attention.heads, batch_first=True, device="meta")
    module.load_state_dict(
        {
            "in_proj_weight": attention.in_proj.weight,
            "in_proj_bias": attention.in_proj.bias,
            "out_proj.weight": attention.out_proj.weight,
            "out_proj.bias": attention.out_proj.bias,
        },
        assign=True,
    )
    return module.eval()
