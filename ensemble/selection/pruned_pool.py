"""Pruned pool: the entries of the score matrices on which the metric of any ensemble can depend.

Weights are never negative. A clip that every candidate scores below the relevant clip therefore never outranks it, and
a clip that every candidate scores at least as high always does. Only the other entries are kept, as rows of all
candidates' scores. If a pair's relevant clip ranks below k in every ensemble, also after ties between relevant clips
are resolved, the pair adds nothing to a metric that is cut off at k, and keeps no rows.

Equal scores of other clips count against the relevant clip. Scores are float32 and their sums float64, which is exact
for scores whose magnitudes lie within a factor of about 2**24 of each other.

Shapes: M candidates, Q queries, A clips, P (query, relevant clip) pairs, L kept entries.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.pool.score_matrices import Block, ScoreMatrices
from ensemble.selection.rank_gains import RankGains, build_gains

CHUNK_BYTES = 2**24
"""Size of the rows that are allocated and processed at a time."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Chunk:
    """Part of a pruned pool: the kept scores of the queries from `first_query` to `last_query` (exclusive). Each row
    has all candidates' scores of one clip.
    """

    first_query: int
    last_query: int
    rows: NDArray[np.float32]  # [L, M] scores
    low_L: NDArray[np.float64]  # minimum over candidates of the score minus the relevant clip's score
    high_L: NDArray[np.float64]  # maximum


