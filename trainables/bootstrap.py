"""Bootstrap confidence intervals of retrieval metrics."""

import numpy as np

from trainables.retrieval import PerQuery, Relevance


def bootstrap_interval(
    per_query: PerQuery, relevant: Relevance, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of the mean of a metric over queries (Efron 1979), from
    `draws` samples of the groups of queries in `relevant`. `per_query` has the metric of each query; `level` is 0.95
    for a 95 % interval.

    Groups of queries are drawn with replacement, so that captions of one clip stay together.
    """
    sums = np.bincount(relevant.group_Q, weights=per_query)
    sizes = np.bincount(relevant.group_Q)
    drawn_groups = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn_groups].sum(axis=1) / sizes[drawn_groups].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
