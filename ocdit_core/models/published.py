"""Checkpoints of others: the published OC-DiT, and DINOv2 in the naming of torch.hub or of transformers."""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocdit_core.errors import WeightsError
from ocdit_core.models.checkpoints import check_state, read_weights
from ocdit_core.models.mask_vae import DOWNSAMPLING

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""Suffixes of checkpoints; all but the first are read by torch.load, tensors alone."""

_WRAPPERS = ("state_dict", "model")  # keys under which training programs store the state dict

# Naming of the authors' code: (our pattern, published), applied in order. Only names and shapes are known, as no
# weights are published yet; the tests check the numbers with synthetic weights.
_PUBLISHED_NAMES: tuple[tuple[str, str], ...] = (
    (r"^vae\.encoder\.posterior\.", "vae.model.model.quant_conv."),
    (r"^vae\.decoder\.prior\.", "vae.model.model.post_quant_conv."),
    (r"^vae\.(encoder|decoder)\.stem\.", r"vae.model.model.\1.conv_in."),
    (r"^vae\.(encoder|decoder)\.norm\.", r"vae.model.model.\1.conv_out.0."),
    (r"^vae\.(encoder|decoder)\.head\.", r"vae.model.model.\1.conv_out.2."),
    (r"^vae\.encoder\.layers\.", "vae.model.model.encoder.down_blocks."),
    (r"^vae\.decoder\.layers\.", "vae.model.model.decoder.up_blocks."),
    (r"^(vae\..*)\.norm1\.", r"\1.conv_first.0."),
    (r"^(vae\..*)\.conv1\.", r"\1.conv_first.2."),
    (r"^(vae\..*)\.norm2\.", r"\1.conv_second.0."),
    (r"^(vae\..*)\.conv2\.", r"\1.conv_second.2."),
    (r"^(vae\..*)\.shortcut\.", r"\1.residual_conv."),
    (r"^(vae\..*)\.qkv\.", r"\1.attention.in_proj_"),
    (r"^(vae\..*)\.out\.", r"\1.attention.out_proj."),
    (r"^denoiser\.noise_embedding\.fourier\.frequencies$", "diffuser.sigma_embedder.emb_fourier.freqs"),
    (r"^denoiser\.noise_embedding\.fourier\.phases$", "diffuser.sigma_embedder.emb_fourier.phases"),
    (r"^denoiser\.noise_embedding\.linear\.", "diffuser.sigma_embedder.proj.0."),
    (r"^denoiser\.query_embedding\.", "diffuser.queries_embedder."),
    (r"^denoiser\.template_embedding\.", "diffuser.template_embedder."),
    (r"^(diffuser\.\w+_embedder)\.proj\.(weight|bias)$", r"\1.embedder.proj.\2"),
    (r"^(diffuser\.\w+_embedder)\.patch_position\.table$", r"\1.pe_patches.pe"),
    (r"^(diffuser\.\w+_embedder)\.object_position\.table$", r"\1.pe_classes.pe"),
    (r"^(diffuser\.\w+_embedder)\.view_position\.table$", r"\1.pe_views.pe"),
    (r"^denoiser\.blocks\.", "diffuser.decoder.blocks."),
    (r"\.(cross|self)_norm\.", r".\1_attn.norm."),
    (r"\.(cross|self)_modulation\.linear\.", r".\1_attn.adaLN_modulation.1."),
    (r"\.(cross|self)_attention\.in_proj\.", r".\1_attn.module.\1_attn.in_proj_"),
    (r"\.(cross|self)_attention\.out_proj\.", r".\1_attn.module.\1_attn.out_proj."),
    (r"\.mlp\.(fc\d)\.", r".mlp.module.\1."),
    (r"\.mlp_norm\.", ".mlp.norm."),
    (r"\.mlp_modulation\.linear\.", ".mlp.adaLN_modulation.1."),
    (r"^denoiser\.head\.norm\.", "diffuser.final_layer.norm."),
    (r"^denoiser\.head\.mlp\.", "diffuser.final_layer.linear."),
    (r"^denoiser\.head\.modulation\.linear\.", "diffuser.final_layer.adaLN_modulation.1."),
    (r"^denoiser\.log_variance\.0\.frequencies$", "diffuser.logvar_mlp.0.freqs"),
    (r"^denoiser\.log_variance\.0\.phases$", "diffuser.logvar_mlp.0.phases"),
    (r"^denoiser\.log_variance\.1\.", "diffuser.logvar_mlp.1."),
)

# Not in published checkpoints: their latents are not standardised, which these buffers' initial values stand for.
_OURS_ALONE = ("vae.latent_mean", "vae.latent_std")


def published_name(name: str) -> str:
    """Return the published name of one of our parameters of the VAE or the denoiser."""
    for pattern, replacement in _PUBLISHED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_published(model: nn.Module, state: Mapping[str, Tensor], source: str = "published checkpoint") -> None:
    """Load a checkpoint in the published naming, but for a DINOv2 in it.

    Args:
        model: an `OCDiT` of the published architecture.
        state: the checkpoint's tensors.
        source: name of the checkpoint in errors.

    Raises:
        WeightsError: a parameter is missing, unknown or of another shape; the first one is named as in the checkpoint.
    """
    own = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("backbone.") and name not in _OURS_ALONE
    }
    backbone = find_dinov2(state)
    found = {key: value for key, value in state.items() if key not in backbone}
    for name, value in own.items():
        # Our 1x1 convolutions are linear layers, and our positions have no axes of length 1.
        given = found.get(published_name(name))
        if given is not None and _long_axes(given) == _long_axes(value):
            found[published_name(name)] = given.reshape(value.shape)
    check_state({published_name(name): value for name, value in own.items()}, found, source)
    model.load_state_dict({name: found[published_name(name)] for name in own}, strict=False)


def _long_axes(tensor: Tensor) -> list[int]:
    return [side for side in tensor.shape if side != 1]


def find_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of a folder that holds exactly one; None otherwise."""
    files = [path for path in folder.iterdir() if path.suffix in SUFFIXES]
    return files[0] if len(files) == 1 else None


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, without the wrappers and the common prefix that training programs add.

    Raises:
        WeightsError: the file is missing, damaged, or holds no named tensors.
    """
    if path.suffix == ".safetensors":
        state: Any = read_weights(path)
    elif not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, LookupError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WeightsError(f"{path}: damaged, or holds more than tensors ({reason})") from error
    while isinstance(state, Mapping) and (inner := [state[k] for k in _WRAPPERS if isinstance(state.get(k), Mapping)]):
        state = inner[0]
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise WeightsError(f"{path}: no named tensors; a checkpoint is a state dict, or holds one as {_WRAPPERS[0]!r}")
    before = next((key.partition("diffuser.")[0] for key in tensors if "diffuser." in key), "")
    return {key.removeprefix(before): value for key, value in tensors.items() if key.startswith(before)}


def published_config(
    state: Mapping[str, Tensor],
    source: str,
    *,
    image_size: tuple[int, int],
    template_size: tuple[int, int],
    heads: int | None,
) -> dict[str, Any]:
    """Return the configuration, but for the backbone, of a state dict in the published naming.

    Args:
        state: the state dict.
        source: name of the state dict in errors.
        image_size: (height, width) of the training images in pixels.
        template_size: (height, width) of the templates in pixels.
        heads: attention heads; None: the published 16, for the published width of 1024.

    Raises:
        WeightsError: the sizes cannot be inferred; the message names what is missing, or the option to give.
    """

    def shape(key: str) -> list[int]:
        if key not in state:
            raise WeightsError(f"{source}: {key} is missing; no published OC-DiT, nor our folder with config.yaml")
        return list(state[key].shape)

    width = shape("diffuser.sigma_embedder.proj.0.weight")[0]
    if heads is None and width != 1024:
        raise WeightsError(f"{source}: the heads of a network of width {width} cannot be inferred: give --heads")
    grids = {}
    for name, part, size in (("image", "queries", image_size), ("template", "template", template_size)):
        positions = math.prod(shape(f"diffuser.{part}_embedder.pe_patches.pe")) // width
        # The published code has a position for each patch of 14 pixels of the whole image.
        options = [(size[0] // patch, size[1] // patch) for patch in (DOWNSAMPLING, 14)]
        if not (fitting := [grid for grid in options if math.prod(grid) == positions]):
            raise WeightsError(
                f"{source}: diffuser.{part}_embedder.pe_patches.pe has {positions} positions, and {name}s of "
                f"{size[0]} x {size[1]} pixels {' or '.join(str(math.prod(grid)) for grid in options)}: give the "
                f"training size by --{name}-size"
            )
        grids[name] = list(fitting[0])
    # Each level of the encoder ends with a strided convolution.
    pattern = re.compile(r"vae\.model\.model\.encoder\.down_blocks\.(\d+)\.conv\.weight")
    ends = sorted(int(match[1]) for key in state if (match := pattern.fullmatch(key)))
    blocks = [int(match[1]) for key in state if (match := re.match(r"diffuser\.decoder\.blocks\.(\d+)\.", key))]
    return {
        "image_size": list(image_size),
        "template_size": list(template_size),
        "grid": grids["image"],
        "template_grid": grids["template"],
        "vae": {
            "channels": [
                shape("vae.model.model.encoder.conv_in.weight")[0],
                *(shape(f"vae.model.model.encoder.down_blocks.{end}.conv.weight")[0] for end in ends),
            ],
            "latent_channels": shape("vae.model.model.post_quant_conv.weight")[0],
            "blocks": ends[0] if ends else 1,
        },
        "denoiser": {
            "width": width,
            "depth": max(blocks, default=-1) + 1,
            "heads": heads or 16,
            "max_objects": math.prod(shape("diffuser.queries_embedder.pe_classes.pe")) // width,
            "max_views": math.prod(shape("diffuser.template_embedder.pe_views.pe")) // width,
        },
    }


# Names of DINOv2 in transformers 4 and 5, and in the original code where it splits the blocks into chunks: (pattern,
# name in the original code, but for its joint projection qkv).
_DINOV2_NAMES: tuple[tuple[str, str], ...] = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.(?:attention\.)?(q|k|v)\w+\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
)
_DINOV2_HEAD_CHANNELS = 64  # of all published sizes
_QKV = re.compile(r"\.attn\.([qkv])\.")


def _dinov2_name(name: str) -> str:
    for pattern, replacement in _DINOV2_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def find_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a DINOv2, alone or as a part of a state dict; empty where there is none."""
    before = _dinov2_prefix(state)
    if before is None:
        return {}
    return {k: v for k, v in state.items() if k.startswith(before) and not k.startswith(("vae.", "diffuser."))}


