"""Distillation of an ensemble: the fine-tunings of a space as students of its members."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.errors import UserError
from data.runtime.options import changed_options, option
from trainables.records.ensemble_file import read_ensemble
from trainables.trial import Teacher, Trial, from_json

SETTINGS = ("teacher_temperature", "hard_share")
"""Names of the options that are fields of a trial."""


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """Command-line options that make the fine-tunings of a space students."""

    teachers: Path | None = option("ensemble.json whose members teach the space's fine-tunings", None, metavar="FILE")
    teacher_temperature: float | None = option("temperature of the teachers' scores (default: 0.05)", None)
    hard_share: float | None = option("share of the loss on labels in that of a student (default: 0)", None)


def make_students(trials: Sequence[Trial], options: DistillationOptions) -> list[Trial]:
    """Return the trials, each fine-tuning as a student of the ensemble in the options. Without an ensemble, trials are
    returned as they are, except that settings of the distillation are changed in those that have teachers.

    Raises UserError if no trial can be a student, or a member of the ensemble can't be a teacher.
    """
    settings = {name: value for name, value in changed_options(options).items() if name in SETTINGS}
    teachers = read_teachers(options.teachers) if options.teachers else ()
    if teachers and not any(trial.pretraining for trial in trials):
        raise UserError("--teachers: the space has no fine-tuning, and only fine-tunings become students")
    students = [
        replace(trial, teachers=teachers, **settings)
        if teachers and trial.pretraining
        else replace(trial, **(settings if trial.teachers else {}))
        for trial in trials
    ]
    if settings and not any(student.teachers for student in students):
        raise UserError(
            f"--{min(settings).replace('_', '-')}: the space has no student; name an ensemble with --teachers"
        )
    return students


def read_teachers(path: Path) -> tuple[Teacher, ...]:
    """Return the members of the ensemble in a file, ensemble.json, as teachers with the same weights; members of weight
    0 are left out.

    Raises UserError, which names the member, if one is not a trial.
    """
    teachers = []
    for index, member in enumerate(read_ensemble(path).members):
        if member.trial is None:
            raise UserError(
                f"{path}: members[{index}], {member.name!r}: its config is missing (a file of scores?), so it can't be "
                "a teacher: select an ensemble of trials"
            )
        if member.retrained:
            raise UserError(
                f"{path}: members[{index}], {member.name!r} was retrained on all splits, so its student could not be "
                "evaluated: use the ensemble before the retraining"
            )
        if member.weight:
            teachers.append(Teacher(from_json(member.trial), member.weight))
    return tuple(teachers)
