"""Selection on live entries against the plain loop, exhaustive search and torchmetrics, and its stated rules."""

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import ranx
import torch
import torchmetrics.functional.retrieval as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from ensemble.pool import evaluation
from ensemble.pool.score_matrices import apply_fusion, from_arrays, rank_transform, transpose, z_norm
from ensemble.selection import attribution, cross_validation, epoch_choice, exhaustive, greedy
from ensemble.selection.greedy import SelectionConfig
from ensemble.selection.pruned_pool import prune
from ensemble.selection.reference import select_greedily
from trainables import retrieval
from trainables.retrieval import Relevance

QUERIES, CLIPS = 60, 40
METRICS = ["map10", "map3", "r1", "r5", "mrr", "ndcg5", "ndcg"]


def make_pool(seed, models, several=False, dtype=np.float32, noise=1.4, levels=None):
    """Scores with many errors; with a few `levels` only, there are ties everywhere."""
    rng = np.random.default_rng(seed)
    target_Q = rng.integers(CLIPS, size=QUERIES)
    truth_QA = np.eye(CLIPS)[target_Q]
    if several:
        truth_QA = np.maximum(truth_QA, rng.random((QUERIES, CLIPS)) < 0.05)
    shared = rng.normal(0, 0.5, (QUERIES, CLIPS))
    scores = [truth_QA + shared + rng.normal(0, noise / 2, (QUERIES, CLIPS)) for _ in range(models)]
    if levels:
        scores = [np.round(one * levels) / levels for one in scores]
    query_P, clip_P = np.nonzero(truth_QA)
    relevant = Relevance(query_P, clip_P, target_Q)
    return from_arrays([f"m{n}" for n in range(models)], "v", "", relevant, [one.astype(dtype) for one in scores])


def value_of(pool, counts, metric):
    """By the scores themselves."""
    total = sum(count * pool.read_scores(model).astype(np.float64) for model, count in enumerate(counts))
    return retrieval.compute_metrics(total, pool.relevance, [metric])[metric]


def as_function(pool, metric):
    """A metric as a function of mean scores in float64; ties are ties up to the rounding of their sums."""

    def value(mean_QA):
        return round(retrieval.compute_metrics(np.round(mean_QA, 12), pool.relevance, [metric])[metric], 12)

    return value


def by_definition(pool, metric, **options):
    """The selection as reference.py defines it, in float64."""
    scores = [pool.read_scores(model).astype(np.float64) for model in range(len(pool.names))]
    return select_greedily(scores, as_function(pool, metric), pool.names, **options)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("replacement", [True, False])
def test_the_selection_is_that_of_its_definition(metric, several, levels, replacement):
    pool = make_pool(0, 6, several, levels=levels)
    selection = greedy.select(prune(pool, metric), SelectionConfig(max_size=8, replacement=replacement))
    expected = by_definition(pool, metric, max_size=8, replacement=replacement)
    assert [step.added for step in selection.trajectory] == [added for added, _ in expected.trajectory]
    for step, (_, value) in zip(selection.trajectory, expected.trajectory, strict=True):
        assert step.value == pytest.approx(value, abs=1e-6)
    assert selection.weights == pytest.approx(expected.weights)
    assert value_of(pool, selection.counts, metric) == pytest.approx(selection.value, abs=1e-6)


def test_the_definition_takes_any_metric():
    """Here one that isn't of ranks: the mean score of the clips that answer."""
    pool = make_pool(3, 5)
    scores = [pool.read_scores(model).astype(np.float64) for model in range(5)]

    def margin(mean_QA):
        relevant = pool.relevance
        return float(mean_QA[relevant.query_P, relevant.clip_P].mean() - mean_QA.mean())

    found = select_greedily(scores, margin, pool.names, max_size=6)
    alone = [margin(one) for one in scores]
    assert found.value == pytest.approx(max(alone))  # of a mean of scores, the best is the best one alone
    assert found.weights[int(np.argmax(alone))] == 1.0
    assert len(found.trajectory) == 6


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "rules", [SelectionConfig(max_size=6), SelectionConfig(max_size=9, replacement=False)], ids=str
)
def test_a_metric_given_as_a_function_selects_as_the_kernels_do_by_its_name(metric, rules):
    pool = make_pool(18, 7, several=True)
    expected, found = (greedy.select_by(by, pool, rules) for by in (metric, as_function(pool, metric)))
    assert found.counts == expected.counts
    assert [step.added for step in found.trajectory] == [step.added for step in expected.trajectory]
    assert found.value == pytest.approx(expected.value, abs=1e-6)


