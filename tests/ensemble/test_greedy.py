"""Greedy selection against exhaustive search, a naive loop, and its stated rules."""

import itertools

import numpy as np
import pytest

from ensemble import greedy
from trainables import retrieval

QUERIES, CLIPS = 40, 25


def make_pool(seed, models):
    rng = np.random.default_rng(seed)
    target_Q = rng.integers(CLIPS, size=QUERIES)
    truth_QA = np.eye(CLIPS)[target_Q]
    scores = [(truth_QA + rng.normal(0, 0.7, (QUERIES, CLIPS))).astype(np.float32) for _ in range(models)]
    relevant = retrieval.Relevance(np.arange(QUERIES), target_Q, target_Q)
    return scores, relevant


def map10_of(relevant):
    return lambda scores_QA: retrieval.evaluate(scores_QA, relevant, ["map10"])["map10"]


@pytest.mark.parametrize("seed", range(5))
def test_each_step_is_the_best_single_addition(seed):
    scores, relevant = make_pool(seed, models=5)
    evaluate = map10_of(relevant)
    selection = greedy.select(scores, evaluate, max_size=6)
    members = []
    for step in selection.trajectory:
        values = [evaluate(sum(scores[m].astype(np.float64) for m in [*members, new])) for new in range(5)]
        assert step.value == max(values)
        assert step.added == values.index(max(values))
        members.append(step.added)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_as_good_as_exhaustive_search_from_the_best_single_model(seed):
    scores, relevant = make_pool(seed, models=6)
    evaluate = map10_of(relevant)
    selection = greedy.select(scores, evaluate, max_size=2)
    first = int(np.argmax([evaluate(one) for one in scores]))
    best_pair = max(evaluate(scores[first].astype(np.float64) + other) for other in scores)
    assert selection.value == max(best_pair, evaluate(scores[first]))


@pytest.mark.parametrize("seed", range(5))
def test_it_lies_between_the_best_single_model_and_exhaustive_search(seed):
    scores, relevant = make_pool(seed, models=4)
    evaluate = map10_of(relevant)
    selection = greedy.select(scores, evaluate, max_size=4)
    multisets = [members for size in range(1, 5) for members in itertools.combinations_with_replacement(range(4), size)]
    values = [evaluate(sum(scores[m].astype(np.float64) for m in members)) for members in multisets]
    singles = max(values[:4])
    assert singles <= selection.value <= max(values)
    assert max(values) - selection.value < 0.05


def test_the_best_size_is_returned_not_the_last():
    values = iter([0.1, 0.3, 0.5, 0.4, 0.2, 0.2])
    selection = greedy.select([np.zeros((1, 1), np.float32)] * 2, lambda _: next(values), max_size=3)
    assert [step.value for step in selection.trajectory] == [0.3, 0.5, 0.2]
    assert sum(selection.counts) == 2
    assert selection.value == 0.5


def test_a_member_may_be_taken_again_and_weights_sum_to_one():
    strong = np.eye(3, dtype=np.float32)
    weak = np.full((3, 3), 0.5, np.float32) - 0.4 * np.eye(3, dtype=np.float32)[::-1]
    relevant = retrieval.Relevance(np.arange(3), np.arange(3), np.arange(3))
    selection = greedy.select([weak, strong], map10_of(relevant), max_size=4)
    assert selection.counts == (0, 1)
    assert sum(selection.weights) == 1
    assert selection.trajectory[0].added == 1


def test_of_equally_good_candidates_the_first_is_taken():
    scores, relevant = make_pool(0, models=1)
    selection = greedy.select([scores[0], scores[0].copy()], map10_of(relevant), max_size=3)
    assert selection.counts == (1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_candidates_does_not_matter(seed):
    scores, relevant = make_pool(seed, models=6)
    evaluate = map10_of(relevant)
    order = np.random.default_rng(seed).permutation(6)
    straight = greedy.select(scores, evaluate)
    shuffled = greedy.select([scores[index] for index in order], evaluate)
    assert shuffled.value == straight.value
    assert [shuffled.counts[list(order).index(index)] for index in range(6)] == list(straight.counts)


def test_fused_scores_are_the_weighted_mean():
    scores, _ = make_pool(1, models=3)
    expected = 0.5 * scores[0].astype(np.float64) + 0.3 * scores[1] + 0.2 * scores[2]
    np.testing.assert_allclose(greedy.fuse(scores, [0.5, 0.3, 0.2]), expected, atol=1e-7)


@pytest.mark.parametrize(("candidates", "size"), [([], 3), ([np.zeros((1, 1), np.float32)], 0)])
def test_nothing_to_select_is_an_error(candidates, size):
    with pytest.raises(ValueError, match=r"candidates|max_size"):
        greedy.select(candidates, lambda _: 0.0, max_size=size)
