"""The definition of greedy forward selection (Caruana et al. 2004), in plain NumPy and with any metric.

`ensemble.selection.greedy` selects the same for metrics of ranks, many times faster; tests compare the two. It takes
this one for a metric that is given as a function: all scores are in memory, and the metric is computed once for each
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
"""From the mean scores of an ensemble [Q, A] to a figure of which more is better."""


@dataclass(frozen=True)
class Result:
    """The best ensemble, and how it was reached."""

    weights: tuple[float, ...]  # of the M candidates; they sum to one
    value: float
    trajectory: tuple[tuple[int, float], ...]  # of each step the candidate that joined and the metric with it


def select_greedily(
    scores_MQA: Sequence[NDArray[np.floating[Any]]],
    metric: Metric,
    names: Sequence[str],
    max_size: int = 20,
    replacement: bool = True,
) -> Result:
    """Add, `max_size` times, the candidate with which the mean of scores is best, and return the best size.

    Of equally good candidates the one whose name comes first is taken, of equally good sizes the smallest. Without
    `replacement` a candidate joins once at most.
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
    return Result(tuple((counts / size).tolist()), trajectory[size - 1][1], tuple(trajectory))