def test_rules_that_only_kernels_have_are_refused_for_a_function():
    with pytest.raises(UserError, match="only max_size and replacement"):
        greedy.select_by(np.mean, make_pool(0, 2), SelectionConfig(refine=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([None, 1, 3]), st.lists(st.integers(0, 4), min_size=5,
       max_size=5).filter(any))  # fmt: skip
def test_ranks_are_those_of_exact_arithmetic(seed, several, levels, counts):
    pool = make_pool(seed, 5, several, levels=levels)
    live = prune(pool, "mrr")
    arrays = [pool.read_scores(model) for model in range(5)]
    ranks_P = live.compute_ranks(counts)
    for pair in np.random.default_rng(seed).integers(len(live.query_P), size=3):
        query = live.query_P[pair]
        clip = np.sort(pool.relevance.clip_P[pool.relevance.query_P == query])[pair - live.pair_first_Q[query]]
        sums = [
            sum(c * Fraction(float(one[query, a])) for c, one in zip(counts, arrays, strict=True)) for a in range(CLIPS)
        ]
        assert ranks_P[pair] == sum(total >= sums[clip] for total in sums)


@pytest.mark.parametrize("metric", ["map10", "mrr", "ndcg5", "r5"])
@pytest.mark.parametrize("several", [False, True])
def test_all_subsets_are_scored(metric, several):
    pool = make_pool(1, 9, several)
    live = prune(pool, metric)
    worth_S = exhaustive.score_subsets(live, range(9))
    for subset in range(1, 2**9):
        counts = [subset >> model & 1 for model in range(9)]
        expected = live.score_ranks(live.compute_ranks(counts)).sum()
        assert worth_S[subset] == expected
    best = greedy.select(live, SelectionConfig(method="exact"))
    assert best.value == pytest.approx(max(live.gains.to_metric(int(w), QUERIES) for w in worth_S[1:]))
    assert set(best.counts) <= {0, 1}


def test_too_many_for_all_subsets_are_refused():
    with pytest.raises(UserError, match="--among"):
        greedy.select(prune(make_pool(0, 29), "map10"), SelectionConfig(method="exact"))


@pytest.mark.parametrize(
    "rules",
    [
        SelectionConfig(),
        SelectionConfig(refine=True),
        SelectionConfig(bags=3, refine=True),
        SelectionConfig(method="exact"),
        SelectionConfig(stop="one-se"),
        SelectionConfig(sorted_start=3),
        SelectionConfig(replacement=False),
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "levels"), [(np.float32, 2), (np.float64, 10)])
def test_neither_order_nor_threads_matter(rules, dtype, levels):
    pool = make_pool(2, 7, levels=levels, dtype=dtype)
    expected = greedy.select(prune(pool, "map10", threads=1), rules)
    order = [3, 1, 6, 0, 5, 2, 4]
    for threads in (1, 3):
        found = greedy.select(prune(pool.select(order), "map10", threads=threads), rules)
        assert [found.counts[order.index(model)] for model in range(7)] == list(expected.counts)
        assert found.value == expected.value
        assert value_of(pool.select(order), found.counts, "map10") == pytest.approx(found.value)


def test_many_bags_of_many_sizes_are_refined():
    live = prune(make_pool(14, 12), "map10")
    found = greedy.select(live, SelectionConfig(bags=12, refine=True))
    assert sum(found.counts) <= 12 * greedy.WEIGHT_RESOLUTION
    bags = [greedy.select(live, SelectionConfig(bags=1, refine=True, seed=seed)) for seed in range(3)]
    assert all(
        bag.value >= greedy.select(live, SelectionConfig(bags=1, seed=seed)).value for seed, bag in enumerate(bags)
    )


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], ["d", "c", "b", "a"]])
def test_of_equally_good_subsets_the_smallest_is_taken_then_the_one_whose_names_come_first(names):
    pool = make_pool(15, 2)
    arrays = [pool.arrays[0], pool.arrays[1], pool.arrays[0], pool.arrays[1]]
    live = prune(from_arrays(names, "v", "", pool.relevance, arrays), "map10")
    found = greedy.select(live, SelectionConfig(method="exact"))
    worth_S = exhaustive.score_subsets(live, range(4))
    best = [exhaustive.list_bits(s) for s in range(1, 16) if worth_S[s] == worth_S.max()]
    expected = min(best, key=lambda models: (len(models), sorted(names[model] for model in models)))
    assert found.members == expected


