"""Evaluation of ensembles on a split: metrics with intervals, computed from the full scores.

Shapes: Q queries, A clips, P (query, relevant clip) pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.pool.score_matrices import ScoreMatrices
from trainables import bootstrap, retrieval
from trainables.records.ensemble_file import Estimate, SplitMetrics
from trainables.retrieval import PerQuery, Relevance

BLOCK_QUERIES = 256
NUM_BOOTSTRAP_SAMPLES = 1000
"""Number of bootstrap samples."""


def fuse_block(pool: ScoreMatrices, weights: Sequence[float], first: int, last: int) -> NDArray[Any]:
    """Return the weighted sum of the candidates' scores for the queries from `first` to `last` (exclusive), as float64
    [last - first, A]. `weights` has a weight for each candidate of the pool.
    """
    members = [model for model, weight in enumerate(weights) if weight]
    fused_QA = np.zeros((last - first, pool.num_clips))
    for model in members:
        fused_QA += weights[model] * read_finite_scores(pool, model, first, last)
    return fused_QA


def read_finite_scores(pool: ScoreMatrices, model: int, first: int, last: int) -> NDArray[np.float64]:
    """Return the scores of the candidate with the index `model` in the pool, for the queries from `first` to `last`
    (exclusive): [last - first, A]. Raises UserError if one isn't finite.
    """
    scores_QA = pool.reads[model](first, last).astype(np.float64)
    if not np.isfinite(scores_QA).all():
        query = first + int(np.argmin(np.isfinite(scores_QA).all(axis=1)))
        raise UserError(f"{pool.names[model]} on {pool.split}: query {query} has a score that isn't finite")
    return scores_QA


def compute_ranks(pool: ScoreMatrices, weights: Sequence[float]) -> NDArray[np.int64]:
    """Return, for each of the P pairs of a query and a relevant clip, the clip's rank in an ensemble, from 1: [P].
    `weights` has a weight for each candidate of the pool.
    """
    ranks_P = np.empty(len(pool.relevance.query_P), np.int64)
    for first, last, block_P, part in iter_blocks(pool):
        ranks_P[block_P] = retrieval.compute_ranks(fuse_block(pool, weights, first, last), part)
    return ranks_P


def compute_ranks_by_step(pool: ScoreMatrices, history: Sequence[int]) -> NDArray[np.int64]:
    """Return the rank of the relevant clip of each of P pairs of query and clip, after each of the S steps of an
    ensemble that grows by one candidate per step: [S, P]. `history` has the index of the candidate that each step adds.
    """
    ranks_SP = np.empty((len(history), len(pool.relevance.query_P)), np.int64)
    for first, last, block_P, part in iter_blocks(pool):
        scores = {model: read_finite_scores(pool, model, first, last) for model in set(history)}
        fused_QA = np.zeros((last - first, pool.num_clips))
        for step, model in enumerate(history):
            fused_QA += scores[model]
            ranks_SP[step, block_P] = retrieval.compute_ranks(fused_QA, part)
    return ranks_SP


def iter_blocks(pool: ScoreMatrices) -> Iterator[tuple[int, int, NDArray[np.bool_], Relevance]]:
    """Yield the queries of a pool in blocks, each as four values: the index of its first query, that of its last query
    (exclusive), a mask [P] of those pairs of a query and a relevant clip that belong to the block, and these pairs, in
    which the queries are numbered from 0 within the block.
    """
    relevant = pool.relevance
    for first in range(0, pool.num_queries, BLOCK_QUERIES):
        last = min(first + BLOCK_QUERIES, pool.num_queries)
        block_P = (relevant.query_P >= first) & (relevant.query_P < last)
        yield (
            first,
            last,
            block_P,
            Relevance(relevant.query_P[block_P] - first, relevant.clip_P[block_P], relevant.group_Q[first:last]),
        )


def compute_metric_by_step(pool: ScoreMatrices, history: Sequence[int], name: str) -> tuple[Estimate, ...]:
    """Return the metric `name`, with its interval, after each step of an ensemble that grows by one candidate of the
    pool per step. `history` has the index of the candidate that each step adds.
    """
    values_SQ = (
        retrieval.find_metric(name)(ranks_P, pool.relevance) for ranks_P in compute_ranks_by_step(pool, history)
    )
    return tuple(estimate(values_Q, pool.relevance) for values_Q in values_SQ)


def compute_per_query(pool: ScoreMatrices, weights: Sequence[float], names: Sequence[str]) -> dict[str, PerQuery]:
    """Return the value of each of the metrics `names` for each query [Q], by the metric's name. They are those of the
    ensemble in which the candidates of the pool have these weights.
    """
    ranks_P = compute_ranks(pool, weights)
    return {name: retrieval.find_metric(name)(ranks_P, pool.relevance) for name in names}


def compare_systems(pool: ScoreMatrices, systems: Mapping[str, Sequence[float]], names: Sequence[str]) -> SplitMetrics:
    """Return the metrics `names` of each system on a split with their intervals, and the difference of the first two
    systems as 'difference'. A system is given by the weight of each candidate of the pool.

    Args:
        pool: the scores of all candidates.
        systems: by name, the weight of each candidate in a system; at least two systems.
        names: names of metrics, as `trainables.retrieval.find_metric` takes them.

    The bootstrap resamples groups of queries, the same ones for all systems: the interval of the difference is paired.
    """
    values = {system: compute_per_query(pool, weights, names) for system, weights in systems.items()}
    first, second = list(systems)[:2]
    values["difference"] = {name: values[first][name] - values[second][name] for name in names}
    estimates = {system: estimate_all(per_query, pool.relevance) for system, per_query in values.items()}
    return SplitMetrics(pool.split, pool.fingerprint, estimates)


def estimate_all(per_query: Mapping[str, PerQuery], relevant: Relevance) -> dict[str, Estimate]:
    """Return the mean over queries of each metric with its 95 % bootstrap interval, by name. `per_query` has the
    metrics' values for each query, and `relevant` the groups of queries that are resampled together.
    """
    return {name: estimate(values_Q, relevant) for name, values_Q in per_query.items()}


def estimate(values_Q: PerQuery, relevant: Relevance) -> Estimate:
    """Return the mean of a metric over queries with its 95 % bootstrap interval. `values_Q` has the metric of each
    query, and `relevant` the groups of queries that are resampled together.
    """
    return Estimate(
        float(values_Q.mean()), bootstrap.bootstrap_interval(values_Q, relevant, draws=NUM_BOOTSTRAP_SAMPLES)
    )
