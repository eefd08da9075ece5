"""The embedding of location prompts."""

import pytest
import torch

from ocdit_core.errors import ConfigError
from ocdit_core.models.matching_prior import MatchingPriorConfig
from ocdit_core.models.ocdit import OCDiTConfig
from ocdit_core.models.prompt_embedding import KINDS, PromptEmbedding


def trained() -> PromptEmbedding:
    torch.manual_seed(0)
    embedding = PromptEmbedding(8)
    torch.nn.init.normal_(embedding.layers[-1].weight)
    return embedding


def test_a_new_embedding_adds_nothing():
    maps, logits = torch.rand(2, 3, KINDS, 16, 24), torch.randn(2, 3, 16, 24)
    added = PromptEmbedding(8)(maps, logits)
    assert added.shape == (2, 3, 24, 8)
    assert not added.any()


def test_objects_without_a_prompt_get_nothing_and_others_are_independent():
    maps, logits = torch.zeros(1, 2, KINDS, 16, 16), torch.randn(1, 2, 16, 16)
    maps[0, 1, 0, 3, 9] = 1
    added = trained()(maps, logits)
    assert not added[0, 0].any()
    assert added[0, 1].any()
    torch.testing.assert_close(trained()(maps[:, 1:], logits[:, 1:])[0, 0], added[0, 1])


@pytest.mark.parametrize("kind", range(KINDS))
def test_kind_and_place_of_a_prompt_matter(kind):
    logits, embedding = torch.zeros(1, 1, 16, 16), trained()
    maps = torch.zeros(3, 1, 1, KINDS, 16, 16)
    maps[0, 0, 0, kind, 2, 3] = maps[1, 0, 0, kind, 13, 12] = maps[2, 0, 0, (kind + 1) % KINDS, 2, 3] = 1
    first, elsewhere, other = (embedding(one, logits) for one in maps)
    assert not torch.allclose(first, elsewhere)
    assert not torch.allclose(first, other)


def test_prompts_need_the_matching_prior():
    with pytest.raises(ConfigError, match="prompts: true needs a matching_prior"):
        OCDiTConfig(prompts=True)
    assert OCDiTConfig(prompts=True, matching_prior=MatchingPriorConfig()).prompts