def test_refining_and_searching_can_only_help():
    live = prune(make_pool(3, 8), "map10")
    plain, best = greedy.select(live), greedy.select(live, SelectionConfig(refine=True))
    assert best.value >= plain.value
    without = greedy.select(live, SelectionConfig(replacement=False))
    assert max(without.counts) == 1
    assert greedy.select(live, SelectionConfig(method="exact")).value >= without.value
    assert greedy.select(live, SelectionConfig(method="all")).counts == (1,) * 8


def test_the_best_size_is_taken_not_the_last():
    selection = greedy.select(prune(make_pool(4, 6), "map10"))
    values = [step.value for step in selection.trajectory]
    assert selection.value == max(values)
    assert sum(selection.counts) == values.index(max(values)) + 1
    smaller = greedy.select(prune(make_pool(4, 6), "map10"), SelectionConfig(stop="one-se"))
    assert sum(smaller.counts) <= sum(selection.counts)


def test_a_constant_scores_nothing():
    pool = make_pool(0, 2)
    constant = from_arrays(["c"], "v", "", pool.relevance, [np.zeros((QUERIES, CLIPS), np.float32)])
    for metric in ("map10", "r10", "ndcg10"):
        assert greedy.select(prune(constant, metric)).value == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_types(dtype):
    pool = make_pool(5, 4, dtype=dtype)
    selection = greedy.select(prune(pool, "map10"))
    assert value_of(pool, selection.counts, "map10") == pytest.approx(selection.value)


def test_a_score_that_is_not_finite_is_named():
    pool = make_pool(0, 3)
    pool.arrays[1][7, 3] = np.nan
    with pytest.raises(UserError, match="m1: query 7"):
        prune(pool, "map10")


@pytest.mark.parametrize("metric", ["map10", "mrr", "r5", "ndcg10", "r1"])
def test_metrics_are_torchmetrics_where_these_agree(metric):
    """One relevant clip, no ties."""
    pool = make_pool(6, 1)
    functions = {
        "map10": lambda p, t: reference.retrieval_average_precision(p, t, top_k=10),
        "mrr": reference.retrieval_reciprocal_rank,
        "r5": lambda p, t: reference.retrieval_recall(p, t, top_k=5),
        "r1": lambda p, t: reference.retrieval_recall(p, t, top_k=1),
        "ndcg10": lambda p, t: reference.retrieval_normalized_dcg(p, t, top_k=10),
    }
    scores, clips = torch.from_numpy(pool.read_scores(0)), pool.relevance.clip_P
    scores = scores - scores.min() + 1  # what isn't above 0 isn't found, to torchmetrics
    expected = [float(functions[metric](scores[q], torch.arange(CLIPS) == int(clips[q]))) for q in range(QUERIES)]
    assert retrieval.compute_metrics(pool.read_scores(0), pool.relevance, [metric])[metric] == pytest.approx(
        np.mean(expected)
    )
    assert greedy.select(prune(pool, metric)).value == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaTypeSafetyWarning")
