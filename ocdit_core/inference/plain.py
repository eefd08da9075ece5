"""The network computed as it was published, with nothing saved between evaluations: the reference of the fast path.

Each ensemble member and each window is evaluated on its own, by torch's attention modules; every evaluation embeds the
templates, projects them to keys and values and computes the modulations anew. Weights are shared with the model.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ocdit_core.diffusion.samplers import Denoise
from ocdit_core.models.blocks import Attention, Block
from ocdit_core.models.embeddings import inference_positions
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, TargetSet


class PlainPath:
    """Evaluates a model's denoiser as published.

    Args:
        model: in evaluation; its weights are used, not copied.
    """

    def __init__(self, model: OCDiT) -> None:
        self._model = model
        self._blocks = [PlainBlock(block) for block in model.denoiser.blocks if isinstance(block, Block)]

    def denoise_for(self, image: ImageFeatures, targets: TargetSet, addition: Tensor | None) -> Denoise:
        """Return D_theta of (B, W E, O, z, h, w), which evaluates each member of each window on its own.

        Args:
            image: of B W pictures, W windows for each set of targets.
            targets: B sets of O objects.
            addition: (B W, O, h w, D) to the query tokens, from the matching prior, which is not published.
        """

        def denoise(x: Tensor, sigma: float) -> Tensor:
            sets, units = x.shape[:2]
            members = units // (len(image.features) // sets)
            found = []
            for number in range(sets * units):
                at, unit = divmod(number, units)
                picture = number // members
                features = targets.templates.features[at : at + 1]
                indices = targets.tokens.object_indices[at : at + 1]
                one = None if addition is None else addition[picture]
                found.append(
                    self._denoise(
                        x[at, unit], x.new_tensor(sigma), image.features[picture : picture + 1], features, indices, one
                    )
                )
            return torch.stack(found).unflatten(0, (sets, units))

        return denoise

    def _denoise(
        self,
        latents: Tensor,
        sigma: Tensor,
        image: Tensor,
        templates: Tensor,
        indices: Tensor,
        addition: Tensor | None,
    ) -> Tensor:
        """Evaluate D_theta of eq. (5) for one member, anew from the features.

        Args:
            latents: (O, z, h, w), noisy.
            sigma: () noise level.
            image: (1, C, h, w) features of the picture.
            templates: (1, O, V, C, t, t) features of the objects' views.
            indices: (1, O) positions of the objects.
            addition: (O, h w, D) to the query tokens.
        """
        denoiser, p = self._model.denoiser, self._model.denoiser.preconditioning
        noise = denoiser.noise_embedding(p.c_noise(sigma.view(1, 1)))
        tokens = self._queries(p.c_in(sigma) * latents, image, indices)
        if addition is not None:
            tokens = tokens + addition
        cells = tokens.shape[1]
        if denoiser.presence is not None:
            absent = latents.new_zeros(1, 1, len(tokens), len(denoiser.presence.mean))
            tokens = torch.cat([tokens, denoiser.presence.tokens_in(absent, sigma.view(1, 1))[0, 0]], dim=1)
        memory = self._templates(templates, indices)
        for block in self._blocks:
            tokens = block(tokens, noise, memory)
        raw = denoiser.head(tokens[None, None, :, :cells], noise)
        raw = rearrange(raw, "1 1 o (h w) z -> o z h w", h=latents.shape[2])
        # eq. (5)
        return p.c_skip(sigma) * latents + p.c_out(sigma) * raw

    def _queries(self, latents: Tensor, image: Tensor, indices: Tensor) -> Tensor:
        """(O, z, h, w) -> (O, h w, D): image features and latents side by side, projected, and their positions."""
        embedding = self._model.denoiser.query_embedding
        cells = torch.cat([image.expand(len(latents), -1, -1, -1), latents], dim=1)
        tokens = embedding.proj(rearrange(cells, "o c h w -> o (h w) c"))
        tokens = tokens + embedding.patch_position((latents.shape[2], latents.shape[3]))
        return tokens + embedding.object_position(indices[0])[:, None]

    def _templates(self, features: Tensor, indices: Tensor) -> Tensor:
        """All template tokens of each object, (O, V T, D)."""
        denoiser = self._model.denoiser
        (views,) = inference_positions("interpolate", features.shape[2], denoiser.config.max_views)
        return denoiser.template_embedding(features, indices, views[None].to(features.device))[0]


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
    """Return torch's own module, in evaluation, on the same weights."""
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
