"""What ensembles come to on a split: metrics with intervals, computed from the scores themselves.

Shapes: Q queries, A clips, P (query, relevant clip) pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.matrices import Matrices
from trainables import retrieval
from trainables.retrieval import PerQuery, Relevance

QUERIES_AT_A_TIME = 256
DRAWS = 1000
"""Bootstrap resamples."""


def fuse(pool: Matrices, weights: Sequence[float], first: int, last: int) -> NDArray[Any]:
    """The weighted sum of some queries' scores [last - first, A], float64: of the order of the ensemble's mean."""
    members = [model for model, weight in enumerate(weights) if weight]
    fused_QA = np.zeros((last - first, pool.num_clips))
    for model in members:
        fused_QA += weights[model] * pool.reads[model](first, last).astype(np.float64)
    return fused_QA


def ranks(pool: Matrices, weights: Sequence[float]) -> NDArray[np.int64]:
    """The rank of each pair's clip in an ensemble [P]."""
    relevant = pool.relevance
    ranks_P = np.empty(len(relevant.query_P), np.int64)
    for first in range(0, pool.num_queries, QUERIES_AT_A_TIME):
        last = min(first + QUERIES_AT_A_TIME, pool.num_queries)
        own = (relevant.query_P >= first) & (relevant.query_P < last)
        part = Relevance(relevant.query_P[own] - first, relevant.clip_P[own], relevant.group_Q[first:last])
        ranks_P[own] = retrieval.ranks(fuse(pool, weights, first, last), part)
    return ranks_P


def values(pool: Matrices, weights: Sequence[float], names: Sequence[str]) -> dict[str, PerQuery]:
    """Each metric's value for each query [Q]."""
    ranks_P = ranks(pool, weights)
    return {name: retrieval.metric(name)(ranks_P, pool.relevance) for name in names}


def compare(pool: Matrices, systems: Mapping[str, Sequence[float]], names: Sequence[str]) -> dict[str, Any]:
    """Each system's figures on a split, and the first one's lead over the second: means and 95 % bootstrap intervals.

    Queries are drawn by groups, the same ones for all systems, so that the lead's interval is that of paired data.
    """
    found = {system: values(pool, weights, names) for system, weights in systems.items()}
    first, second = list(systems)[:2]
    found["difference"] = {name: found[first][name] - found[second][name] for name in names}
    return {"split": pool.split, "fingerprint": pool.fingerprint} | {
        system: summary(per_query, pool.relevance) for system, per_query in found.items()
    }


def summary(per_query: Mapping[str, PerQuery], relevant: Relevance) -> dict[str, Any]:
    """Each metric's mean over queries, and under NAME_interval its interval."""
    found: dict[str, Any] = {}
    for name, values_Q in per_query.items():
        found[name] = float(values_Q.mean())
        found[f"{name}_interval"] = list(retrieval.bootstrap_interval(values_Q, relevant, draws=DRAWS))
    return found
