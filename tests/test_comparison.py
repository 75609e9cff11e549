"""The comparison of trainings in docs/results: its spaces are valid, and its intervals equal a slow computation."""

import sys
from pathlib import Path

import numpy as np
import pytest

from data.splits import Splits
from sweeps.spaces import check_trials
from trainables.retrieval import Relevance

RESULTS = Path(__file__).parents[1] / "docs/results"
SPLITS = Splits("clotho/development", "clotho/validation", "clotho/evaluation", ("clotho/development",))


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(RESULTS))
    import compare_trainings
    import comparison_spaces

    yield compare_trainings, comparison_spaces
    for name in ("compare_trainings", "comparison_spaces"):
        sys.modules.pop(name)


def test_the_spaces_are_valid_and_conditions_differ_in_their_loss_alone(scripts):
    _, spaces = scripts
    counts = {"first_stage": 2, "controls": 3, "students": 36, "students_of_pairs": 2, "temperatures": 9}
    for name, count in counts.items():
        assert len(check_trials(getattr(spaces, name)(SPLITS, "float32"))) == count
    plain = spaces.controls(SPLITS, "float32")
    for _, trials in spaces.iter_conditions(SPLITS, "float32"):
        assert [(trial.seed, trial.schedule, trial.pretraining) for trial in trials] == [
            (trial.seed, trial.schedule, trial.pretraining) for trial in plain
        ]


def test_intervals_draw_groups_and_seeds(scripts):
    compare, _ = scripts
    generator = np.random.default_rng(3)
    groups = np.array([0, 0, 1, 2, 2, 2, 3])
    system = compare.System({"test": generator.random((3, 7))})
    drawn = compare.draw_means(system, "test", Relevance(np.arange(7), np.arange(7), groups), 0)
    group_draws = np.random.default_rng(0).integers(4, size=(compare.DRAWS, 4))
    seed_draws = np.random.default_rng([1, 0]).integers(3, size=(compare.DRAWS, 3))
    for draw in range(0, compare.DRAWS, 97):
        queries = np.concatenate([np.flatnonzero(groups == group) for group in group_draws[draw]])
        slow = np.mean([system.per_query["test"][seed, queries].mean() for seed in seed_draws[draw]])
        np.testing.assert_allclose(drawn[draw], slow, rtol=1e-12)
