import dataclasses

import numpy as np
import pytest
import torch
from builders import TINY_DINO

from ocdit_core.diffusion.samplers import SamplerConfig
from ocdit_core.errors import ConfigError, WeightsError
from ocdit_core.inference.network import Network
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.denoiser import DenoiserConfig
from ocdit_core.models.embeddings import PatchPosition
from ocdit_core.models.mask_vae import MaskVAEConfig
from ocdit_core.models.matching_prior import MatchingPriorConfig
from ocdit_core.models.ocdit import ImageFeatures, OCDiT, OCDiTConfig, TemplateFeatures
from ocdit_core.models.representation import RepresentationConfig

TINY = OCDiTConfig(
    image_size=(64, 96),
    template_size=(32, 32),
    backbone=BackboneConfig(kind="conv", frozen=False),
    vae=MaskVAEConfig(channels=(8, 8, 16), latent_channels=4, blocks=1),
    denoiser=DenoiserConfig(width=32, depth=2, heads=4, max_objects=4, max_views=3),
    matching_prior=MatchingPriorConfig(metric_channels=8, hidden_channels=8),
)


def make(config: OCDiTConfig = TINY) -> OCDiT:
    torch.manual_seed(0)
    model = OCDiT(config).eval()
    # adaLN-Zero starts as the identity: give its gates values, so that every path counts.
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(model: OCDiT, batch: int = 2, objects: int = 3, views: int = 2):
    torch.manual_seed(1)
    height, width = model.config.image_size
    images = torch.rand(batch, 3, height, width)
    templates = torch.rand(batch, objects, views, 3, *model.config.template_size)
    masks = (torch.rand(batch, objects, views, *model.config.template_size) > 0.3).float()
    return model.encode_image(images), model.encode_templates(templates, masks)


@torch.no_grad()
def denoise(model: OCDiT, image: ImageFeatures, templates: TemplateFeatures, sigma: torch.Tensor) -> torch.Tensor:
    conditioning = model.condition(image, model.encode_targets(templates))
    batch, members = sigma.shape
    torch.manual_seed(2)
    x = torch.randn(1, 1, templates.features.shape[1], 4, *conditioning.grid).expand(batch, members, -1, -1, -1, -1)
    return model.denoiser(x, sigma, conditioning).latents


def rows(features, index):
    """The same features for some samples of the batch alone."""
    return dataclasses.replace(
        features, features=features.features[index], descriptors=tuple(d[index] for d in features.descriptors)
    )


def test_shapes():
    model = make()
    image, templates = inputs(model)
    assert image.features.shape == (2, 32, 4, 6)
    assert templates.features.shape == (2, 3, 2, 32, 2, 2)
    latents = denoise(model, image, templates, torch.full((2, 5), 3.0))
    assert latents.shape == (2, 5, 3, 4, 4, 6)
    assert model.decode_masks(latents).shape == (2, 5, 3, 64, 96)
    assert model.encode_masks(torch.zeros(2, 3, 64, 96)).shape == (2, 3, 4, 4, 6)


def test_each_sample_and_member_is_modulated_by_its_own_noise_level():
    model = make()
    image, templates = inputs(model)
    together = denoise(model, image, templates, torch.tensor([[0.1, 7.0], [40.0, 0.5]]))
    for b, levels in enumerate([(0.1, 7.0), (40.0, 0.5)]):
        for e, level in enumerate(levels):
            one = [b]
            alone = denoise(model, rows(image, one), rows(templates, one), torch.tensor([[level]]))
            assert torch.allclose(together[b, e], alone[0, 0], atol=1e-5)


