"""What is left out, and that nothing else changes: a small model with random weights."""

import itertools

import numpy as np
import pytest
import torch

from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError
from ocdit_core.inference.adaptive import member_groups
from ocdit_core.inference.clock import StageClock
from ocdit_core.inference.mask_generator import MaskGenerator
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig, TemplateFeatures

OBJECTS = 3
CPU = torch.device("cpu")
CONFIG = OCDiTConfig(
    image_size=(64, 96),
    template_size=(32, 32),
    backbone=BackboneConfig(kind="conv", frozen=False, channels=(8, 8, 16), blocks=1),
    vae=MaskVAEConfig(encoder_channels=(8, 8, 8, 16, 16), decoder_channels=(16, 16, 8, 8, 8), groups=4),
    denoiser=DenoiserConfig(width=32, depth=2, heads=2, max_objects=4, max_views=2),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = OCDiT(CONFIG).eval().requires_grad_(False)
    # A fresh model says the same of every picture: its last layers begin at zero.
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def templates(model):
    random = torch.Generator().manual_seed(2)
    return model.encode_templates(
        torch.rand(1, OBJECTS, 2, 3, 32, 32, generator=random), torch.ones(1, OBJECTS, 2, 32, 32)
    )


class Counting:
    """A mask generator that writes down how many members, and which number of objects, each evaluation has."""

    def __init__(self, model):
        self.generator = MaskGenerator(model, CPU)
        self.rows, self.objects = [], []

    def __call__(self, canvases, targets, sampler, *, ensemble=1, seeds=None, **settings):
        self.rows.clear()
        self.objects.clear()

        def watch(_, inputs, __):
            self.rows.append(inputs[0].shape[1])
            self.objects.append(inputs[0].shape[2])

        shares = [(torch.Generator().manual_seed(seed), 1) for seed in seeds or range(len(canvases))]
        handle = self.generator.model.denoiser.register_forward_hook(watch)
        try:
            clock = StageClock(CPU)
            image = self.generator.encode(canvases, clock)
            return self.generator.generate(
                image, targets, sampler=sampler, ensemble=ensemble, random=shares, clock=clock, **settings
            )
        finally:
            handle.remove()


def pictures(count):
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, (count, 1, 1, 3))
    return np.clip(flat + rng.integers(-60, 60, (count, 64, 96, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", ["heun", "dpm++2m"])
@pytest.mark.parametrize("start", ["noise", "mean"])
def test_where_nothing_is_absent_nothing_changes(model, templates, method, start):
    generate, targets = Counting(model), model.encode_targets(templates)
    sampler = SamplerConfig(steps=3, method=method, start=start)
    plain = generate(pictures(2), targets, sampler, ensemble=3)
    assert len(generate.rows) == sampler.evaluations
    kept = generate(pictures(2), targets, sampler, ensemble=3, drop_absent=1e-6)
    assert len(generate.rows) == sampler.evaluations
    assert np.abs(plain.probabilities - kept.probabilities).max() < 1e-5
    assert torch.allclose(plain.latents, kept.latents, atol=1e-4)


def test_churn_starts_at_its_own_level_and_is_reproducible(model, templates):
    generate, sampler = Counting(model), SamplerConfig(steps=3, churn=5)
    found = generate(pictures(1), model.encode_targets(templates), sampler, drop_absent=1e-6)
    assert len(generate.rows) == sampler.evaluations
    again = generate(pictures(1), model.encode_targets(templates), sampler, drop_absent=1e-6)
    assert np.array_equal(found.probabilities, again.probabilities)
    # The same seed, and so the same fresh noise.
    plain, twice = (generate(pictures(1), model.encode_targets(templates), sampler) for _ in range(2))
    assert np.array_equal(plain.probabilities, twice.probabilities)


def test_absent_objects_keep_their_mean_and_the_others_go_on_without_them(model, templates):
    generate, sampler = Counting(model), SamplerConfig(steps=3)
    canvases, targets = pictures(3), model.encode_targets(templates)
    mean = generate(canvases, targets, SamplerConfig(steps=0))
    most = mean.probabilities[0].max((-2, -1))
    # Halfway between the two in the middle: both sides have some.
    threshold = float(np.sort(most.ravel())[[4, 5]].mean())
    seen = most > threshold
    assert len(np.unique(seen, axis=0)) > 1

    found = generate(canvases, targets, sampler, drop_absent=threshold)
    assert generate.objects[0] == OBJECTS
    assert max(generate.objects[1:]) < OBJECTS or seen.all(1).any()
    assert np.abs(found.probabilities[0][~seen] - mean.probabilities[0][~seen]).max() < 5e-5
    for picture, row in enumerate(seen):
        alone = generate(canvases[picture : picture + 1], targets, sampler, seeds=[picture], drop_absent=threshold)
        assert np.abs(alone.probabilities[0, 0] - found.probabilities[0, picture]).max() < 5e-5
        assert generate.objects == [OBJECTS] + [int(row.sum())] * (4 if row.any() else 0)


def test_the_objects_that_are_left_are_sampled_as_if_they_were_all(model, templates):
    generate, sampler = Counting(model), SamplerConfig(steps=3, start="mean")
    canvases, targets = pictures(1), model.encode_targets(templates)
    mean = generate(canvases, targets, SamplerConfig(steps=0))
    most = mean.probabilities[0, 0].max((-2, -1))
    kept = np.sort(np.argsort(most)[1:])
    threshold = float(np.sort(most)[:2].mean())
    found = generate(canvases, targets, sampler, drop_absent=threshold)
    assert generate.objects == [3, 2, 2, 2, 2, 2]

    two = TemplateFeatures(features=templates.features[:, kept])
    noise = torch.randn(1, OBJECTS, CONFIG.vae.latent_channels, 4, 6, generator=torch.Generator().manual_seed(0))
    latents = mean.latents[0, :, kept]
    x = latents + 2.0 * noise[:, kept]
    conditioning = model.condition(
        model.encode_image(torch.from_numpy(canvases).movedim(-1, 1).float() / 255),
        model.encode_targets(two, torch.from_numpy(kept)[None]),
    )
    # By Heun's rule, written out.
    sigmas = sampler.sigmas
    for sigma, sigma_next in itertools.pairwise(sigmas):
        here = (x - model.denoiser(x[None], torch.full((1, 1), sigma), conditioning)[0]) / sigma
        ahead = x + (sigma_next - sigma) * here
        if sigma_next > 0:
            there = (ahead - model.denoiser(ahead[None], torch.full((1, 1), sigma_next), conditioning)[0]) / sigma_next
            ahead = x + (sigma_next - sigma) * (here + there) / 2
        x = ahead
    assert torch.allclose(found.latents[0, :, kept], x, atol=1e-4)


def test_groups_of_members_grow():
    assert member_groups(16, 0.0) == [slice(0, 16)]
    assert member_groups(16, 0.1) == [slice(0, 2), slice(2, 4), slice(4, 8), slice(8, 16)]
    assert member_groups(7, 0.1) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert member_groups(1, 0.1) == [slice(0, 1)]


def test_all_members_run_where_they_never_agree(model, templates):
    generate, targets = Counting(model), model.encode_targets(templates)
    sampler = SamplerConfig(steps=2)
    plain = generate(pictures(2), targets, sampler, ensemble=7)
    grouped = generate(pictures(2), targets, sampler, ensemble=7, early_exit=1e-9)
    assert generate.rows == [4, 4, 4, 4, 4, 4, 6, 6, 6]
    assert np.abs(plain.probabilities - grouped.probabilities).max() < 1e-5
    assert torch.allclose(plain.latents, grouped.latents, atol=1e-5)


def test_a_picture_takes_members_until_they_agree_whatever_the_others_do(model, templates):
    generate, targets = Counting(model), model.encode_targets(templates)
    canvases, sampler = pictures(3), SamplerConfig(steps=2)
    pairs = [generate(canvases[[i]], targets, sampler, ensemble=2, seeds=[i]) for i in range(3)]
    singles = [
        [generate(canvases[[i]], targets, sampler, ensemble=e, seeds=[i]).probabilities[0, 0] for e in (1, 2)]
        for i in range(3)
    ]
    # Of two members a and b, the standard error of the mean is |a - b| / 2 = |a - mean|.
    errors = [np.abs(one - both).mean((-2, -1)).max() for one, both in singles]
    assert min(errors) > 0
    threshold = float(np.sort(errors)[:2].mean())
    together = generate(canvases, targets, sampler, ensemble=8, early_exit=threshold)
    first = int(np.argmin(errors))
    assert np.abs(together.probabilities[0, first] - pairs[first].probabilities[0, 0]).max() < 1e-5
    assert len(generate.rows) > 3
    # The noise of the first members is not that of a smaller ensemble of several pictures: each has its own.
    for i in range(3):
        alone = generate(canvases[[i]], targets, sampler, ensemble=8, seeds=[i], early_exit=threshold)
        assert np.abs(together.probabilities[0, i] - alone.probabilities[0, 0]).max() < 1e-5
        assert (sum(generate.rows) == 2 * 3) == (i == first)
    generous = generate(canvases, targets, sampler, ensemble=8, early_exit=1.0)
    assert generate.rows == [6, 6, 6]
    assert np.abs(generous.probabilities[0, 0] - pairs[0].probabilities[0, 0]).max() < 1e-5


@pytest.mark.parametrize("name", ["drop_absent", "early_exit"])
def test_shares_out_of_range_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: -0.1 is not in"):
        InferenceSettings(**{name: -0.1})
