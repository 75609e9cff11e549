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

ORDERS = 200
BUDGETS = 12


@dataclass(frozen=True)
class Attribution:
    """Contribution of a member to an ensemble."""

    candidate: int
    weight: float
    alone: float
    without: float  # metric of the ensemble without the member, minus that of the ensemble
    shapley: float


def attribute_members(live: PrunedPool, selection: Selection, seed: int = 0) -> list[Attribution]:
    """Return each member's attribution, the highest weight first.

    The Shapley value (Shapley 1953) of a member is the increase of the metric when it joins, averaged over all orders
    in which the members can join, each with its weight. The values add up to the ensemble's metric; the empty ensemble
    scores 0.

    Args:
        pruned: the pruned pool that the ensemble was selected from.
        selection: the ensemble.
        seed: seed of the sampled orders, for ensembles with more than MAX_EXACT members.
    """
    chosen = sorted(selection.members, key=lambda model: (-selection.counts[model], live.names[model]))
    counts = [selection.counts[model] for model in chosen]
    single_M = live.score_singles.sum(axis=1)
    if len(chosen) <= MAX_EXACT:
        worth_S = score_all_subsets(live, chosen, counts).astype(np.float64)
        shapley_N = compute_shapley(worth_S)
        without_N = [worth_S[(len(worth_S) - 1) ^ (1 << place)] for place in range(len(chosen))]
    else:
        shapley_N = estimate_shapley(live, chosen, counts, seed)
        without_N = [score_members(live, [m for m in chosen if m != model], selection) for model in chosen]
    whole = score_members(live, chosen, selection)
    unit = live.gains.one * live.num_queries
    return [
        Attribution(
            model,
            selection.weights[model],
            single_M[model] / unit,
            (float(without) - whole) / unit,
            float(share) / unit,
        )
        for model, without, share in zip(chosen, without_N, shapley_N, strict=True)
    ]


def score_all_subsets(live: PrunedPool, chosen: Sequence[int], counts: Sequence[int]) -> NDArray[np.integer]:
    """Return the score of each subset of some members [2**len(chosen)], each member with its count.

    The loop that scores all subsets at once takes five seconds to compile after an installation, so it is used only for
    more than MAX_ONE_BY_ONE members.
    """
    if len(chosen) > MAX_ONE_BY_ONE:
        return exhaustive.score_subsets(live, chosen, counts=counts)
    worth_S = np.zeros(1 << len(chosen), np.int64)
    for subset in range(1, len(worth_S)):
        taken_M = np.zeros(live.num_models, np.int64)
        for place, model in enumerate(chosen):
            taken_M[model] = counts[place] * (subset >> place & 1)
        worth_S[subset] = live.score_ensemble(taken_M.tolist()).sum()
    return worth_S


def score_members(live: PrunedPool, models: Sequence[int], selection: Selection) -> int:
    """Return the score of an ensemble of some members, with their weights."""
    counts = np.zeros(live.num_models, np.int64)
    counts[list(models)] = [selection.counts[model] for model in models]
    return int(live.score_ensemble(counts.tolist()).sum())


def compute_shapley(worth_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Shapley values [N] from the score of every subset [2**N]."""
    number = int(math.log2(len(worth_S)))
    subsets = np.arange(len(worth_S))
    sizes = np.array([subset.bit_count() for subset in subsets.tolist()])
    shares = np.array(
        [math.factorial(size) * math.factorial(number - size - 1) / math.factorial(number) for size in range(number)]
    )
    values = np.empty(number)
    for place in range(number):
        without = subsets[subsets >> place & 1 == 0]
        values[place] = (shares[sizes[without]] * (worth_S[without | 1 << place] - worth_S[without])).sum()
    return values


def estimate_shapley(live: PrunedPool, chosen: Sequence[int], counts: Sequence[int], seed: int) -> NDArray[np.float64]:
    """Return Shapley values [N] estimated from random orders."""
    rng = np.random.default_rng(seed)
    total_N = np.zeros(len(chosen))
    for _ in range(ORDERS):
        taken, before = np.zeros(live.num_models, np.int64), 0
        for place in rng.permutation(len(chosen)):
            taken[chosen[place]] = counts[place]
            now = int(live.score_ensemble(taken.tolist()).sum())
            total_N[place] += now - before
            before = now
    return total_N / ORDERS


def compute_error_correlation(live: PrunedPool, models: Sequence[int]) -> NDArray[np.float64]:
    """Return the error correlation of candidates [N, N]: the correlation of their metric values over queries."""
    values_NQ = live.score_singles[list(models)].astype(np.float64)
    centred = values_NQ - values_NQ.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    found: NDArray[np.float64] = (centred @ centred.T) / np.maximum(np.outer(norms, norms), 1e-300)
    np.fill_diagonal(found, 1.0)
    return found


@dataclass(frozen=True)
class ParetoSelection:
    """Ensemble on the Pareto front: no cheaper one has as high a metric."""

    cost: float
    selection: Selection


def compute_pareto_front(live: PrunedPool, rules: SelectionConfig, costs: Sequence[float]) -> list[ParetoSelection]:
    """Return the ensembles on the Pareto front of metric and cost, the cheapest first.

    The cost of an ensemble is the total cost of its distinct members. For the method 'exact' the front is that of all
    ensembles of equal weights. Greedy selection is repeated under budgets that are spaced geometrically from the cost
    of the cheapest candidate to that of the ensemble selected without a budget. The method 'all' and bags do not
    support budgets.
    """
    if rules.method == "exact":
        return [ParetoSelection(cost, selection) for cost, selection in select_by_cost(live, rules, costs)]
    free = select(live, rules)
    lowest, highest = min(costs), compute_cost(free, costs)
    points = [ParetoSelection(highest, free)]
    for budget in np.geomspace(lowest, highest, BUDGETS)[:-1] if highest > lowest else []:
        allowed = [model for model, cost in enumerate(costs) if cost <= budget * (1 + 1e-9)]
        found = select(live, rules, allowed=allowed, costs=costs, budget=budget * (1 + 1e-9))
        points.append(ParetoSelection(compute_cost(found, costs), found))
    points.sort(key=lambda point: (point.cost, -point.selection.value))
    best: list[ParetoSelection] = []
    for point in points:
        if not best or point.selection.value > best[-1].selection.value:
            best.append(point)
    return best


def compute_cost(selection: Selection, costs: Sequence[float]) -> float:
    """Return the total cost of an ensemble's members."""
    return sum(costs[model] for model in selection.members)
