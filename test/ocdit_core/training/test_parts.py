"""Parts of training on their own: validation figures, averages, the cache of features, drawing."""

import numpy as np
import pytest
import torch
from torch import nn

from ocdit_core.training.checkpoints import WeightAverage
from ocdit_core.training.diffusion_stage import FeatureCache
from ocdit_core.training.vae_stage import masked_mean
from ocdit_core.training.validation import mask_results, mask_sheets, summarise


def squares(*sides, size=32):
    masks = torch.zeros(len(sides), size, size)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = 1
    return masks


def test_metrics_of_a_validation():
    truth = squares(20, 20, 0, 0) > 0
    # Right, half of the area, a false mask, rightly nothing.
    found = squares(20, 14, 20, 2)
    results = mask_results(0.9 * found, truth, truth.any(2).any(1), torch.tensor([0.5, 0.7, 0.0, 0.0]))
    assert summarise(results) == {
        "iou": pytest.approx((1 + 14**2 / 20**2) / 2),
        "recall50": 0.5,
        "precision50": pytest.approx(1 / 3),
        "false_masks": 0.5,
        "prior_iou": pytest.approx(0.6),
    }
    assert [result.found for result in results] == [True, True, True, False]
    nothing = mask_results(squares(0), squares(20) > 0, torch.tensor([True]))
    assert summarise(nothing) == {"iou": 0.0, "recall50": 0.0}


def test_masked_mean():
    assert masked_mean(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([True, False, True])) == 2
    assert masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool)) == 0


def test_the_average_follows_the_weights_and_can_be_swapped_in():
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, decay=0.5)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    average.update(1)
    # (1 + 1) / (10 + 1) at first, not yet the decay.
    expected = start + 1 - 2 / 11
    torch.testing.assert_close(average.tensors["weight"], expected)
    with average.swapped():
        torch.testing.assert_close(model.weight.detach(), expected)
    torch.testing.assert_close(model.weight.detach(), start + 1)
    assert set(average.tensors) == {"weight"}
    with torch.no_grad():
        model.weight += 1
    average.update(1000)
    torch.testing.assert_close(average.tensors["weight"], (expected + start + 2) / 2)


def test_a_decay_of_zero_averages_nothing():
    model = nn.Linear(2, 1)
    average = WeightAverage(model, decay=0)
    for step in (1, 2):
        with torch.no_grad():
            model.weight += step
        average.update(step)
        assert torch.equal(average.tensors["weight"], model.weight)


def test_the_feature_cache_asks_the_backbone_only_for_views_it_has_not_seen():
    asked = []

    def backbone(views):
        asked.append(len(views))
        return views.mean((2, 3)), views.amax((1, 2, 3))

    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    cache = FeatureCache(1 << 20)
    for chosen in ([0, 1, 2, 1], [2, 0], [3, 1]):
        found, highest = cache.features(views[chosen], backbone)
        assert highest.shape == (len(chosen),)
        torch.testing.assert_close(found, views[chosen].float().mean((2, 3)) / 255)
    assert asked == [3, 1]
    assert (cache.misses, cache.hits) == (4, 4)


def test_the_feature_cache_gives_up_what_was_used_longest_ago():
    cache = FeatureCache(1 << 20)
    asked = []

    def backbone(views):
        asked.append(len(views))
        return (views.mean((1, 2, 3))[:, None].expand(-1, 100_000).contiguous(),)  # 0.4 MB each

    views = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    for i in (0, 1, 0, 2, 0, 1):
        cache.features(views[i : i + 1], backbone)
        assert cache.bytes <= 1 << 20
    assert asked == [1, 1, 1, 1]  # 0, 1, 2, and 1 once more


def test_drawings_show_the_masks():
    truth = torch.zeros(1, 2, 1, 48, 64, dtype=torch.uint8)
    truth[..., 10:30, 10:30] = 1
    batch = {"images": torch.full((1, 2, 3, 48, 64), 128, dtype=torch.uint8), "masks": truth}
    templates = torch.full((2, 1, 32, 32, 3), 200, dtype=torch.uint8)
    found = truth[0].float()
    found[1] = 0
    drawn = mask_sheets(batch, found, templates, 4)
    assert list(drawn) == ["masks_0", "masks_1"]
    right, nothing = drawn.values()
    assert right.dtype == np.uint8
    width = (right.shape[1] - 160) // 3
    assert np.array_equal(right[:, width : 2 * width], right[:, 2 * width : 3 * width])
    assert np.array_equal(nothing[:, :width], nothing[:, 2 * width : 3 * width])
    assert not np.array_equal(right, nothing)
    assert mask_sheets(batch, found, templates, 1).keys() == {"masks_0"}
