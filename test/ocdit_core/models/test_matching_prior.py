import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ocdit_core.models import matching_prior
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.matching_prior import MatchingPrior, MatchingPriorConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.training.diffusion_stage import prior_loss


def described(prior, features, images, cells, templates, masks):
    return prior.describe_image(images, features), prior.describe_templates(templates, masks, cells)


def test_shapes_of_the_maps():
    torch.manual_seed(0)
    config = MatchingPriorConfig(metric_channels=8)
    prior = MatchingPrior(config, features=12, latents=4, width=16).eval()
    image, objects = described(
        prior,
        torch.randn(2, 12, 4, 6),
        torch.rand(2, 3, 64, 96),
        torch.randn(2, 3, 2, 12, 2, 2),
        torch.rand(2, 3, 2, 3, 32, 32),
        torch.ones(2, 3, 2, 32, 32),
    )
    maps = prior(image, objects)
    assert maps.channels.shape == (2, 3, 40, 4, 6)
    assert maps.logits.shape == (2, 3, 16, 24)
    assert maps.log_assignment.shape == (2, 3, 4, 4, 6)
    assert prior.query_part(maps).shape == (2, 3, 24, 16)


def test_the_backbones_similarity_is_1_where_a_cell_equals_a_template_cell():
    prior = MatchingPrior(MatchingPriorConfig(), features=12, latents=4, width=16).eval()
    templates = torch.randn(1, 2, 1, 12, 2, 2, generator=torch.Generator().manual_seed(1))
    features = torch.zeros(1, 12, 2, 4)
    features[..., :2] = templates[:, 1, 0]  # the left half of the image is the second object
    image, objects = described(
        prior,
        features,
        torch.rand(1, 3, 32, 64),
        templates,
        torch.rand(1, 2, 1, 3, 32, 32),
        torch.ones(1, 2, 1, 32, 32),
    )
    raw, _ = prior._similarities(image, objects)
    best = raw[0, :, 4 * 4].unflatten(1, (2, 4))  # the first channel of the fifth measure
    torch.testing.assert_close(best[1, :, :2], torch.ones(2, 2))
    assert (best[0] < 0.99).all()
    assert (best[1, :, 2:] == 0).all()


@pytest.mark.parametrize("batch", [1, 3])
def test_similarities_are_dot_products(batch):
    cells, templates = torch.randn(batch, 6, 2, 3), torch.randn(batch, 2, 5, 6)
    found = matching_prior._similarity(cells, templates)
    torch.testing.assert_close(found, torch.einsum("bdp,bond->bopn", cells.flatten(2), templates))


def test_colour_histograms_of_cells_sum_the_products_of_their_pixels_bins():
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(1, 1, 32, 48, generator=torch.Generator().manual_seed(1))
    found = matching_prior.cell_histograms(image, weights)
    axes = torch.stack(matching_prior.colour_axes(F.avg_pool2d(image, 2)))[:, 0]
    weights = F.avg_pool2d(weights, 2)[0, 0]
    for row, column in ((0, 0), (1, 2)):
        wanted, mass = np.zeros((4, 4, 4)), 0.0
        for y in range(8 * row, 8 * row + 8):
            for x in range(8 * column, 8 * column + 8):
                bins = [np.maximum(1 - np.abs(float(value) * 3 - np.arange(4)), 0) for value in axes[:, y, x]]
                wanted += float(weights[y, x]) * np.einsum("i,j,k->ijk", *bins)
                mass += float(weights[y, x])
        np.testing.assert_allclose(found[0, :, row, column], np.sqrt(wanted / mass).clip(1e-3).ravel(), atol=1e-4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = OCDiTConfig(
        image_size=(32, 48),
        template_size=(32, 32),
        backbone=BackboneConfig(kind="conv"),
        vae=MaskVAEConfig(channels=(8, 8, 8), latent_channels=4, blocks=1),
        denoiser=DenoiserConfig(width=32, depth=1, heads=2, max_objects=4, max_views=2),
        matching_prior=MatchingPriorConfig(metric_channels=8),
    )
    return OCDiT(config).eval()


@torch.no_grad()
def test_a_denoiser_that_adds_nothing_returns_the_draft_at_high_noise(model):
    torch.nn.init.zeros_(model.denoiser.head.mlp[-1].weight)
    torch.nn.init.zeros_(model.denoiser.head.mlp[-1].bias)
    targets = model.encode_targets(model.encode_templates(torch.rand(1, 3, 2, 3, 32, 32), torch.ones(1, 3, 2, 32, 32)))
    conditioning = model.condition(model.encode_image(torch.rand(2, 3, 32, 48)), targets)  # two windows
    draft = conditioning.draft
    assert draft.shape == (1, 2, 3, 4, 2, 3)
    noisy = 80 * torch.randn(1, 4, *draft.shape[2:])  # two members each
    found = model.denoiser(noisy, torch.full((1, 1), 80.0), conditioning).latents
    torch.testing.assert_close(found, draft.repeat_interleave(2, dim=1), atol=0.02, rtol=0)
    # Next to no noise: the input itself.
    found = model.denoiser(draft, torch.full((1, 1), 1e-3), conditioning).latents
    torch.testing.assert_close(found, draft, atol=1e-4, rtol=1e-4)


def test_the_prior_learns_latents_and_presence(model):
    targets = model.encode_targets(model.encode_templates(torch.rand(1, 3, 2, 3, 32, 32), torch.ones(1, 3, 2, 32, 32)))
    image = model.encode_image(torch.rand(1, 3, 32, 48))
    maps = model.prior(image.descriptors, targets.templates.descriptors)
    masks = (torch.rand(1, 3, 32, 48) > 0.5).float()
    present = torch.tensor([[True, False, True]])
    exact = prior_loss(maps, masks, maps.draft.detach(), present)
    off = prior_loss(maps, masks, maps.draft.detach() + 0.5, present)
    assert (off - exact).item() == pytest.approx(0.3 * 0.25 / 0.25, rel=1e-4)
    exact.backward()
    assert model.prior.presence[0].weight.grad.abs().sum() > 0
    assert model.prior.draft[0].weight.grad is not None
