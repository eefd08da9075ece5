"""A real library, a real network without training, and the processes' environment, for tests of the whole way."""

import os
from pathlib import Path

import torch
import trimesh

from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.objects.onboarding import add_objects

ROOT = Path(__file__).resolve().parents[2]


def make_library(folder):
    """Render three objects, as `ocdit render` does."""
    meshes = {
        "box": trimesh.creation.box((0.1, 0.06, 0.04)),
        "can": trimesh.creation.cylinder(0.03, 0.1),
        "mug": trimesh.creation.capsule(0.06, 0.03),
    }
    files = []
    for name, mesh in meshes.items():
        mesh.visual.vertex_colors = {"box": (200, 40, 40, 255), "can": (40, 200, 40, 255), "mug": (40, 40, 200, 255)}[
            name
        ]
        files.append(folder.parent / f"{name}.ply")
        mesh.export(files[-1])
    add_objects(folder, files)
    return folder


def make_untrained_model(folder):
    """Save a very small network with random weights: its masks mean nothing, its mechanics are the real ones."""
    torch.manual_seed(0)
    config = OCDiTConfig(
        image_size=(96, 128),
        template_size=(64, 64),
        backbone=BackboneConfig(kind="conv", frozen=False, channels=(8, 8, 16), blocks=1),
        vae=MaskVAEConfig(encoder_channels=(8, 8, 8, 16, 16), decoder_channels=(16, 16, 8, 8, 8), groups=4),
        denoiser=DenoiserConfig(width=32, depth=1, heads=2, max_objects=4, max_views=4),
    )
    OCDiT(config).save_pretrained(folder)
    return folder


def python_path():
    return f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
