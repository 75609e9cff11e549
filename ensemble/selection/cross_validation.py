"""Nested cross-validation: how much selecting on the validation split inflates the score on it.

Shapes: M candidates, Q queries.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.selection.greedy import SelectionConfig, select
from ensemble.selection.pruned_pool import PrunedPool

FOLDS = 5

PoolOf = Callable[[NDArray[np.bool_]], PrunedPool]
"""Function from a mask of queries [Q] to the pruned pool of all queries, with epochs chosen on the masked queries."""


@dataclass(frozen=True)
class NestedCvResult:
    """Result of nested cross-validation: each fold's queries evaluate the selection made without them."""

    ensemble_Q: NDArray[np.float64]  # metric of each query
    best_single_Q: NDArray[np.float64]

    @property
    def ensemble(self) -> float:
        """Metric of the complete selection procedure."""
        return float(self.ensemble_Q.mean())

    @property
    def best_single(self) -> float:
        """Metric of choosing the best single candidate."""
        return float(self.best_single_Q.mean())


def assign_folds(group_Q: NDArray[np.int64], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold of each query [Q], drawn at random; groups of queries stay together.

    Raises UserError if there are fewer groups than folds.
    """
    groups = np.unique(group_Q)
    if len(groups) < folds:
        raise UserError(f"{len(groups)} clips can't be split into {folds} folds: reduce --folds; --folds 0 skips them")
    fold_G = np.random.default_rng(seed).permutation(np.arange(len(groups)) % folds)
    found: NDArray[np.int64] = fold_G[np.searchsorted(groups, group_Q)]
    return found


def cross_validate(live_of: PoolOf, rules: SelectionConfig, fold_Q: NDArray[np.int64]) -> NestedCvResult:
    """For each fold, select on the other folds and evaluate on that fold.

    Args:
        pool_for: function that returns the pruned pool, with epochs chosen on the queries of a mask [Q].
        config: the config of the selection.
        fold_Q: fold of each query, as `assign_folds` returns it.

    Returns:
        The metric of each query, computed by the ensemble that was selected without the query's fold.
    """
    ensemble_Q, best_single_Q = np.empty(len(fold_Q)), np.empty(len(fold_Q))
    for fold in np.unique(fold_Q):
        seen_Q = fold_Q != fold
        live = live_of(seen_Q)
        selection = select(live, rules, seen_Q)
        best = live.sort_candidates(live.score_singles[:, seen_Q].sum(axis=1))[0]
        ensemble_Q[~seen_Q] = live.score_ensemble(selection.counts)[~seen_Q] / live.gains.one
        best_single_Q[~seen_Q] = live.score_singles[best, ~seen_Q] / live.gains.one
    return NestedCvResult(ensemble_Q, best_single_Q)
