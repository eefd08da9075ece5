"""What the network is predicted to take, against what torch allocates."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ocdit_core.errors import ConfigError
from ocdit_core.inference.memory import GIB, Footprint, MemoryBudget, footprint, free_memory
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, OCDiTConfig, TemplateFeatures

CPU = torch.device("cpu")
CONFIG = OCDiTConfig(
    image_size=(96, 128),
    backbone=BackboneConfig(kind="conv", frozen=True, channels=(8, 8, 16)),
    denoiser=DenoiserConfig(width=128, depth=2, heads=4),
)


def allocated(work: Callable[[], torch.Tensor]) -> int:
    """Return the most bytes that torch holds at once, more than before, while it works."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ("objects", "members", "image_size", "mlp_ratio"),
    [(1, 1, (160, 208), 4.0), (4, 1, (96, 128), 4.0), (4, 3, (96, 128), 4.0), (2, 2, (96, 128), 2.0)],
)
@torch.inference_mode()
def test_predictions_are_within_30_percent(objects, members, image_size, mlp_ratio):
    sizes = dataclasses.replace(CONFIG.denoiser, mlp_ratio=mlp_ratio)
    config = dataclasses.replace(CONFIG, denoiser=sizes)
    model, grid = OCDiT(config).eval(), (image_size[0] // 16, image_size[1] // 16)
    targets = model.encode_targets(TemplateFeatures(features=torch.randn(1, objects, 2, 16, 4, 4)))
    conditioning = model.condition(ImageFeatures(features=torch.randn(1, 16, *grid)), targets)
    needs = footprint(config, objects=objects, image_size=image_size)
    level = model.denoiser.level(80.0)
    x = torch.randn(1, members, objects, 32, *grid)
    assert members * needs.evaluation == pytest.approx(
        allocated(lambda: model.denoiser(x, level, conditioning).latents), rel=0.3
    )
    masks = torch.randn(objects, 32, *grid)
    assert objects * needs.mask == pytest.approx(allocated(lambda: model.decode_masks(masks)), rel=0.3)
    assert conditioning.queries.nbytes == needs.window


def test_the_peak_of_one_batch():
    needs = Footprint(evaluation=100, mask=30, window=7)
    assert needs.peak(sets=1, windows=1, members=1, objects=2) == 107
    assert needs.peak(sets=2, windows=3, members=2, objects=4) == 6 * 7 + 12 * 4 * 30
    half = footprint(CONFIG, objects=8, image_size=(96, 128), half=True)
    assert half.evaluation < footprint(CONFIG, objects=8, image_size=(96, 128)).evaluation


def test_how_many_pieces_fit():
    budget = MemoryBudget(CPU, 1.0)
    budget.refresh(kept=GIB // 2)
    assert budget.most(GIB // 8) == 4
    # There is nothing smaller than one.
    assert budget.most(10 * GIB) == 1
    whole = MemoryBudget(CPU)
    whole.refresh()
    assert 1 < whole.most(2**20) < free_memory(CPU) / 2**20
    with pytest.raises(ConfigError, match="max_memory: -1"):
        MemoryBudget(CPU, -1)
