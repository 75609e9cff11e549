"""Reference implementation of greedy forward selection (Caruana et al. 2004), in plain NumPy and for any metric.

`ensemble.selection.greedy` returns the same selections for metrics of ranks, many times faster; tests compare the two.
It calls this implementation if the metric is a function. All scores are in memory, and the metric is computed once per
candidate and step.

Shapes: M candidates, Q queries, A clips.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Metric = Callable[[Scores], float]
"""Function from the mean scores of an ensemble [Q, A] to a number, higher is better."""


@dataclass(frozen=True)
class ReferenceResult:
    """Selected ensemble, its metric, and the steps in which it was selected."""

    weights: tuple[float, ...]  # of the M candidates; they sum to one
    value: float
    trajectory: tuple[tuple[int, float], ...]  # for each step, the added candidate and the metric afterwards


def select_greedily(
    scores_MQA: Sequence[NDArray[np.floating[Any]]],
    metric: Metric,
    names: Sequence[str],
    max_size: int = 20,
    replacement: bool = True,
) -> ReferenceResult:
    """Add, `max_size` times, the candidate whose addition gives the best metric of the mean scores, and return the best
    of the resulting ensembles. `scores_MQA` has each candidate's scores, and `names` their names; with `replacement`, a
    candidate can be added several times.

    Ties between candidates go to the one whose name comes first, ties between sizes to the smallest. Without
    `replacement` a candidate is added at most once.

    Args:
        scores_MQA: scores [Q, A] of each of the M candidates.
        metric: function of mean scores [Q, A], higher is better.
        names: names of the candidates, which break ties.
        max_size: maximum number of steps.
        replacement: whether a candidate can be added several times.

    Example:
        >>> good, bad = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        >>> result = select_greedily([bad, good], lambda scores_QA: scores_QA[0, 0], ["bad", "good"], max_size=2)
        >>> result.weights, float(result.value)
        ((0.0, 1.0), 1.0)
    """
    by_name = sorted(range(len(names)), key=lambda model: names[model])
    total_QA, history, trajectory = np.zeros_like(scores_MQA[0], np.float64), list[int](), []
    while len(history) < max_size and (free := [m for m in by_name if replacement or m not in history]):
        value_of = {model: metric((total_QA + scores_MQA[model]) / (len(history) + 1)) for model in free}
        added = max(free, key=lambda model: value_of[model])
        total_QA = total_QA + scores_MQA[added]
        history.append(added)
        trajectory.append((added, value_of[added]))
    size = 1 + max(range(len(trajectory)), key=lambda step: trajectory[step][1])
    counts = np.bincount(history[:size], minlength=len(names))
    return ReferenceResult(tuple((counts / size).tolist()), trajectory[size - 1][1], tuple(trajectory))
