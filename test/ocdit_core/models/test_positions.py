import pytest
import torch

from ocdit_core.models.embeddings import IndexPosition, inference_positions, training_positions

DRAWS = 2000


def draw(strategy, count=4, capacity=8):
    return training_positions(strategy, DRAWS, count, capacity, torch.Generator().manual_seed(0))


def test_first_positions_never_change():
    assert draw("first").unique(dim=0).tolist() == [[0, 1, 2, 3]]


def test_a_random_interval_is_contiguous_and_starts_anywhere():
    positions = draw("random_interval")
    assert not positions.is_floating_point()
    assert (positions.diff(dim=1) == 1).all()
    starts, times = positions[:, 0].unique(return_counts=True)
    assert starts.tolist() == [0, 1, 2, 3, 4]
    assert times.min() > 0.8 * DRAWS / 5


def test_a_random_interpolation_spreads_evenly_over_longer_intervals():
    positions = draw("random_interpolation")
    steps = positions.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))
    lengths = 1 + 3 * steps[:, 0]
    assert lengths.round().unique().tolist() == [4, 5, 6, 7, 8]
    torch.testing.assert_close(lengths, lengths.round())
    assert positions.min() == 0
    assert positions.max() == 7
    # Some lie between two learned positions: that is what tells it from (iv).
    assert (positions != positions.round()).any()


def test_a_random_permutation_takes_different_positions_in_any_order():
    positions = draw("random_permutation")
    assert all(len(set(row)) == 4 for row in positions.tolist())
    used, times = positions.unique(return_counts=True)
    assert used.tolist() == list(range(8))
    assert times.min() > 0.8 * DRAWS * 4 / 8
    assert (positions.diff(dim=1) < 0).any()


@pytest.mark.parametrize("strategy", ["first", "random_interval", "random_interpolation", "random_permutation"])
def test_as_many_objects_as_positions_and_a_single_one_fit(strategy):
    assert draw(strategy, 8, 8).sort(dim=1)[0].tolist() == [list(range(8))] * DRAWS
    alone = draw(strategy, 1, 8)
    assert alone.shape == (DRAWS, 1)
    assert 0 <= alone.min() <= alone.max() <= 7
    with pytest.raises(ValueError, match="9 objects do not fit into 8"):
        draw(strategy, 9, 8)


def test_the_same_generator_draws_the_same():
    for strategy in ("random_interval", "random_interpolation", "random_permutation"):
        assert torch.equal(draw(strategy), draw(strategy))


def test_more_targets_than_positions_take_turns_or_places_between():
    assert [run.tolist() for run in inference_positions("sequential", 3, 8)] == [[0, 1, 2]]
    assert [run.tolist() for run in inference_positions("interpolate", 3, 8)] == [[0, 1, 2]]
    assert [run.tolist() for run in inference_positions("sequential", 5, 2)] == [[0, 1], [0, 1], [0]]
    (run,) = inference_positions("interpolate", 5, 3)
    assert run.tolist() == [0, 0.5, 1, 1.5, 2]


def test_an_embedding_between_two_positions_is_their_mean():
    table = IndexPosition(3, 5)
    (run,) = inference_positions("interpolate", 5, 3)
    found = table(run)
    torch.testing.assert_close(found[[0, 2, 4]], table.table.detach())
    torch.testing.assert_close(found[1], (table.table[0] + table.table[1]) / 2)
