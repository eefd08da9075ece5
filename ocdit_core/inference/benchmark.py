"""Time of segmentation on this machine: by stage, number of objects, ensemble and image size."""

import dataclasses
import platform
import resource
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from ocdit_core.inference.network import collect_timings, lap
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.objects.archive import TEMPLATE_SIZE, ObjectTemplates, save_templates
from ocdit_core.objects.library import ObjectLibrary

Sizes = Literal["small", "guide", "paper"]
"""Networks with random weights. paper: the published coarse model, 24 blocks of width 1024. guide: the default of the
published code, 12 blocks. small: 6 blocks of width 256."""

IMAGE_SIZE = (480, 640)
_DENOISERS = {
    "small": DenoiserConfig(width=256, depth=6, heads=4),
    "guide": DenoiserConfig(),
    "paper": DenoiserConfig(depth=24, max_objects=16),
}
# DINOv2 ViT-S/14.
_BACKBONE = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "patch_size": 14,
    "image_size": 518,
}
# Cases of more seconds are measured once, without a warm-up run.
_LONG = 60.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured.

    Attributes:
        objects: number of targets.
        ensemble: size of the ensemble.
        image_size: (height, width) of the model input in pixels.
    """

    objects: int
    ensemble: int
    image_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times of a case: medians in seconds.

    Attributes:
        case: the case.
        encoding: encoding of the targets, once for many images; not a median.
        stages: stages of one image, and "total".
    """

    case: Case
    encoding: float
    stages: dict[str, float]


def random_model(sizes: Sizes) -> OCDiT:
    """Return a model of the published architecture with random weights."""
    backbone = BackboneConfig(kind="vit", architecture=_BACKBONE)
    torch.manual_seed(0)
    return OCDiT(OCDiTConfig(image_size=IMAGE_SIZE, backbone=backbone, denoiser=_DENOISERS[sizes])).eval()


def measure(
    model: OCDiT,
    cases: Sequence[Case],
    settings: InferenceSettings,
    *,
    device: str,
    repeats: int,
    refine: OCDiT | None = None,
) -> Iterator[Measured]:
    """Measure cases one after the other.

    Args:
        model: the coarse model.
        cases: what to measure.
        settings: inference settings; each case overrides its own.
        device: auto, cpu, cuda or cuda:N.
        repeats: images of each case.
        refine: the refine model.
    """
    with tempfile.TemporaryDirectory() as folder:
        scenes = {}
        for case in cases:
            scene = Path(folder, str(case.objects))
            if case.objects not in scenes:
                scenes[case.objects] = synthetic_scene(scene, case.objects)
            image, library = scenes[case.objects], ObjectLibrary(scene)
            own = dataclasses.replace(settings, ensemble=case.ensemble, image_size=case.image_size)
            segmenter = Segmenter(
                model, name="benchmark", device=device, settings=own, feature_cache=None, refine=refine
            )
            with collect_timings() as encoding:
                segmenter.set_objects(library)
                lap("encoding", torch.device(segmenter.device))
            # The first run warms up.
            first = segmenter.segment(image).timings
            runs = [first] if first["total"] > _LONG else [segmenter.segment(image).timings for _ in range(repeats)]
            stages = dict.fromkeys(stage for run in runs for stage in run)
            medians = {stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in stages}
            yield Measured(case=case, encoding=encoding["total"], stages=medians)


def synthetic_scene(folder: Path, objects: int, views: int = 12) -> np.ndarray:
    """Write a library of coloured ellipses, and return an image (480, 640, 3) uint8 that shows all of them."""
    rng = np.random.default_rng(0)
    height, width = IMAGE_SIZE
    image = np.full((height, width, 3), 90, np.uint8) + rng.integers(0, 20, (height, width, 3), np.uint8)
    columns = int(np.ceil(np.sqrt(objects * width / height)))
    rows = -(-objects // columns)
    for index in range(objects):
        hue = np.array([[[180 * index / objects, 200 + 55 * (index % 2), 120 + 60 * (index % 3)]]], np.uint8)
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        rgb = np.zeros((views, TEMPLATE_SIZE, TEMPLATE_SIZE, 3), np.uint8)
        mask = np.zeros((views, TEMPLATE_SIZE, TEMPLATE_SIZE), bool)
        for view in range(views):
            shape = np.zeros((TEMPLATE_SIZE, TEMPLATE_SIZE), np.uint8)
            cv2.ellipse(shape, (64, 64), (58, 30 + 2 * view), 15 * view, 0, 360, 1, -1)
            mask[view] = shape > 0
            rgb[view][mask[view]] = colour
        nan = np.full((views, 1, 1), np.nan)
        save_templates(
            folder,
            ObjectTemplates(
                name=f"object_{index:03}",
                rgb=rgb,
                mask=mask,
                box=np.tile(np.array([0, 0, TEMPLATE_SIZE, TEMPLATE_SIZE], np.float32), (views, 1)),
                K=np.tile(nan, (1, 3, 3)),
                pose=np.tile(nan, (1, 4, 4)),
                points=np.zeros((0, 3), np.float32),
                diameter=float("nan"),
                origin="photos",
                unit="",
            ),
        )
        centre = (round(width * (index % columns + 0.5) / columns), round(height * (index // columns + 0.5) / rows))
        size = round(0.35 * min(width / columns, height / rows))
        cv2.ellipse(image, centre, (size, round(0.7 * size)), 15 * index, 0, 360, colour, -1)
    return image


def machine(device: torch.device) -> dict[str, Any]:
    """Return the hardware and software of a measurement."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
    }


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that torch has held on a GPU, or this process in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
