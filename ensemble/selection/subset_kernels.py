"""Compiled walk over the tree of all subsets of the candidates: branch and bound over kept entries.

Each call works on some queries and releases Python's global interpreter lock, so threads can share the queries. Numba
inlines the parts of the walk, since function calls make it up to a quarter slower (measured).

The low candidates are the first 6 or 7, whose subsets are counted at once at the leaves of the tree.

Shapes: M candidates, Q queries, P (query, relevant clip) pairs, L kept entries, S subsets of the low candidates, D
depths of the tree.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ensemble.selection.kernels import ROUNDING, score_ranks

NUM_LOW, MANY_MODELS = 6, 20
"""Number of low candidates, and number of candidates from which on it is one more; 6 to 9 were measured."""


class Entries(NamedTuple):
    """Clips whose order relative to a relevant clip of a query differs between subsets of the candidates. Each of the L
    rows stands for such a clip and one relevant clip, each of the M columns for a candidate; `difference_LM` has the
    clip's score minus the relevant clip's.
    """

    difference_LM: NDArray[np.float64]
    least_LM: NDArray[np.float64]  # minimum over subsets of the first m candidates of the sum of differences
    greatest_LM: NDArray[np.float64]  # maximum
    low_LS: NDArray[np.float64]  # sums over the low candidates' subsets
    rounded_LS: NDArray[np.float32]
    pair_L: NDArray[np.int32]  # index of the pair in its query


class Tree(NamedTuple):
    """Path from the root of the tree of subsets to the current node, with one row per depth. At a node, some candidates
    have been included or excluded; a row of `Entries` is undecided there if the remaining candidates can still change
    which of its two clips ranks first.
    """

    entry_D: NDArray[np.int32]  # [depths, L] undecided entries
    sum_D: NDArray[np.float64]  # [depths, L] sums of their differences over the included candidates
    size_D: NDArray[np.int64]  # number of undecided entries
    up_DP: NDArray[np.int32]  # rank of each pair's clip by the decided entries
    node_D: NDArray[np.int64]  # index in the heap
    state_D: NDArray[np.int64]  # number of children visited; -1 before the node itself is visited


@njit(nogil=True, cache=True)
def count_low_models(num_models):
    """Return how many candidates, the first ones of `num_models`, are not included or excluded one by one in the tree
    of subsets: all their subsets are scored at once at each leaf.
    """
    return min(NUM_LOW + (num_models >= MANY_MODELS), num_models)


@njit(nogil=True, cache=True)
def add_subset_scores(queries, pair_first_Q, first_P, last_P, always_P, rows, target_PM, table, factor_Q, by_hit,
                      first_only, prefix, prefix_bits, node_scores, leaf_scores):  # fmt: skip
    """Add the integer scores of some queries to `node_scores` and `leaf_scores`, for all subsets of the candidates that
    contain, of the last `prefix_bits` candidates, exactly those whose bits are set in `prefix`. The arrays that are
    only read are those of `PrunedPool`, `Chunk` and `RankGains`.

    A score that all subsets below a node of the tree share is added to `node_scores`, a heap [2 * number of leaves].
    The others are added to `leaf_scores` [number of leaves, S], for each of the S subsets of the first candidates that
    are scored at once.
    """
    num_models, k = rows.shape[1], len(table) - 2
    low = count_low_models(num_models)
    depth_end = num_models - low - prefix_bits
    max_rows, max_pairs = count_max_rows_and_pairs(queries, pair_first_Q, first_P, last_P)
    entries = allocate_entries(max_rows, num_models, low)
    tree = allocate_tree(depth_end + 2, max_rows, max_pairs)
    up_DP, node_D, state_D = tree.up_DP, tree.node_D, tree.state_D
    count_PS = np.empty((max_pairs, 1 << low), np.int32)
    ranks = np.empty(max_pairs, np.int32)
    query_table = np.empty(len(table), leaf_scores.dtype)
    for query in queries:
        first, pairs = pair_first_Q[query], pair_first_Q[query + 1] - pair_first_Q[query]
        query_table[:] = factor_Q[query] * table
        used = list_entries(entries, up_DP[0], first, pairs, first_P, last_P, always_P, rows, target_PM, low)
        start_tree(tree, entries, used, prefix, prefix_bits)
        depth = 0
        while depth >= 0:
            models_left = num_models - prefix_bits - depth
            if state_D[depth] == -1:  # the node is visited for the first time
                kept = drop_decided(tree, entries, depth, models_left)
                all_beyond_k = True
                for number in range(pairs):
                    all_beyond_k &= up_DP[depth, number] >= k + pairs  # score_ranks improves tied ranks
                if all_beyond_k:
                    depth -= 1
                    continue
                if kept == 0:
                    for number in range(pairs):
                        ranks[number] = up_DP[depth, number]
                    node_scores[node_D[depth]] += factor_Q[query] * score_ranks(ranks, pairs, table, by_hit, first_only)
                    depth -= 1
                    continue
                if depth == depth_end:
                    leaf = node_D[depth] - (1 << depth_end)
                    if pairs == 1 and kept == 1:  # the most frequent case: two possible scores, and no ranks to look up
                        add_two_scores(leaf_scores[leaf], tree, entries, depth, query_table, low)
                        depth -= 1
                        continue
                    count_subsets(count_PS, tree, entries, depth, pairs, low)
                    for subset in range(1 << low):
                        if pairs == 1:
                            leaf_scores[leaf, subset] += query_table[min(count_PS[0, subset], k + 1)]
                        else:
                            for number in range(pairs):
                                ranks[number] = count_PS[number, subset]
                            leaf_scores[leaf, subset] += factor_Q[query] * score_ranks(
                                ranks, pairs, table, by_hit, first_only
                            )
                    depth -= 1
                    continue
                state_D[depth] = 0
            if state_D[depth] == 2:
                depth -= 1
                continue
            make_child(tree, entries, depth, models_left - 1, pairs)
            depth += 1


@njit(nogil=True, inline="always")
def count_max_rows_and_pairs(queries, pair_first_Q, first_P, last_P):
    """Return two numbers, each the maximum over some queries and at least 1: the number of kept rows and the number of
    pairs of one query. The arrays are those of `PrunedPool`.
    """
    max_rows, max_pairs = 1, 1
    for query in queries:
        first, last = pair_first_Q[query], pair_first_Q[query + 1]
        max_pairs = max(max_pairs, last - first)
        max_rows = max(max_rows, last_P[last - 1] - first_P[first])
    return max_rows, max_pairs


@njit(nogil=True, inline="always")
def allocate_entries(max_rows, num_models, low):
    """Return `Entries` for one query, not filled in yet, with room for `max_rows` clips. `low` is the number of first
    candidates whose subsets are scored at once.
    """
    return Entries(
        np.empty((max_rows, num_models)),
        np.zeros((max_rows, num_models + 1)),
        np.zeros((max_rows, num_models + 1)),
        np.zeros((max_rows, 1 << low)),
        np.empty((max_rows, 1 << low), np.float32),
        np.empty(max_rows, np.int32),
    )


@njit(nogil=True, inline="always")
def allocate_tree(depths, max_rows, max_pairs):
    """Return a `Tree`, not filled in yet, with room for a path of `depths` nodes and for a query of `max_rows` entries
    and `max_pairs` relevant clips.
    """
    return Tree(
        np.empty((depths, max_rows), np.int32),
        np.empty((depths, max_rows)),
        np.zeros(depths, np.int64),
        np.zeros((depths, max_pairs), np.int32),
        np.zeros(depths, np.int64),
        np.zeros(depths, np.int64),
    )


@njit(nogil=True, inline="always")
def list_entries(entries, up_P, first, pairs, first_P, last_P, always_P, rows, target_PM, low):
    """Write the clips of one query whose order relative to a relevant clip depends on the subset to `entries`, and
    return their number. The query's relevant clips are those of the `pairs` pairs from the index `first` on. `up_P` is
    set to the number of clips that rank above each relevant clip in all subsets. The remaining arrays, which are only
    read, are those of `PrunedPool` and `Chunk`.
    """
    num_models, used = rows.shape[1], 0
    difference_LM, least_LM, greatest_LM, low_LS, rounded_LS, pair_L = entries
    for number in range(pairs):
        pair = first + number
        up_P[number] = always_P[pair]
        for row in range(first_P[pair], last_P[pair]):
            least, greatest = 0.0, 0.0
            for model in range(num_models):
                difference = np.float64(rows[row, model]) - np.float64(target_PM[pair, model])
                difference_LM[used, model] = difference
                least += min(0.0, difference)
                greatest += max(0.0, difference)
                least_LM[used, model + 1], greatest_LM[used, model + 1] = least, greatest
            if greatest < 0 or least >= 0:
                up_P[number] += least >= 0
                continue
            pair_L[used] = number
            for model in range(low):
                for subset in range(1 << model):
                    low_LS[used, subset + (1 << model)] = low_LS[used, subset] + difference_LM[used, model]
            rounded_LS[used, :] = low_LS[used, :]
            used += 1
    return used


@njit(nogil=True, inline="always")
def start_tree(tree, entries, used, prefix, prefix_bits):
    """Initialise the root of the tree in place. Its undecided entries are the first `used` rows of `entries`. Each has
    the sum of its score differences over those of the last `prefix_bits` candidates whose bits are set in `prefix`.
    """
    num_models = entries.difference_LM.shape[1]
    for entry in range(used):
        start = 0.0
        for bit in range(prefix_bits):
            if prefix >> bit & 1:
                start += entries.difference_LM[entry, num_models - prefix_bits + bit]
        tree.entry_D[0, entry], tree.sum_D[0, entry] = entry, start
    tree.size_D[0], tree.node_D[0], tree.state_D[0] = used, 1, -1


@njit(nogil=True, inline="always")
def drop_decided(tree, entries, depth, models_left):
    """Remove, in place, the entries of the tree's node at `depth` whose order relative to the relevant clip is the same
    for all choices of the first `models_left` candidates. Return the number of entries that remain.

    A removed entry that always has at least the relevant clip's score is counted in the relevant clip's rank.
    """
    kept = 0
    for index in range(tree.size_D[depth]):
        entry, total = tree.entry_D[depth, index], tree.sum_D[depth, index]
        if total + entries.least_LM[entry, models_left] >= 0:
            tree.up_DP[depth, entries.pair_L[entry]] += 1
        elif total + entries.greatest_LM[entry, models_left] >= 0:
            tree.entry_D[depth, kept], tree.sum_D[depth, kept] = entry, total
            kept += 1
    tree.size_D[depth] = kept
    return kept


@njit(nogil=True, inline="always")
def make_child(tree, entries, depth, model, pairs):
    """Write a child of the tree's node at `depth` to the row `depth + 1` of `tree`: the first call for a node writes
    the child that excludes the candidate `model`, the second call the one that includes it. `pairs` is the number of
    the query's relevant clips.
    """
    taken = tree.state_D[depth]
    tree.state_D[depth] += 1
    for index in range(tree.size_D[depth]):
        entry = tree.entry_D[depth, index]
        added = entries.difference_LM[entry, model] if taken else 0.0
        tree.entry_D[depth + 1, index], tree.sum_D[depth + 1, index] = entry, tree.sum_D[depth, index] + added
    tree.size_D[depth + 1] = tree.size_D[depth]
    for number in range(pairs):
        tree.up_DP[depth + 1, number] = tree.up_DP[depth, number]
    tree.node_D[depth + 1] = 2 * tree.node_D[depth] + taken
    tree.state_D[depth + 1] = -1


@njit(nogil=True, inline="always")
def add_two_scores(scores, tree, entries, depth, query_table, low):
    """Add a query's score to `scores` [S], for each subset of the first `low` candidates. The query has one relevant
    clip, and its leaf at `depth` one undecided entry, so that only two ranks are possible; `query_table` has the
    query's score by rank.
    """
    entry, total, up = tree.entry_D[depth, 0], tree.sum_D[depth, 0], tree.up_DP[depth, 0]
    last, sums = len(query_table) - 1, entries.rounded_LS[entry]
    rounded, near = np.float32(total), np.int32(0)
    margin = np.float32(ROUNDING * (abs(total) + entries.greatest_LM[entry, low] - entries.least_LM[entry, low]))
    higher, lower = query_table[min(up, last)], query_table[min(up + 1, last)]
    for subset in range(1 << low):
        about = rounded + sums[subset]
        scores[subset] += lower if about >= 0 else higher
        near += np.int32(abs(about) <= margin)
    if near:
        for subset in range(1 << low):
            about = rounded + sums[subset]
            decided = total + entries.low_LS[entry, subset]
            scores[subset] += (lower if decided >= 0 else higher) - (lower if about >= 0 else higher)


@njit(nogil=True, inline="always")
def count_subsets(count_PS, tree, entries, depth, pairs, low):
    """Write the rank of each relevant clip of a query to `count_PS`, for each subset of the first `low` candidates, at
    the leaf `depth` of the tree. `pairs` is the number of the query's relevant clips.
    """
    for number in range(pairs):
        count_PS[number, :] = tree.up_DP[depth, number]
    for index in range(tree.size_D[depth]):
        entry, total = tree.entry_D[depth, index], tree.sum_D[depth, index]
        rounded, near = np.float32(total), np.int32(0)
        margin = np.float32(ROUNDING * (abs(total) + entries.greatest_LM[entry, low] - entries.least_LM[entry, low]))
        sums, counts = entries.rounded_LS[entry], count_PS[entries.pair_L[entry]]
        for subset in range(1 << low):
            about = rounded + sums[subset]
            counts[subset] += np.int32(about >= 0)
            near += np.int32(abs(about) <= margin)
        if near:
            for subset in range(1 << low):
                about = rounded + sums[subset]
                counts[subset] += np.int32(total + entries.low_LS[entry, subset] >= 0) - np.int32(about >= 0)
