"""Representation entanglement in training: each part alone and both, to a model that runs."""

import pytest
import torch

from ocdit_core.models.ocdit import OCDiT

OPTION = "model.denoiser.representation={{projection: {}, presence_token: {}}}"


@pytest.mark.parametrize(("projection", "token"), [(True, False), (False, True), (True, True)])
def test_each_part_adds_its_own_loss_and_learns(lab, vae, projection, token):
    run = f"representation_{projection}_{token}"
    option = OPTION.format(str(projection).lower(), str(token).lower())
    short = ("loop.steps=12", "loop.validate_every=12", "loop.checkpoint_every=12")
    assert lab.train("smoke_coarse", run, f"vae={vae}", option, "diffusion_loss.prior_only_steps=0", *short) == 0
    model = OCDiT.from_pretrained(lab.folder / run / "model")

    losses = lab.logged(run, "train/projection")
    assert (len(losses) > 5) == projection
    if projection:
        # 1 - cosine of features that know nothing of each other is about 1.
        assert losses[min(losses)] > 0.5
        assert losses[max(losses)] < losses[min(losses)]
    assert (len(lab.logged(run, "train/presence")) > 5) == token
    if token:
        assert model.denoiser.presence.head.weight.abs().max() > 0
        assert model.denoiser.presence.batches > 5
        assert not torch.equal(model.denoiser.presence.variance, torch.ones(model.backbone.channels))


def test_a_model_of_the_published_architecture_has_no_such_loss(lab, coarse):
    assert not lab.logged("coarse", "train/projection")
    assert not lab.logged("coarse", "train/presence")
