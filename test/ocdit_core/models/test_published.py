"""Checkpoints in the naming of the published OC-DiT, of DINOv2's torch.hub and of transformers."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.cli import main
from ocdit_core.config import build
from ocdit_core.errors import WeightsError
from ocdit_core.models.backbones import BackboneConfig, ViTBackbone
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.models.published import (
    dinov2_architecture,
    find_dinov2,
    load_dinov2,
    load_published,
    published_config,
    read_checkpoint,
)

sys.path.insert(0, str(Path(__file__).parent))
from fill import array, value_of

DATA = Path(__file__).parents[2] / "data" / "parity"
# Features that the original DINOv2 code computes with weights filled by their names: `array("image", ...)` of 64 x 96
# pixels, resized to 56 x 84; width 64, 2 blocks, trained on 5 x 5 cells; without and with registers.
DINOV2 = np.load(DATA / "dinov2.npz")
FULL_SIZES = {"image_size": (480, 640), "template_size": (128, 128)}


def dinov2(registers: int = 0, layer: str = "blocks.{}") -> dict[str, torch.Tensor]:
    """Return the state dict of a small DINOv2 in the original naming."""
    shapes = {
        "cls_token": (1, 1, 64),
        "pos_embed": (1, 26, 64),
        "mask_token": (1, 64),
        "patch_embed.proj.weight": (64, 3, 14, 14),
        "patch_embed.proj.bias": (64,),
        **({"register_tokens": (1, registers, 64)} if registers else {}),
    }
    layers = {"attn.qkv": (192, 64), "attn.proj": (64, 64), "mlp.fc1": (256, 64), "mlp.fc2": (64, 256)}
    for index in range(2):
        for name, shape in layers.items():
            shapes |= {f"blocks.{index}.{name}.weight": shape, f"blocks.{index}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{index}.{name}"] = (64,)
    shapes |= {"norm.weight": (64,), "norm.bias": (64,)}
    state = {name: torch.from_numpy(value_of(name, shape)) for name, shape in shapes.items()}
    return {re.sub(r"^blocks\.(\d)", lambda match: layer.format(match[1]), name): v for name, v in state.items()}


def loaded(state: dict[str, torch.Tensor]) -> ViTBackbone:
    found = find_dinov2(state)
    backbone = ViTBackbone(BackboneConfig(architecture=dinov2_architecture(found, "dinov2"))).eval()
    load_dinov2(backbone.vit, found, "dinov2")
    return backbone


@pytest.mark.parametrize(("registers", "case"), [(0, "plain"), (2, "registers")])
@torch.no_grad()
def test_features_equal_those_of_the_original_dinov2(registers, case):
    image = torch.from_numpy(array("image", (1, 3, 64, 96), 0.5)).sigmoid()
    backbone = loaded(dinov2(registers))
    features, class_token = backbone.with_global_feature(image)
    assert np.abs(features.numpy() - DINOV2[f"{case}/features"]).max() < 1e-5
    assert np.abs(class_token.numpy() - DINOV2[f"{case}/class"]).max() < 1e-5
    # Blocks in chunks, and the naming of transformers 4.
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    names["o_proj"] = "output.dense"
    renamed = {
        re.sub(r"(?<=attention\.)[qkvo]_proj", lambda match: names[match[0]], key): value
        for key, value in backbone.vit.state_dict().items()
    }
    for state in (dinov2(registers, "blocks.0.{}"), renamed):
        assert torch.equal(loaded(state)(image), features)


@pytest.mark.parametrize("naming", ["original", "transformers"])
def test_a_wrong_tensor_of_dinov2_is_named_as_in_its_file(naming):
    state = {f"backbone.{key}": value for key, value in dinov2().items()}
    key = "backbone.blocks.1.attn.qkv.weight"
    if naming == "transformers":
        state = {f"backbone.{key}": value for key, value in loaded(dinov2()).vit.state_dict().items()}
        key = next(name for name in state if name.startswith("backbone.encoder.layer.1.") and state[name].ndim == 2)
    shape = list(state[key].shape)
    for change, message in (
        ({}, f"{key} is missing; the model has it with shape {shape}"),
        ({key: state[key][1:]}, f"{key} has shape {[shape[0] - 1, 64]}, the model has {shape}"),
        ({key: state[key], "backbone.surplus": state[key]}, f"backbone.surplus of shape {shape} is not part of"),
    ):
        with pytest.raises(WeightsError, match=re.escape(f"dinov2: {message}")):
            loaded({name: value for name, value in state.items() if name != key} | change)


def published(positions: int, wrapper: str = "") -> dict[str, torch.Tensor]:
    """Return a small state dict in the published naming for features of 64 channels and a grid of `positions`."""
    shapes = json.loads((DATA / "case_a.json").read_text())["parameters"]
    shapes["diffuser.queries_embedder.pe_patches.pe"][2] = positions
    shapes["diffuser.queries_embedder.embedder.proj.weight"][1] += 40
    shapes["diffuser.template_embedder.embedder.proj.weight"][1] += 40
    return {wrapper + name: torch.from_numpy(value_of(name, tuple(shape))) for name, shape in shapes.items()}


OPTIONS = ["--image-size", "112", "144", "--template-size", "64", "64", "--heads", "4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with its backbone, as Lightning stores it; its positions are those of patches of 14 pixels."""
    path = tmp_path_factory.mktemp("published") / "last.ckpt"
    state = published(80, "model.") | {f"model.feature_extractor.{name}": v for name, v in dinov2().items()}
    torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def test_a_checkpoint_becomes_a_model_folder_that_segments(checkpoint, tmp_path, capsys):
    sys.path.append(str(Path(__file__).parents[1] / "data"))
    from painted import write_library

    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "model"), *OPTIONS]) == 0
    assert "width 64, 3 blocks, 4 heads, 8 objects, 12 views" in capsys.readouterr().out
    model = OCDiT.from_pretrained(tmp_path / "model")
    assert model.config.grid == (8, 10)
    assert model.config.template_grid == (4, 4)
    state = published(80)
    assert torch.equal(
        model.denoiser.query_embedding.patch_position.table, state["diffuser.queries_embedder.pe_patches.pe"][0, 0]
    )
    image = torch.from_numpy(array("image", (1, 3, 64, 96), 0.5)).sigmoid()
    with torch.no_grad():
        assert np.abs(model.encode_image(image).features.numpy() - DINOV2["plain/features"]).max() < 1e-5
    segmenter = Segmenter.from_pretrained(tmp_path / "model", device="cpu", feature_cache=None)
    assert segmenter.settings.sampler.steps == 9
    assert segmenter.settings.image_size == (112, 144)
    segmenter.set_objects(ObjectLibrary(write_library(tmp_path / "objects", range(1, 3))))
    assert segmenter.segment(np.full((120, 160, 3), 99, np.uint8)).target_ids == ("obj_000001", "obj_000002")


