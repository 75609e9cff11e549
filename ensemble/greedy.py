"""Greedy forward selection of an ensemble (Caruana et al. 2004): arrays in, selection and trajectory out.

Shapes: M candidates, Q queries, A audio clips. Scores are [Q, A], higher is better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainables.retrieval import Scores

Evaluate = Callable[[NDArray[np.float64]], float]
"""Scores [Q, A] -> how good they are; a positive factor on all scores must not matter."""


@dataclass(frozen=True)
class Step:
    """A step of the selection: which candidate joined, and how good the ensemble then was."""

    added: int
    value: float


@dataclass(frozen=True)
class Selection:
    """The best ensemble met on the way, and the whole way."""

    counts: tuple[int, ...]  # how often each of the M candidates was taken
    value: float
    trajectory: tuple[Step, ...]

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the M candidates; they sum to one."""
        return tuple(count / sum(self.counts) for count in self.counts)


def select(candidates: Sequence[Scores], evaluate: Evaluate, max_size: int = 20) -> Selection:
    """Add, `max_size` times, the candidate whose addition makes the mean score best; the same one may come again.

    Of equally good candidates the first one is taken, and of equally good sizes the smallest, so the result depends on
    the candidates' order only where there are ties. Sums are float64, in which a few float32 scores add up without
    rounding, whatever their order.
    """
    if not candidates:
        raise ValueError("there are no candidates to select from")
    if max_size < 1:
        raise ValueError(f"max_size is {max_size}: an ensemble has at least one member")
    total_QA = np.zeros(candidates[0].shape)
    trajectory: list[Step] = []
    for _ in range(max_size):
        values = [evaluate(total_QA + scores_QA) for scores_QA in candidates]
        added = int(np.argmax(values))
        total_QA += candidates[added]
        trajectory.append(Step(added, values[added]))
    best_size = 1 + int(np.argmax([step.value for step in trajectory]))
    counts = np.bincount([step.added for step in trajectory[:best_size]], minlength=len(candidates))
    return Selection(tuple(int(count) for count in counts), trajectory[best_size - 1].value, tuple(trajectory))


def fuse(candidates: Sequence[Scores], weights: Sequence[float]) -> NDArray[np.float64]:
    """The weighted mean of scores [Q, A]."""
    fused_QA = np.zeros(candidates[0].shape)
    for scores_QA, weight in zip(candidates, weights, strict=True):
        fused_QA += weight * scores_QA
    return fused_QA
