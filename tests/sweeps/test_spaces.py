"""The named spaces, spaces of a user's own, seeds, and what can't be one sweep."""

from collections import Counter
from dataclasses import replace

import pytest

from data.errors import UserError
from sweeps import spaces
from sweeps.spaces import check_trials, with_seeds
from trainables import encoders, recipes

SPLITS = spaces.Splits("c/train", "c/validation", "c/test", pretrain=("c/train", "d/train", "d/test"))


@pytest.mark.parametrize("judged_by", ["c/validation", "c/test"])
def test_what_a_model_is_judged_by_is_not_trained_on(judged_by):
    with pytest.raises(UserError, match=f"{judged_by} would be used both for training and for evaluation"):
        spaces.Splits("c/train", "c/validation", "c/test", pretrain=("c/train", judged_by))


@pytest.mark.parametrize("name", sorted(spaces.list_spaces()))
def test_every_space_returns_distinct_trials_on_the_splits_given(name):
    trials = check_trials(spaces.find_space(name)(SPLITS, "float32"))
    assert len(set(trials)) == len(trials)
    for trial in trials:
        assert (trial.validation, trial.test, trial.precision) == ("c/validation", "c/test", "float32")
        if trial.pretraining:
            assert trial.train == ("c/train",)
            assert trial.pretraining.train == (SPLITS.pretrain if trial.pretraining.is_trained else ("c/train",))


def test_demo_pretrains_three_pairs_of_both_families_and_tries_paraphrases():
    trials = spaces.find_space("demo")(SPLITS, "float32")
    assert len({trial.pretraining for trial in trials}) == 3
    assert len({(trial.audio, trial.text) for trial in trials}) == 3
    assert {encoders.format_label(trial.audio) for trial in trials} == {"cnn:small5", "passt:tiny5"}
    assert {trial.paraphrase_probability for trial in trials} == {0.0, 0.3}
    assert len(trials) == 6


def test_small_pretrains_each_pair_with_mixtures_and_fine_tunes_it_without():
    trials = spaces.find_space("small")(SPLITS, "float32")
    assert len({trial.pretraining for trial in trials}) == len({(trial.audio, trial.text) for trial in trials}) == 4
    assert {trial.paraphrase_probability for trial in trials} == {0.0}
    assert all(trial.pretraining.mix_probability > 0 and trial.mix_probability == 0 for trial in trials)
    assert all(trial.pretraining.filter_db == trial.filter_db > 0 for trial in trials)
    assert all(trial.text.max_tokens >= 64 for trial in trials)  # two joined captions
    labels = {encoders.format_label(config) for trial in trials for config in (trial.audio, trial.text)}
    assert labels == {"cnn:small", "passt:tiny", "transformer:small64", "transformer:shallow64"}


# The paper's table.

ROWS = [
    *[("N", text, 0.3) for text in ("bert-base", "roberta-base", "bert-large", "roberta-large")],
    *[("S", text, 0.3) for text in ("bert-base", "roberta-base", "bert-large", "roberta-large")],
    *[("S15", text, 0.3) for text in ("bert-large", "roberta-large")],
    ("N", "roberta-large", 0.0),
    ("N", "roberta-large", None),  # not fine-tuned
    ("audioset", "bert-base", 0.0),
    ("dcase2023", "all-mpnet-base-v2", None),
]
"""Audio encoder, text encoder and share of paraphrases of each trained row."""


def row(trial):
    names = (encoders.format_label(config).partition(":")[2] for config in (trial.audio, trial.text))
    return (*names, trial.paraphrase_probability if trial.pretraining else None)


def test_table2_has_every_trained_row_once_with_further_seeds_only_where_figure_2_wants_them():
    trials = spaces.find_space("table2")(SPLITS, "bfloat16")
    assert Counter(row(trial) for trial in trials if trial.seed == 0) == Counter(ROWS)
    further = sorted((*row(trial), trial.seed) for trial in trials if trial.seed)
    assert further == [("N", "roberta-large", share, seed) for share in (0.0, 0.3) for seed in (1, 2)]


def test_table2_pretrains_each_pair_once_by_the_papers_recipe():
    trials = spaces.find_space("table2")(SPLITS, "bfloat16")
    shared = Counter(trial.pretraining for trial in trials if trial.pretraining)
    assert len(shared) == len({(trial.audio, trial.text) for trial in shared}) == 11
    assert sorted(shared.values()) == [1] * 10 + [6]
    for pretraining in shared:
        names = [encoders.format_label(config) for config in (pretraining.audio, pretraining.text)]
        assert pretraining == recipes.paper(*names, SPLITS, "bfloat16")
    (untuned,) = (trial for trial in trials if row(trial) == ("N", "roberta-large", None))
    assert shared[untuned] == 6


def test_table2s_baseline_hears_clotho_alone():
    (baseline,) = (trial for trial in spaces.find_space("table2")(SPLITS, "bfloat16") if trial.fixed_temperature)
    assert baseline.train == ("c/train",)
    assert baseline.pretraining is None


def test_full_is_every_pair_with_every_rate_and_share_over_one_pretraining_a_pair():
    trials = spaces.find_space("full")(SPLITS, "bfloat16")
    shared = Counter(trial.pretraining for trial in trials)
    assert list(shared.values()) == [12] * 16
    assert len({trial.audio for trial in shared}) == len({trial.text for trial in shared}) == 4
    settings = Counter((trial.schedule.peak_rate, trial.paraphrase_probability) for trial in trials)
    assert settings == {(rate, share): 16 for rate in (4e-6, 8e-6, 1.6e-5) for share in (0.0, 0.1, 0.3, 0.5)}