def test_a_folder_with_a_published_checkpoint_is_a_model(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    torch.save(published(1530), tmp_path / "coarse.pth")
    torch.save(dinov2(), tmp_path / "dinov2.pth")
    model = OCDiT.from_published(
        tmp_path / "coarse.pth", template_size=(64, 64), heads=4, backbone=tmp_path / "dinov2.pth"
    )
    assert model.config.grid == (34, 45)
    assert model.config.backbone.architecture["hidden_size"] == 64
    safetensors.torch.save_file(published(1200), folder / "model.safetensors")
    with pytest.raises(WeightsError, match="width 64 cannot be inferred: give --heads"):
        OCDiT.from_pretrained(folder)


@pytest.mark.parametrize("depth", [12, 24])
def test_full_size_checkpoints_with_positions_of_patch_14_load(depth):
    shapes = json.loads((DATA / "published_state_dict.json").read_text())
    shapes["diffuser.queries_embedder.pe_patches.pe"][2] = 1530
    shapes["diffuser.template_embedder.pe_patches.pe"][3] = 81
    first = {name: shape for name, shape in shapes.items() if name.startswith("diffuser.decoder.blocks.0.")}
    for index in range(depth):
        shapes |= {name.replace("blocks.0.", f"blocks.{index}."): shape for name, shape in first.items()}
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        sizes = published_config(state, "coarse.pth", heads=None, **FULL_SIZES)
        backbone = {"architecture": {"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6}}
        model = OCDiT(build(OCDiTConfig, {**sizes, "backbone": backbone}))
    assert model.config.grid == (34, 45)
    assert model.config.template_grid == (9, 9)
    assert model.config.denoiser.depth == depth
    assert model.config.denoiser.heads == 16
    assert model.config.vae.channels == (32, 64, 128, 256, 256)
    load_published(model, state)


def damaged(state: dict[str, torch.Tensor], folder: Path) -> tuple[Path, list[str], str]:
    path = folder / "bad.pth"
    torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path, [], "bad.pth: damaged, or holds more than tensors"


FC1 = "diffuser.decoder.blocks.1.mlp.module.fc1.weight"


def missing(state: dict[str, torch.Tensor], folder: Path) -> tuple[Path, list[str], str]:
    del state[FC1]
    torch.save(state, folder / "short.pth")
    return folder / "short.pth", [], f"short.pth: {FC1} is missing; the model has it with shape [256, 64]"


def wrong_shape(state: dict[str, torch.Tensor], folder: Path) -> tuple[Path, list[str], str]:
    key = "diffuser.queries_embedder.embedder.proj.weight"
    state[key] = state[key][:, 1:]
    torch.save(state, folder / "shape.pth")
    return folder / "shape.pth", [], f"shape.pth: {key} has shape [64, 95, 1, 1], the model has [64, 96]"


def extra(state: dict[str, torch.Tensor], folder: Path) -> tuple[Path, list[str], str]:
    torch.save(state | {"diffuser.surplus": state[FC1]}, folder / "extra.pth")
    return folder / "extra.pth", [], "extra.pth: diffuser.surplus of shape [256, 64] is not part of the model"


def another_part(state: dict[str, torch.Tensor], folder: Path) -> tuple[Path, list[str], str]:
    torch.save({f"net.{k}": v for k, v in state.items()} | {"net.text.weight": state[FC1]}, folder / "part.pth")
    return folder / "part.pth", [], "part.pth: text.weight of shape [256, 64] is not part of the model"


def other(state: dict[str, torch.Tensor], folder: Path) -> tuple[Path, list[str], str]:
    torch.save(dinov2(), folder / "other.pth")
    return folder / "other.pth", [], "diffuser.sigma_embedder.proj.0.weight is missing; no published OC-DiT"


def another_size(state: dict[str, torch.Tensor], folder: Path) -> tuple[Path, list[str], str]:
    torch.save(state, folder / "size.pth")
    return folder / "size.pth", ["--image-size", "224", "224"], "has 80 positions, and images of 224 x 224 pixels"


def objects(state: dict[str, torch.Tensor], folder: Path) -> tuple[Path, list[str], str]:
    torch.save({"state_dict": {"config": Path("x")}}, folder / "code.pth")
    return folder / "code.pth", [], "code.pth: damaged, or holds more than tensors"


@pytest.mark.parametrize("make", [damaged, missing, wrong_shape, extra, another_part, other, another_size, objects])
def test_wrong_files_are_refused_and_nothing_is_written(make, tmp_path, capsys):
    path, options, message = make(published(80) | dinov2(), tmp_path)
    assert main(["convert", str(path), "--out", str(tmp_path / "out"), *OPTIONS, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_read_without_its_wrappers(tmp_path):
    torch.save({"model": {f"module.{name}": value for name, value in published(80).items()}}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").keys() == published(80).keys()
