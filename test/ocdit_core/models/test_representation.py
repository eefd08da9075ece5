import dataclasses

import pytest
import torch
from torch.nn import functional as F

from ocdit_core.errors import ConfigError
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.models.representation import FeatureProjection, PresenceToken, RepresentationConfig, target_crops

PLAIN = OCDiTConfig(
    image_size=(64, 96),
    template_size=(32, 32),
    backbone=BackboneConfig(kind="conv", frozen=False),
    vae=MaskVAEConfig(channels=(8, 8, 16), latent_channels=4, blocks=1),
    denoiser=DenoiserConfig(width=32, depth=4, heads=4, max_objects=4, max_views=3),
)


def with_option(**option) -> OCDiTConfig:
    representation = RepresentationConfig(**option)
    return dataclasses.replace(PLAIN, denoiser=dataclasses.replace(PLAIN.denoiser, representation=representation))


def evaluate(config: OCDiTConfig, *, train: bool = False, presence: torch.Tensor | None = None):
    torch.manual_seed(0)
    model = OCDiT(config).train(train)
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    generator = torch.Generator().manual_seed(1)
    image = model.encode_image(torch.rand(2, 3, 64, 96, generator=generator))
    templates = model.encode_templates(torch.rand(2, 3, 2, 3, 32, 32, generator=generator), torch.ones(2, 3, 2, 32, 32))
    latents = torch.randn(2, 5, 3, 4, 4, 6, generator=generator)
    conditioning = model.condition(image, model.encode_targets(templates))
    return model, image, templates, model.denoiser(latents, torch.full((2, 5), 3.0), conditioning, presence)


def test_each_part_can_be_switched_on_alone():
    _, _, templates, plain = evaluate(PLAIN, train=True)
    assert plain.presence is None
    assert plain.middle is None
    assert templates.global_features is None
    _, _, templates, projected = evaluate(with_option(presence_token=False), train=True)
    assert projected.middle.shape == (2, 5, 3, 4 * 6, 32)
    assert projected.presence is None
    assert templates.global_features is None
    _, _, templates, entangled = evaluate(with_option(projection=False), train=True)
    assert entangled.presence.shape == (2, 5, 3, 32)
    assert entangled.middle is None
    assert templates.global_features.shape == (2, 3, 2, 32)
    assert plain.latents.shape == projected.latents.shape == entangled.latents.shape == (2, 5, 3, 4, 4, 6)


def test_the_projection_is_for_training_alone():
    assert evaluate(with_option())[3].middle is None


def test_presence_tokens_tell_the_masks_something():
    noise = torch.randn(2, 5, 3, 32, generator=torch.Generator().manual_seed(3))
    first = evaluate(with_option(projection=False), presence=noise)[3].latents
    second = evaluate(with_option(projection=False), presence=-noise)[3].latents
    assert not torch.allclose(first, second)
    unmentioned = evaluate(with_option(projection=False))[3].latents
    torch.testing.assert_close(unmentioned, evaluate(with_option(projection=False), presence=0 * noise)[3].latents)


def test_a_new_presence_token_passes_its_input_by():
    token = PresenceToken(32, 24)
    noisy, sigma = torch.randn(1, 2, 3, 24), torch.full((1, 2), 2.0)
    tokens = token.tokens_in(noisy, sigma)
    assert tokens.shape == (1, 2, 3, 1, 32)
    found = token.denoised(tokens, noisy, sigma, torch.randn(1, 2, 32))
    torch.testing.assert_close(found, noisy * 0.25 / 4.25)


def test_summaries_are_standardised_over_what_was_seen():
    token = PresenceToken(8, 3)
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([5.0, 0.1, 1.0]), torch.tensor([10.0, 0.0, -1.0])
    for _ in range(300):
        token.update(torch.randn(64, 3, generator=generator) * scale + shift)
    seen = token.standardised(torch.randn(5000, 3, generator=generator) * scale + shift)
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.full((3,), 0.5), atol=0.05, rtol=0)
    before = token.mean.clone()
    token.update(torch.randn(1, 3))
    assert torch.equal(token.mean, before)


def test_the_score_is_the_cosine_to_the_most_alike_view():
    token = PresenceToken(8, 2)
    views = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.1]]]])
    # Two crops of two members each, whose mean counts.
    tokens = torch.tensor([[[[0.0, 1.0], [-3.0, 0.0]], [[0.0, 3.0], [-1.0, 0.0]]]]).repeat(1, 2, 1, 1)
    tokens[:, 2:] *= -1
    score = token.score(tokens, views, 2)
    torch.testing.assert_close(score, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))


def test_tokens_start_from_noise_and_are_denoised_beside_the_latents():
    model, image, templates, _ = evaluate(with_option(projection=False))
    denoiser, conditioning = model.denoiser, model.condition(image, model.encode_targets(templates))
    noise = denoiser.start((2, 5, 3), conditioning.grid, torch.Generator().manual_seed(7))
    assert noise.shape == (2, 5, 3, 4 * 4 * 6 + 32)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    # The latents' noise is that of a model without tokens.
    plain = OCDiT(PLAIN).denoiser.start((2, 5, 3), (4, 6), torch.Generator().manual_seed(7))
    assert torch.equal(noise[..., :96], plain)
    latents, tokens = denoiser.split(80 * noise, conditioning.grid)
    expected = denoiser(latents, 80.0, conditioning, tokens)
    found, presence = denoiser.split(denoiser.denoise(80 * noise, 80.0, conditioning), conditioning.grid)
    assert torch.equal(found, expected.latents)
    assert torch.equal(presence, expected.presence)
    assert presence.std() > 0


def test_the_projection_compares_only_cells_that_show_the_target():
    projection = FeatureProjection(8, 3)
    projection.layers = torch.nn.Linear(8, 3)
    tokens = torch.randn(1, 1, 1, 6, 8)
    features = torch.randn(1, 3, 2, 3, requires_grad=True)
    occupancy = torch.zeros(1, 1, 2, 3)
    occupancy[0, 0, 1, 2] = 1
    loss = projection.loss(tokens, features, occupancy)
    torch.testing.assert_close(
        loss, 1 - F.cosine_similarity(projection.layers(tokens[0, 0, 0, 5]), features[0, :, 1, 2], dim=0)
    )
    loss.backward()
    assert features.grad is None
    assert projection.layers.weight.grad.abs().sum() > 0
    assert projection.loss(tokens, features, 0 * occupancy) == 0


def test_targets_are_cut_out_on_black_in_the_square_around_them():
    image = torch.rand(1, 3, 64, 96) * 0.5 + 0.5
    masks = torch.zeros(1, 3, 64, 96)
    masks[0, 0, 10:26, 40:72] = 1  # wider than high: the crop is 32 x 32
    masks[0, 1, 0:32, 0:32] = 1
    crops = target_crops(image, masks, (32, 32))
    assert crops.shape == (1, 3, 3, 32, 32)
    torch.testing.assert_close(crops[0, 0, :, 8:24], image[0, :, 10:26, 40:72], atol=1e-4, rtol=0)
    assert crops[0, 0, :, :7].max() == 0
    assert crops[0, 0, :, 25:].max() == 0
    torch.testing.assert_close(crops[0, 1], image[0, :, :32, :32], atol=1e-4, rtol=0)
    assert crops[0, 2].abs().max() == 0


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"representation\.block: 5"):
        with_option(block=5)
