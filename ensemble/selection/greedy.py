"""Greedy forward selection of an ensemble (Caruana et al. 2004), with bags, refinement and cost budgets.

The functions take a pruned pool (`ensemble.selection.pruned_pool`) and return the selection with its trajectory; they
read and write no files. Weights and sums of scores are integers, so results depend neither on the order of the pool nor
on the number of threads. Ties between candidates go to the one whose name comes first, ties between ensembles to the
one with fewer members.

Shapes: M candidates, Q queries, G groups of queries, S subsets.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.pool.score_matrices import ScoreMatrices
from ensemble.selection import exhaustive
from ensemble.selection.pruned_pool import IncrementalEnsemble, PrunedPool, prune
from ensemble.selection.reference import Metric, select_greedily

WEIGHT_RESOLUTION = 2**20
"""Resolution of a bagged ensemble's weights, as integers: sums of scores with such weights are still exact."""

Counts = NDArray[np.int64]
"""Number of times each of the M candidates is in the ensemble."""


@dataclass(frozen=True)
class SelectionConfig:
    """Config of a selection: the method and its settings."""

    method: Literal["greedy", "exact", "all"] = "greedy"
    max_size: int = 20
    replacement: bool = True
    among: int = 0  # number of best single candidates to select from; 0: all candidates
    sorted_start: int = 0  # number of best single candidates to start from
    stop: Literal["best", "one-se"] = "best"
    refine: bool = False
    bags: int = 0
    bag_share: float = 0.5  # share of the candidates in each bag
    seed: int = 0  # seed of the random bags

    def __post_init__(self) -> None:
        if self.max_size < 1:
            raise ValueError(f"max_size is {self.max_size}: it must be at least 1")
        if not 0 <= self.sorted_start <= self.max_size:
            raise ValueError(f"sorted_start is {self.sorted_start}: it must be between 0 and max_size")
        if not 0 < self.bag_share <= 1:
            raise ValueError(f"bag_share is {self.bag_share}: it must be above 0 and at most 1")
        if self.among < 0:
            raise ValueError(f"among is {self.among}: it can't be negative")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: it can't be negative")
        if self.bags < 0:
            raise ValueError(f"bags is {self.bags}: it can't be negative")


@dataclass(frozen=True)
class Step:
    """Step of a selection: the candidate that was added, removed or both, and the metric afterwards."""

    value: float
    added: int | None = None
    removed: int | None = None


@dataclass(frozen=True)
class Selection:
    """Selected ensemble, its metric, and the trajectory of the selection."""

    counts: tuple[int, ...]  # integer weight of each of the M candidates
    value: float
    trajectory: tuple[Step, ...] = ()

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the M candidates; they sum to one."""
        return tuple(count / sum(self.counts) for count in self.counts)

    @property
    def members(self) -> list[int]:
        """Candidates with a weight above 0."""
        return [model for model, count in enumerate(self.counts) if count]


@dataclass(frozen=True)
class SelectionProblem:
    """Candidates and queries of a selection."""

    live: PrunedPool
    include_Q: NDArray[np.bool_]
    allowed: tuple[int, ...]  # candidates, in the order of their names
    by_name: tuple[int, ...]  # index of each candidate when all are sorted by name
    costs: tuple[float, ...] = ()  # cost of each candidate
    budget: float = math.inf  # maximum total cost of the members

    def to_metric(self, score: int) -> float:
        """Return the metric's mean over the queries for an integer score."""
        return self.live.gains.to_metric(int(score), int(self.include_Q.sum()))

    def score(self, counts: Counts) -> int:
        """Return the integer score of an ensemble; the empty ensemble scores 0."""
        return int(self.live.score_ensemble(counts.tolist())[self.include_Q].sum())

    def fits_budget(self, history: Sequence[int], model: int) -> bool:
        """Return whether a candidate can be added within the budget."""
        return not self.costs or sum(self.costs[member] for member in {*history, model}) <= self.budget

    def find_best(self, worth_M: NDArray[np.int64], among: Iterable[int]) -> int:
        """Return the candidate with the highest score; ties go to the first by name."""
        return max(among, key=lambda model: (worth_M[model], -self.by_name[model]))

    def prefer(self, first: Selection, second: Selection) -> Selection:
        """Return the better of two ensembles; ties go to the smaller one, then to the first."""
        return max(first, second, key=lambda selection: (selection.value, -sum(selection.counts)))


def select(
    live: PrunedPool,
    rules: SelectionConfig | None = None,
    include_Q: NDArray[np.bool_] | None = None,
    allowed: Sequence[int] | None = None,
    costs: Sequence[float] = (),
    budget: float = math.inf,
) -> Selection:
    """Select the ensemble with the best metric.

    Args:
        pruned: the candidates' scores, pruned for the metric.
        config: the config of the selection; by default greedy selection.
        include_Q: mask of the queries to select on, also for `config.among`; by default all.
        allowed: indices of the candidates to select from; by default all.
        costs: cost of each candidate.
        budget: maximum total cost of the members, for greedy selection.

    Returns:
        The ensemble, its metric on these queries, and the trajectory.

    Raises:
        UserError: if there are too many candidates to score all subsets.
    """
    rules = rules or SelectionConfig()
    task = make_problem(live, rules, include_Q, allowed, costs, budget)
    if rules.method == "all":
        counts = np.bincount(task.allowed, minlength=live.num_models)
        found = Selection(tuple(counts.tolist()), task.to_metric(task.score(counts)))
    elif rules.method == "exact":
        found = select_best_subset(task)
    elif rules.bags:
        return select_bagged(task, rules)
    else:
        found = select_forward(task, rules)
    return refine(task, rules, found) if rules.refine else found


