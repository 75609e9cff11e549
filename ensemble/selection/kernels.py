"""The loops of selection that are compiled: over live entries, candidates and subsets.

Each works on some queries and holds no lock of Python's, so that threads share the queries. Compiled code is kept on
disk.

Shapes: M candidates, Q queries, A clips, P (query, relevant clip) pairs, L live entries, S subsets.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

ROUNDING = 2.0**-21
"""What a sum of two float32 numbers may be wrong by, as a share of their magnitudes, with room to spare."""

LOW, MANY = 6, 20
"""Candidates whose subsets are counted at once, one more from MANY candidates on: the fastest of 6 to 9, measured."""


@intrinsic
def pointer_like(typing_context: Any, address: Any, array: Any) -> Any:
    """A pointer to entries of the array's type at an address."""
    pointer = types.CPointer(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return pointer(types.int64, array), generate


@njit(nogil=True, cache=True)
def scan(addresses, row_bytes, base_query, query, last_query, k, pair_first_Q, clip_P, num_clips,
         rows, low_L, high_L, target_PM, always_P, first_P, last_P, single_PM):  # fmt: skip
    """Keep the live entries of queries, as long as there is room.

    Returns the query that comes next, the rows used, and a candidate with a score that isn't finite in that query (-1).
    """
    num_models = len(addresses)
    above_A = np.empty(num_clips, np.int32)
    live_A = np.empty(num_clips, np.int32)
    used = 0
    while query < last_query:
        if used + num_clips * (pair_first_Q[query + 1] - pair_first_Q[query]) > len(rows):
            break
        offset = (query - base_query) * row_bytes
        for pair in range(pair_first_Q[query], pair_first_Q[query + 1]):
            clip = clip_P[pair]
            above_A[:] = 0
            for model in range(num_models):
                scores_A = carray(pointer_like(addresses[model] + offset, rows), (num_clips,))
                target = scores_A[clip]
                target_PM[pair, model] = target
                number = np.int32(0)
                bad = np.int32(0)
                for place in range(num_clips):
                    is_above = np.int32(scores_A[place] >= target)
                    above_A[place] += is_above
                    number += is_above
                    bad += np.int32(scores_A[place] - scores_A[place] != 0)
                if bad:
                    return query, used, model
                single_PM[pair, model] = number
            always, live = 0, 0
            for place in range(num_clips):
                if above_A[place] == num_models:
                    always += 1
                elif above_A[place]:
                    live_A[live] = place
                    live += 1
            always_P[pair] = always
            first_P[pair] = used
            if always <= k:
                rows_LM, lows, highs = rows[used : used + live], low_L[used : used + live], high_L[used : used + live]
                lows[:], highs[:] = np.inf, -np.inf
                for model in range(num_models):
                    scores_A = carray(pointer_like(addresses[model] + offset, rows), (num_clips,))
                    target = np.float64(scores_A[clip])
                    for entry in range(live):
                        score = scores_A[live_A[entry]]
                        rows_LM[entry, model] = score
                        difference = np.float64(score) - target
                        lows[entry] = difference if difference < lows[entry] else lows[entry]
                        highs[entry] = difference if difference > highs[entry] else highs[entry]
                used += live
            last_P[pair] = used
        query += 1
    return query, used, -1


@njit(nogil=True, cache=True)
def step(first_query, last_query, pair_first_Q, include_Q, first_P, last_P, always_P, rows, low_L, high_L, target_PM,
         joined, sum_L, table, factor_Q, by_hit, first_only):  # fmt: skip
    """The worth of an ensemble plus each candidate, over some queries [M].

    `sum_L` are the members' scores - the relevant clip's, added up; `joined` are those that aren't in it yet.
    Candidates are only counted one by one for entries that one of them could turn.
    """
    num_models, k = rows.shape[1], len(table) - 2
    total_M = np.zeros(num_models, np.int64)
    most = 1
    for query in range(first_query, last_query):
        most = max(most, pair_first_Q[query + 1] - pair_first_Q[query])
    count_M = np.zeros((most, num_models), np.int32)
    open_L = np.empty(len(rows) + 1, np.int64)
    ranks = np.empty(most, np.int32)
    for query in range(first_query, last_query):
        if not include_Q[query]:
            continue
        pairs = pair_first_Q[query + 1] - pair_first_Q[query]
        for number in range(pairs):
            pair = pair_first_Q[query] + number
            first, last = first_P[pair], last_P[pair]
            for model in joined:
                target = np.float64(target_PM[pair, model])
                for row in range(first, last):
                    sum_L[row] += np.float64(rows[row, model]) - target
            up, number_open = 0, 0
            for row in range(first, last):  # without branches, which would be guessed wrong
                total = sum_L[row]
                up += np.int64(total + low_L[row] >= 0)
                open_L[number_open] = row
                number_open += np.int64((total + low_L[row] < 0) & (total + high_L[row] >= 0))
            count_M[number, :] = 0
            counts, targets = count_M[number], target_PM[pair]
            for place in range(number_open):
                row = open_L[place]
                # float32 is twice as fast; what lies within its rounding of 0 is decided in float64.
                scores, total, near = rows[row], sum_L[row], np.int32(0)
                single = np.float32(total)
                unsure = np.float32(ROUNDING * (abs(total) + max(-low_L[row], high_L[row])))
                for model in range(num_models):
                    about = (scores[model] - targets[model]) + single
                    counts[model] += np.int32(about >= 0)
                    near += np.int32(abs(about) <= unsure)
                if near:
                    for model in range(num_models):
                        about = (scores[model] - targets[model]) + single
                        difference = np.float64(scores[model]) - np.float64(targets[model])
                        counts[model] += np.int32(total + difference >= 0) - np.int32(about >= 0)
            fixed = always_P[pair] + up
            for model in range(num_models):
                count_M[number, model] += fixed
        factor = factor_Q[query]
        if pairs == 1:
            for model in range(num_models):
                total_M[model] += factor * table[min(count_M[0, model], k + 1)]
        else:
            for model in range(num_models):
                for number in range(pairs):
                    ranks[number] = count_M[number, model]
                total_M[model] += factor * worth(ranks, pairs, table, by_hit, first_only)
    return total_M


@njit(nogil=True, cache=True)
def worth(ranks, pairs, table, by_hit, first_only):
    """What a query's ranks are worth; they are sorted."""
    k = len(table) - 2
    for place in range(1, pairs):
        rank, before = ranks[place], place - 1
        while before >= 0 and ranks[before] > rank:
            ranks[before + 1] = ranks[before]
            before -= 1
        ranks[before + 1] = rank
    total = np.int64(0)
    for place in range(pairs):
        if ranks[place] > k or (first_only and place):
            break
        total += table[ranks[place]] * ((place + 1) if by_hit else 1)
    return total


@njit(nogil=True, cache=True)
def rank(first_query, last_query, pair_first_Q, first_P, last_P, always_P, rows, target_PM,
         members, weights, rank_P):  # fmt: skip
    """The rank of each pair's clip in a weighted ensemble; beyond k for pairs that keep no rows."""
    for pair in range(pair_first_Q[first_query], pair_first_Q[last_query]):
        up = always_P[pair]
        for row in range(first_P[pair], last_P[pair]):
            total = 0.0
            for place in range(len(members)):
                model = members[place]
                total += weights[place] * (np.float64(rows[row, model]) - np.float64(target_PM[pair, model]))
            up += total >= 0
        rank_P[pair] = up


@njit(nogil=True, cache=True)
def worth_of_all(pair_first_Q, rank_P, table, factor_Q, by_hit, first_only):
    """What each query's ranks are worth [Q]."""
    num_queries = len(pair_first_Q) - 1
    worth_Q = np.zeros(num_queries, np.int64)
    ranks = np.empty(len(rank_P), np.int32)
    for query in range(num_queries):
        first, last = pair_first_Q[query], pair_first_Q[query + 1]
        for pair in range(first, last):
            ranks[pair - first] = rank_P[pair]
        worth_Q[query] = factor_Q[query] * worth(ranks, last - first, table, by_hit, first_only)
    return worth_Q


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
