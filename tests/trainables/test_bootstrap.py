"""Bootstrap intervals, against a plain loop and the normal approximation."""

import numpy as np
import pytest

from trainables.bootstrap import bootstrap_interval
from trainables.retrieval import Relevance, build_relevance

CLIP_IDS = [f"clip {number}" for number in range(30)]


def captions_of_clips(num_clips: int, per_clip: int) -> Relevance:
    return build_relevance(
        [[f"clip {clip}"] for clip in range(num_clips) for _ in range(per_clip)], CLIP_IDS[:num_clips]
    )


def test_an_interval_is_the_same_for_the_same_seed_and_holds_the_mean():
    relevant = captions_of_clips(20, 5)
    per_query = np.random.default_rng(4).random(100)
    low, high = bootstrap_interval(per_query, relevant, seed=1)
    assert (low, high) == bootstrap_interval(per_query, relevant, seed=1)
    assert (low, high) != bootstrap_interval(per_query, relevant, seed=2)
    assert low < per_query.mean() < high


def test_an_interval_draws_whole_groups_of_queries():
    names = [["clip 0"]] * 1 + [["clip 1"]] * 3 + [["clip 2"]] * 5 + [["clip 0"]] * 2
    relevant = build_relevance(names, CLIP_IDS)
    per_query = np.random.default_rng(5).random(len(names))
    drawn = np.random.default_rng(7).integers(3, size=(50, 3))
    means = [
        np.mean([per_query[query] for group in groups for query in np.flatnonzero(relevant.group_Q == group)])
        for groups in drawn
    ]
    expected = np.quantile(means, [0.05, 0.95])
    np.testing.assert_allclose(bootstrap_interval(per_query, relevant, seed=7, draws=50, level=0.9), expected)


def test_captions_that_agree_within_their_clip_say_less_than_independent_ones():
    relevant = captions_of_clips(20, 5)
    per_clip = np.random.default_rng(6).random(20)
    alike = np.repeat(per_clip, 5)
    mixed = np.tile(per_clip, 5)  # the same values, not bound to clips
    low, high = bootstrap_interval(alike, relevant)
    mixed_low, mixed_high = bootstrap_interval(mixed, relevant)
    assert high - low > 1.5 * (mixed_high - mixed_low)


def test_an_interval_has_the_width_that_the_normal_approximation_gives():
    per_query = np.random.default_rng(8).random(400)
    relevant = Relevance(np.arange(400), np.zeros(400, dtype=np.int64), np.arange(400))
    low, high = bootstrap_interval(per_query, relevant, draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * per_query.std() / 20, rel=0.1)
