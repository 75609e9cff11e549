"""Spaces of the comparison in docs/comparison.md: ways to a better model, or ensemble, from one first stage.

python sweeps/grid.py --space docs/results/comparison_spaces.py:students ...
"""

from collections.abc import Iterator
from dataclasses import replace

from data.splits import Splits
from sweeps.spaces import small, with_seeds
from trainables import encoders
from trainables.trial import Precision, Teacher, Trial

PAIR = ("passt:tiny", "transformer:shallow64")
"""Encoders of the students: those of the best trial of `small` on validation."""

SEEDS = 3
EPOCHS = 10

TEACHERS = ("single", "all")
TEACHER_TEMPERATURES = (0.01, 0.02, 0.05)
HARD_SHARES = (0.0, 0.5)

CHOSEN = ("single", 0.05, 0.0)
"""Teachers, teachers' temperature and hard share with the highest mean on validation, for `students_of_pairs`."""

TEMPERATURE_FORMS = {
    "fixed at 0.05": {"fixed_temperature": True},
    "learned, from 0.05": {},
    "logarithm learned, from 0.05": {"log_temperature": True},
}


def first_stage(splits: Splits, precision: Precision) -> list[Trial]:
    """Return the fine-tunings of `small` whose text encoder is that of PAIR: one for each of two audio encoders."""
    return [trial for trial in small(splits, precision) if encoders.format_label(trial.text) == PAIR[1]]


def has_pair(trial: Trial) -> bool:
    """Return whether a trial has the encoders of PAIR."""
    return (encoders.format_label(trial.audio), encoders.format_label(trial.text)) == PAIR


def freeze_audio(trial: Trial) -> Trial:
    """Return a fine-tuning with its audio encoder frozen: its outputs are computed once, which makes epochs cheap."""
    return replace(trial, schedule=replace(trial.schedule, epochs=EPOCHS), frozen_audio=True)


def controls(splits: Splits, precision: Precision) -> list[Trial]:
    """Return the fine-tunings of PAIR without teachers, with SEEDS seeds."""
    (first,) = filter(has_pair, first_stage(splits, precision))
    return with_seeds([freeze_audio(first)], SEEDS)


def list_teachers(splits: Splits, precision: Precision, name: str) -> tuple[Teacher, ...]:
    """Return the teachers of the name 'single', the trial of the first stage with PAIR, or 'all', both trials."""
    return tuple(Teacher(trial) for trial in first_stage(splits, precision) if name == "all" or has_pair(trial))


def iter_conditions(splits: Splits, precision: Precision) -> Iterator[tuple[tuple[str, float, float], list[Trial]]]:
    """Yield the teachers' name, the teachers' temperature and the hard share of each condition, and its students: the
    trials of `controls` with teachers.
    """
    plain = controls(splits, precision)
    for name in TEACHERS:
        teachers = list_teachers(splits, precision, name)
        for temperature in TEACHER_TEMPERATURES:
            for share in HARD_SHARES:
                settings = {"teachers": teachers, "teacher_temperature": temperature, "hard_share": share}
                yield (name, temperature, share), [replace(trial, **settings) for trial in plain]


def students(splits: Splits, precision: Precision) -> list[Trial]:
    """Return the students of all conditions."""
    return [trial for _, trials in iter_conditions(splits, precision) for trial in trials]


def students_of_pairs(splits: Splits, precision: Precision) -> list[Trial]:
    """Return a student of each pair of encoders of the first stage, with the settings of CHOSEN."""
    return [make_student(splits, precision, freeze_audio(trial)) for trial in first_stage(splits, precision)]


def make_student(splits: Splits, precision: Precision, trial: Trial) -> Trial:
    """Return a trial with the teachers and the settings of CHOSEN."""
    name, temperature, share = CHOSEN
    teachers = list_teachers(splits, precision, name)
    return replace(trial, teachers=teachers, teacher_temperature=temperature, hard_share=share)


def temperatures(splits: Splits, precision: Precision) -> list[Trial]:
    """Return fine-tunings of PAIR with each way to treat the temperature of the loss, with SEEDS seeds."""
    return [trial for trials in group_by_form(splits, precision).values() for trial in trials]


def group_by_form(splits: Splits, precision: Precision) -> dict[str, list[Trial]]:
    """Return the trials of `temperatures` by the name of the form in TEMPERATURE_FORMS."""
    return {
        name: [replace(trial, **({"fixed_temperature": False} | settings)) for trial in controls(splits, precision)]
        for name, settings in TEMPERATURE_FORMS.items()
    }
