"""Attribution of an ensemble's metric to its members (Shapley values), error correlation, and the Pareto front of
metric and cost.

Shapes: M candidates, N members, Q queries.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.selection import exhaustive
from ensemble.selection.greedy import Selection, SelectionConfig, select, select_by_cost
from ensemble.selection.pruned_pool import PrunedPool

MAX_ONE_BY_ONE = 8
"""Maximum number of members whose subsets are scored one by one: 255 subsets take a second on 5,000 queries."""

MAX_EXACT = 16
"""Maximum number of members for exact Shapley values over all subsets; with more, orders are sampled."""

NUM_ORDERS = 200
NUM_BUDGETS = 12


@dataclass(frozen=True)
class Attribution:
    """Contribution of one member to an ensemble's metric."""

    candidate: int
    weight: float
    alone: float
    without: float  # metric of the ensemble without the member, minus that of the ensemble
    shapley: float


def attribute_members(pruned: PrunedPool, selection: Selection, seed: int = 0) -> list[Attribution]:
    """Return the contribution of each member of a selection to the metric: alone, when it is left out, and its Shapley
    value; the highest weight first. For large ensembles Shapley values are estimated from random orders, which the seed
    determines.

    The Shapley value (Shapley 1953) of a member is the increase of the metric when it joins, averaged over all orders
    in which the members can join, each with its weight. The values add up to the ensemble's metric; the empty ensemble
    scores 0.

    Args:
        pruned: the pruned pool that the ensemble was selected from.
        selection: the ensemble.
        seed: seed of the sampled orders, for ensembles with more than MAX_EXACT members.
    """
    members = sorted(selection.members, key=lambda model: (-selection.counts[model], pruned.names[model]))
    counts = [selection.counts[model] for model in members]
    single_M = pruned.single_scores.sum(axis=1)
    if len(members) <= MAX_EXACT:
        scores_S = score_all_subsets(pruned, members, counts).astype(np.float64)
        shapley_N = compute_shapley(scores_S)
        without_N = [scores_S[(len(scores_S) - 1) ^ (1 << index)] for index in range(len(members))]
    else:
        shapley_N = estimate_shapley(pruned, members, counts, seed)
        without_N = [score_members(pruned, [m for m in members if m != model], selection) for model in members]
    ensemble_score = score_members(pruned, members, selection)
    perfect_score = pruned.gains.perfect_score * pruned.num_queries
    return [
        Attribution(
            model,
            selection.weights[model],
            single_M[model] / perfect_score,
            (float(without) - ensemble_score) / perfect_score,
            float(share) / perfect_score,
        )
        for model, without, share in zip(members, without_N, shapley_N, strict=True)
    ]


def score_all_subsets(pruned: PrunedPool, members: Sequence[int], counts: Sequence[int]) -> NDArray[np.integer]:
    """Return the scores [2 ** len(members)] of the ensembles of all subsets of `members`, each the metric summed over
    the queries, scaled to an integer. Each member has its integer weight in `counts`. Bit m of a subset's index stands
    for members[m].

    The loop that scores all subsets at once takes five seconds to compile after an installation, so it is used only for
    more than MAX_ONE_BY_ONE members.
    """
    if len(members) > MAX_ONE_BY_ONE:
        return exhaustive.score_subsets(pruned, members, counts=counts)
    scores_S = np.zeros(1 << len(members), np.int64)
    for subset in range(1, len(scores_S)):
        taken_M = np.zeros(pruned.num_models, np.int64)
        for index, model in enumerate(members):
            taken_M[model] = counts[index] * (subset >> index & 1)
        scores_S[subset] = pruned.score_ensemble(taken_M.tolist()).sum()
    return scores_S


def score_members(pruned: PrunedPool, models: Sequence[int], selection: Selection) -> int:
    """Return the score of the ensemble of those members of a selection whose indices are in `models`, with their
    weights in the selection: the metric summed over the queries, scaled to an integer.
    """
    counts = np.zeros(pruned.num_models, np.int64)
    counts[list(models)] = [selection.counts[model] for model in models]
    return int(pruned.score_ensemble(counts.tolist()).sum())