def select_by(metric: str | Metric, pool: ScoreMatrices, rules: SelectionConfig | None = None) -> Selection:
    """Select from score matrices by the name of a metric, or by a function of an ensemble's mean scores.

    Named metrics use compiled kernels. A function uses `ensemble.selection.reference`, which is slow and keeps all
    scores in memory.

    Args:
        metric: a name ('map10', 'r1', 'ndcg', ...), or a function of scores [Q, A], higher is better.
        pool: the candidates' scores.
        config: the config of the selection; for a function, only `max_size` and `replacement` can be set.

    Raises:
        UserError: for an unknown metric, or a setting that a function does not support.
    """
    rules = rules or SelectionConfig()
    if isinstance(metric, str):
        return select(prune(pool, metric), rules)
    if rules != SelectionConfig(max_size=rules.max_size, replacement=rules.replacement):
        raise UserError("for a metric function only max_size and replacement can be set: leave out the other settings")
    scores_MQA = [pool.read_scores(model) for model in range(len(pool.names))]
    found = select_greedily(scores_MQA, metric, pool.names, rules.max_size, rules.replacement)
    steps = tuple(Step(value, added) for added, value in found.trajectory)
    best = 1 + int(np.argmax([step.value for step in steps]))
    counts = np.bincount([added for added, _ in found.trajectory[:best]], minlength=len(pool.names))
    return Selection(tuple(counts.tolist()), found.value, steps)


def make_problem(
    live: PrunedPool,
    rules: SelectionConfig,
    include_Q: NDArray[np.bool_] | None = None,
    allowed: Sequence[int] | None = None,
    costs: Sequence[float] = (),
    budget: float = math.inf,
) -> SelectionProblem:
    """Return the candidates and queries that `select` works on."""
    order = sorted(range(live.num_models), key=lambda model: live.names[model])
    by_name = {model: place for place, model in enumerate(order)}
    models = tuple(sorted(range(live.num_models) if allowed is None else allowed, key=by_name.__getitem__))
    include_Q = np.ones(live.num_queries, bool) if include_Q is None else include_Q
    if rules.among:
        best_first = live.sort_candidates(live.score_singles[:, include_Q].sum(axis=1))
        models = tuple(sorted([m for m in best_first if m in models][: rules.among], key=by_name.__getitem__))
    names = tuple(by_name[model] for model in range(live.num_models))
    return SelectionProblem(live, include_Q, models, names, tuple(costs), budget)


def select_best_subset(task: SelectionProblem) -> Selection:
    """Return the best ensemble of equal weights, by scoring all subsets."""
    worth_S = exhaustive.score_subsets(task.live, task.allowed, task.include_Q)
    best_worth = int(worth_S[1:].max())
    subset = exhaustive.find_first_subset(1 + np.flatnonzero(worth_S[1:] == best_worth), len(task.allowed))
    return to_selection(task, subset, best_worth)


def to_selection(task: SelectionProblem, subset: int, worth: int) -> Selection:
    """Return the ensemble of equal weights of a subset of the allowed candidates."""
    counts = np.bincount([task.allowed[bit] for bit in exhaustive.list_bits(subset)], minlength=task.live.num_models)
    return Selection(tuple(counts.tolist()), task.to_metric(worth))


def select_by_cost(live: PrunedPool, rules: SelectionConfig, costs: Sequence[float]) -> list[tuple[float, Selection]]:
    """Return the ensembles of equal weights on the Pareto front with their total costs, the cheapest first."""
    task = make_problem(live, rules)
    worth_S = exhaustive.score_subsets(live, task.allowed)
    cost_S = np.zeros(1)
    for model in task.allowed:
        cost_S = np.concatenate([cost_S, cost_S + costs[model]])
    by_cost = 1 + np.lexsort((-worth_S[1:], cost_S[1:]))
    best = np.maximum.accumulate(worth_S[by_cost])
    first = np.flatnonzero(np.concatenate([[True], best[1:] > best[:-1]]))
    return [(float(cost_S[subset]), to_selection(task, int(subset), int(worth_S[subset]))) for subset in by_cost[first]]


