"""Evaluation of ensembles on a split: metrics with intervals, computed from the full scores.

Shapes: Q queries, A clips, P (query, relevant clip) pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.pool.score_matrices import Matrices
from trainables import bootstrap, retrieval
from trainables.records.ensemble_file import Estimate, SplitFigures
from trainables.retrieval import PerQuery, Relevance

QUERIES_AT_A_TIME = 256
DRAWS = 1000
"""Number of bootstrap samples."""


def fuse(pool: Matrices, weights: Sequence[float], first: int, last: int) -> NDArray[Any]:
    """Return the weighted sum of some queries' scores [last - first, A] in float64, in the order of the ensemble's
    mean.
    """
    members = [model for model, weight in enumerate(weights) if weight]
    fused_QA = np.zeros((last - first, pool.num_clips))
    for model in members:
        fused_QA += weights[model] * finite(pool, model, first, last)
    return fused_QA


def finite(pool: Matrices, model: int, first: int, last: int) -> NDArray[np.float64]:
    """Return a candidate's scores of some queries [last - first, A]. Raises UserError if one isn't finite."""
    scores_QA = pool.reads[model](first, last).astype(np.float64)
    if not np.isfinite(scores_QA).all():
        query = first + int(np.argmin(np.isfinite(scores_QA).all(axis=1)))
        raise UserError(f"{pool.names[model]} on {pool.split}: query {query} has a score that isn't finite")
    return scores_QA


def ranks(pool: Matrices, weights: Sequence[float]) -> NDArray[np.int64]:
    """Return the rank of each pair's clip in an ensemble [P]."""
    ranks_P = np.empty(len(pool.relevance.query_P), np.int64)
    for first, last, own_P, part in parts(pool):
        ranks_P[own_P] = retrieval.ranks(fuse(pool, weights, first, last), part)
    return ranks_P


def ranks_along(pool: Matrices, history: Sequence[int]) -> NDArray[np.int64]:
    """Return the rank of each pair's clip after each step of an ensemble that grows by one candidate per step [S, P]."""
    ranks_SP = np.empty((len(history), len(pool.relevance.query_P)), np.int64)
    for first, last, own_P, part in parts(pool):
        scores = {model: finite(pool, model, first, last) for model in set(history)}
        fused_QA = np.zeros((last - first, pool.num_clips))
        for step, model in enumerate(history):
            fused_QA += scores[model]
            ranks_SP[step, own_P] = retrieval.ranks(fused_QA, part)
    return ranks_SP


def parts(pool: Matrices) -> Iterator[tuple[int, int, NDArray[np.bool_], Relevance]]:
    """Yield blocks of queries: the first and last query, their pairs, and their relevance."""
    relevant = pool.relevance
    for first in range(0, pool.num_queries, QUERIES_AT_A_TIME):
        last = min(first + QUERIES_AT_A_TIME, pool.num_queries)
        own_P = (relevant.query_P >= first) & (relevant.query_P < last)
        yield (
            first,
            last,
            own_P,
            Relevance(relevant.query_P[own_P] - first, relevant.clip_P[own_P], relevant.group_Q[first:last]),
        )


def along(pool: Matrices, history: Sequence[int], name: str) -> tuple[Estimate, ...]:
    """Return a metric after each step of an ensemble that grows by one candidate per step."""
    values_SQ = (retrieval.metric(name)(ranks_P, pool.relevance) for ranks_P in ranks_along(pool, history))
    return tuple(estimate(values_Q, pool.relevance) for values_Q in values_SQ)


def values(pool: Matrices, weights: Sequence[float], names: Sequence[str]) -> dict[str, PerQuery]:
    """Return the value of each metric for each query [Q]."""
    ranks_P = ranks(pool, weights)
    return {name: retrieval.metric(name)(ranks_P, pool.relevance) for name in names}


def compare(pool: Matrices, systems: Mapping[str, Sequence[float]], names: Sequence[str]) -> SplitFigures:
    """Return each system's metrics on a split, and the difference of the first two as 'difference'.

    Queries are drawn by groups, the same ones for all systems, so that the lead's interval is that of paired data.
    """
    found = {system: values(pool, weights, names) for system, weights in systems.items()}
    first, second = list(systems)[:2]
    found["difference"] = {name: found[first][name] - found[second][name] for name in names}
    systems_found = {system: summary(per_query, pool.relevance) for system, per_query in found.items()}
    return SplitFigures(pool.split, pool.fingerprint, systems_found)


def summary(per_query: Mapping[str, PerQuery], relevant: Relevance) -> dict[str, Estimate]:
    """Return each metric's mean over queries with its interval."""
    return {name: estimate(values_Q, relevant) for name, values_Q in per_query.items()}


def estimate(values_Q: PerQuery, relevant: Relevance) -> Estimate:
    """Return a metric's mean over queries with its 95 % bootstrap interval."""
    return Estimate(float(values_Q.mean()), bootstrap.bootstrap_interval(values_Q, relevant, draws=DRAWS))
