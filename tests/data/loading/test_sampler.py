"""The order of an epoch follows from its seed, and ranks get shares of about the same size."""

import numpy as np
import pytest
from loading_cases import NUM_PAIRS, pairs_of

from data.loading.sampler import balance_among_ranks, order_epoch


def test_the_order_differs_between_epochs_and_seeds(split):
    epochs = [order_epoch(pairs_of(split, seed=seed), epoch, NUM_PAIRS) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for (order,) in epochs}) == 6
    again = [order_epoch(pairs_of(split, seed=seed), epoch, NUM_PAIRS) for seed in (0, 1) for epoch in (0, 1, 2)]
    np.testing.assert_array_equal(epochs, again)


def test_the_batch_size_cuts_an_order_that_stays(split):
    pairs = pairs_of(split)
    for batch_size in (1, 4, 13, 50):
        np.testing.assert_array_equal(
            np.concatenate(order_epoch(pairs, 0, batch_size)), np.concatenate(order_epoch(pairs, 0, 7))
        )


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("number", [1, 2, 5, 8, 9, 64])
def test_what_is_shared_out_is_there_once_and_leaves_no_rank_much_more_than_another(number, world_size):
    sizes = np.random.default_rng(number).integers(1, 4, number).tolist()
    shares = balance_among_ranks(sizes, world_size)
    assert sorted(place for share in shares for place in share) == list(range(number))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(sizes[place] for place in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)
    if number >= world_size:
        assert min(loads) > 0
    naive = [sum(sizes[rank::world_size]) for rank in range(world_size)]
    assert max(loads) <= max(naive)
