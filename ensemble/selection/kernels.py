"""Compiled loops of selection over kept entries, candidates and subsets.

Each function works on some queries and releases Python's global interpreter lock, so threads can share the queries.
Compiled code is cached on disk.

Shapes: M candidates, Q queries, A clips, P (query, relevant clip) pairs, L kept entries.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

ROUNDING = 2.0**-21
"""Relative error of a sum of two float32 numbers, with a margin."""


@intrinsic
def pointer_like(typing_context: Any, address: Any, array: Any) -> Any:
    """Return a pointer to a memory address, given as an integer. Its type is that of a pointer to the array's
    entries.
    """
    pointer = types.CPointer(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return pointer(types.int64, array), generate


def prune_queries(scores: Sequence[NDArray[np.float32]], *arguments: Any) -> Any:
    """Call `prune_queries_at` with the scores of all candidates, one contiguous float32 array [queries, A] each, and
    the other arguments; return its result.

    `prune_queries_at` takes the arrays' addresses, since numba would compile it again for each number of arrays.
    """
    return prune_queries_at(np.array([one.ctypes.data for one in scores], np.int64), *arguments)


@njit(nogil=True, cache=True)
def prune_queries_at(addresses, base_query, query, last_query, k, pair_first_Q, clip_P, num_clips,
                   rows, low_L, high_L, target_PM, always_P, first_P, last_P, single_PM):  # fmt: skip
    """Find, for each relevant clip of the queries from `query` to `last_query` (exclusive), the clips that rank above
    it by some candidates but not by all, and write all candidates' scores of these clips to `rows` [L, M], until it is
    full. Return the next query, the number of rows written, and the index of a candidate with a score that isn't finite
    (-1 if there is none). The arrays from `low_L` to `single_PM`, which are explained in `PrunedPool` and `Chunk`, are
    written as well.

    The score arrays start at `base_query`; their addresses are in `addresses`.
    """
    num_models = len(addresses)
    above_A = np.empty(num_clips, np.int32)
    kept_A = np.empty(num_clips, np.int32)
    used = 0
    while query < last_query:
        if used + num_clips * (pair_first_Q[query + 1] - pair_first_Q[query]) > len(rows):
            break
        offset = (query - base_query) * num_clips * rows.itemsize
        for pair in range(pair_first_Q[query], pair_first_Q[query + 1]):
            clip = clip_P[pair]
            above_A[:] = 0
            for model in range(num_models):
                scores_A = carray(pointer_like(addresses[model] + offset, rows), (num_clips,))
                target = scores_A[clip]
                target_PM[pair, model] = target
                number = np.int32(0)
                bad = np.int32(0)
                for index in range(num_clips):
                    is_above = np.int32(scores_A[index] >= target)
                    above_A[index] += is_above
                    number += is_above
                    bad += np.int32(scores_A[index] - scores_A[index] != 0)
                if bad:
                    return query, used, model
                single_PM[pair, model] = number
            always, num_kept = 0, 0
            for index in range(num_clips):
                if above_A[index] == num_models:
                    always += 1
                elif above_A[index]:
                    kept_A[num_kept] = index
                    num_kept += 1
            always_P[pair] = always
            first_P[pair] = used
            if always < k + pair_first_Q[query + 1] - pair_first_Q[query]:  # score_ranks improves tied ranks
                rows_LM, lows, highs = (
                    rows[used : used + num_kept],
                    low_L[used : used + num_kept],
                    high_L[used : used + num_kept],
                )
                lows[:], highs[:] = np.inf, -np.inf
                for model in range(num_models):
                    scores_A = carray(pointer_like(addresses[model] + offset, rows), (num_clips,))
                    target = np.float64(scores_A[clip])
                    for entry in range(num_kept):
                        score = scores_A[kept_A[entry]]
                        rows_LM[entry, model] = score
                        difference = np.float64(score) - target
                        lows[entry] = difference if difference < lows[entry] else lows[entry]
                        highs[entry] = difference if difference > highs[entry] else highs[entry]
                used += num_kept
            last_P[pair] = used
        query += 1
    return query, used, -1


@njit(nogil=True, cache=True)
def score_candidates(first_query, last_query, pair_first_Q, include_Q, first_P, last_P, always_P, rows, low_L, high_L,
                     target_PM, added, sum_L, table, factor_Q, by_hit, first_only):  # fmt: skip
    """Return, for each candidate, the integer score of the current ensemble with that candidate added [M], summed over
    the queries from `first_query` to `last_query` (exclusive) that `include_Q` contains. The other arrays are those of
    `PrunedPool`, `Chunk` and `RankGains`; `sum_L` and `added` describe the ensemble.

    `sum_L` has, for each row of `rows`, the sum over members of the clip's score minus the relevant clip's score. The
    members in `added` are not in the sum yet: their differences are added to it in place. Candidates are compared one
    by one only for rows whose order relative to the relevant clip one of them can change.
    """
    num_models, k = rows.shape[1], len(table) - 2
    total_M = np.zeros(num_models, np.int64)
    max_pairs = 1
    for query in range(first_query, last_query):
        max_pairs = max(max_pairs, pair_first_Q[query + 1] - pair_first_Q[query])
    count_M = np.zeros((max_pairs, num_models), np.int32)
    open_L = np.empty(len(rows) + 1, np.int64)
    ranks = np.empty(max_pairs, np.int32)
    for query in range(first_query, last_query):
        if not include_Q[query]:
            continue
        pairs = pair_first_Q[query + 1] - pair_first_Q[query]
        for number in range(pairs):
            pair = pair_first_Q[query] + number
            first, last = first_P[pair], last_P[pair]
            for model in added:
                target = np.float64(target_PM[pair, model])
                for row in range(first, last):
                    sum_L[row] += np.float64(rows[row, model]) - target
            up, number_open = 0, 0
            for row in range(first, last):  # branch-free, since branches would be mispredicted
                total = sum_L[row]
                up += np.int64(total + low_L[row] >= 0)
                open_L[number_open] = row
                number_open += np.int64((total + low_L[row] < 0) & (total + high_L[row] >= 0))
            count_M[number, :] = 0
            counts, targets = count_M[number], target_PM[pair]
            for index in range(number_open):
                row = open_L[index]
                # float32 is twice as fast; sums within its rounding error of 0 are decided in float64.
                scores, total, near = rows[row], sum_L[row], np.int32(0)
                rounded = np.float32(total)
                margin = np.float32(ROUNDING * (abs(total) + max(-low_L[row], high_L[row])))
                for model in range(num_models):
                    about = (scores[model] - targets[model]) + rounded
                    counts[model] += np.int32(about >= 0)
                    near += np.int32(abs(about) <= margin)
                if near:
                    for model in range(num_models):
                        about = (scores[model] - targets[model]) + rounded
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
                total_M[model] += factor * score_ranks(ranks, pairs, table, by_hit, first_only)
    return total_M


@njit(nogil=True, cache=True)
def score_ranks(ranks, pairs, table, by_hit, first_only):
    """Return a query's integer score: the sum of the gains in `table` at the ranks of its relevant clips. `ranks` has
    these ranks in its first `pairs` entries, which are sorted in place. With `by_hit`, the gain of the h-th relevant
    clip is multiplied by h; with `first_only`, only the first one counts.

    Each rank counts all clips with at least the relevant clip's score. The last of m relevant clips with the equal rank
    r therefore keeps it, and the first gets r - m + 1, as in `trainables.retrieval.spread_tied_ranks`.
    """
    k = len(table) - 2
    for index in range(1, pairs):
        rank, before = ranks[index], index - 1
        while before >= 0 and ranks[before] > rank:
            ranks[before + 1] = ranks[before]
            before -= 1
        ranks[before + 1] = rank
    for index in range(pairs - 2, -1, -1):
        if ranks[index] >= ranks[index + 1]:
            ranks[index] = ranks[index + 1] - 1
    total = np.int64(0)
    for index in range(pairs):
        if ranks[index] > k or (first_only and index):
            break
        total += table[ranks[index]] * ((index + 1) if by_hit else 1)
    return total


@njit(nogil=True, cache=True)
def compute_ranks(first_query, last_query, pair_first_Q, first_P, last_P, always_P, rows, target_PM,
         members, weights, rank_P):  # fmt: skip
    """Write the rank of the relevant clip of each pair to `rank_P`, in the ensemble of `members` with these weights,
    for the queries from `first_query` to `last_query` (exclusive). Clips with an equal score count as ranked before it.
    The other arrays are those of `PrunedPool` and `Chunk`.
    """
    for pair in range(pair_first_Q[first_query], pair_first_Q[last_query]):
        up = always_P[pair]
        for row in range(first_P[pair], last_P[pair]):
            total = 0.0
            for index in range(len(members)):
                model = members[index]
                total += weights[index] * (np.float64(rows[row, model]) - np.float64(target_PM[pair, model]))
            up += total >= 0
        rank_P[pair] = up


@njit(nogil=True, cache=True)
def score_queries(pair_first_Q, rank_P, table, factor_Q, by_hit, first_only):
    """Return the integer score of each query [Q], computed from the ranks of its relevant clips in `rank_P`. `table`
    has the gain of each rank, `factor_Q` a factor for each query, and `pair_first_Q` the index in `rank_P` of each
    query's first relevant clip. `by_hit` and `first_only` are those of `score_ranks`.
    """
    num_queries = len(pair_first_Q) - 1
    scores_Q = np.zeros(num_queries, np.int64)
    ranks = np.empty(len(rank_P), np.int32)
    for query in range(num_queries):
        first, last = pair_first_Q[query], pair_first_Q[query + 1]
        for pair in range(first, last):
            ranks[pair - first] = rank_P[pair]
        scores_Q[query] = factor_Q[query] * score_ranks(ranks, last - first, table, by_hit, first_only)
    return scores_Q
