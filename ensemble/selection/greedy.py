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
    """Step of a selection: the index of the candidate that was added and of the one that was removed, None if there was
    none, and the ensemble's metric afterwards.
    """

    value: float
    added: int | None = None
    removed: int | None = None


@dataclass(frozen=True)
class Selection:
    """Selected ensemble, its metric, and the steps in which it was selected."""

    counts: tuple[int, ...]  # integer weight of each of the M candidates
    value: float
    trajectory: tuple[Step, ...] = ()

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the M candidates; they sum to one."""
        return tuple(count / sum(self.counts) for count in self.counts)

    @property
    def members(self) -> list[int]:
        """Indices of the candidates with a weight above 0."""
        return [model for model, count in enumerate(self.counts) if count]


@dataclass(frozen=True)
class SelectionProblem:
    """Candidates and queries of one selection, with the limits on what can be selected."""

    pruned: PrunedPool
    include_Q: NDArray[np.bool_]
    allowed: tuple[int, ...]  # candidates, in the order of their names
    by_name: tuple[int, ...]  # index of each candidate when all are sorted by name
    costs: tuple[float, ...] = ()  # cost of each candidate
    budget: float = math.inf  # maximum total cost of the members

    def to_metric(self, score: int) -> float:
        """Return the metric's mean over the included queries, given its sum, scaled to an integer (`score`)."""
        return self.pruned.gains.to_metric(int(score), int(self.include_Q.sum()))

    def score(self, counts: Counts) -> int:
        """Return the score of an ensemble: the metric summed over the included queries, scaled to an integer. The empty
        ensemble scores 0. `counts` has the weight of each candidate.
        """
        return int(self.pruned.score_ensemble(counts.tolist())[self.include_Q].sum())

    def fits_budget(self, history: Sequence[int], model: int) -> bool:
        """Return whether the total cost of the members in `history` together with the candidate `model` is within the
        budget.
        """
        return not self.costs or sum(self.costs[member] for member in {*history, model}) <= self.budget

    def find_best(self, scores_M: NDArray[np.int64], among: Iterable[int]) -> int:
        """Return the index of the candidate with the highest score in `scores_M`, of the candidates `among`; ties go to
        the first by name.
        """
        return max(among, key=lambda model: (scores_M[model], -self.by_name[model]))

    def choose_better(self, first: Selection, second: Selection) -> Selection:
        """Return the one of two ensembles with the better metric; ties go to the one with the smaller sum of integer
        weights, then to `first`.
        """
        return max(first, second, key=lambda selection: (selection.value, -sum(selection.counts)))


def select(
    pruned: PrunedPool,
    config: SelectionConfig | None = None,
    include_Q: NDArray[np.bool_] | None = None,
    allowed: Sequence[int] | None = None,
    costs: Sequence[float] = (),
    budget: float = math.inf,
) -> Selection:
    """Return the ensemble with the best metric that the method in `config` finds in a pruned pool, on the queries of
    the mask `include_Q` and from the `allowed` candidates. With `costs`, greedy selection keeps the total cost of the
    members within `budget`.

    Args:
        pruned: the candidates' scores, pruned for the metric.
        config: the config of the selection; by default greedy selection.
        include_Q: mask of the queries to select on, also for `config.among`; by default all.
        allowed: indices of the candidates to select from; by default all.
        costs: cost of each candidate.
        budget: maximum total cost of the members, for greedy selection.

    Returns:
        The ensemble, its metric on these queries, and the steps in which it was selected.

    Raises:
        UserError: if there are too many candidates to score all subsets.
    """
    config = config or SelectionConfig()
    problem = build_problem(pruned, config, include_Q, allowed, costs, budget)
    if config.method == "all":
        counts = np.bincount(problem.allowed, minlength=pruned.num_models)
        selection = Selection(tuple(counts.tolist()), problem.to_metric(problem.score(counts)))
    elif config.method == "exact":
        selection = select_best_subset(problem)
    elif config.bags:
        return select_bagged(problem, config)
    else:
        selection = select_forward(problem, config)
    return refine(problem, config, selection) if config.refine else selection


def select_by(metric: str | Metric, pool: ScoreMatrices, config: SelectionConfig | None = None) -> Selection:
    """Select an ensemble from the score matrices in `pool` by the name of a metric, or by a function that returns the
    metric of an ensemble's mean scores.

    Named metrics use compiled kernels. A function uses `ensemble.selection.reference`, which is slow and keeps all
    scores in memory.

    Args:
        metric: a name ('map10', 'r1', 'ndcg', ...), or a function of scores [Q, A], higher is better.
        pool: the candidates' scores.
        config: the config of the selection; for a function, only `max_size` and `replacement` can be set.

    Raises:
        UserError: for an unknown metric, or a setting that a function does not support.
    """
    config = config or SelectionConfig()
    if isinstance(metric, str):
        return select(prune(pool, metric), config)
    if config != SelectionConfig(max_size=config.max_size, replacement=config.replacement):
        raise UserError("for a metric function only max_size and replacement can be set: leave out the other settings")
    scores_MQA = [pool.read_scores(model) for model in range(len(pool.names))]
    result = select_greedily(scores_MQA, metric, pool.names, config.max_size, config.replacement)
    steps = tuple(Step(value, added) for added, value in result.trajectory)
    best = 1 + int(np.argmax([step.value for step in steps]))
    counts = np.bincount([added for added, _ in result.trajectory[:best]], minlength=len(pool.names))
    return Selection(tuple(counts.tolist()), result.value, steps)


