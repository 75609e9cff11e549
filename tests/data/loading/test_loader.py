"""Every pair once an epoch, and the same batches for any number of ranks and loader processes."""

import numpy as np
import pytest
from loading_cases import NUM_PAIRS, assert_same_pairs, load, pairs_of, single_pairs

from data.captions import normalise
from data.loading.sampler import order_epoch, split_among_ranks


def test_every_pair_comes_once_an_epoch(split):
    pairs = pairs_of(split)
    assert len(pairs) == NUM_PAIRS
    batches = load(pairs)
    assert [len(batch.captions) for batch in batches] == [4, 4, 4, 1]
    expected = [(normalise(text), clip) for clip, captions in enumerate(split.captions) for text in captions]
    seen = [(text, clip) for batch in batches for text, clip in zip(batch.captions, batch.clips.tolist(), strict=True)]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_ranks_shares_together_are_the_batch(world_size, split):
    pairs = pairs_of(split)
    ranks = [load(pairs, 1, rank, world_size) for rank in range(world_size)]
    for step, whole in enumerate(load(pairs, 1)):
        whole_pairs = single_pairs(whole)
        batch = order_epoch(pairs, 1, 4)[step].tolist()
        shares = [share.tolist() for share in split_among_ranks(pairs, np.array(batch), world_size)]
        assert sorted(pair for share in shares for pair in share) == sorted(batch)
        for rank, share in enumerate(shares):
            own = single_pairs(ranks[rank][step])
            assert_same_pairs(own, [whole_pairs[batch.index(pair)] for pair in share or batch[:1]])


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine with one core
def test_loader_workers_change_nothing(split):
    alone, in_two_processes = (load(pairs_of(split), 2, loader_workers=workers) for workers in (0, 2))
    assert len(alone) == len(in_two_processes)
    for batch, other in zip(alone, in_two_processes, strict=True):
        assert_same_pairs(single_pairs(batch), single_pairs(other))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("loader_workers", [0, 2])
@pytest.mark.parametrize("first_batch", [1, 3, 4])
def test_an_epoch_goes_on_in_its_middle(first_batch, loader_workers, split):
    rest = load(pairs_of(split), 2, 1, 2, loader_workers, first_batch)
    whole = load(pairs_of(split), 2, 1, 2)[first_batch:]
    assert len(rest) == len(whole) == 4 - first_batch
    for batch, other in zip(rest, whole, strict=True):
        assert_same_pairs(single_pairs(batch), single_pairs(other))
