"""Models on disk: a folder with config.yaml and model.safetensors, and checkpoints in the published naming."""

import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ocdit_core.config import to_yaml
from ocdit_core.errors import ConfigError, WeightsError
from ocdit_core.files import replacing, write_text

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"


def write_checkpoint(
    folder: Path, config: object, state: Mapping[str, Tensor], *, half: bool = False, guard: bool = True
) -> None:
    """Write config.yaml and model.safetensors, each atomically.

    Args:
        folder: target folder, created where it is missing.
        config: dataclass of the model's configuration.
        state: the weights.
        half: store floating-point weights as float16.
        guard: refuse to replace files of others, see `files.replacing`.
    """
    tensors = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in state.items()
    }
    write_text(folder / CONFIG_FILE, to_yaml(config), guard=guard)
    with replacing(folder / WEIGHTS_FILE, guard=guard) as temporary:
        # save_file would create a file that only its owner can read.
        temporary.write_bytes(safetensors.torch.save(tensors))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged or not a safetensors file ({error})") from error


def check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Check that weights fit a model.

    Args:
        expected: state dict of the model.
        found: the weights.
        source: name of the weights in errors.

    Raises:
        WeightsError: a key is missing, unknown, of another shape or not finite; the first one is named.
    """
    for key, value in expected.items():
        if key not in found:
            raise WeightsError(f"{source}: {key} is missing; the model has it with shape {list(value.shape)}")
        if found[key].shape != value.shape:
            raise WeightsError(f"{source}: {key} has shape {list(found[key].shape)}, the model has {list(value.shape)}")
        tensor = found[key]
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{source}: {key} has values that are not finite")
    for key, value in found.items():
        if key not in expected:
            raise WeightsError(f"{source}: {key} of shape {list(value.shape)} is not part of the model")


def pick_device(name: str) -> torch.device:
    """Return a torch device.

    Args:
        name: auto (CUDA where available, else the CPU), cpu, cuda or cuda:N.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} torch finds no CUDA device; use auto or cpu")
    return device


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
