"""Sweeps whose trials are students: their teachers are trained first, and every table says who teaches whom."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data.errors import UserError
from data.splits import Splits
from ensemble.reporting.main_effects import find_varying_factors
from sweeps.planning.distillation import DistillationOptions, make_students, read_teachers
from sweeps.planning.retraining import plan_retraining
from sweeps.spaces import check_trials, find_space, salsa, with_seeds
from trainables.records.ensemble_file import Ensemble, Member, read_ensemble, write_ensemble
from trainables.records.mlflow_ledger import open_ledger
from trainables.trial import Teacher, from_json, load_trial, make_soup, to_json

SPLITS = Splits("a/train", "a/validation", "a/test", ("a/train", "b/train"))


@pytest.fixture
def tiny(space_file):
    return find_space(f"{space_file}:tiny")(SPLITS, "float32")


def write_ensemble_of(path, trials, **settings):
    members = [Member(f"m{number}", 0.5, trial=to_json(trial), **settings) for number, trial in enumerate(trials)]
    write_ensemble(path, Ensemble(tuple(members)))
    return path


@pytest.mark.cluster
@pytest.mark.usefixtures("cluster")
def test_a_space_is_distilled_from_an_ensemble_whose_members_are_trained_first(
    own_runs, call_command, space_file, tone_store, tmp_path
):
    """With a sweep, since only that shows that students wait for teachers that other processes train, and soups, one of
    which is a teacher, for their parts.
    """
    call_command("ensemble/select.py", "--metric", "map10", "--runs", own_runs, "--sweep", "first", "--method", "all",
                 "--out", tmp_path)  # fmt: skip
    path, runs = tmp_path / "ensemble.json", tmp_path / "runs"
    ensemble = read_ensemble(path)
    teachers = [member.signature for member in ensemble.members]
    assert len(teachers) == 3  # two fine-tunings and their pretraining
    trained = [from_json(member.trial) for member in ensemble.members]
    soup = make_soup(trial for trial in trained if trial.pretraining)
    write_ensemble_of(path, [*trained, soup])
    words = ("--space", f"{space_file}:pair", "--corpus", "folder", "--store", tone_store, "--runs", runs)
    done = call_command("sweeps/grid.py", *words, "--teachers", path, "--hard-share", 0.5, "--name", "distilled")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 pretrainings, then 4 fine-tunings; 5 of them are still to be run" in done.stdout
    ledger = open_ledger(runs)
    trials = {run.signature: run for run in ledger.iter_trials()}
    (student,) = [run for run in trials.values() if run.relations.teachers]
    (soup_run,) = [run for run in trials.values() if run.relations.average_of]
    assert load_trial(runs / "models" / soup_run.signature) == soup
    assert set(soup_run.relations.average_of) < set(teachers)
    teachers.append(soup_run.signature)
    assert {run.status for run in trials.values()} == {"FINISHED"}
    assert set(student.relations.teachers) == set(teachers) <= trials.keys()
    assert student.settings["hard_share"] == "0.5"
    assert "(weight 0.5)" in student.settings["teachers"]
    assert "student of 4" in student.name
    config = load_trial(runs / "models" / student.signature)
    assert [teacher.weight for teacher in config.teachers] == [0.5] * 4
    assert {path.parent.name for path in (runs / "teachers").glob("*/*")} == set(teachers)

    words = ("--runs", runs, "--method", "all", "--no-test", "--folds", 0, "--out", tmp_path / "selected")
    selected = call_command("ensemble/select.py", "--metric", "map10", *words)
    assert selected.returncode == 0, selected.stderr
    assert f"({student.signature}) is a student of other members: " in selected.stdout
    members = read_ensemble(tmp_path / "selected" / "ensemble.json").members
    assert [set(member.teachers) for member in members if member.teachers] == [set(teachers)]
    assert soup_run.signature in {member.signature for member in members}  # it is a trial of the sweep
    report = call_command("ensemble/report.py", "--runs", runs, "--no-test", "--out", tmp_path / "report")
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    assert "student of 4" in page
    assert "soup of 2" in page


def test_all_members_teach_every_fine_tuning_with_their_weights(tiny, tmp_path):
    members = tuple(
        Member(f"m{number}", weight, trial=to_json(trial))
        for number, (trial, weight) in enumerate(zip(tiny, (3.0, 0.0), strict=True))
    )
    write_ensemble(tmp_path / "ensemble.json", Ensemble(members))
    options = DistillationOptions(teachers=tmp_path / "ensemble.json", teacher_temperature=0.02)
    pretraining = tiny[0].pretraining
    students = make_students([pretraining, *tiny], options)
    assert students[0] == pretraining
    for student, trial in zip(students[1:], tiny, strict=True):
        assert student.teachers == (Teacher(tiny[0], 3.0),)
        assert (student.teacher_temperature, student.hard_share) == (0.02, 0.0)
        assert replace(student, teachers=(), teacher_temperature=0.05) == trial


def test_settings_alone_change_students_of_the_space(tiny):
    student = replace(tiny[0], seed=5, teachers=(Teacher(tiny[1]),))
    changed = make_students([student, tiny[1]], DistillationOptions(hard_share=0.25))
    assert changed == [replace(student, hard_share=0.25), tiny[1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retrained": True}, r"members\[0\], 'm0' was retrained on all splits"),
        ({"trial": None}, r"members\[0\], 'm0': its config is missing"),
    ],
)
def test_a_member_that_cannot_teach_is_named(tiny, tmp_path, settings, message):
    member = Member("m0", 1.0, **({"trial": to_json(tiny[0])} | settings))
    write_ensemble(tmp_path / "ensemble.json", Ensemble((member,)))
    with pytest.raises(UserError, match=message):
        read_teachers(tmp_path / "ensemble.json")


def test_options_without_effect_are_refused(tiny, tmp_path):
    path = write_ensemble_of(tmp_path / "ensemble.json", tiny)
    with pytest.raises(UserError, match="--teachers: the space has no fine-tuning"):
        make_students([tiny[0].pretraining], DistillationOptions(teachers=path))
    with pytest.raises(UserError, match="--hard-share: the space has no student"):
        make_students(tiny, DistillationOptions(hard_share=0.5))


def test_a_student_of_a_model_that_was_trained_on_an_evaluation_split_is_refused(tiny):
    leaking = replace(tiny[0], train=("a/train", "a/test"), final_epoch=1)
    with pytest.raises(
        UserError, match=r"would be trained on and evaluated on a/test, itself or by its pretraining or a"
    ):
        check_trials([replace(tiny[1], teachers=(Teacher(leaking),))])


def test_more_seeds_of_a_student_have_the_same_teachers(tiny):
    student = replace(tiny[0], teachers=(Teacher(tiny[1]),))
    assert [trial.teachers for trial in with_seeds([student], seeds=2)] == [(Teacher(tiny[1]),)] * 2


def test_a_student_is_not_retrained_on_all_splits(tiny):
    student = replace(tiny[0], teachers=(Teacher(tiny[1]),))
    with pytest.raises(UserError, match="it is a student, whose teachers know the training splits only"):
        plan_retraining(Member("m", 1.0, trial=to_json(student), epoch=1), "finetuning")


def test_a_report_compares_settings_of_the_distillation(tiny):
    students = [replace(tiny[0], teachers=(Teacher(tiny[1]),), hard_share=share) for share in (0.0, 0.5)]
    factors = find_varying_factors([tiny[0], *students])
    assert factors["hard share"] == ["0", "0", "0.5"]
    assert factors["teachers"][0] == "none"
    assert "seed 1" in factors["teachers"][1]


def test_the_space_salsa_teaches_each_model_what_all_of_the_first_stage_know():
    trials = check_trials(salsa(SPLITS, "float32"))
    first, second = trials[:3], trials[3:]
    for trial, student in zip(first, second, strict=True):
        assert (trial.train, trial.fixed_temperature, trial.temperature) == (("a/train", "b/train"), True, 0.05)
        assert (student.train, student.pretraining, student.hard_share) == (("a/train",), trial, 0.0)
        assert [teacher.trial for teacher in student.teachers] == first
        assert (student.schedule.epochs, student.schedule.peak_rate) == (20, 2e-5)
        rates = [student.schedule.rate(epoch) for epoch in (0.5, 1, 8, 15, 19)]
        np.testing.assert_allclose(rates, [1e-5, 2e-5, (2e-5 + 1e-7) / 2, 1e-7, 1e-7], rtol=1e-9)
    assert json.loads(json.dumps(to_json(second[0])))["teachers"][2]["weight"] == 1.0
