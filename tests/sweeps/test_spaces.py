"""The named spaces, and spaces of a user's own."""

import pytest

from data.errors import UserError
from sweeps import spaces

SPLITS = spaces.Splits("c/train", "c/validation", "c/test", pretrain=("c/train", "d/train", "d/test"))


@pytest.mark.parametrize("judged_by", ["c/validation", "c/test"])
def test_what_a_model_is_judged_by_is_not_trained_on(judged_by):
    with pytest.raises(UserError, match=f"{judged_by} would be trained on and judged by"):
        spaces.Splits("c/train", "c/validation", "c/test", pretrain=("c/train", judged_by))


@pytest.mark.parametrize("name", sorted(spaces.named()))
def test_every_space_returns_distinct_trials_on_the_splits_given(name):
    trials = spaces.space(name)(SPLITS, "float32")
    assert len(set(trials)) == len(trials)
    for trial in trials:
        assert (trial.train, trial.validation, trial.test) == (("c/train",), "c/validation", "c/test")
        assert trial.pretraining.train == SPLITS.pretrain
        assert (trial.pretraining.validation, trial.pretraining.test) == ("c/validation", "c/test")
        assert trial.precision == "float32"


def test_demo_pretrains_two_pairs_and_tries_paraphrases_and_rates():
    trials = spaces.space("demo")(SPLITS, "float32")
    assert len({trial.pretraining for trial in trials}) == 2
    assert len({(trial.audio, trial.text) for trial in trials}) == 2
    assert {trial.paraphrase_probability for trial in trials} == {0.0, 0.3}
    assert len(trials) >= 6


def test_small_needs_no_paraphrases():
    trials = spaces.space("small")(SPLITS, "float32")
    assert len(trials) >= 6
    assert len({trial.audio for trial in trials}) == 2
    assert {trial.paraphrase_probability for trial in trials} == {0.0}


def test_the_names_are_those_of_the_functions():
    assert {"demo", "small"} <= set(spaces.named())
    assert not {"fine_tuning", "from_scratch", "space"} & set(spaces.named())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tiny", "known: demo, small"), ("absent.py:f", "is absent"), ("{file}:nothing", "known: .*tiny")],
)
def test_an_unknown_space_is_answered_with_the_known_ones(name, expected, space_file):
    with pytest.raises(UserError, match=expected):
        spaces.space(name.format(file=space_file))