def build_problem(
    pruned: PrunedPool,
    config: SelectionConfig,
    include_Q: NDArray[np.bool_] | None = None,
    allowed: Sequence[int] | None = None,
    costs: Sequence[float] = (),
    budget: float = math.inf,
) -> SelectionProblem:
    """Return the problem that `select` solves for the same arguments, with defaults filled in and the candidates that
    can be selected: the `allowed` ones and, if `config.among` is set, only the best of them.
    """
    order = sorted(range(pruned.num_models), key=lambda model: pruned.names[model])
    by_name = {model: index for index, model in enumerate(order)}
    models = tuple(sorted(range(pruned.num_models) if allowed is None else allowed, key=by_name.__getitem__))
    include_Q = np.ones(pruned.num_queries, bool) if include_Q is None else include_Q
    if config.among:
        best_first = pruned.sort_candidates(pruned.single_scores[:, include_Q].sum(axis=1))
        models = tuple(sorted([m for m in best_first if m in models][: config.among], key=by_name.__getitem__))
    names = tuple(by_name[model] for model in range(pruned.num_models))
    return SelectionProblem(pruned, include_Q, models, names, tuple(costs), budget)


def select_best_subset(problem: SelectionProblem) -> Selection:
    """Return the best ensemble of equal weights, found by scoring all subsets of the allowed candidates."""
    scores_S = exhaustive.score_subsets(problem.pruned, problem.allowed, problem.include_Q)
    best_score = int(scores_S[1:].max())
    subset = exhaustive.find_first_subset(1 + np.flatnonzero(scores_S[1:] == best_score), len(problem.allowed))
    return to_selection(problem, subset, best_score)


def to_selection(problem: SelectionProblem, subset: int, score: int) -> Selection:
    """Return the selection of a subset of the allowed candidates with equal weights. Bit m of `subset` stands for
    `problem.allowed[m]`, and `score` is the ensemble's integer score.
    """
    counts = np.bincount(
        [problem.allowed[bit] for bit in exhaustive.list_bits(subset)], minlength=problem.pruned.num_models
    )
    return Selection(tuple(counts.tolist()), problem.to_metric(score))


def select_by_cost(
    pruned: PrunedPool, config: SelectionConfig, costs: Sequence[float]
) -> list[tuple[float, Selection]]:
    """Return the ensembles of equal weights on the Pareto front of cost and metric, as pairs of total cost and
    selection, the cheapest first. They are found among all subsets of the candidates that `config` allows; `costs` has
    the cost of each candidate.
    """
    problem = build_problem(pruned, config)
    scores_S = exhaustive.score_subsets(pruned, problem.allowed)
    cost_S = np.zeros(1)
    for model in problem.allowed:
        cost_S = np.concatenate([cost_S, cost_S + costs[model]])
    by_cost = 1 + np.lexsort((-scores_S[1:], cost_S[1:]))
    best = np.maximum.accumulate(scores_S[by_cost])
    first = np.flatnonzero(np.concatenate([[True], best[1:] > best[:-1]]))
    return [
        (float(cost_S[subset]), to_selection(problem, int(subset), int(scores_S[subset]))) for subset in by_cost[first]
    ]


def select_forward(problem: SelectionProblem, config: SelectionConfig) -> Selection:
    """Select greedily: add, up to `config.max_size` times, the candidate whose addition gives the best metric. Return
    the best ensemble on the way.
    """
    pruned = problem.pruned
    ensemble = IncrementalEnsemble(pruned, problem.include_Q)
    single_M = pruned.single_scores[:, problem.include_Q].sum(axis=1)
    best_first = [model for model in pruned.sort_candidates(single_M) if model in problem.allowed]
    sorted_start = min(config.sorted_start, len(best_first))
    steps: list[Step] = []
    for size in range(config.max_size):
        addable = [
            model
            for model in problem.allowed
            if (config.replacement or model not in ensemble.history) and problem.fits_budget(ensemble.history, model)
        ]
        if not addable:
            break
        scores_M = ensemble.score_additions() if size else single_M
        next_best = [model for model in best_first if model in addable and model not in ensemble.history]
        added = next_best[0] if size < sorted_start and next_best else problem.find_best(scores_M, addable)
        ensemble.add(added)
        steps.append(Step(problem.to_metric(scores_M[added]), added))
    best = 1 + int(np.argmax([step.value for step in steps]))
    if config.stop == "one-se":
        best = find_smallest_within_one_error(problem, ensemble.history, best)
    counts = np.bincount(ensemble.history[:best], minlength=pruned.num_models)
    return Selection(tuple(counts.tolist()), steps[best - 1].value, tuple(steps))