def test_metrics_are_those_of_ranx_where_these_agree():
    """One relevant clip, no ties. Slow, as ranx compiles for long; torchmetrics and loops check the same above."""
    names = {"map10": "map@10", "mrr": "mrr", "r1": "recall@1", "r5": "recall@5", "ndcg10": "ndcg@10", "ndcg": "ndcg"}
    pool = make_pool(6, 1)
    clip_Q = pool.relevance.clip_P
    relevant = ranx.Qrels({f"q{q}": {f"c{clip}": 1} for q, clip in enumerate(clip_Q)})
    scores = ranx.Run(
        {f"q{q}": {f"c{c}": float(score) for c, score in enumerate(row)} for q, row in enumerate(pool.read_scores(0))}
    )
    expected = ranx.evaluate(relevant, scores, list(names.values()))
    for ours, theirs in names.items():
        found = retrieval.compute_metrics(pool.read_scores(0), pool.relevance, [ours])[ours]
        assert found == pytest.approx(expected[theirs]), ours
        assert greedy.select(prune(pool, ours)).value == pytest.approx(expected[theirs], abs=1e-6)


def test_a_growing_ensemble_is_scored_as_each_of_its_sizes():
    pool = make_pool(12, 4)
    history = [2, 0, 2, 3]
    for size, point in enumerate(evaluation.compute_metric_by_step(pool, history, "map10"), start=1):
        counts = np.bincount(history[:size], minlength=4)
        assert point.value == pytest.approx(value_of(pool, counts, "map10"))
        assert point.interval[0] <= point.value <= point.interval[1]


def test_only_the_best_candidates_are_looked_at_those_of_the_same_queries():
    live = prune(make_pool(13, 8), "map10")
    seen_Q = np.arange(QUERIES) < 20
    best = live.sort_candidates(live.single_scores[:, seen_Q].sum(axis=1))[:3]
    for method in ("greedy", "exact", "all"):
        found = greedy.select(live, SelectionConfig(method=method, among=3), seen_Q)
        assert set(found.members) <= set(best)
        assert found == greedy.select(live, SelectionConfig(method=method), seen_Q, allowed=best)


def test_the_other_direction_and_fusions():
    pool = make_pool(7, 3)
    other = transpose(pool)
    assert other.num_queries == len(np.unique(pool.relevance.clip_P))
    clips = np.unique(pool.relevance.clip_P)
    np.testing.assert_array_equal(other.read_scores(1), pool.read_scores(1)[:, clips].T)
    np.testing.assert_array_equal(other.reads[1](3, 7), pool.read_scores(1)[:, clips[3:7]].T)
    selection = greedy.select(prune(other, "map10"))
    assert value_of(other, selection.counts, "map10") == pytest.approx(selection.value)
    for name, transform in (("zscore", z_norm), ("rank", rank_transform)):
        made = apply_fusion(pool, name)
        np.testing.assert_array_equal(made.read_scores(2), transform(pool.read_scores(2)))
        found = greedy.select(prune(made, "map10"))
        assert value_of(made, found.counts, "map10") == pytest.approx(found.value)


def test_captions_have_been_seen_where_all_their_clips_have():
    pool = make_pool(17, 1, several=True)
    clips = np.unique(pool.relevance.clip_P)
    seen_A = np.random.default_rng(0).random(len(clips)) < 0.6
    found = epoch_choice.select_captions(transpose(pool), seen_A)
    seen = set(clips[seen_A].tolist())
    for query in range(QUERIES):
        own = set(pool.relevance.clip_P[pool.relevance.query_P == query].tolist())
        assert found[query] == (own <= seen)


def test_shapley_values_add_up_to_the_ensemble():
    live = prune(make_pool(8, 6), "map10")
    selection = greedy.select(live)
    members = attribution.attribute_members(live, selection)
    assert sum(member.shapley for member in members) == pytest.approx(selection.value)
    for member in members:
        counts = [0 if model == member.candidate else count for model, count in enumerate(selection.counts)]
        left = (
            live.gains.to_metric(int(live.score_ranks(live.compute_ranks(counts)).sum()), QUERIES) if any(counts) else 0
        )
        assert member.without == pytest.approx(left - selection.value)


