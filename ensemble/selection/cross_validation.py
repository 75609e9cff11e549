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

DEFAULT_FOLDS = 5

PoolForQueries = Callable[[NDArray[np.bool_]], PrunedPool]
"""Function from a mask of queries [Q] to the pruned pool of all queries, with epochs chosen on the masked queries."""


@dataclass(frozen=True)
class NestedCvResult:
    """Result of nested cross-validation: the metric of each query, for the ensemble and the best single candidate that
    were selected without the query's fold.
    """

    ensemble_Q: NDArray[np.float64]  # metric of each query
    best_single_Q: NDArray[np.float64]

    @property
    def ensemble(self) -> float:
        """Mean metric over all queries, each evaluated with the ensemble that was selected without it."""
        return float(self.ensemble_Q.mean())

    @property
    def best_single(self) -> float:
        """Mean metric over all queries, each evaluated with the best single candidate as chosen without it."""
        return float(self.best_single_Q.mean())


def assign_folds(group_Q: NDArray[np.int64], num_folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold of each query [Q], from 0 to `num_folds` - 1, drawn at random. All queries with the same group in
    `group_Q` are in one fold.

    Raises UserError if there are fewer groups than folds.
    """
    groups = np.unique(group_Q)
    if len(groups) < num_folds:
        raise UserError(
            f"{len(groups)} clips can't be split into {num_folds} folds: reduce --folds; --folds 0 skips them"
        )
    fold_G = np.random.default_rng(seed).permutation(np.arange(len(groups)) % num_folds)
    fold_Q: NDArray[np.int64] = fold_G[np.searchsorted(groups, group_Q)]
    return fold_Q


def cross_validate(pool_for: PoolForQueries, config: SelectionConfig, fold_Q: NDArray[np.int64]) -> NestedCvResult:
    """Return the result of nested cross-validation: for each fold of `fold_Q`, select on the queries of the other folds
    by the method in `config`, and evaluate on the queries of that fold. `pool_for` returns the candidates' scores for a
    mask of queries to select on.

    Args:
        pool_for: function that returns the pruned pool, with epochs chosen on the queries of a mask [Q].
        config: the config of the selection.
        fold_Q: fold of each query, as `assign_folds` returns it.

    Returns:
        The metric of each query, computed by the ensemble that was selected without the query's fold.
    """
    ensemble_Q, best_single_Q = np.empty(len(fold_Q)), np.empty(len(fold_Q))
    for fold in np.unique(fold_Q):
        include_Q = fold_Q != fold
        pruned = pool_for(include_Q)
        selection = select(pruned, config, include_Q)
        best = pruned.sort_candidates(pruned.single_scores[:, include_Q].sum(axis=1))[0]
        ensemble_Q[~include_Q] = pruned.score_ensemble(selection.counts)[~include_Q] / pruned.gains.perfect_score
        best_single_Q[~include_Q] = pruned.single_scores[best, ~include_Q] / pruned.gains.perfect_score
    return NestedCvResult(ensemble_Q, best_single_Q)