def test_a_query_attends_to_its_own_templates_and_to_the_other_queries():
    model = make(dataclasses.replace(TINY, matching_prior=None))
    image, templates = inputs(model, batch=1)
    before = denoise(model, image, templates, torch.full((1, 1), 2.0))
    changed = templates.features.clone()
    changed[:, 2] += 1
    after = denoise(model, image, TemplateFeatures(features=changed), torch.full((1, 1), 2.0))
    own, others = (after - before).abs()[0, 0, 2].max(), (after - before).abs()[0, 0, :2].max()
    assert own > others > 0
    # Without self-attention nothing reaches the other objects' queries.
    for block in model.denoiser.blocks:
        torch.nn.init.zeros_(block.self_attention.out_proj.weight)
    before = denoise(model, image, templates, torch.full((1, 1), 2.0))
    after = denoise(model, image, TemplateFeatures(features=changed), torch.full((1, 1), 2.0))
    assert (after - before).abs()[0, 0, 2].max() > 0
    assert (after - before).abs()[0, 0, :2].max() == 0


def test_blocks_start_as_the_identity():
    torch.manual_seed(0)
    model = OCDiT(TINY)
    block = model.denoiser.blocks[0]
    tokens = torch.randn(1, 1, 2, 5, 32)
    memory = block.cross_attention.keys_values(torch.randn(2, 7, 32))
    assert torch.equal(block(tokens, torch.randn(1, 1, 32), memory), tokens)


def test_patch_positions_are_interpolated_for_another_grid():
    position = PatchPosition((4, 6), 3)
    assert torch.equal(position((4, 6)), position.table)
    ramp = torch.linspace(0, 1, 6).repeat(4)[:, None].expand(-1, 3)
    position.table.data.copy_(ramp)
    wide = position((4, 12)).view(4, 12, 3)
    assert wide.shape == (4, 12, 3)
    assert (wide[0, 1:-1].diff(dim=0) > 0).all()
    model = make()
    images = torch.rand(1, 3, 96, 128)
    _, templates = inputs(model, batch=1)
    assert denoise(model, model.encode_image(images), templates, torch.ones(1, 1)).shape[-2:] == (6, 8)


def test_a_prior_made_for_the_wrong_object_changes_its_draft():
    model = make()
    torch.manual_seed(0)
    # An image of two flat colours; object 0 has the left one, object 1 the right one.
    image = torch.zeros(1, 3, 64, 96)
    image[:, 0, :, :48], image[:, 2, :, 48:] = 0.8, 0.8
    templates = torch.zeros(1, 2, 1, 3, 32, 32)
    templates[:, 0, :, 0], templates[:, 1, :, 2] = 0.8, 0.8
    encoded = model.encode_templates(templates, torch.ones(1, 2, 1, 32, 32))
    descriptors = model.encode_image(image).descriptors
    raw, _ = model.prior._similarities(descriptors, encoded.descriptors)
    colour_best = raw[0, :, 4].view(2, 4, 6)
    assert (colour_best[0, :, :3] > colour_best[0, :, 3:] + 0.5).all()
    assert (colour_best[1, :, 3:] > colour_best[1, :, :3] + 0.5).all()


