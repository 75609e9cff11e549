"""Order of an epoch's pairs, its global batches, and each rank's share of a batch."""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.loading.pairs import ORDER_STREAM, ClipCaptionDataset


def order_epoch(pairs: ClipCaptionDataset, epoch: int, batch_size: int) -> list[NDArray[np.int64]]:
    """Return the global batches of an epoch, each as an array of pair indices. The order is random, but
    determined by the pairs' seed and the number of the epoch: every rank and every repetition get the same. Each pair
    occurs once, and a batch has `batch_size` pairs, except a smaller last one.
    """
    order = np.random.default_rng([pairs.seed, ORDER_STREAM, epoch]).permutation(len(pairs))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def split_among_ranks(pairs: ClipCaptionDataset, batch: NDArray[np.int64], world_size: int) -> list[NDArray[np.int64]]:
    """Divide a global batch, an array of pair indices, among `world_size` ranks such that each has about the same
    number of segments. Return the array of each rank, which is empty if there are fewer pairs than ranks.
    """
    if world_size == 1:
        return [batch]
    return [batch[indices] for indices in balance_among_ranks(pairs.get_num_segments(batch), world_size)]


def balance_among_ranks(sizes: Sequence[int], world_size: int) -> list[list[int]]:
    """Divide items of these sizes among `world_size` ranks such that the total size of each rank's items is about the
    same: the largest item first, each to the rank with the smallest total so far. Return the ascending indices of each
    rank's items.

    This is Graham's list scheduling by longest processing time (1969): no rank exceeds the mean load by more than one
    item.
    """
    ranks = [(0, rank) for rank in range(world_size)]
    indices: list[list[int]] = [[] for _ in range(world_size)]
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        load, rank = ranks[0]
        indices[rank].append(index)
        heapq.heapreplace(ranks, (load + sizes[index], rank))
    return [sorted(of_rank) for of_rank in indices]