def test_shapley_values_are_means_over_all_orders():
    worth_S = np.random.default_rng(0).random(16)
    worth_S[0] = 0
    expected = np.zeros(4)
    for order in itertools.permutations(range(4)):
        subset = 0
        for player in order:
            expected[player] += worth_S[subset | 1 << player] - worth_S[subset]
            subset |= 1 << player
    np.testing.assert_allclose(attribution.compute_shapley(worth_S), expected / 24)


def test_nested_cross_validation_judges_what_it_has_not_seen():
    """Candidates of pure noise: choosing among them looks better than it is."""
    rng = np.random.default_rng(0)
    clip_Q = rng.integers(CLIPS, size=QUERIES)
    arrays = [rng.normal(size=(QUERIES, CLIPS)).astype(np.float32) for _ in range(30)]
    pool = from_arrays([f"m{n}" for n in range(30)], "v", "", Relevance(np.arange(QUERIES), clip_Q, clip_Q), arrays)
    live = prune(pool, "map10")
    found = cross_validation.cross_validate(
        lambda seen_Q: live, SelectionConfig(), cross_validation.assign_folds(live.group_Q, 5)
    )
    assert found.ensemble < 0.6 * greedy.select(live).value
    with pytest.raises(UserError, match="--folds"):
        cross_validation.assign_folds(live.group_Q, 1000)


def test_the_front_has_better_and_dearer_ensembles():
    live = prune(make_pool(9, 6), "map10")
    points = attribution.compute_pareto_front(live, SelectionConfig(), [1, 2, 3, 4, 5, 6])
    costs, values = [point.cost for point in points], [point.selection.value for point in points]
    assert costs == sorted(costs)
    assert values == sorted(values)
    assert values[-1] == greedy.select(live).value


def test_the_front_of_all_subsets_misses_none():
    live = prune(make_pool(9, 6), "map10")
    costs = [1, 2, 4, 8, 16, 32]
    worth_S = exhaustive.score_subsets(live, range(6))
    expected, best = [], 0
    for subset in range(1, 64):  # its cost, with these costs
        if worth_S[subset] > best:
            best = worth_S[subset]
            expected.append((float(subset), exhaustive.list_bits(subset)))
    points = attribution.compute_pareto_front(live, SelectionConfig("exact"), costs)
    assert [(point.cost, point.selection.members) for point in points] == expected


def test_a_sorted_start_keeps_within_a_budget():
    live = prune(make_pool(9, 6), "map10")
    for budget in (1.0, 5.0, 8.0):
        found = greedy.select(
            live, SelectionConfig(sorted_start=4), costs=[1, 2, 4, 8, 16, 32], budget=budget, allowed=[0, 1, 2]
        )
        assert sum([1, 2, 4, 8, 16, 32][model] for model in found.members) <= budget


def test_sums_of_ranks_are_ties_where_they_are_equal():
    pool = apply_fusion(make_pool(16, 4), "rank")
    ranks = [pool.read_scores(model) for model in range(4)]
    doubled = sum((2 * one).astype(np.int64) for one in ranks)
    live = prune(pool, "mrr")
    wanted = retrieval.compute_ranks(doubled, pool.relevance)
    np.testing.assert_array_equal(live.compute_ranks([1] * 4), wanted)
    np.testing.assert_array_equal(evaluation.compute_ranks(pool, [0.25] * 4), wanted)


def test_differences_are_paired():
    pool = make_pool(10, 2)
    systems = evaluation.compare_systems(pool, {"ensemble": [1, 1], "best_single": [1, 0]}, ["map10"]).systems
    lead = systems["ensemble"]["map10"].value - systems["best_single"]["map10"].value
    assert systems["difference"]["map10"].value == pytest.approx(lead)
    low, high = systems["difference"]["map10"].interval
    separate = systems["ensemble"]["map10"].interval
    assert low <= lead <= high
    assert high - low < separate[1] - separate[0] + 0.05


def test_names_break_ties():
    pool = make_pool(11, 1)
    twins = replace(pool, names=("b", "a"), arrays=pool.arrays * 2, reads=pool.reads * 2)
    assert greedy.select(prune(twins, "map10"), SelectionConfig(max_size=1)).counts == (0, 1)
