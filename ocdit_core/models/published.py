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

# Naming of the authors' code: (published pattern, ours), applied in order. Only names and shapes are known, as no
# weights are published yet; the tests check the numbers with synthetic weights.
_PUBLISHED_NAMES: tuple[tuple[str, str], ...] = (
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

# Not in published checkpoints: their latents are not standardised, which these buffers' initial values stand for.
_OURS_ALONE = ("vae.latent_mean", "vae.latent_std")


def our_name(published: str) -> str:
    """Return our name of a published parameter.

    Raises:
        WeightsError: the published OC-DiT has no such parameter.
    """
    name = published
    for pattern, replacement in _PUBLISHED_NAMES:
        name = re.sub(pattern, replacement, name)
    if not name.startswith(("vae.encoder.", "vae.decoder.", "denoiser.")):
        raise WeightsError(f"{published}: not a parameter of the published OC-DiT")
    return name


def load_published(model: nn.Module, state: Mapping[str, Tensor], source: str = "published checkpoint") -> None:
    """Load a checkpoint in the published naming.

    The public DINOv2 of the checkpoint is left out: the backbone has it already.

    Args:
        model: an `OCDiT` of the published architecture.
        state: the checkpoint's tensors.
        source: name of the checkpoint in errors.

    Raises:
        WeightsError: a parameter is missing, unknown or of another shape; the first one is named.
    """
    own = model.state_dict()
    expected = {
        name: value for name, value in own.items() if not name.startswith("backbone.") and name not in _OURS_ALONE
    }
    found = {}
    for published in state:
        if not published.startswith(("vae.", "diffuser.")):
            continue
        name, value = our_name(published), state[published]
        # Our 1x1 convolutions are linear layers, and our positions have no axes of length 1.
        if name in expected and value.shape != expected[name].shape and value.numel() == expected[name].numel():
            squeezed = tuple(side for side in value.shape if side != 1)
            if squeezed == tuple(side for side in expected[name].shape if side != 1):
                value = value.reshape(expected[name].shape)
        found[name] = value
    check_state(expected, found, source)
    model.load_state_dict(found, strict=False)


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


def _dinov2_name(name: str) -> str:
    for pattern, replacement in _DINOV2_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def find_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the DINOv2 of a state dict, bundled or alone, in one naming; empty where there is none."""
    first = re.compile(r"(.*?)(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.weight")
    before = next((match[1] for key in state if (match := first.fullmatch(key))), None)
    found: dict[str, Tensor] = {}
    for key, value in state.items() if before is not None else ():
        if key.startswith(before or ""):
            name = _dinov2_name(key.removeprefix(before or ""))
            if ".attn.qkv." in name:
                parts = zip("qkv", value.chunk(3), strict=True)
                found |= {name.replace(".qkv.", f".{letter}."): part for letter, part in parts}
            else:
                found[name] = value
    return found


def dinov2_architecture(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the transformers config of a DINOv2, given as `find_dinov2` returns it; raises WeightsError."""
    missing = [key for key in ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight") if key not in state]
    if missing:
        raise WeightsError(f"{source}: {missing[0]} is missing; not a DINOv2 of size S, B or L")
    hidden, patch = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[2]
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    return {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        **({"num_register_tokens": registers} if registers else {}),
        "hidden_size": hidden,
        "num_hidden_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "num_attention_heads": max(hidden // _DINOV2_HEAD_CHANNELS, 1),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] // hidden,
        "image_size": math.isqrt(state["pos_embed"].shape[1] - 1) * patch,
        "patch_size": patch,
    }


def load_dinov2(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a DINOv2, given as `find_dinov2` returns it, into the class of transformers; raises WeightsError."""
    own = network.state_dict()
    names = {_dinov2_name(name): name for name in own}
    found = {names.get(key, key): value for key, value in state.items()}
    check_state(own, found, source)
    network.load_state_dict(found)