def test_full_and_table2_share_what_both_hold():
    full, table2 = (spaces.find_space(name)(SPLITS, "bfloat16") for name in ("full", "table2"))
    assert {row(trial) for trial in set(full) & set(table2)} == {each for each in ROWS if each[2] is not None}


# Seeds.


@pytest.fixture(scope="module")
def tuned():
    return spaces.find_space("small")(SPLITS, "float32")[0]


def seeds_of(trials):
    return [(trial.pretraining.seed, trial.seed) for trial in trials]


def test_without_seeds_asked_for_the_trials_stay_as_they_are(tuned):
    assert with_seeds([tuned, tuned.pretraining]) == [tuned, tuned.pretraining]


def test_seeds_vary_fine_tuning_over_one_pretraining(tuned):
    trials = with_seeds([replace(tuned, seed=5)], seeds=3)
    assert seeds_of(trials) == [(0, 5), (0, 6), (0, 7)]
    assert {replace(trial, seed=0) for trial in trials} == {replace(tuned, seed=0)}


def test_pretraining_seeds_vary_both(tuned):
    assert seeds_of(with_seeds([tuned], pretraining_seeds=3)) == [(0, 0), (1, 1), (2, 2)]


def test_both_kinds_of_seeds_together_are_a_grid(tuned):
    trials = with_seeds([tuned], seeds=3, pretraining_seeds=2)
    assert seeds_of(trials) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_what_has_no_pretraining_varies_with_pretraining_seeds_alone(tuned):
    assert with_seeds([tuned.pretraining], seeds=3) == [tuned.pretraining]
    assert [trial.seed for trial in with_seeds([tuned.pretraining], 3, 2)] == [0, 1]


def test_a_seed_that_is_there_already_is_there_once(tuned):
    trials = with_seeds([replace(tuned, seed=seed) for seed in range(3)], seeds=2)
    assert seeds_of(check_trials(trials)) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_a_pretraining_of_a_pretraining_is_varied_as_well(tuned):
    twice = replace(tuned, pretraining=tuned)
    assert [trial.pretraining.pretraining.seed for trial in with_seeds([twice], pretraining_seeds=2)] == [0, 1]


# What can't be a sweep.


def bad_spaces(tuned):
    elsewhere = replace(tuned.pretraining, validation="d/validation")
    return {
        "returned no trial": [],
        "returned a Trial: it must return a list": tuned,
        "returned a NoneType": None,
        "returned a generator": (trial for trial in [tuned]),
        "entry 2 of the space is a str": [tuned, "tuned"],
        "entries 1 and 3 of the space are the same trial, cnn:small": [tuned, tuned.pretraining, replace(tuned)],
        "the validation split of .* is c/validation, that of .* is d/validation": [tuned, elsewhere],
        "is c/validation, that of .* pretraining .*seed 0 is d/validation": [replace(tuned, pretraining=elsewhere)],
        "the test split of .* is c/test, that of .* is d/test": [tuned, replace(tuned, test="d/test")],
        "would be trained on and evaluated on c/test": [replace(tuned, train=("c/train", "c/test"))],
    }


@pytest.mark.parametrize("number", range(10))
def test_what_cannot_be_a_sweep_is_refused(tuned, number):
    message, wanted = list(bad_spaces(tuned).items())[number]
    with pytest.raises(UserError, match=message):
        check_trials(wanted)


def test_trials_of_one_name_and_different_settings_are_fine(tuned):
    longer = replace(tuned, schedule=replace(tuned.schedule, epochs=9))
    assert longer.name == tuned.name
    assert check_trials((tuned, longer)) == [tuned, longer]


# Names, and spaces of one's own.


def test_the_names_are_those_of_the_functions():
    assert set(spaces.list_spaces()) == {"demo", "full", "published", "salsa", "small", "small_paraphrases", "table2"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny", "known: demo, full, published, salsa, small, small_paraphrases, table2"),
        ("absent.py:f", "doesn't exist"),
        ("{file}:nothing", "known: .*tiny"),
    ],
)
def test_an_unknown_space_is_answered_with_the_known_ones(name, expected, space_file):
    with pytest.raises(UserError, match=expected):
        spaces.find_space(name.format(file=space_file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nothing_like_this", "own.py can't be run: line 1: ModuleNotFoundError: No module named 'nothing_like"),
        ("def own(", r"own.py can't be run: SyntaxError: .*line 1"),
        ("def own():\n    return []", "own.py:own must take the splits and the precision: too many"),
        ("def own(a, b, c):\n    return []", "own.py:own must take .* missing a required argument: 'c'"),
        (
            "def own(a, b):\n\n    return 1 / 0",
            "own.py:own returned no trials: line 3: ZeroDivisionError: division by zero",
        ),
        (
            "from trainables import recipes\ndef own(a, b):\n    return [recipes.paper('passt:X', '', a, b)]",
            "own.py:own returned no trials: line 3: unknown audio encoder 'passt:X'; known: passt:N",
        ),
    ],
)
def test_what_is_wrong_with_a_space_of_ones_own_is_named_by_file_and_line(tmp_path, text, expected):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=expected):
        spaces.find_space(f"{tmp_path}/own.py:own")(SPLITS, "float32")
