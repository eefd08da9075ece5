"""How long segmentation takes on this machine: by stage, number of objects, ensemble and size, fast against plain."""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ocdit_core.inference.packing import PackedLinear, can_pack
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.inference.targets import EncodedObjects
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.objects.archive import TEMPLATE_SIZE, ObjectTemplates, save_templates
from ocdit_core.objects.library import ObjectLibrary

Sizes = Literal["small", "guide", "paper"]
"""Sizes of networks with random weights. paper: the published coarse model, 24 blocks of width 1024; guide: the same
with 12 blocks, the default of the published code; small: 6 blocks of width 256."""

PICTURE = (480, 640)
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
# A case that takes longer than this is measured once, without a run to warm up.
_LONG = 60.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured.

    Attributes:
        objects: targets.
        ensemble: initial noises.
        image_size: (height, width) that the network sees.
    """

    objects: int
    ensemble: int
    image_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a case takes: medians over its repeats, in seconds.

    Attributes:
        case: what was measured.
        encoding: of the objects' views, once for many images.
        plain_encoding: the same by the plain path; None where that was not measured.
        stages: of one image on the fast path; "total" among them.
        plain: of one image on the plain path, likewise; None where it was not asked for.
        tflop: arithmetic of one image on the fast path, 10^12 additions and multiplications.
        floor: seconds that this arithmetic takes at the peak rate.
    """

    case: Case
    encoding: float
    plain_encoding: float | None
    stages: dict[str, float]
    plain: dict[str, float] | None
    tflop: float
    floor: float


def random_model(sizes: Sizes, image_size: tuple[int, int] = PICTURE) -> OCDiT:
    """Return a model of the published architecture with random weights: as slow as a trained one."""
    backbone = BackboneConfig(kind="vit", architecture=_BACKBONE)
    torch.manual_seed(0)
    return OCDiT(OCDiTConfig(image_size=image_size, backbone=backbone, denoiser=_DENOISERS[sizes])).eval()


def flop_counter() -> FlopCounterMode:
    """Return a counter of arithmetic that knows torch's attention kernel for CPUs and packed layers too."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(queries: Any, keys: Any, values: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(queries, keys, values)

    def linear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    known: dict[Any, Any] = {on_cpu: attention}
    if can_pack():
        known[torch.ops.mkldnn._linear_pointwise] = linear
    return FlopCounterMode(display=False, custom_mapping=known)


def peak_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of a large matrix product on the device, in 10^12 operations a second: the best of several."""
    side = 8192 if device.type == "cuda" else 1536
    a = torch.randn(side, side, device=device, dtype=dtype)
    products: list[Callable[[Tensor], Tensor]] = [a.matmul]
    if device.type == "cpu" and dtype == torch.float32 and can_pack():
        products.append(PackedLinear(nn.Linear(side, side)))
    best = 0.0
    with torch.inference_mode():
        for product in 5 * products:
            started = _now(device)
            product(a)
            best = max(best, 2 * side**3 / (_now(device) - started) / 1e12)
    return best


def measure(
    model: OCDiT,
    cases: Sequence[Case],
    settings: InferenceSettings,
    *,
    device: str,
    repeats: int,
    peak: float,
    plain: bool = True,
    refine: OCDiT | None = None,
) -> Iterator[Measured]:
    """Measure cases one after the other; fast and plain runs alternate, so that a busy machine slows down both alike.

    Args:
        model: the coarse model.
        cases: what to measure.
        settings: of the inference, for what cases leave open.
        device: auto, cpu, cuda ...
        repeats: of each case.
        peak: rate of the device in 10^12 operations a second.
        plain: whether to measure the plain path too.
        refine: the refine model.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture = made_up(Path(folder), max(case.objects for case in cases))
        library = ObjectLibrary(folder)
        for case in cases:
            own = dataclasses.replace(settings, ensemble=case.ensemble, image_size=case.image_size)
            paths = [own] + [dataclasses.replace(own, plain=True, compile=False)] * plain
            segmenters = [
                Segmenter(model, name="benchmark", device=device, settings=one, feature_cache=None, refine=refine)
                for one in paths
            ]
            encodings = []
            for segmenter in segmenters:
                seconds, objects = _encoded(segmenter, library, library.object_ids[: case.objects])
                encodings.append(seconds)
            with flop_counter() as counter:
                first = segmenters[0].segment(picture, objects).timings
            runs: list[list[dict[str, float]]] = [[] for _ in segmenters]
            if first["total"] > _LONG:
                runs[0].append(first)
            for number in range(repeats + 1):
                for segmenter, taken in zip(segmenters, runs, strict=True):
                    if taken and taken[0]["total"] > _LONG:
                        continue
                    timings = segmenter.segment(picture, objects).timings
                    # The first run warms up, unless it took long enough to tell.
                    if number or timings["total"] > _LONG:
                        taken.append(timings)
            tflop = counter.get_total_flops() / 1e12
            yield Measured(
                case=case,
                encoding=encodings[0],
                plain_encoding=encodings[1] if plain else None,
                stages=_medians(runs[0]),
                plain=_medians(runs[1]) if plain else None,
                tflop=tflop,
                floor=tflop / peak,
            )


def _encoded(segmenter: Segmenter, library: ObjectLibrary, names: Sequence[str]) -> tuple[float, EncodedObjects]:
    """Encode objects, twice unless that takes long; returns the seconds that it takes and the objects."""
    device = torch.device(segmenter.device)
    seconds: list[float] = []
    while not seconds or (len(seconds) < 2 and seconds[0] <= _LONG):
        started = _now(device)
        objects = segmenter.encode_objects(library, names)
        seconds.append(_now(device) - started)
    return min(seconds), objects


def made_up(folder: Path, objects: int, views: int = 12) -> np.ndarray:
    """Write a library of coloured shapes, and return an image (480, 640, 3) uint8 that shows all of them."""
    rng = np.random.default_rng(0)
    height, width = PICTURE
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
    """Return what the figures were measured on and with."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
    }


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    stages = dict.fromkeys(stage for run in runs for stage in run)
    return {stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in stages}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
