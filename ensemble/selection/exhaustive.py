"""Exhaustive search: the score of every ensemble of equal weights, over all subsets of up to about 28 candidates.

For each query a binary tree is traversed, which includes or excludes one candidate per level. An entry whose order the
remaining candidates cannot change is counted and dropped; if none is left, all subsets below the node have the same
score. For the last six or seven candidates all subsets are counted at once. Time and memory double with each candidate.

Shapes: M candidates, P (query, relevant clip) pairs, L kept entries, S = 2**M subsets; bit m of a subset is set if
candidate m belongs to it.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.selection.pruned_pool import PrunedPool

MAX_MODELS = 28
"""Maximum number of candidates: 2**28 scores take 1 GB, or 2 GB if they don't fit into 32 bits."""

NUM_TIMED_QUERIES = 64
"""Number of queries timed to estimate the total time; a quarter of them is timed separately to find the fixed cost."""

MAX_TIMED_MODELS = 22
"""Maximum number of candidates in the timed search; each further one doubles the time."""

MAX_BYTES_PER_THREAD = 2**29
"""Size up to which threads split queries, with one score array each; above it they split subsets."""


def score_subsets(
    pruned: PrunedPool,
    models: Sequence[int],
    include_Q: NDArray[np.bool_] | None = None,
    counts: Sequence[int] | None = None,
) -> NDArray[np.integer]:
    """Return the scores [2 ** len(models)] of the ensembles of all subsets of the candidates `models`: the metric
    summed over all queries or those in the mask `include_Q`, scaled to an integer; the empty subset scores 0. Members
    have equal weights unless `counts` gives each candidate's weight.

    Args:
        pruned: the pruned pool.
        models: indices of the candidates; bit m of a subset stands for models[m].
        include_Q: mask of the queries to score; by default all.
        counts: integer weight of each candidate; by default 1.

    Raises:
        UserError: if there are more than MAX_MODELS candidates.
    """
    if len(models) > MAX_MODELS:
        raise UserError(
            f"exact: {len(models)} candidates have 2**{len(models)} subsets; the maximum is {MAX_MODELS} candidates: "
            "select from the best single ones with --among, or use --method greedy"
        )
    queries = np.flatnonzero(np.ones(pruned.num_queries, bool) if include_Q is None else include_Q)
    rows = [select_columns(chunk.rows, models, counts) for chunk in pruned.chunks]
    return search_subsets(pruned, rows, select_columns(pruned.target_PM, models, counts), queries)


def select_columns(scores: NDArray[Any], models: Sequence[int], counts: Sequence[int] | None) -> NDArray[Any]:
    """Return the columns of a score matrix [.., M] that belong to the candidates `models`, each multiplied by the
    candidate's integer weight in `counts` (1 if it is None).
    """
    columns = scores[:, list(models)]
    return np.ascontiguousarray(columns if counts is None else columns.astype(np.float64) * np.asarray(counts))


def search_subsets(
    pruned: PrunedPool, rows: Sequence[NDArray[Any]], target_PM: NDArray[Any], queries: NDArray[np.int64]
) -> NDArray[np.integer]:
    """Return the integer score of each subset of some candidates [S], summed over the queries whose indices are
    `queries`. Both `rows`, the kept scores in each chunk of the pruned pool, and `target_PM`, the relevant clips'
    scores, have a column for each of these candidates only.
    """
    from ensemble.selection.subset_kernels import add_subset_scores, count_low_models

    num_models, gains = target_PM.shape[1], pruned.gains
    low = int(count_low_models(num_models))
    dtype = np.dtype(np.int32 if gains.perfect_score * pruned.num_queries < 2**31 else np.int64)
    shares = pruned.threads if pruned.threads * dtype.itemsize << num_models <= MAX_BYTES_PER_THREAD else 1
    prefix_bits = 0 if shares > 1 else min(num_models - low, max(0, pruned.threads - 1).bit_length())
    leaves = 1 << (num_models - low - prefix_bits)
    scores_TPLS = np.zeros((shares, 1 << prefix_bits, leaves, 1 << low), dtype)

    def work(share: int, prefix: int) -> None:
        nodes = np.zeros(2 * leaves, dtype)
        scores_LS = scores_TPLS[share, prefix]
        for chunk, chunk_rows in zip(pruned.chunks, rows, strict=True):
            share_queries = queries[(queries >= chunk.first_query) & (queries < chunk.last_query)][share::shares]
            share_queries = share_queries[pruned.pair_first_Q[share_queries + 1] > pruned.pair_first_Q[share_queries]]
            if len(share_queries):
                add_subset_scores(
                    share_queries, pruned.pair_first_Q, pruned.first_P, pruned.last_P, pruned.always_P, chunk_rows,
                    target_PM, gains.table, gains.factor_Q, gains.by_hit, gains.first_only, prefix, prefix_bits,
                    nodes, scores_LS)  # fmt: skip
        first = 1  # first node of a level of the heap; a node's score is added to all nodes below it
        while first < leaves:
            nodes[2 * first : 4 * first] += np.repeat(nodes[first : 2 * first], 2)
            first *= 2
        scores_LS += nodes[leaves:, None]

    with ThreadPoolExecutor(pruned.threads) as workers:
        list(workers.map(work, *zip(*np.ndindex(shares, 1 << prefix_bits), strict=True)))
    scores_S: NDArray[np.integer] = scores_TPLS.sum(axis=0, dtype=dtype) if shares > 1 else scores_TPLS
    scores_S = scores_S.reshape(-1)
    scores_S[0] = 0
    return scores_S


def estimate_seconds(pruned: PrunedPool, models: Sequence[int]) -> float:
    """Return the estimated time in seconds that `score_subsets` takes for the candidates `models`, measured on a sample
    of the queries.
    """
    queries = np.unique(np.linspace(0, pruned.num_queries - 1, min(NUM_TIMED_QUERIES, pruned.num_queries)).astype(int))
    tried = models[:MAX_TIMED_MODELS]
    began = time.perf_counter()
    rows = [select_columns(chunk.rows, tried, None) for chunk in pruned.chunks]
    target_PM = select_columns(pruned.target_PM, tried, None)
    once_s = time.perf_counter() - began

    def measure_s(some: NDArray[np.int64]) -> float:
        began = time.perf_counter()
        search_subsets(pruned, rows, target_PM, some)
        return time.perf_counter() - began

    quarter = queries[::4]
    measure_s(quarter[:1])  # compiles the loop, or loads it from the cache
    few_s, all_s = measure_s(quarter), measure_s(queries)
    each_s = (all_s - few_s) / max(1, len(queries) - len(quarter))
    return once_s + few_s + max(0.0, each_s) * pruned.num_queries * 2.0 ** (len(models) - len(tried))


def find_first_subset(subsets: NDArray[np.int64], num_models: int) -> int:
    """Return the one of some non-empty subsets of `num_models` candidates, as bit masks, that has the fewest
    candidates; ties go to the one whose candidates come first.
    """
    sizes = np.bitwise_count(subsets)
    subsets = subsets[sizes == sizes.min()]
    backwards = np.zeros_like(subsets)
    for bit in range(num_models):
        backwards |= (subsets >> bit & 1) << (num_models - 1 - bit)
    return int(subsets[np.argmax(backwards)])


def list_bits(subset: int) -> list[int]:
    """Return the indices of a subset's candidates: the positions of the bits that are set."""
    return [bit for bit in range(subset.bit_length()) if subset >> bit & 1]
