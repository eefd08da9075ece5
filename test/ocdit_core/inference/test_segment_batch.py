"""Images of several cameras at once: what each would give alone."""

import numpy as np
import pytest
import torch
from builders import TINY_MODEL

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ImageError
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.ocdit import OCDiT


@pytest.fixture(scope="module")
def library(rendered_library):
    return ObjectLibrary(rendered_library)


def make_segmenter(settings):
    torch.manual_seed(0)
    model = OCDiT(TINY_MODEL)
    with torch.no_grad():
        # Random weights of a fresh model say the same of every picture: its last layers begin at zero.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return Segmenter(model, name="random", device="cpu", settings=settings, feature_cache=None)


@pytest.mark.parametrize(
    "settings",
    [
        InferenceSettings(score_threshold=0.0),
        InferenceSettings(score_threshold=0.0, crops=2, ensemble=2, guided_crop=True, mask_threshold=0.3),
        InferenceSettings(score_threshold=0.0, sampler=SamplerConfig(steps=2)),
    ],
    ids=["posterior mean", "crops and ensemble", "sampled"],
)
def test_a_batch_gives_what_each_image_gives_alone(library, settings):
    segmenter = make_segmenter(InferenceSettings(**{**vars(settings), "uncertainty": True}))
    segmenter.set_objects(library)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((96, 128), (150, 100), (40, 300))]
    together = segmenter.segment_batch(images)
    for image, result in zip(images, together, strict=True):
        alone = segmenter.segment(image)
        assert result.image_size == image.shape[:2]
        assert np.abs(result.uncertainty - alone.uncertainty).max() < 1e-4
        assert [instance.object_id for instance in result.instances] == [one.object_id for one in alone.instances]
        for a, b in zip(result.instances, alone.instances, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-4)
            assert np.mean(a.mask != b.mask) < 1e-3
    # The pictures differ, so a mix-up would show.
    assert np.abs(together[0].uncertainty.mean() - together[1].uncertainty.mean()) > 1e-4
    assert together[0].timings == together[1].timings


def test_a_bad_image_and_no_image(library):
    segmenter = make_segmenter(InferenceSettings())
    segmenter.set_objects(library)
    assert segmenter.segment_batch([]) == []
    with pytest.raises(ImageError):
        segmenter.segment_batch([np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 3), np.uint8)])