def select_forward(task: SelectionProblem, rules: SelectionConfig) -> Selection:
    """Add the candidate with the best resulting metric, `max_size` times, and return the best size."""
    live = task.live
    growing = IncrementalEnsemble(live, task.include_Q)
    single_M = live.score_singles[:, task.include_Q].sum(axis=1)
    best_first = [model for model in live.sort_candidates(single_M) if model in task.allowed]
    sorted_start = min(rules.sorted_start, len(best_first))
    steps: list[Step] = []
    for size in range(rules.max_size):
        free = [
            model
            for model in task.allowed
            if (rules.replacement or model not in growing.history) and task.fits_budget(growing.history, model)
        ]
        if not free:
            break
        worth_M = growing.score_additions() if size else single_M
        next_best = [model for model in best_first if model in free and model not in growing.history]
        added = next_best[0] if size < sorted_start and next_best else task.find_best(worth_M, free)
        growing.add(added)
        steps.append(Step(task.to_metric(worth_M[added]), added))
    best = 1 + int(np.argmax([step.value for step in steps]))
    if rules.stop == "one-se":
        best = find_smallest_within_one_error(task, growing.history, best)
    counts = np.bincount(growing.history[:best], minlength=live.num_models)
    return Selection(tuple(counts.tolist()), steps[best - 1].value, tuple(steps))


def find_smallest_within_one_error(task: SelectionProblem, history: Sequence[int], best: int) -> int:
    """Return the smallest size that is worse than the best one by at most one standard error of the difference.

    The standard error is that of the mean paired difference over groups of queries (the one-standard-error rule of
    Breiman et al. 1984).
    """

    def worth_by_group(size: int) -> NDArray[np.float64]:
        counts = np.bincount(history[:size], minlength=task.live.num_models)
        worth_Q = task.live.score_ensemble(counts.tolist()) * task.include_Q
        total_G = np.bincount(task.live.group_Q, weights=worth_Q).astype(np.float64)
        return total_G[np.unique(task.live.group_Q[task.include_Q])]

    best_G = worth_by_group(best)
    for size in range(1, best):
        short_G = best_G - worth_by_group(size)
        if short_G.sum() <= math.sqrt(len(short_G)) * short_G.std(ddof=1 if len(short_G) > 1 else 0):
            return size
    return best


def select_bagged(task: SelectionProblem, rules: SelectionConfig) -> Selection:
    """Return the mean of ensembles that are selected (and refined) from random subsets of the candidates.

    Weights are integers: multiples of one over the least common multiple of the ensembles' sizes, or of one over
    WEIGHT_RESOLUTION if the least common multiple is larger.
    """
    rng = np.random.default_rng(rules.seed)
    number = max(1, round(rules.bag_share * len(task.allowed)))
    chosen = []
    for _ in range(rules.bags):
        drawn = tuple(task.allowed[place] for place in sorted(rng.permutation(len(task.allowed))[:number]))
        bag = replace(task, allowed=drawn)
        found = select_forward(bag, rules)
        chosen.append(refine(bag, rules, found) if rules.refine else found)
    whole = min(math.lcm(*(sum(selection.counts) for selection in chosen)), WEIGHT_RESOLUTION)
    weights = sum(np.array(selection.weights) for selection in chosen)
    counts: Counts = np.rint(np.asarray(weights) * whole).astype(np.int64)
    counts //= math.gcd(*counts.tolist())
    return Selection(tuple(counts.tolist()), task.to_metric(task.score(counts)))


def refine(task: SelectionProblem, rules: SelectionConfig, selection: Selection) -> Selection:
    """Remove members, then swap one, as long as that improves the ensemble."""
    while (better := swap_one(task, rules, eliminate_one(task, selection))).value > selection.value:
        selection = better
    return task.prefer(selection, better)


def eliminate_one(task: SelectionProblem, selection: Selection) -> Selection:
    """Remove, one by one, the member whose removal is best until that would lower the metric (backward elimination)."""
    while sum(selection.counts) > 1:
        counts = np.array(selection.counts)
        worth_M = np.full(len(counts), -1)
        for model in selection.members:
            worth_M[model] = task.score(counts - (np.arange(len(counts)) == model))
        removed = task.find_best(worth_M, selection.members)
        if (value := task.to_metric(worth_M[removed])) < selection.value:
            break
        counts[removed] -= 1
        step = Step(value, removed=removed)
        selection = Selection(tuple(counts.tolist()), value, (*selection.trajectory, step))
    return selection


def swap_one(task: SelectionProblem, rules: SelectionConfig, selection: Selection) -> Selection:
    """Return the best ensemble with one member replaced by another candidate, or the selection if none is better."""
    best = selection
    for removed in sorted(selection.members, key=task.by_name.__getitem__):
        counts = np.array(selection.counts)
        counts[removed] -= 1
        history = list(itertools.chain.from_iterable([model] * count for model, count in enumerate(counts.tolist())))
        worth_M = IncrementalEnsemble(task.live, task.include_Q, history).score_additions()
        free = [
            model
            for model in task.allowed
            if (rules.replacement or not counts[model]) and task.fits_budget(history, model)
        ]
        added = task.find_best(worth_M, free)
        if (value := task.to_metric(worth_M[added])) > best.value:
            counts[added] += 1
            step = Step(value, added, removed)
            best = Selection(tuple(counts.tolist()), value, (*selection.trajectory, step))
    return best