def _dinov2_prefix(state: Mapping[str, Tensor]) -> str | None:
    first = re.compile(r"(.*?)(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.weight")
    return next((match[1] for key in state if (match := first.fullmatch(key))), None)


def _dinov2_keys(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the keys of a DINOv2 by their names in the original code."""
    before = _dinov2_prefix(state) or ""
    return {_dinov2_name(key.removeprefix(before)): key for key in state}


def dinov2_architecture(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the transformers config of a DINOv2, given as `find_dinov2` returns it; raises WeightsError."""
    keys = _dinov2_keys(state)
    required = ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    if missing := [key for key in required if key not in keys]:
        raise WeightsError(f"{source}: {missing[0]} is missing; not a DINOv2 of size S, B or L")
    positions, patches, mlp = (state[keys[key]].shape for key in required)
    hidden, patch = patches[0], patches[2]
    registers = state[keys["register_tokens"]].shape[1] if "register_tokens" in keys else 0
    return {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        **({"num_register_tokens": registers} if registers else {}),
        "hidden_size": hidden,
        "num_hidden_layers": 1 + max(int(key.split(".")[1]) for key in keys if key.startswith("blocks.")),
        "num_attention_heads": max(hidden // _DINOV2_HEAD_CHANNELS, 1),
        "mlp_ratio": mlp[0] // hidden,
        "image_size": math.isqrt(positions[1] - 1) * patch,
        "patch_size": patch,
    }


def load_dinov2(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a DINOv2, given as `find_dinov2` returns it, into the class of transformers.

    Raises:
        WeightsError: a parameter is missing, unknown or of another shape; the first one is named as in the file.
    """
    before, keys = _dinov2_prefix(state) or "", _dinov2_keys(state)
    original = any(".attn.qkv." in name for name in keys)
    expected: dict[str, Tensor] = {}
    sources: list[tuple[str, str, str]] = []  # our name, the file's key, and which third of it, if any
    for own, value in network.state_dict().items():
        name, third = _dinov2_name(own), ""
        if original and (match := _QKV.search(name)):  # one projection for all three
            name, third = _QKV.sub(".attn.qkv.", name), match[1]
            value = torch.cat([value] * 3)
        key = keys.get(name, before + (name if original else own))
        expected[key] = value
        sources.append((own, key, third))
    check_state(expected, state, source)
    network.load_state_dict(
        {own: state[key].chunk(3)["qkv".index(third)] if third else state[key] for own, key, third in sources}
    )
