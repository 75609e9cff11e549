"""Metrics in integer arithmetic: the gain of each rank, so that sums are exact and ties are ties.

The metric of a query is the sum of the gains of its relevant clips' ranks, divided by a norm of the query. Both are
scaled to integers. Average precision and recall are exact if 64 bits are enough; reciprocal ranks, discounted gains and
larger sums are rounded, with a relative error of about 2**-24 or less. Reported metrics are computed by
`trainables.retrieval` instead.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from trainables.retrieval import Relevance, find_metric

MAX_BITS = 62
"""Maximum number of bits of the sum over all queries."""


@dataclass(frozen=True)
class RankGains:
    """Integer gains of a metric: the amounts that relevant clips add to their query's score, by rank.

    The gain of a relevant clip at rank r, the h-th of its query, is table[min(r, k + 1)], times h if `by_hit`, and 0
    for h > 1 if `first_only`. The score of a query is the sum of its gains, multiplied by factor_Q.
    """

    name: str
    k: int
    table: NDArray[np.int64]
    factor_Q: NDArray[np.int64]
    by_hit: bool
    first_only: bool
    perfect_score: int  # score of a perfect query

    def to_metric(self, total: int, num_queries: int) -> float:
        """Return the metric's mean over queries, given the sum of their integer scores, `total`, and their number."""
        return total / (self.perfect_score * num_queries)


def build_gains(name: str, relevant: Relevance, num_clips: int) -> RankGains:
    """Return the integer gains of a metric, given by a name such as 'map10', for queries with these relevant clips out
    of `num_clips` clips. Raises UserError for a name that is unknown or of a metric without gains.

    Raises UserError for an unknown name, or a metric that has no gains.
    """
    find_metric(name)
    match = re.fullmatch(r"(map|r|ndcg|mrr)(\d*)", name)
    if match is None:
        raise UserError(f"{name!r} can't be used for selection")
    kind, k = match[1], min(int(match[2] or num_clips), num_clips)
    count_Q = np.bincount(relevant.query_P, minlength=relevant.num_queries)
    counts = sorted({int(count) for count in count_Q if count})
    ranks = np.arange(1, k + 1)
    if kind in ("map", "r"):
        scale = math.lcm(*range(1, k + 1)) if kind == "map" else 1
        norm = math.lcm(*counts)
        if scale * norm * relevant.num_queries < 2**MAX_BITS:
            exact_gains = scale // ranks if kind == "map" else np.ones(k, np.int64)
            factor_Q = norm // np.maximum(count_Q, 1)
            return RankGains(name, k, build_table(exact_gains), factor_Q, kind == "map", False, scale * norm)
    bits = (MAX_BITS - 1 - max(1, relevant.num_queries).bit_length()) // 2
    ideal = {"map": count_Q, "r": count_Q, "mrr": np.ones(len(count_Q))}.get(kind)
    if ideal is None:
        ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(1 + ranks))])[np.minimum(count_Q, k)]
    real_gains = {"map": 1 / ranks, "r": np.ones(k), "mrr": 1 / ranks, "ndcg": 1 / np.log2(1 + ranks)}[kind]
    factor_Q = np.round(2.0**bits / np.maximum(ideal, 1e-9)) * (count_Q > 0)
    return RankGains(
        name,
        k,
        build_table(np.round(real_gains * 2.0**bits)),
        factor_Q.astype(np.int64),
        kind == "map",
        kind == "mrr",
        4**bits,
    )


def build_table(gains: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.int64]:
    """Return an int64 array of gains for the ranks 0 to k + 1, from the gains for the ranks 1 to k. The first and the
    last entry are 0.
    """
    return np.concatenate([[0], gains, [0]]).astype(np.int64)