def compute_shapley(scores_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Shapley value of each of N members, given the score of each subset of them [2 ** N]; bit m of a subset
    stands for member m.
    """
    number = int(math.log2(len(scores_S)))
    subsets = np.arange(len(scores_S))
    sizes = np.array([subset.bit_count() for subset in subsets.tolist()])
    shares = np.array(
        [math.factorial(size) * math.factorial(number - size - 1) / math.factorial(number) for size in range(number)]
    )
    values = np.empty(number)
    for index in range(number):
        without = subsets[subsets >> index & 1 == 0]
        values[index] = (shares[sizes[without]] * (scores_S[without | 1 << index] - scores_S[without])).sum()
    return values


def estimate_shapley(
    pruned: PrunedPool, members: Sequence[int], counts: Sequence[int], seed: int
) -> NDArray[np.float64]:
    """Return the Shapley values [N] of members with the integer weights `counts`, estimated from NUM_ORDERS random
    orders in which they join.
    """
    rng = np.random.default_rng(seed)
    total_N = np.zeros(len(members))
    for _ in range(NUM_ORDERS):
        taken, before = np.zeros(pruned.num_models, np.int64), 0
        for index in rng.permutation(len(members)):
            taken[members[index]] = counts[index]
            after = int(pruned.score_ensemble(taken.tolist()).sum())
            total_N[index] += after - before
            before = after
    return total_N / NUM_ORDERS


def compute_error_correlation(pruned: PrunedPool, models: Sequence[int]) -> NDArray[np.float64]:
    """Return the error correlation [N, N] of each two of the N candidates with the indices `models`: the correlation of
    their metric values over queries.
    """
    values_NQ = pruned.single_scores[list(models)].astype(np.float64)
    centred = values_NQ - values_NQ.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    correlation_NN: NDArray[np.float64] = (centred @ centred.T) / np.maximum(np.outer(norms, norms), 1e-300)
    np.fill_diagonal(correlation_NN, 1.0)
    return correlation_NN


@dataclass(frozen=True)
class ParetoSelection:
    """Ensemble on the Pareto front of cost and metric: no cheaper ensemble has as high a metric."""

    cost: float
    selection: Selection


def compute_pareto_front(pruned: PrunedPool, config: SelectionConfig, costs: Sequence[float]) -> list[ParetoSelection]:
    """Return the ensembles on the Pareto front of metric and cost, the cheapest first, found by the method in `config`.
    `costs` has the cost of each candidate; an ensemble costs the sum over its members.

    The cost of an ensemble is the total cost of its distinct members. For the method 'exact' the front is that of all
    ensembles of equal weights. Greedy selection is repeated under budgets that are spaced geometrically from the cost
    of the cheapest candidate to that of the ensemble selected without a budget. The method 'all' and bags do not
    support budgets.
    """
    if config.method == "exact":
        return [ParetoSelection(cost, selection) for cost, selection in select_by_cost(pruned, config, costs)]
    unlimited = select(pruned, config)
    lowest, highest = min(costs), compute_cost(unlimited, costs)
    points = [ParetoSelection(highest, unlimited)]
    for budget in np.geomspace(lowest, highest, NUM_BUDGETS)[:-1] if highest > lowest else []:
        allowed = [model for model, cost in enumerate(costs) if cost <= budget * (1 + 1e-9)]
        selection = select(pruned, config, allowed=allowed, costs=costs, budget=budget * (1 + 1e-9))
        points.append(ParetoSelection(compute_cost(selection, costs), selection))
    points.sort(key=lambda point: (point.cost, -point.selection.value))
    best: list[ParetoSelection] = []
    for point in points:
        if not best or point.selection.value > best[-1].selection.value:
            best.append(point)
    return best


def compute_cost(selection: Selection, costs: Sequence[float]) -> float:
    """Return the total cost of a selection's members; `costs` has the cost of each candidate."""
    return sum(costs[model] for model in selection.members)
