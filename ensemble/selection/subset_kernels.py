"""The compiled walk over the tree of all subsets of the candidates: branch and bound over live entries.

Each call works on some queries and holds no lock of Python's, so that threads share the queries.

Shapes: M candidates, Q queries, P (query, relevant clip) pairs, L live entries, S subsets of the low candidates,
D depths of the tree.
"""

import numpy as np
from numba import njit

from ensemble.selection.kernels import ROUNDING, worth

LOW, MANY = 6, 20
"""Candidates whose subsets are counted at once, one more from MANY candidates on: the fastest of 6 to 9, measured."""


@njit(nogil=True, cache=True)
def low_models(num_models):
    """How many candidates' subsets are counted at once."""
    return min(LOW + (num_models >= MANY), num_models)


@njit(nogil=True, cache=True)
def walk(queries, pair_first_Q, first_P, last_P, always_P, rows, target_PM, table, factor_Q, by_hit, first_only,
         prefix, prefix_bits, node_worth, leaf_worth):  # fmt: skip
    """Add some queries' worths for all subsets that begin with a prefix.

    `node_worth` [2 * number of leaves] is a heap of branches with one worth; `leaf_worth` [leaves, low subsets].
    """
    num_models, k = rows.shape[1], len(table) - 2
    low = low_models(num_models)
    depth_end = num_models - low - prefix_bits
    num_low = 1 << low
    most_rows, most_pairs = 1, 1
    for query in queries:
        first, last = pair_first_Q[query], pair_first_Q[query + 1]
        most_pairs = max(most_pairs, last - first)
        most_rows = max(most_rows, last_P[last - 1] - first_P[first])
    entry_D = np.empty((depth_end + 2, most_rows), np.int32)
    sum_D = np.empty((depth_end + 2, most_rows))
    size_D = np.zeros(depth_end + 2, np.int64)
    up_DP = np.zeros((depth_end + 2, most_pairs), np.int32)
    node_D = np.zeros(depth_end + 2, np.int64)
    state_D = np.zeros(depth_end + 2, np.int64)
    difference_LM = np.empty((most_rows, num_models))
    low_LS = np.zeros((most_rows, num_low))
    rounded_LS = np.empty((most_rows, num_low), np.float32)
    least_LM = np.zeros((most_rows, num_models + 1))  # of the sums over the first m candidates
    greatest_LM = np.zeros((most_rows, num_models + 1))
    pair_L = np.empty(most_rows, np.int32)
    count_PS = np.empty((most_pairs, num_low), np.int32)
    ranks = np.empty(most_pairs, np.int32)
    own_table = np.empty(len(table), leaf_worth.dtype)
    for query in queries:
        first, pairs = pair_first_Q[query], pair_first_Q[query + 1] - pair_first_Q[query]
        own_table[:] = factor_Q[query] * table
        used = 0
        for number in range(pairs):
            pair = first + number
            up_DP[0, number] = always_P[pair]
            for row in range(first_P[pair], last_P[pair]):
                least, greatest = 0.0, 0.0
                for model in range(num_models):
                    difference = np.float64(rows[row, model]) - np.float64(target_PM[pair, model])
                    difference_LM[used, model] = difference
                    least += min(0.0, difference)
                    greatest += max(0.0, difference)
                    least_LM[used, model + 1], greatest_LM[used, model + 1] = least, greatest
                if greatest < 0 or least >= 0:  # no subset of these candidates can turn it
                    up_DP[0, number] += least >= 0
                    continue
                pair_L[used] = number
                for model in range(low):
                    for subset in range(1 << model):
                        low_LS[used, subset + (1 << model)] = low_LS[used, subset] + difference_LM[used, model]
                rounded_LS[used, :] = low_LS[used, :]
                start = 0.0
                for bit in range(prefix_bits):
                    if prefix >> bit & 1:
                        start += difference_LM[used, num_models - prefix_bits + bit]
                entry_D[0, used], sum_D[0, used] = used, start
                used += 1
        size_D[0], node_D[0], state_D[0] = used, 1, -1
        depth = 0
        while depth >= 0:
            models_left = num_models - prefix_bits - depth
            if state_D[depth] == -1:  # comes first to this node: leave behind what is decided
                kept = 0
                for place in range(size_D[depth]):
                    entry, total = entry_D[depth, place], sum_D[depth, place]
                    if total + least_LM[entry, models_left] >= 0:
                        up_DP[depth, pair_L[entry]] += 1
                    elif total + greatest_LM[entry, models_left] >= 0:
                        entry_D[depth, kept], sum_D[depth, kept] = entry, total
                        kept += 1
                size_D[depth] = kept
                hopeless = True
                for number in range(pairs):
                    hopeless &= up_DP[depth, number] > k
                if hopeless:
                    depth -= 1
                    continue
                if kept == 0:
                    for number in range(pairs):
                        ranks[number] = up_DP[depth, number]
                    node_worth[node_D[depth]] += factor_Q[query] * worth(ranks, pairs, table, by_hit, first_only)
                    depth -= 1
                    continue
                if depth == depth_end:
                    leaf = node_D[depth] - (1 << depth_end)
                    if pairs == 1 and kept == 1:  # the most frequent case: two worths, and no ranks to look up
                        entry, total = entry_D[depth, 0], sum_D[depth, 0]
                        worths, sums = leaf_worth[leaf], rounded_LS[entry]
                        single, near = np.float32(total), np.int32(0)
                        unsure = np.float32(ROUNDING * (abs(total) + greatest_LM[entry, low] - least_LM[entry, low]))
                        higher = own_table[min(up_DP[depth, 0], k + 1)]
                        lower = own_table[min(up_DP[depth, 0] + 1, k + 1)]
                        for subset in range(num_low):
                            about = single + sums[subset]
                            worths[subset] += lower if about >= 0 else higher
                            near += np.int32(abs(about) <= unsure)
                        if near:
                            for subset in range(num_low):
                                about = single + sums[subset]
                                decided = total + low_LS[entry, subset]
                                worths[subset] += (lower if decided >= 0 else higher) - (
                                    lower if about >= 0 else higher
                                )
                        depth -= 1
                        continue
                    for number in range(pairs):
                        count_PS[number, :] = up_DP[depth, number]
                    for place in range(kept):
                        entry, total = entry_D[depth, place], sum_D[depth, place]
                        number = pair_L[entry]
                        single, near = np.float32(total), np.int32(0)
                        unsure = np.float32(ROUNDING * (abs(total) + greatest_LM[entry, low] - least_LM[entry, low]))
                        sums, counts = rounded_LS[entry], count_PS[number]
                        for subset in range(num_low):
                            about = single + sums[subset]
                            counts[subset] += np.int32(about >= 0)
                            near += np.int32(abs(about) <= unsure)
                        if near:
                            for subset in range(num_low):
                                about = single + rounded_LS[entry, subset]
                                count_PS[number, subset] += np.int32(total + low_LS[entry, subset] >= 0)
                                count_PS[number, subset] -= np.int32(about >= 0)
                    if pairs == 1:
                        worths, counts = leaf_worth[leaf], count_PS[0]
                        for subset in range(num_low):
                            worths[subset] += own_table[min(counts[subset], k + 1)]
                    else:
                        for subset in range(num_low):
                            for number in range(pairs):
                                ranks[number] = count_PS[number, subset]
                            leaf_worth[leaf, subset] += factor_Q[query] * worth(ranks, pairs, table, by_hit, first_only)
                    depth -= 1
                    continue
                state_D[depth] = 0
            if state_D[depth] == 2:
                depth -= 1
                continue
            taken = state_D[depth]
            state_D[depth] += 1
            model = models_left - 1
            for place in range(size_D[depth]):
                entry = entry_D[depth, place]
                entry_D[depth + 1, place] = entry
                sum_D[depth + 1, place] = sum_D[depth, place] + (difference_LM[entry, model] if taken else 0.0)
            size_D[depth + 1] = size_D[depth]
            for number in range(pairs):
                up_DP[depth + 1, number] = up_DP[depth, number]
            node_D[depth + 1] = 2 * node_D[depth] + taken
            state_D[depth + 1] = -1
            depth += 1
