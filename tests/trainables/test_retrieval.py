"""Metrics, against torchmetrics and against loops that say what they should be."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_recall, retrieval_reciprocal_rank

from data.errors import UserError
from trainables.retrieval import Relevance, build_relevance, compute_metrics, compute_ranks, find_metric

CLIP_IDS = [f"clip {number}" for number in range(30)]


def problem(seed: int, most_relevant: int, distinct_scores: int | None, num_queries: int = 40):
    """Scores, and each query's relevant clips; with few distinct scores there are many ties."""
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(30, dtype=np.float32), (num_queries, 1)), axis=1)
    if distinct_scores:
        scores = np.floor(scores * distinct_scores / 30)
    names = [list(rng.choice(CLIP_IDS, rng.integers(1, most_relevant + 1), replace=False)) for _ in range(num_queries)]
    return scores, names


def naive_ranks(scores: list[float], relevant: list[int]) -> list[int]:
    """Relevant clips are sorted after the other clips that score as high."""
    order = sorted(range(len(scores)), key=lambda clip: (-scores[clip], clip in relevant))
    return sorted(order.index(clip) + 1 for clip in relevant)


def naive(name: str, scores: list[float], relevant: list[int]) -> float:
    """DCASE's definition of AP@k: precision at each hit within k, over the number of all relevant clips."""
    found = naive_ranks(scores, relevant)
    if name == "mrr":
        return 1 / found[0]
    if name.startswith("map"):
        return sum((hit + 1) / rank for hit, rank in enumerate(found) if rank <= int(name[3:])) / len(relevant)
    return sum(rank <= int(name[1:]) for rank in found) / len(relevant)


@pytest.mark.parametrize("name", ["map1", "map10", "map16", "map100", "r1", "r5", "r10", "mrr"])
@pytest.mark.parametrize(("most_relevant", "distinct_scores"), [(1, None), (6, None), (1, 5), (6, 5)])
def test_each_querys_metric_equals_its_definition_with_several_relevant_clips_and_ties(
    name, most_relevant, distinct_scores
):
    scores_QA, names = problem(0, most_relevant, distinct_scores)
    relevant = build_relevance(names, CLIP_IDS)
    per_query = find_metric(name)(compute_ranks(scores_QA, relevant), relevant)
    columns = [[CLIP_IDS.index(clip) for clip in query] for query in names]
    expected = [naive(name, row.tolist(), clips) for row, clips in zip(scores_QA, columns, strict=True)]
    np.testing.assert_allclose(per_query, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["map1", "map10", "r1", "r5", "mrr", "ndcg"])
@pytest.mark.parametrize("num_above", [0, 1, 4, 8, 9, 10])
def test_a_tie_of_relevant_clips_scores_as_either_order_does(name, num_above):
    relevant = build_relevance([CLIP_IDS[:3]], CLIP_IDS)
    scores_QA = np.zeros((1, len(CLIP_IDS)))
    scores_QA[0, 3 : 3 + num_above] = 9
    scores_QA[0, 2] = 1

    def score(first, second):
        scores_QA[0, :2] = first, second
        return compute_metrics(scores_QA, relevant, [name])[name]

    assert score(5, 5) == score(5, 6) == score(6, 5)


def test_metrics_equal_torchmetrics_where_its_definition_is_the_same():
    scores_QA, names = problem(1, most_relevant=1, distinct_scores=None)
    ours = compute_metrics(scores_QA, build_relevance(names, CLIP_IDS), ["map10", "r1", "r5", "r10", "mrr"])
    rows = [  # torchmetrics takes a score of 0 for "not retrieved", and ours begin there
        (torch.from_numpy(row) + 1, torch.tensor([clip in query for clip in CLIP_IDS]))
        for row, query in zip(scores_QA, names, strict=True)
    ]
    theirs = {f"r{k}": np.mean([float(retrieval_recall(*row, top_k=k)) for row in rows]) for k in (1, 5, 10)}
    theirs["map10"] = np.mean([float(retrieval_average_precision(*row, top_k=10)) for row in rows])
    theirs["mrr"] = np.mean([float(retrieval_reciprocal_rank(*row)) for row in rows])
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_recall_of_several_relevant_clips_equals_torchmetrics():
    scores_QA, names = problem(2, most_relevant=6, distinct_scores=None)
    relevant = build_relevance(names, CLIP_IDS)
    theirs = [
        float(retrieval_recall(torch.from_numpy(row) + 1, torch.tensor([clip in query for clip in CLIP_IDS]), top_k=5))
        for row, query in zip(scores_QA, names, strict=True)
    ]
    np.testing.assert_allclose(find_metric("r5")(compute_ranks(scores_QA, relevant), relevant), theirs, atol=1e-6)


def test_ap_divides_by_all_relevant_clips_as_dcase_does():
    relevant = build_relevance([CLIP_IDS[:12]], CLIP_IDS)
    scores_QA = -np.arange(30, dtype=np.float32)[None]  # the twelve relevant clips come first
    assert compute_metrics(scores_QA, relevant, ["map10"])["map10"] == pytest.approx(10 / 12)


@pytest.mark.parametrize("value", [0.0, -1.0, 0.73])
def test_a_model_that_answers_a_constant_scores_nothing(value):
    names = [[clip] for clip in CLIP_IDS]
    scores_QA = np.full((30, 30), value, dtype=np.float32)
    assert set(compute_metrics(scores_QA, build_relevance(names, CLIP_IDS), ["map10", "r1", "r10"]).values()) == {0.0}


def test_blocks_of_pairs_do_not_change_ranks():
    rng = np.random.default_rng(3)
    scores_QA = rng.random((5000, 7), dtype=np.float32)
    clips = rng.integers(7, size=5000)
    relevant = Relevance(np.arange(5000), clips, np.arange(5000))
    expected = [(row >= row[clip]).sum() for row, clip in zip(scores_QA, clips, strict=True)]
    np.testing.assert_array_equal(compute_ranks(scores_QA, relevant), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(value):
    scores_QA = np.zeros((1, 30), dtype=np.float32)
    scores_QA[0, 3] = value
    with pytest.raises(UserError, match="finite"):
        compute_ranks(scores_QA, build_relevance([["clip 0"]], CLIP_IDS))


def test_an_unknown_relevant_clip_is_named_with_its_query():
    with pytest.raises(UserError, match=r"query 1 names 'clip 99'"):
        build_relevance([["clip 0"], ["clip 1", "clip 99"]], CLIP_IDS)


def test_a_query_without_a_relevant_clip_is_refused():
    with pytest.raises(UserError, match="query 1 has no relevant clip"):
        build_relevance([["clip 0"], []], CLIP_IDS)


def test_queries_with_the_same_relevant_clips_belong_together_in_whatever_order_they_name_them():
    names = [["clip 0"], ["clip 1"], ["clip 0"], ["clip 2", "clip 1"], ["clip 1", "clip 2"]]
    assert build_relevance(names, CLIP_IDS).group_Q.tolist() == [0, 1, 0, 2, 2]


@pytest.mark.parametrize("name", ["map", "map0", "r", "r0", "r-1", "map10 ", "R10", "recall10", "ndcg0", ""])
def test_an_unknown_metric_is_refused_and_the_known_ones_are_listed(name):
    with pytest.raises(UserError, match="map10, map16, r1, r5, r10"):
        find_metric(name)
