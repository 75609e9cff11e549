"""Hubness of a ranking: how unevenly clips occur among the nearest of the queries (Radovanovic et al. 2010).

The k-occurrence of a clip is the number of queries that have it among their k best clips. Its skewness over clips is
near 0 if all clips occur about as often, and high if a few clips, the hubs, are near to most queries.

Shapes: Q queries, A clips.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_NEAREST = 10
"""Number of best clips of a query in which occurrences are counted, k."""


def count_occurrences(scores_QA: NDArray[Any], k: int = NUM_NEAREST) -> NDArray[np.int64]:
    """Return the k-occurrence of each clip [A]. Of clips with equal scores, the first count."""
    best_Qk = np.argsort(-scores_QA, axis=1, kind="stable")[:, :k]
    return np.bincount(best_Qk.ravel(), minlength=scores_QA.shape[1])


def compute_skewness(occurrences_A: NDArray[np.int64]) -> float:
    """Return the skewness of the k-occurrence over clips; 0 if it is the same for all clips."""
    from scipy.stats import skew

    return float(skew(occurrences_A)) if np.ptp(occurrences_A) else 0.0
