"""The smoke configs end to end, and what comes out of each stage."""

from pathlib import Path

import pytest
import torch
import yaml

from ocdit_core.cli import main
from ocdit_core.errors import WeightsError
from ocdit_core.models.checkpoints import read_weights
from ocdit_core.models.denoiser import Denoiser
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.training.data import SampleRandom, TrainingData, step_generator
from ocdit_core.training.diffusion_stage import DiffusionStage, choose_targets
from ocdit_core.training.export import start_from
from ocdit_core.training.vae_stage import random_projections, warp_masks

CONFIGS = Path(__file__).parents[3] / "config" / "train"


def test_vae_stage_stores_the_statistics_of_its_latents(vae):
    settings = yaml.safe_load((vae / "config.yaml").read_text())
    assert settings["latent_channels"] == 8
    state = read_weights(vae / "model.safetensors")
    assert (state["latent_std"] > 0).all()
    assert not torch.equal(state["latent_std"], torch.ones(8, 1, 1))


def test_coarse_stage_trains_the_denoiser_and_leaves_the_vae(lab, vae, coarse):
    model = OCDiT.from_pretrained(coarse)
    assert model.prior is not None
    # The gates that start at zero have moved.
    assert model.denoiser.blocks[0].mlp_modulation.linear.weight.abs().max() > 0
    trained = read_weights(vae / "model.safetensors")
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, trained[name].half().float()), name