@pytest.mark.parametrize("size", [(64, 96), (480, 640)])
def test_vit_features_lie_on_the_latent_grid(size):
    config = dataclasses.replace(
        TINY, matching_prior=None, backbone=BackboneConfig(kind="vit", architecture=TINY_DINO, frozen=True)
    )
    model = OCDiT(config)
    features = model.encode_image(torch.rand(1, 3, *size)).features
    assert features.shape == (1, 24, size[0] // 16, size[1] // 16)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert not model.train().backbone.training


@pytest.mark.parametrize(
    ("model_type", "patch", "registers"), [("dinov2", 14, 0), ("dinov2_with_registers", 14, 4), ("dinov3_vit", 16, 4)]
)
def test_pretrained_backbones_come_from_a_local_folder(tmp_path, model_type, patch, registers):
    """The real classes, with random weights: what a downloaded DINOv2 or DINOv3 folder holds."""
    import transformers

    sizes = {**TINY_DINO, "patch_size": patch, "intermediate_size": 48}
    del sizes["model_type"]
    if registers:
        sizes["num_register_tokens"] = registers
    pretrained = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type, **sizes))
    pretrained.save_pretrained(tmp_path / "backbone")
    name = str(tmp_path / "backbone")
    config = dataclasses.replace(TINY, matching_prior=None, backbone=BackboneConfig(kind="vit", name=name))
    model = OCDiT(config).eval()
    image = torch.rand(1, 3, 64, 96)
    features = model.encode_image(image).features
    assert features.shape == (1, 24, 4, 6)
    # Patch tokens after the final norm, and none of the class and register tokens before them.
    pixels = torch.nn.functional.interpolate(image, (4 * patch, 6 * patch), mode="bilinear", antialias=True)
    if patch == 16:
        pixels = image
    if model_type == "dinov2":  # its positions are tested in test_published.py
        pretrained.embeddings.interpolate_pos_encoding = model.backbone.vit.embeddings.interpolate_pos_encoding
    tokens = pretrained.eval()(pixel_values=pixels * 2 - 1).last_hidden_state
    assert tokens.shape[1] == 1 + registers + 24
    assert torch.allclose(features.flatten(2).transpose(1, 2), tokens[:, -24:], atol=1e-5)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "backbone").rename(tmp_path / "gone")
    assert torch.equal(OCDiT.from_pretrained(tmp_path / "whole").encode_image(image).features, features)


def test_a_backbone_that_cannot_be_had_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="'nobody/nothing' is neither a local folder nor a hub id"):
        OCDiT(dataclasses.replace(TINY, backbone=BackboneConfig(kind="vit", name="nobody/nothing")))


def test_saved_and_loaded_models_agree(tmp_path):
    for number, backbone in enumerate([TINY.backbone, BackboneConfig(kind="vit", architecture=TINY_DINO)]):
        model = make(dataclasses.replace(TINY, backbone=backbone, matching_prior=None))
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        again = OCDiT.from_pretrained(folder)
        assert again.config == model.config
        image, templates = inputs(model)
        sigma = torch.full((2, 1), 2.0)
        assert torch.equal(denoise(model, image, templates, sigma), denoise(again, *inputs(again), sigma))


def test_damaged_checkpoints_are_refused(tmp_path):
    make().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.yaml"
    whole, text = weights.read_bytes(), config.read_text()

    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="damaged or not a safetensors file"):
        OCDiT.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(WeightsError, match="no such weights file"):
        OCDiT.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config.write_text(text.replace("depth: 2", "depth: 3"))
    with pytest.raises(WeightsError, match=r"denoiser\.blocks\.2\.\S+ is missing; the model has it with shape \[32\]"):
        OCDiT.from_pretrained(tmp_path)
    config.write_text(text.replace("width: 32", "width: 64"))
    with pytest.raises(WeightsError, match=r"has shape \[32.*\], the model has \[64"):
        OCDiT.from_pretrained(tmp_path)
    config.write_text(text.replace("depth: 2", "deepth: 2"))
    with pytest.raises(ConfigError, match=r"denoiser\.deepth: unknown setting; did you mean 'depth'"):
        OCDiT.from_pretrained(tmp_path)
    config.unlink()
    with pytest.raises(WeightsError, match=r"is missing; no published OC-DiT, nor our folder with config\.yaml"):
        OCDiT.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="nowhere: missing"):
        OCDiT.from_pretrained(tmp_path / "nowhere")


def test_nan_in_a_checkpoint_is_refused(tmp_path):
    model = make()
    model.denoiser.head.mlp[0].bias.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"denoiser\.head\.mlp\.0\.bias has values that are not finite"):
        OCDiT.from_pretrained(tmp_path)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"image_size: \[100, 96\]"):
        OCDiTConfig(image_size=(100, 96))
    with pytest.raises(ConfigError, match="channels: 6 entries, must be 2 to 5"):
        MaskVAEConfig(channels=(16,) * 6)
    with pytest.raises(ConfigError, match=r"channels: 36 of \[16, 24, 36\] must be a multiple of 8"):
        MaskVAEConfig(channels=(16, 24, 36))
    with pytest.raises(ConfigError, match="heads: 5 does not divide width 32"):
        DenoiserConfig(width=32, heads=5)