def find_smallest_within_one_error(problem: SelectionProblem, history: Sequence[int], best: int) -> int:
    """Return the smallest size at which the metric is worse than at the size `best` by at most one standard error of
    the difference. The ensemble of a size consists of the first candidates in `history`, the order in which they were
    added.

    The standard error is that of the mean paired difference over groups of queries (the one-standard-error rule of
    Breiman et al. 1984).
    """

    def score_groups(size: int) -> NDArray[np.float64]:
        counts = np.bincount(history[:size], minlength=problem.pruned.num_models)
        scores_Q = problem.pruned.score_ensemble(counts.tolist()) * problem.include_Q
        total_G = np.bincount(problem.pruned.group_Q, weights=scores_Q).astype(np.float64)
        return total_G[np.unique(problem.pruned.group_Q[problem.include_Q])]

    best_G = score_groups(best)
    for size in range(1, best):
        loss_G = best_G - score_groups(size)
        if loss_G.sum() <= math.sqrt(len(loss_G)) * loss_G.std(ddof=1 if len(loss_G) > 1 else 0):
            return size
    return best


def select_bagged(problem: SelectionProblem, config: SelectionConfig) -> Selection:
    """Return the mean of `config.bags` ensembles, each selected (and, if configured, refined) from a random subset of
    the problem's candidates.

    The weights of the mean are stored as integers. They are exact unless the least common multiple of the ensembles'
    sizes is above WEIGHT_RESOLUTION; then they are rounded to multiples of one over WEIGHT_RESOLUTION.
    """
    rng = np.random.default_rng(config.seed)
    number = max(1, round(config.bag_share * len(problem.allowed)))
    selections = []
    for _ in range(config.bags):
        bag_models = tuple(problem.allowed[index] for index in sorted(rng.permutation(len(problem.allowed))[:number]))
        bag = replace(problem, allowed=bag_models)
        selection = select_forward(bag, config)
        selections.append(refine(bag, config, selection) if config.refine else selection)
    resolution = min(math.lcm(*(sum(selection.counts) for selection in selections)), WEIGHT_RESOLUTION)
    weights = sum(np.array(selection.weights) for selection in selections)
    counts: Counts = np.rint(np.asarray(weights) * resolution).astype(np.int64)
    counts //= math.gcd(*counts.tolist())
    return Selection(tuple(counts.tolist()), problem.to_metric(problem.score(counts)))


def refine(problem: SelectionProblem, config: SelectionConfig, selection: Selection) -> Selection:
    """Return a selection improved by backward elimination of members and then the exchange of one, repeated as long as
    the metric rises.
    """
    while (better := swap_member(problem, config, eliminate_members(problem, selection))).value > selection.value:
        selection = better
    return problem.choose_better(selection, better)


def eliminate_members(problem: SelectionProblem, selection: Selection) -> Selection:
    """Remove members one by one, each time the one without which the metric is best, until a removal would lower the
    metric (backward elimination). Return the selection that is left.
    """
    while sum(selection.counts) > 1:
        counts = np.array(selection.counts)
        scores_M = np.full(len(counts), -1)
        for model in selection.members:
            scores_M[model] = problem.score(counts - (np.arange(len(counts)) == model))
        removed = problem.find_best(scores_M, selection.members)
        if (value := problem.to_metric(scores_M[removed])) < selection.value:
            break
        counts[removed] -= 1
        step = Step(value, removed=removed)
        selection = Selection(tuple(counts.tolist()), value, (*selection.trajectory, step))
    return selection


def swap_member(problem: SelectionProblem, config: SelectionConfig, selection: Selection) -> Selection:
    """Return the best ensemble that results if one member of a selection is replaced by another candidate; the
    selection itself if none is better.
    """
    best = selection
    for removed in sorted(selection.members, key=problem.by_name.__getitem__):
        counts = np.array(selection.counts)
        counts[removed] -= 1
        history = list(itertools.chain.from_iterable([model] * count for model, count in enumerate(counts.tolist())))
        scores_M = IncrementalEnsemble(problem.pruned, problem.include_Q, history).score_additions()
        addable = [
            model
            for model in problem.allowed
            if (config.replacement or not counts[model]) and problem.fits_budget(history, model)
        ]
        added = problem.find_best(scores_M, addable)
        if (value := problem.to_metric(scores_M[added])) > best.value:
            counts[added] += 1
            step = Step(value, added, removed)
            best = Selection(tuple(counts.tolist()), value, (*selection.trajectory, step))
    return best
