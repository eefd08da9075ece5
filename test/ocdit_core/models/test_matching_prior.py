import pytest
import torch

from ocdit_core.models.matching_prior import MatchingPrior, MatchingPriorConfig


def described(prior, features, images, cells, templates, masks):
    return prior.describe_image(images, features), prior.describe_templates(templates, masks, cells)


@pytest.mark.parametrize("backbone_similarity", [False, True])
def test_shapes_of_the_maps(backbone_similarity):
    torch.manual_seed(0)
    config = MatchingPriorConfig(metric_channels=8, backbone_similarity=backbone_similarity)
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
    assert maps.channels.shape == (2, 3, 40 if backbone_similarity else 32, 4, 6)
    assert maps.logits.shape == (2, 3, 16, 24)
    assert maps.log_assignment.shape == (2, 3 if backbone_similarity else 2, 4, 4, 6)
    assert prior.query_part(maps, torch.randn(2, 3, 4, 4, 6)).shape == (2, 3, 24, 16)


def test_the_backbones_similarity_is_1_where_a_cell_equals_a_template_cell():
    prior = MatchingPrior(MatchingPriorConfig(backbone_similarity=True, top=1), features=12, latents=4, width=16).eval()
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