@pytest.mark.parametrize("representation", [None, RepresentationConfig()])
@torch.no_grad()
def test_noise_levels_prepared_ahead_give_what_the_network_computes_itself(representation):
    model = make(dataclasses.replace(TINY, denoiser=dataclasses.replace(TINY.denoiser, representation=representation)))
    image, templates = inputs(model)
    conditioning = model.condition(image, model.encode_targets(templates))
    x = torch.randn(2, 3, 3, 4, *conditioning.grid)
    sigmas = [80.0, 2.0, 0.002]
    for sigma in sigmas:
        level = model.denoiser.level(sigma)
        expected = model.denoiser(sigma * x, torch.full((2, 3), sigma), conditioning)
        found = model.denoiser(sigma * x, level, conditioning)
        assert torch.allclose(found.latents, expected.latents, atol=1e-5)
        if representation:
            assert torch.allclose(found.presence, expected.presence, atol=1e-5)


def normalised(model: OCDiT, objects: int = 3, views: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and templates in [-1, 1], the templates on black."""
    torch.manual_seed(1)
    templates = torch.rand(2, objects, views, 3, *model.config.template_size)
    templates[..., :8, :] = 0
    return 2 * torch.rand(2, 3, *model.config.image_size) - 1, 2 * templates - 1


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("config", [TINY, dataclasses.replace(TINY, matching_prior=None)], ids=["prior", "published"])
def test_generated_segmentations_equal_those_of_the_segmenter_exactly(config, steps):
    sampler = SamplerConfig(steps=steps)
    network = Network(
        make(config), torch.device("cpu"), InferenceSettings(ensemble=3, sampler=sampler, precision="float32")
    )
    # Black and white: both normalisations are exact.
    images = 255 * np.random.default_rng(1).integers(0, 2, (2, 64, 96, 3), np.uint8)
    templates = torch.randint(0, 2, (2, 3, 2, 3, 32, 32), generator=torch.Generator().manual_seed(2)).float()
    with torch.no_grad():
        targets = network.encode_targets(network.model.encode_templates(templates, templates.amax(3)))
        expected = network.generate(network.encode(images), targets)[0][:, 0]
    normalised_images = torch.from_numpy(np.moveaxis(images, -1, -3) / np.float32(127.5) - 1)
    found = network.model.generate_segmentations(normalised_images, 2 * templates - 1, 3, sampler=sampler)
    assert found.shape == (2, 3, 64, 96)
    assert np.array_equal(found.numpy(), expected)
    assert expected.std() > 0.01


def test_generated_segmentations_depend_on_the_seed():
    model = make(dataclasses.replace(TINY, matching_prior=None))
    images, templates = normalised(model)
    first, second = (
        model.generate_segmentations(images, templates, sampler=SamplerConfig(steps=1), seed=seed) for seed in (0, 1)
    )
    assert not torch.equal(first, second)


def test_the_training_loss_falls_and_reaches_all_parts():
    torch.manual_seed(0)
    model = OCDiT(
        image_size=(64, 96),
        template_size=(32, 32),
        embed_dim=32,
        depth=2,
        num_heads=4,
        backbone=TINY.backbone,
        vae=TINY.vae,
    )
    images, templates = normalised(model)
    masks = torch.zeros(2, 3, 64, 96)
    masks[:, 0, 10:40, 20:60] = 1
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        parts = model.forward_loss(images, templates, masks, torch.Generator().manual_seed(0))
        assert {name: tuple(value.shape) for name, value in parts.items()} == dict.fromkeys(parts, (2,))
        loss = parts["loss"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert all(name.startswith("vae.") for name in without)
    with pytest.raises(ConfigError, match="heads: 5 does not divide width 32"):
        OCDiT(embed_dim=32, num_heads=5)