@dataclass(frozen=True)
class PrunedPool:
    """Pool of candidates reduced to the scores that can affect one metric of an ensemble, for any weights."""

    names: tuple[str, ...]
    gains: RankGains
    num_clips: int
    pair_first_Q: NDArray[np.int64]  # [Q + 1] first pair of each query
    query_P: NDArray[np.int64]
    group_Q: NDArray[np.int64]
    target_PM: NDArray[np.float32]  # score of the relevant clip
    always_P: NDArray[np.int32]  # rank of the relevant clip if no kept entry outranks it
    first_P: NDArray[np.int64]  # first of the pair's rows in its query's chunk
    last_P: NDArray[np.int64]  # last of them, exclusive
    single_PM: NDArray[np.int32]  # rank of the relevant clip by each candidate alone
    chunks: tuple[Chunk, ...]
    threads: int

    @property
    def num_models(self) -> int:
        """Number of candidates, M."""
        return len(self.names)

    @property
    def num_queries(self) -> int:
        """Number of queries, Q."""
        return len(self.group_Q)

    @property
    def kept_share(self) -> float:
        """Fraction of the score matrices' entries that is kept."""
        return float(sum(len(chunk.rows) for chunk in self.chunks)) / (self.num_queries * self.num_clips)

    @property
    def num_bytes(self) -> int:
        """Size in memory in bytes."""
        arrays = [getattr(self, name) for name in ("target_PM", "always_P", "first_P", "last_P", "single_PM")]
        return int(sum(array.nbytes for array in arrays)) + sum(
            chunk.rows.nbytes + chunk.low_L.nbytes + chunk.high_L.nbytes for chunk in self.chunks
        )

    def map_chunks(self, work: Callable[[Chunk], Result]) -> Iterator[Result]:
        """Yield the result of `work` for each chunk, in order; threads run it in parallel."""
        if self.threads == 1 or len(self.chunks) == 1:
            yield from map(work, self.chunks)
            return
        with ThreadPoolExecutor(self.threads) as workers:
            yield from workers.map(work, self.chunks)

    def compute_ranks(self, weights: Sequence[float]) -> NDArray[np.int32]:
        """Return, for each query with each of its relevant clips, the clip's rank in the ensemble with these weights
        [P]; clips with an equal score count as ranked before it. Large ranks, which can't affect the metric, may be
        smaller than the true ones.
        """
        from ensemble.selection.kernels import compute_ranks

        weights_M = np.asarray(weights, np.float64)
        members = np.flatnonzero(weights_M)
        rank_P = np.empty(len(self.query_P), np.int32)

        def work(chunk: Chunk) -> None:
            compute_ranks(
                chunk.first_query, chunk.last_query, self.pair_first_Q, self.first_P, self.last_P, self.always_P,
                chunk.rows, self.target_PM, members, weights_M[members], rank_P,
            )  # fmt: skip

        for _ in self.map_chunks(work):
            pass
        return rank_P

    def score_ranks(self, rank_P: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the integer score of each query [Q], computed from the ranks of the relevant clips of all pairs,
        `rank_P`.
        """
        from ensemble.selection.kernels import score_queries

        scores_Q: NDArray[np.int64] = score_queries(
            self.pair_first_Q, rank_P, self.gains.table, self.gains.factor_Q, self.gains.by_hit, self.gains.first_only
        )
        return scores_Q

    def score_ensemble(self, counts: Sequence[float]) -> NDArray[np.int64]:
        """Return the integer score on each query [Q] of the ensemble in which each candidate has its weight in
        `counts`; 0 for an empty ensemble.
        """
        if not any(counts):
            return np.zeros(self.num_queries, np.int64)
        return self.score_ranks(self.compute_ranks(counts))

    def sort_candidates(self, scores_M: NDArray[np.int64] | None = None) -> list[int]:
        """Return the indices of the candidates by descending score in `scores_M`; ties are sorted by name. By default,
        a candidate's score is that of the candidate alone on all queries.
        """
        order_M = self.single_scores.sum(axis=1) if scores_M is None else scores_M
        return sorted(range(self.num_models), key=lambda model: (-order_M[model], self.names[model]))

    @cached_property
    def single_scores(self) -> NDArray[np.int64]:
        """Integer score of each candidate alone on each query [M, Q]."""
        return np.stack([self.score_ranks(np.ascontiguousarray(rank_P)) for rank_P in self.single_PM.T])


@dataclass
class IncrementalEnsemble:
    """Ensemble that grows by one candidate at a time, and scores all possible additions on some of the queries."""

    pruned: PrunedPool
    include_Q: NDArray[np.bool_]
    history: list[int] = field(default_factory=list)
    num_summed: int = 0

    def __post_init__(self) -> None:
        self.sums = {id(chunk): np.zeros(len(chunk.rows)) for chunk in self.pruned.chunks}

    def score_additions(self) -> NDArray[np.int64]:
        """Return, for each candidate, the score of the ensemble with that candidate added [M]: the metric summed over
        the queries in `include_Q`, scaled to an integer. The ensemble itself stays the same.
        """
        from ensemble.selection.kernels import score_candidates

        pruned, added = self.pruned, np.array(self.history[self.num_summed :], np.int64)
        gains = pruned.gains

        def work(chunk: Chunk) -> NDArray[np.int64]:
            total_M: NDArray[np.int64] = score_candidates(
                chunk.first_query, chunk.last_query, pruned.pair_first_Q, self.include_Q, pruned.first_P, pruned.last_P,
                pruned.always_P, chunk.rows, chunk.low_L, chunk.high_L, pruned.target_PM, added, self.sums[id(chunk)],
                gains.table, gains.factor_Q, gains.by_hit, gains.first_only,
            )  # fmt: skip
            return total_M

        total_M: NDArray[np.int64] = np.sum(list(pruned.map_chunks(work)), axis=0)
        self.num_summed = len(self.history)
        return total_M

    def add(self, model: int) -> None:
        """Add a candidate. Its scores are summed by the next call of `score_additions`."""
        self.history.append(model)


def prune(pool: ScoreMatrices, metric_name: str, threads: int | None = None) -> PrunedPool:
    """Return a pool reduced to the scores that can affect the metric `metric_name` of any ensemble. The scores are read
    by several threads.

    The pool is read once, from the first query to the last.

    Args:
        pool: the candidates' scores.
        metric_name: the metric, as `trainables.retrieval.find_metric` takes it.
        threads: number of threads; by default one per CPU.

    Raises:
        UserError: if the metric is unknown, or a score isn't finite.
    """
    from ensemble.selection.kernels import prune_queries

    threads = threads or os.cpu_count() or 1
    relevant = pool.relevance
    order = np.argsort(relevant.query_P, kind="stable")
    query_P, clip_P = relevant.query_P[order], relevant.clip_P[order]
    pair_first_Q = np.searchsorted(query_P, np.arange(relevant.num_queries + 1))
    metric_gains = build_gains(metric_name, relevant, pool.num_clips)
    num_models, num_pairs = len(pool.names), len(query_P)
    target_PM = np.empty((num_pairs, num_models), np.float32)
    always_P, single_PM = np.empty(num_pairs, np.int32), np.empty((num_pairs, num_models), np.int32)
    first_P, last_P = np.empty(num_pairs, np.int64), np.empty(num_pairs, np.int64)
    max_pairs = int(np.max(np.diff(pair_first_Q)))
    row_bytes = num_models * target_PM.itemsize
    capacity = max(CHUNK_BYTES // row_bytes, max_pairs * pool.num_clips)

    def work(block: Block, first: int, last: int) -> list[Chunk]:
        chunks, query = [], first
        while query < last:
            rows = np.empty((capacity, num_models), np.float32)  # unused pages take no memory
            low_L, high_L = np.empty(capacity), np.empty(capacity)
            start = query
            query, used, bad = prune_queries(
                block.scores, block.first_query, start, last, metric_gains.k, pair_first_Q, clip_P, pool.num_clips,
                rows, low_L, high_L, target_PM, always_P, first_P, last_P, single_PM,
            )  # fmt: skip
            if bad >= 0:
                raise UserError(f"{pool.names[bad]}: query {query} has a score that isn't finite")
            chunks.append(Chunk(start, query, shrink(rows, used), shrink(low_L, used), shrink(high_L, used)))
        return chunks

    chunks: list[Chunk] = []
    with ThreadPoolExecutor(threads) as workers:
        for block in pool.iter_blocks():
            edges = np.linspace(block.first_query, block.last_query, 4 * threads + 1).astype(int)
            parts = workers.map(lambda first, last, block=block: work(block, first, last), edges[:-1], edges[1:])
            chunks += [chunk for part in parts for chunk in part]
    return PrunedPool(
        tuple(pool.names), metric_gains, pool.num_clips, pair_first_Q, query_P, relevant.group_Q, target_PM, always_P,
        first_P, last_P, single_PM, tuple(chunks), threads,
    )  # fmt: skip


def shrink(array: NDArray[Any], size: int) -> NDArray[Any]:
    """Shrink an array in place to its first `size` rows, release the memory of the remaining rows, and return the
    array.
    """
    array.resize((size, *array.shape[1:]), refcheck=False)
    return array
