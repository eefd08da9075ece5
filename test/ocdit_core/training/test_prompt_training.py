"""Training with location prompts, drawn from the ground truth."""

import numpy as np
import pytest
import torch

from ocdit_core.errors import ConfigError
from ocdit_core.models.ocdit import OCDiT
from ocdit_core.models.prompt_embedding import KINDS
from ocdit_core.training.prompts import draw_prompt_maps


def test_prompts_alone_are_trained(lab, coarse):
    options = ("model.prompts=true", "diffusion_loss.prompts_only=true", "model.backbone.frozen=true", *lab.SHORT)
    assert lab.train("smoke_refine", "prompts", f"init={coarse}", *options) == 0
    before, after = OCDiT.from_pretrained(coarse), OCDiT.from_pretrained(lab.folder / "prompts" / "model")
    assert after.prompts.layers[-1].weight.any()
    # The grid is another one, to which the learned positions are interpolated.
    same = [name for name in before.state_dict() if not name.endswith("_position.table")]
    assert len(same) > 50
    # The average of equal weights differs by rounding.
    for name in same:
        torch.testing.assert_close(after.state_dict()[name], before.state_dict()[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_whole_model_is_trained_with_prompts(lab, coarse):
    assert lab.train("smoke_refine", "with_prompts", f"init={coarse}", "model.prompts=true", *lab.SHORT) == 0
    model = OCDiT.from_pretrained(lab.folder / "with_prompts" / "model")
    before = OCDiT.from_pretrained(coarse)
    assert model.prompts.layers[-1].weight.any()
    assert not torch.equal(model.denoiser.head.mlp[0].weight, before.denoiser.head.mlp[0].weight)


def test_prompts_alone_need_a_model(lab):
    with pytest.raises(ConfigError, match=r"prompts_only: true needs model\.prompts: true, and init"):
        lab.settings("smoke_refine", "none", "diffusion_loss.prompts_only=true")


def test_drawn_prompts_fit_the_masks():
    masks = torch.zeros(200, 2, 64, 96)
    masks[:, 0, 16:48, 32:80] = 1  # the second object is absent
    maps = draw_prompt_maps(masks, list(range(50)), 0.9).numpy()
    assert maps.shape == (200, 2, KINDS, 16, 24)
    assert ((maps >= 0) & (maps <= 1)).all()
    inside = np.zeros((16, 24), bool)
    inside[4:12, 8:20] = True
    on, off, box, region = np.moveaxis(maps[:, 0], 1, 0)
    assert not on[:, ~inside].any()
    assert (box[:, 5:11, 10:18].min(axis=(1, 2)) == 1).sum() == box.any(axis=(1, 2)).sum() > 20
    assert region.any(axis=(1, 2)).sum() > 10
    assert off.any(axis=(1, 2)).sum() > 20
    shares = [kind.any(axis=(1, 2)).mean() for kind in (on, box, region)]
    assert 0.8 < sum(shares) < 0.97  # one kind each, of nine in ten
    assert maps[:, 1].any(axis=(1, 2, 3)).mean() > 0.8
    again = draw_prompt_maps(masks, list(range(50)), 0.9).numpy()
    assert (again == maps).all()
    assert not draw_prompt_maps(masks, list(range(50)), 0.0).any()
