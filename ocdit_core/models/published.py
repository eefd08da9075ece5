"""Checkpoints of the authors' own code: their parameter names to ours.

Only names and shapes are known (no weights are published yet); parity in numbers is tested with filled weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ocdit_core.errors import WeightsError
from ocdit_core.models.checkpoint import check_state
from ocdit_core.models.ocdit import OCDiT

# (published pattern, ours); applied in order, each as often as it fits
_RULES: tuple[tuple[str, str], ...] = (
    (r"^vae\.model\.model\.quant_conv\.", "vae.encoder.posterior."),
    (r"^vae\.model\.model\.post_quant_conv\.", "vae.decoder.prior."),
    (r"^vae\.model\.model\.(encoder|decoder)\.conv_in\.", r"vae.\1.stem."),
    (r"^vae\.model\.model\.(encoder|decoder)\.conv_out\.0\.", r"vae.\1.norm."),
    (r"^vae\.model\.model\.(encoder|decoder)\.conv_out\.2\.", r"vae.\1.head."),
    (r"^vae\.model\.model\.(encoder|decoder)\.(?:down|up)_blocks\.", r"vae.\1.layers."),
    (r"^(vae\..*)\.conv_first\.0\.", r"\1.norm1."),
    (r"^(vae\..*)\.conv_first\.2\.", r"\1.conv1."),
    (r"^(vae\..*)\.conv_second\.0\.", r"\1.norm2."),
    (r"^(vae\..*)\.conv_second\.2\.", r"\1.conv2."),
    (r"^(vae\..*)\.residual_conv\.", r"\1.shortcut."),
    (r"^(vae\..*)\.attention\.in_proj_(weight|bias)$", r"\1.qkv.\2"),
    (r"^(vae\..*)\.attention\.out_proj\.", r"\1.out."),
    (r"^diffuser\.sigma_embedder\.emb_fourier\.freqs$", "denoiser.noise_embedding.fourier.frequencies"),
    (r"^diffuser\.sigma_embedder\.emb_fourier\.phases$", "denoiser.noise_embedding.fourier.phases"),
    (r"^diffuser\.sigma_embedder\.proj\.0\.", "denoiser.noise_embedding.linear."),
    (r"^diffuser\.queries_embedder\.", "denoiser.query_embedding."),
    (r"^diffuser\.template_embedder\.", "denoiser.template_embedding."),
    (r"^(denoiser\.\w+_embedding)\.embedder\.proj\.", r"\1.proj."),
    (r"^(denoiser\.\w+_embedding)\.pe_patches\.pe$", r"\1.patch_position.table"),
    (r"^(denoiser\.\w+_embedding)\.pe_classes\.pe$", r"\1.object_position.table"),
    (r"^(denoiser\.\w+_embedding)\.pe_views\.pe$", r"\1.view_position.table"),
    (r"^diffuser\.decoder\.blocks\.", "denoiser.blocks."),
    (r"^(denoiser\.blocks\.\d+)\.(cross|self)_attn\.norm\.", r"\1.\2_norm."),
    (r"^(denoiser\.blocks\.\d+)\.(cross|self)_attn\.adaLN_modulation\.1\.", r"\1.\2_modulation.linear."),
    (
        r"^(denoiser\.blocks\.\d+)\.(cross|self)_attn\.module\.\w+_attn\.in_proj_(weight|bias)$",
        r"\1.\2_attention.in_proj.\3",
    ),
    (r"^(denoiser\.blocks\.\d+)\.(cross|self)_attn\.module\.\w+_attn\.out_proj\.", r"\1.\2_attention.out_proj."),
    (r"^(denoiser\.blocks\.\d+)\.mlp\.norm\.", r"\1.mlp_norm."),
    (r"^(denoiser\.blocks\.\d+)\.mlp\.adaLN_modulation\.1\.", r"\1.mlp_modulation.linear."),
    (r"^(denoiser\.blocks\.\d+)\.mlp\.module\.", r"\1.mlp."),
    (r"^diffuser\.final_layer\.norm\.", "denoiser.head.norm."),
    (r"^diffuser\.final_layer\.linear\.", "denoiser.head.mlp."),
    (r"^diffuser\.final_layer\.adaLN_modulation\.1\.", "denoiser.head.modulation.linear."),
    (r"^diffuser\.logvar_mlp\.0\.freqs$", "denoiser.log_variance.0.frequencies"),
    (r"^diffuser\.logvar_mlp\.0\.phases$", "denoiser.log_variance.0.phases"),
    (r"^diffuser\.logvar_mlp\.1\.", "denoiser.log_variance.1."),
)

# What ours keeps beside the published parameters: the published latents have mean 0 and deviation 1, as these start.
_OURS_ALONE = ("vae.latent_mean", "vae.latent_std")


def our_name(published: str) -> str:
    """Return our name of a published parameter; raises WeightsError for a name of another model."""
    name = published
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    if not name.startswith(("vae.encoder.", "vae.decoder.", "denoiser.")):
        raise WeightsError(f"{published}: not a parameter of the published OC-DiT")
    return name


def _relevant(names: Iterable[str]) -> list[str]:
    """Leave out the feature extractor: it is the public DINOv2, which the backbone brings itself."""
    return [name for name in names if name.startswith(("vae.", "diffuser."))]


def load_published(model: OCDiT, state: Mapping[str, Tensor], source: str = "published checkpoint") -> None:
    """Load a checkpoint in the published naming into `model`.

    Raises:
        WeightsError: a parameter is missing, left over or of another shape; the first one is named.
    """
    own = model.state_dict()
    expected = {
        name: value for name, value in own.items() if not name.startswith("backbone.") and name not in _OURS_ALONE
    }
    found = {}
    for published in _relevant(state):
        name, value = our_name(published), state[published]
        # 1x1 convolutions are linear layers in ours, positions have no unit axes: same values, fewer axes.
        if name in expected and value.shape != expected[name].shape and value.numel() == expected[name].numel():
            squeezed = tuple(side for side in value.shape if side != 1)
            if squeezed == tuple(side for side in expected[name].shape if side != 1):
                value = value.reshape(expected[name].shape)
        found[name] = value
    check_state(expected, found, source)
    model.load_state_dict(found, strict=False)
