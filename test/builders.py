"""Builders that several tests share: a very small network, colourful meshes and a library of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import trimesh

from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.objects.onboarding import add_objects

TINY_MODEL = OCDiTConfig(
    image_size=(96, 128),
    template_size=(64, 64),
    backbone=BackboneConfig(kind="conv", frozen=False),
    vae=MaskVAEConfig(channels=(8, 8, 8, 16, 16)),
    denoiser=DenoiserConfig(width=32, depth=1, heads=2, max_objects=4, max_views=4),
)
# DINOv2's own class at a size that needs no download.
TINY_DINO = {
    "model_type": "dinov2",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
    "image_size": 56,
}
MESHES = {
    "box": (lambda: trimesh.creation.box((0.1, 0.06, 0.04)), (200, 40, 40, 255)),
    "can": (lambda: trimesh.creation.cylinder(0.03, 0.1), (40, 200, 40, 255)),
    "mug": (lambda: trimesh.creation.capsule(0.06, 0.03), (40, 40, 200, 255)),
}


def make_untrained_model(folder: Path, **changes: Any) -> Path:
    """Save a very small network with random weights: its masks mean nothing, its mechanics are the real ones."""
    torch.manual_seed(0)
    OCDiT(replace(TINY_MODEL, **changes)).save_pretrained(folder)
    return folder


def set_options(overrides: Sequence[str]) -> list[str]:
    """Return settings such as "loop.steps=6" as options of the command line; options among them stay as they are."""
    return [
        word for override in overrides for word in ([override] if override.startswith("--") else ["--set", override])
    ]


def make_mesh(path: Path, name: str = "box") -> Path:
    """Write one of MESHES, coloured; the suffix of `path` chooses the format."""
    build, colour = MESHES[name]
    mesh = build()
    mesh.visual.vertex_colors = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.export(path)
    return path


def make_library(folder: Path, names: Sequence[str] = ("box", "can", "mug")) -> Path:
    """Render some of MESHES, as `ocdit render` does; the mesh files lie beside `folder`."""
    add_objects(folder, [make_mesh(folder.parent / f"{name}.ply", name) for name in names])
    return folder
