import pytest
import torch

from ocdit_core.models.embeddings import IndexPosition, random_positions

DRAWS = 2000


def draw(count=4, capacity=8):
    return random_positions(DRAWS, count, capacity, torch.Generator().manual_seed(0))


def test_a_random_interval_is_contiguous_and_starts_anywhere():
    positions = draw()
    assert not positions.is_floating_point()
    assert (positions.diff(dim=1) == 1).all()
    starts, times = positions[:, 0].unique(return_counts=True)
    assert starts.tolist() == [0, 1, 2, 3, 4]
    assert times.min() > 0.8 * DRAWS / 5


def test_as_many_objects_as_positions_and_a_single_one_fit():
    assert draw(8, 8).tolist() == [list(range(8))] * DRAWS
    assert draw(1, 8).unique().tolist() == list(range(8))
    with pytest.raises(ValueError, match="9 objects do not fit into 8"):
        draw(9, 8)


def test_the_same_generator_draws_the_same():
    assert torch.equal(draw(), draw())


def test_a_position_between_two_learned_ones_is_their_mean():
    position = IndexPosition(3, 5)
    found = position.resized(5)
    torch.testing.assert_close(found[[0, 2, 4]], position.table)
    torch.testing.assert_close(found[1], (position.table[0] + position.table[1]) / 2)