def test_a_run_logs_figures_by_noise_level_and_images(lab, coarse):
    tags = lab.folder / "coarse" / "tensorboard"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tags), size_guidance={"images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "train/prior", "train/diffusion", "train/gradient_norm", "train/learning_rate"} <= scalars
    assert {"train/groups_per_second", "train/memory_gib", "train/data_wait_share"} <= scalars
    assert {f"validation/{name}" for name in ("iou", "recall50", "false_masks", "prior_iou")} <= scalars
    assert sum(name.startswith("train/error_sigma_") for name in scalars) >= 4
    assert events.Tags()["histograms"] == ["train/log10_sigma"]
    assert set(events.Tags()["images"]) == {f"validation/masks_{i}" for i in range(4)}


def test_a_run_logs_to_weights_and_biases_without_a_network(lab, vae, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    overrides = [f"vae={vae}", "diffusion_loss.prior_only_steps=9", "loop.validate_every=4"]
    assert lab.train("smoke_coarse", "wandb_run", *overrides, "loop.steps=4", "loop.wandb=ocdit") == 0
    (folder,) = (lab.folder / "wandb_run" / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    for name in (b"train/loss", b"validation/iou", b"learning_rate"):
        assert name in content
    assert len(list(folder.rglob("masks_*.png"))) == 4


def test_refine_stage_starts_from_coarse_weights_with_interpolated_positions(lab, coarse):
    assert lab.train("smoke_refine", "refine", f"init={coarse}", "loop.steps=6") == 0
    model = OCDiT.from_pretrained(lab.folder / "refine" / "model")
    assert model.config.image_size == (64, 64)
    assert model.denoiser.query_embedding.patch_position.table.shape[0] == 16
    start = DiffusionStage(lab.settings("smoke_refine", "x", f"init={coarse}")).model
    given = OCDiT.from_pretrained(coarse)
    assert torch.equal(start.denoiser.head.mlp[0].weight, given.denoiser.head.mlp[0].weight)
    expected = given.denoiser.query_embedding.patch_position((4, 4))
    assert torch.equal(start.denoiser.query_embedding.patch_position.table, expected)


def test_weights_of_another_architecture_are_refused(lab, coarse):
    settings = lab.settings("smoke_refine", "x", f"init={coarse}", "model.denoiser.width=96")
    with pytest.raises(WeightsError, match="has shape"):
        start_from(OCDiT(settings.model), coarse)


def test_more_learned_positions_than_the_given_model_has_are_interpolated(lab, coarse):
    settings = lab.settings("smoke_coarse", "x", "model.denoiser.max_objects=7")
    model, given = OCDiT(settings.model), OCDiT.from_pretrained(coarse)
    start_from(model, coarse)
    wide, narrow = (m.denoiser.query_embedding.object_position.table for m in (model, given))
    assert torch.equal(wide[::2], narrow)
    torch.testing.assert_close(wide[1], (narrow[0] + narrow[1]) / 2)


def test_a_tiny_model_learns_one_batch(lab, vae):
    """Some steps on one batch bring both losses far down: the gradient reaches everything."""
    settings = lab.settings("smoke_coarse", "x", f"vae={vae}")
    torch.manual_seed(0)
    stage = DiffusionStage(settings)
    batch = next(iter(TrainingData(settings)))
    stage.model.train()
    optimiser = torch.optim.AdamW([p for p in stage.model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(50):
        loss, parts = stage.loss({**batch, "number": batch["number"] + 2 * step}, step=10_000)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append((parts["prior"].item(), parts["diffusion"].item()))
    first, last = torch.tensor(losses[:10]).mean(0), torch.tensor(losses[-10:]).mean(0)
    assert last[0] < 0.6 * first[0]
    assert last[1] < first[1] - 0.3


def test_a_share_of_the_images_is_denoised_without_templates(lab, vae, monkeypatch):
    conditionings = []
    forward = Denoiser.forward

    def noted(denoiser, latents, sigma, conditioning, presence):
        conditionings.append(conditioning)
        return forward(denoiser, latents, sigma, conditioning, presence)

    monkeypatch.setattr(Denoiser, "forward", noted)
    for dropped in (0.0, 0.5, 1.0):
        settings = lab.settings("smoke_coarse", "x", f"vae={vae}", f"diffusion_loss.drop_templates={dropped}")
        torch.manual_seed(0)
        stage = DiffusionStage(settings)
        torch.manual_seed(0)
        for parameter in stage.model.denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        _, parts = stage.loss(next(iter(TrainingData(settings))), 10_000)
        assert parts["prior"] > 0
    everything, half, nothing = conditionings
    assert nothing.draft.abs().max() == 0
    same = [torch.equal(own, given) for own, given in zip(half.draft, everything.draft, strict=True)]
    assert 0 < sum(same) < len(same)
    for kept, *parts in zip(same, half.queries, everything.queries, nothing.queries, strict=True):
        assert torch.equal(parts[0], parts[1 if kept else 2])
    keys = [one.templates[0][0].unflatten(0, (len(same), -1)) for one in conditionings]
    for kept, own, full, none in zip(same, keys[1], keys[0], keys[2], strict=True):
        assert torch.equal(own, full if kept else none)


def test_features_of_a_frozen_backbone_may_come_from_the_cache(lab, vae):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    backbone = {"kind": "vit", "architecture": {"model_type": "dinov2", **sizes}, "frozen": True}
    options = [f"vae={vae}", f"model.backbone={backbone}"]
    losses = []
    settings = lab.settings("smoke_coarse", "x", *options)
    for cached in (False, True):
        torch.manual_seed(0)
        stage = DiffusionStage(settings)
        stage.cache = stage.cache if cached else None
        stage.model.train()
        batches = iter(TrainingData(settings))
        losses.append([float(stage.loss(next(batches), 1000)[0].detach()) for _ in range(4)])
        assert not any(p.requires_grad for p in stage.model.backbone.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    # Ten objects of six views: the same ones come again.
    assert stage.cache.hits > 0


def test_noise_belongs_to_the_sample_whatever_batch_it_is_in():
    cpu = torch.device("cpu")
    together, second = (SampleRandom(3, torch.tensor(numbers), cpu) for numbers in ([6, 7], [7]))
    assert torch.equal(together.normal(2, 3)[1:], second.normal(2, 3))
    draws = [r.each(lambda g: torch.rand(4, generator=g)) for r in (together, second)]
    assert torch.equal(draws[0][1:], draws[1])
    assert not torch.equal(draws[0][0], draws[0][1])
    assert not torch.equal(
        draws[0], SampleRandom(4, torch.tensor([6, 7]), cpu).each(lambda g: torch.rand(4, generator=g))
    )


def test_targets_are_chosen_with_all_that_belongs_to_them():
    batch = {
        "masks": torch.arange(2 * 3 * 5).view(2, 3, 5, 1, 1),
        "present": torch.arange(2 * 3 * 5).view(2, 3, 5),
        "templates": torch.arange(10).view(2, 5, 1, 1, 1, 1),
        "template_masks": torch.arange(10).view(2, 5, 1, 1, 1),
        "images": torch.zeros(2, 3, 3, 16, 16),
    }
    random = SampleRandom(0, torch.tensor([0, 1]), torch.device("cpu"))
    chosen = choose_targets(batch, random, step_generator(0, 0), 4)
    objects = chosen["templates"].flatten(1)
    assert objects.shape[1] in (4, 5)
    assert not torch.equal(objects[0], objects[1] - 5)
    for group in range(2):
        for scene in range(3):
            expected = objects[group] - 5 * group + 15 * group + 5 * scene
            assert torch.equal(chosen["masks"][group, scene].flatten(), expected)
            assert torch.equal(chosen["present"][group, scene], expected)
    for least, expected in ((1, {1, 2, 3, 4, 5}), (3, {3, 4, 5}), (8, {5})):
        counts = {choose_targets(batch, random, step_generator(0, s), least)["masks"].shape[2] for s in range(60)}
        assert counts == expected


def test_augmented_masks_stay_binary_and_move():
    mask = torch.zeros(1, 32, 48)
    mask[:, 10:20, 10:30] = 1
    generator = torch.Generator().manual_seed(0)
    moved = warp_masks(mask.expand(50, -1, -1), random_projections(50, 48 / 32, generator))
    assert set(moved.unique().tolist()) <= {0.0, 1.0}
    assert (moved != mask).any(2).any(1).float().mean() > 0.9
    assert moved.sum((1, 2)).mean() == pytest.approx(mask.sum().item(), rel=0.5)


def test_perspective_moves_masks_as_it_should():
    mask = torch.zeros(1, 200, 200)
    mask[:, :, :150] = 1  # up to x = 0.5
    tilted = torch.eye(3)
    tilted[2, :2] = torch.tensor([0.2, 0.1])
    assert torch.equal(warp_masks(mask, torch.eye(3)[None]), mask)
    # In row y, x / (1 + 0.2 x + 0.1 y) is -1 and 0.5 at the edges of the mask.
    y = (2 * torch.arange(50, 150) + 1) / 200 - 1
    width = (0.5 + 0.05 * y) / 0.9 + (1 + 0.1 * y) / 1.2
    torch.testing.assert_close(warp_masks(mask, tilted[None])[0, 50:150].sum(1), 100 * width, atol=1.5, rtol=0)


def test_the_cpu_test_of_the_training_loop(lab, vae):
    assert lab.train("test_cpu", "test_cpu", f"vae={vae}", "--device=cpu", "loop.batch_groups=1") == 0
    assert set(lab.logged("test_cpu")) == set(range(1, 11))
    assert OCDiT.from_pretrained(lab.folder / "test_cpu" / "model").config.denoiser.width == 256


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml"), key=str), ids=lambda path: path.stem)
def test_every_config_is_valid(config, capsys):
    assert main(["train", "--config", str(config), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["stage"] in ("vae", "coarse", "refine")
