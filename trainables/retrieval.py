"""Retrieval metrics: ranks of relevant clips, mAP@k, R@k, MRR and nDCG.

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
"""Metrics that are reported together: mAP@10, R@1, R@5 and R@10."""

METRIC_TITLES = {
    "map10": "mAP@10",
    "map16": "mAP@16",
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "mrr": "MRR",
    "ndcg": "nDCG",
}
"""Titles of metrics in tables; other metrics are shown by name."""


@dataclass(frozen=True)
class Relevance:
    """Relevant clips of queries: pair p states that clip `clip_P[p]` is relevant to query `query_P[p]`.

    `group_Q` gives the group of each query: captions of one clip form a group, since they aren't independent.
    """

    query_P: NDArray[np.int64]
    clip_P: NDArray[np.int64]
    group_Q: NDArray[np.int64]

    @property
    def num_queries(self) -> int:
        """Number of queries, Q."""
        return len(self.group_Q)


def build_relevance(relevant_clip_ids: Sequence[Sequence[str]], clip_ids: Sequence[str]) -> Relevance:
    """Return which clips are relevant to which queries, as indices. `relevant_clip_ids` has the ids of the relevant
    clips of each query, `clip_ids` those of all clips. Queries with the same relevant clips form a group.

    Raises UserError if a query has no relevant clip, or one that isn't among `clip_ids`.
    """
    column = {clip_id: index for index, clip_id in enumerate(clip_ids)}
    groups: dict[tuple[str, ...], int] = {}
    pairs: list[tuple[int, int]] = []
    for query, relevant in enumerate(relevant_clip_ids):
        unknown = [clip_id for clip_id in relevant if clip_id not in column]
        if unknown or not relevant:
            problem = f"names {unknown[0]!r}, which isn't among the clips" if unknown else "has no relevant clip"
            raise UserError(f"query {query} {problem}: it cannot be evaluated")
        pairs += [(query, column[clip_id]) for clip_id in relevant]
    group_Q = [groups.setdefault(tuple(sorted(relevant)), len(groups)) for relevant in relevant_clip_ids]
    pairs_P2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Relevance(pairs_P2[:, 0], pairs_P2[:, 1], np.array(group_Q, dtype=np.int64))


def compute_ranks(scores_QA: Scores, relevant: Relevance) -> NDArray[np.int64]:
    """Return, for each pair of a query and a relevant clip, the clip's rank among all clips by the scores of the query:
    int64 [P], from 1.

    Clips with an equal score that aren't relevant are ranked before the relevant clip, so that a model with constant
    scores ranks the relevant clips last. Relevant clips of one query with equal scores are ranked one after the other.

    Args:
        scores_QA: scores of Q queries and A clips, higher is better.
        relevant: the P pairs of queries and relevant clips.

    Raises:
        UserError: if a score isn't finite.

    Example:
        >>> relevant = Relevance(np.array([0]), np.array([1]), np.array([0]))
        >>> compute_ranks(np.array([[0.9, 0.5, 0.1]]), relevant)
        array([2])
    """
    if not np.isfinite(scores_QA).all():
        raise UserError("scores must be finite")
    ranks_P = np.empty(len(relevant.query_P), dtype=np.int64)
    for start in range(0, len(ranks_P), 4096):  # a block of pairs x clips at a time bounds memory
        block = slice(start, start + 4096)
        rows = scores_QA[relevant.query_P[block]]
        targets = rows[np.arange(len(rows)), relevant.clip_P[block]]
        ranks_P[block] = (rows >= targets[:, None]).sum(axis=1)
    return spread_tied_ranks(ranks_P, relevant)


def spread_tied_ranks(ranks_P: NDArray[np.int64], relevant: Relevance) -> NDArray[np.int64]:
    """Return ranks [P] in which relevant clips of one query with equal scores follow one another.

    `ranks_P` counts all clips with at least the relevant clip's score, so that it is equal for two relevant clips if
    their scores are, and only then. The last of m clips with the equal rank r keeps it; the first gets r - m + 1.
    """
    order = np.lexsort((ranks_P, relevant.query_P))
    query, rank = relevant.query_P[order], ranks_P[order]
    is_last = np.ones(len(order), bool)
    is_last[:-1] = (query[1:] != query[:-1]) | (rank[1:] != rank[:-1])
    last = np.flatnonzero(is_last)
    spread_P = np.empty_like(ranks_P)
    spread_P[order] = rank - (last[np.searchsorted(last, np.arange(len(order)))] - np.arange(len(order)))
    return spread_P


def average_precision(ranks_P: NDArray[np.int64], relevant: Relevance, k: int) -> PerQuery:
    """Return AP@k of each query [Q]: the sum of the precision at each relevant clip within the first k, divided by the
    number of relevant clips. `ranks_P` has the rank of each pair's clip, as `compute_ranks` returns it.

    This is DCASE's definition (2025). With one relevant clip at rank r, AP@k is 1 / r within k and 0 beyond.
    """
    order = np.lexsort((ranks_P, relevant.query_P))
    query, rank = relevant.query_P[order], ranks_P[order]
    first_of_query = np.searchsorted(query, query, side="left")
    hits_so_far = np.arange(1, len(query) + 1) - first_of_query
    precision = np.where(rank <= k, hits_so_far / rank, 0.0)
    counts = np.bincount(relevant.query_P, minlength=relevant.num_queries)
    return np.bincount(query, weights=precision, minlength=relevant.num_queries) / counts


def recall(ranks_P: NDArray[np.int64], relevant: Relevance, k: int) -> PerQuery:
    """Return R@k of each query [Q]: the fraction of its relevant clips that are among the first k clips. `ranks_P` has
    the rank of each pair's clip, as `compute_ranks` returns it.
    """
    counts = np.bincount(relevant.query_P, minlength=relevant.num_queries)
    return np.bincount(relevant.query_P, weights=ranks_P <= k, minlength=relevant.num_queries) / counts


def reciprocal_rank(ranks_P: NDArray[np.int64], relevant: Relevance) -> PerQuery:
    """Return the reciprocal of the rank of the first relevant clip of each query [Q]."""
    best = np.zeros(relevant.num_queries)
    np.maximum.at(best, relevant.query_P, 1.0 / ranks_P)
    return best


def discounted_gain(ranks_P: NDArray[np.int64], relevant: Relevance, k: int) -> PerQuery:
    """Return nDCG@k of each query [Q] with gains of 0 or 1: the sum of 1 / log2(1 + rank) over its relevant clips
    within the first k, divided by the sum for the best order.

    The definition is that of Järvelin and Kekäläinen (2002).
    """
    gain_P = np.where(ranks_P <= k, 1 / np.log2(1 + ranks_P), 0.0)
    counts = np.bincount(relevant.query_P, minlength=relevant.num_queries)
    ideal = np.cumsum(1 / np.log2(1 + np.arange(1, max(1, int(counts.max())) + 1)))
    best = ideal[np.minimum(np.maximum(counts, 1), k) - 1]
    values: PerQuery = np.bincount(relevant.query_P, weights=gain_P, minlength=relevant.num_queries) / best
    return values


Metric = Callable[[NDArray[np.int64], Relevance], PerQuery]


def find_metric(name: str) -> Metric:
    """Return a metric by name: a function of ranks [P] and relevance that returns a value for each query [Q].

    Args:
        name: mapK, rK or ndcgK for any K (map10, r1, ndcg10), ndcg or mrr.

    Raises:
        UserError: if the name is unknown; the message lists the known names.

    Example:
        >>> relevant = Relevance(np.array([0]), np.array([1]), np.array([0]))
        >>> find_metric("map10")(np.array([2]), relevant)
        array([0.5])
    """
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


def compute_metrics(scores_QA: Scores, relevant: Relevance, names: Sequence[str]) -> dict[str, float]:
    """Return the mean of each named metric over all queries, by name: fractions from 0 to 1. `scores_QA` are the scores
    of all clips for each query.

    Args:
        scores_QA: scores of Q queries and A clips, higher is better.
        relevant: the relevant clips of each query.
        names: names of metrics, as `find_metric` takes them.

    Example:
        >>> relevant = build_relevance([["b"]], ["a", "b"])
        >>> compute_metrics(np.array([[0.9, 0.5]]), relevant, ["map10", "r1"])
        {'map10': 0.5, 'r1': 0.0}
    """
    ranks_P = compute_ranks(scores_QA, relevant)
    return {name: float(find_metric(name)(ranks_P, relevant).mean()) for name in names}
