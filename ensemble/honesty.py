"""How good a chosen ensemble really is: intervals, and what choosing on validation flatters it by.

Shapes: M candidates, Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.greedy import Rules, select
from ensemble.live import Live

FOLDS = 5


@dataclass(frozen=True)
class Nested:
    """Nested cross-validation: each fold's queries judge what was chosen without them."""

    ensemble_Q: NDArray[np.float64]  # each query's value
    best_single_Q: NDArray[np.float64]
    folds: int
    redoes_epochs: bool

    @property
    def ensemble(self) -> float:
        """The metric of the whole way of choosing an ensemble."""
        return float(self.ensemble_Q.mean())

    @property
    def best_single(self) -> float:
        """The metric of the whole way of choosing the best single candidate."""
        return float(self.best_single_Q.mean())


def nested(
    live: Live, rules: Rules, families: Sequence[Sequence[int]] | None = None, folds: int = FOLDS, seed: int = 0
) -> Nested:
    """Choose on all folds but one, and judge on that one, for each of them. Groups of queries stay together.

    `families` are the candidates that are one trial at several epochs: in each fold the one that is best on the others
    stands for the trial, as training chose it on all. Raises UserError where there are fewer groups than folds.
    """
    groups = np.unique(live.group_Q)
    if len(groups) < folds:
        raise UserError(f"{len(groups)} clips can't make {folds} folds: give --folds, or --folds 0 to do without")
    fold_G = np.random.default_rng(seed).permutation(np.arange(len(groups)) % folds)
    fold_Q = fold_G[np.searchsorted(groups, live.group_Q)]
    families = families or [[model] for model in range(live.num_models)]
    single_MQ = live.singles
    ensemble_Q, best_single_Q = np.empty(live.num_queries), np.empty(live.num_queries)
    for fold in range(folds):
        seen_Q = fold_Q != fold
        worth_M = single_MQ[:, seen_Q].sum(axis=1)
        allowed = [max(family, key=lambda model: worth_M[model]) for family in families]
        selection = select(live, rules, seen_Q, allowed)
        best = next(model for model in live.best_first(worth_M) if model in allowed)
        ensemble_Q[~seen_Q] = live.worth_of(selection.counts)[~seen_Q]
        best_single_Q[~seen_Q] = single_MQ[best, ~seen_Q]
    return Nested(
        ensemble_Q / live.gains.one, best_single_Q / live.gains.one, folds, any(len(family) > 1 for family in families)
    )
