"""Scores, ranks, and the metrics of retrieval.

Shapes: Q queries, A audio clips, P (query, relevant clip) pairs. Scores are [Q, A], higher is better. All metrics are
fractions from 0 to 1.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError

Scores = NDArray[np.floating[Any]]

PerQuery = NDArray[np.float64]

METRICS = ("map10", "r1", "r5", "r10")
"""What is reported of a system wherever several figures are: mAP@10, R@1, R@5 and R@10."""

TITLES = {"map10": "mAP@10", "map16": "mAP@16", "r1": "R@1", "r5": "R@5", "r10": "R@10", "mrr": "MRR", "ndcg": "nDCG"}
"""What metrics are called in tables; others go by their names."""


@dataclass(frozen=True)
class Relevance:
    """Which clips answer which queries: pair p says that clip `clip_P[p]` answers query `query_P[p]`.

    `group_Q` says which queries belong together: captions of one clip aren't independent of each other.
    """

    query_P: NDArray[np.int64]
    clip_P: NDArray[np.int64]
    group_Q: NDArray[np.int64]

    @property
    def num_queries(self) -> int:
        """Q."""
        return len(self.group_Q)


def relevance(relevant_clip_ids: Sequence[Sequence[str]], clip_ids: Sequence[str]) -> Relevance:
    """Relevance from ids; queries with the same relevant clips belong together.

    Raises UserError where a query has no relevant clip, or one that isn't among `clip_ids`.
    """
    column = {clip_id: index for index, clip_id in enumerate(clip_ids)}
    groups: dict[tuple[str, ...], int] = {}
    pairs: list[tuple[int, int]] = []
    for query, relevant in enumerate(relevant_clip_ids):
        unknown = [clip_id for clip_id in relevant if clip_id not in column]
        if unknown or not relevant:
            problem = f"names {unknown[0]!r}, which isn't among the clips" if unknown else "has no relevant clip"
            raise UserError(f"query {query} {problem}: it can't be scored")
        pairs += [(query, column[clip_id]) for clip_id in relevant]
    group_Q = [groups.setdefault(tuple(sorted(relevant)), len(groups)) for relevant in relevant_clip_ids]
    pairs_P2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Relevance(pairs_P2[:, 0], pairs_P2[:, 1], np.array(group_Q, dtype=np.int64))


def ranks(scores_QA: Scores, relevant: Relevance) -> NDArray[np.int64]:
    """The rank, from 1, of each pair's clip among all clips [P].

    A clip with the same score counts as better, so that a model that answers a constant ranks everything last. A score
    that isn't finite is an error.
    """
    if not np.isfinite(scores_QA).all():
        raise UserError("scores must be finite")
    ranks_P = np.empty(len(relevant.query_P), dtype=np.int64)
    for start in range(0, len(ranks_P), 4096):  # bounds memory: a block of pairs x clips
        block = slice(start, start + 4096)
        rows = scores_QA[relevant.query_P[block]]
        targets = rows[np.arange(len(rows)), relevant.clip_P[block]]
        ranks_P[block] = (rows >= targets[:, None]).sum(axis=1)
    return ranks_P


def average_precision(ranks_P: NDArray[np.int64], relevant: Relevance, k: int) -> PerQuery:
    """AP@k of each query [Q]: the precision at each hit within k, summed, divided by the number of relevant clips.

    DCASE's definition (2025); with one relevant clip at rank r it is 1 / r within k and 0 beyond.
    """
    order = np.lexsort((ranks_P, relevant.query_P))
    query, rank = relevant.query_P[order], ranks_P[order]
    first_of_query = np.searchsorted(query, query, side="left")
    hits_so_far = np.arange(1, len(query) + 1) - first_of_query
    precision = np.where(rank <= k, hits_so_far / rank, 0.0)
    counts = np.bincount(relevant.query_P, minlength=relevant.num_queries)
    return np.bincount(query, weights=precision, minlength=relevant.num_queries) / counts


def recall(ranks_P: NDArray[np.int64], relevant: Relevance, k: int) -> PerQuery:
    """R@k of each query [Q]: the share of its relevant clips among the first k."""
    counts = np.bincount(relevant.query_P, minlength=relevant.num_queries)
    return np.bincount(relevant.query_P, weights=ranks_P <= k, minlength=relevant.num_queries) / counts


def reciprocal_rank(ranks_P: NDArray[np.int64], relevant: Relevance) -> PerQuery:
    """One over the rank of the first relevant clip [Q]."""
    best = np.zeros(relevant.num_queries)
    np.maximum.at(best, relevant.query_P, 1.0 / ranks_P)
    return best


def discounted_gain(ranks_P: NDArray[np.int64], relevant: Relevance, k: int) -> PerQuery:
    """nDCG@k of each query [Q] with gains of 0 or 1: the sum of 1 / log2(1 + rank) over its relevant clips within k.

    As a share of what the best order gives (Järvelin and Kekäläinen 2002).
    """
    gain_P = np.where(ranks_P <= k, 1 / np.log2(1 + ranks_P), 0.0)
    counts = np.bincount(relevant.query_P, minlength=relevant.num_queries)
    ideal = np.cumsum(1 / np.log2(1 + np.arange(1, max(1, int(counts.max())) + 1)))
    best = ideal[np.minimum(np.maximum(counts, 1), k) - 1]
    values: PerQuery = np.bincount(relevant.query_P, weights=gain_P, minlength=relevant.num_queries) / best
    return values


Metric = Callable[[NDArray[np.int64], Relevance], PerQuery]


def metric(name: str) -> Metric:
    """A metric by name: map10, r1, ndcg10 (any number), ndcg or mrr. An unknown name's error says which there are."""
    match = re.fullmatch(r"(map|r|ndcg)([1-9]\d*)", name)
    if name == "mrr":
        return reciprocal_rank
    if name == "ndcg":
        return lambda ranks_P, relevant: discounted_gain(ranks_P, relevant, int(ranks_P.max(initial=1)))
    if match is None:
        raise UserError(
            f"unknown metric {name!r}; known: mapK, rK and ndcgK for any K (map10, map16, r1, r5, r10), ndcg, mrr"
        )
    compute, k = {"map": average_precision, "r": recall, "ndcg": discounted_gain}[match[1]], int(match[2])
    return lambda ranks_P, relevant: compute(ranks_P, relevant, k)


def evaluate(scores_QA: Scores, relevant: Relevance, names: Sequence[str]) -> dict[str, float]:
    """The metrics' means over queries."""
    ranks_P = ranks(scores_QA, relevant)
    return {name: float(metric(name)(ranks_P, relevant).mean()) for name in names}
