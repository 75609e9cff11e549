"""Members that are snapshots of one training: all that reads an ensemble takes them like any other trial."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.splits import Splits
from ensemble.challenge.systems import read_system
from ensemble.export import export_ensemble
from ensemble.pool.candidates import find_candidates
from ensemble.serving import bundle
from sweeps.planning.distillation import read_teachers
from sweeps.planning.retraining import plan_retrainings
from sweeps.planning.stages import find_finished, find_requirements, group_by_stage
from trainables.execution.resources import Allocation
from trainables.execution.session import RunContext, TrainingJob, train_in_process
from trainables.records import lease as leases
from trainables.records.embeddings import VALIDATION_FILE
from trainables.records.ensemble_file import read_ensemble
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.run_storage import RunStorage
from trainables.schedule import Schedule
from trainables.signature import compute_signature, read_fingerprints
from trainables.training.embedding import embed_text
from trainables.trial import from_json

SPLITS = Splits("folder/train", "folder/validation", "folder/test", ("folder/train",))


@pytest.fixture(scope="module")
def trained(space_file, tone_store, tmp_path_factory):
    """A training of three cycles, as a sweep leaves it: its folder of runs, its signature and the ledger."""
    folder = tmp_path_factory.mktemp("runs")
    small = runpy.run_path(str(space_file))["tiny"](SPLITS, "float32")[0].pretraining
    trial = replace(small, schedule=Schedule(3e-3, 1e-4, epochs=6, warmup_epochs=0.5, final_epochs=0.5, cycles=3))
    runs, ledger, store = RunStorage.of(folder), create_ledger(folder), str(tone_store)
    signature = compute_signature(trial, store)
    sweep = ledger.start_sweep("cycles", [signature], {"store": store})
    lease = leases.acquire(runs, signature)
    run_id = ledger.claim(trial, signature, sweep)
    site = RunContext(store, runs, ledger.tracking_uri, keep_epochs=True)
    train_in_process(TrainingJob(trial, lease, run_id, site, Allocation()), lambda metrics: None)
    ledger.finish(run_id)
    return folder, signature, ledger


@pytest.fixture(scope="module")
def selected(trained, call_command, tmp_path_factory):
    """The ensemble of all models of the training: its file, and what the command printed."""
    folder = tmp_path_factory.mktemp("selected")
    done = call_command("ensemble/select.py", "--runs", trained[0], "--method", "all", "--folds", 2, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder / "ensemble.json", done.stdout


def test_members_are_marked_as_snapshots_of_one_training(trained, selected):
    _, signature, ledger = trained
    members = read_ensemble(selected[0]).members
    best = int(ledger.find_finished_trial(signature).metrics["best_epoch"])
    assert {member.epoch for member in members} == {best, 2, 4, 6}
    assert len(members) == len({best, 2, 4, 6})
    assert {member.snapshot_of for member in members if member.epoch != best} == {signature}
    (own,) = [member for member in members if member.signature == signature]
    assert (own.epoch, own.snapshot_of) == (best, "")
    epochs = [f"{epoch} (best)" if epoch == best else str(epoch) for epoch in sorted({best, 2, 4, 6})]
    sentence = (
        f"{len(members)} members are snapshots of one training, after epochs {', '.join(epochs[:-1])} and {epochs[-1]}"
    )
    page = selected[0].with_name("ensemble.html").read_text()
    assert all(sentence in text for text in (selected[1], page))
    assert read_ensemble(selected[0]).nested.redoes_epochs


def test_the_snapshots_of_an_ensemble_are_exported_and_searched_with(
    trained, selected, tones, tone_store, call_command, tmp_path
):
    folder, _, ledger = trained
    export_ensemble(selected[0], tmp_path / "exported", RunStorage.of(folder))
    models = bundle.load_models(tmp_path / "exported")
    members = read_ensemble(selected[0]).members
    for member, loaded in zip(members, models.members, strict=True):
        stored = ledger.load_embeddings(ledger.find_finished_trial(member.signature), VALIDATION_FILE)
        embedded = embed_text(loaded.model, loaded.trial, stored.queries)
        np.testing.assert_allclose(embedded, stored.text_QD, atol=1e-6)
        assert (loaded.trial.snapshot_epoch or member.epoch) == member.epoch
    words = ("--index", tmp_path / "index", "--add", tones, "--top", 3)
    done = call_command("ensemble/search.py", tmp_path / "exported", "a low tone", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".wav") == 3


def test_the_snapshots_of_an_ensemble_are_evaluated_submitted_and_costed(trained, selected, call_command, tmp_path):
    folder, _, ledger = trained
    evaluated = call_command("ensemble/select.py", "evaluate", selected[0], "--split", "validation", "--runs", folder)
    assert read_ensemble(selected[0]).validation.systems["ensemble"]["map10"].percent in evaluated.stdout
    system = read_system(selected[0], ledger, RunStorage.of(folder))
    assert len({member.parameters for member in system.members}) == 1
    words = ("--runs", folder, "--no-test", "--folds", 0, "--out", tmp_path, "--cost", "parameters")
    assert call_command("ensemble/select.py", *words).returncode == 0
    assert read_ensemble(tmp_path / "ensemble.json").front


def test_each_snapshot_is_retrained_to_its_own_epoch(selected):
    ensemble = read_ensemble(selected[0])
    retrainings = plan_retrainings(ensemble, selected[0], "pretraining")
    for retraining, member in zip(retrainings, ensemble.members, strict=True):
        assert retraining.trial.final_epoch == member.epoch
        assert retraining.trial.snapshot_epoch is None
        assert set(retraining.trial.train) == {"folder/train", "folder/validation", "folder/test"}
    assert len({retraining.trial for retraining in retrainings}) == len(ensemble.members)


def test_snapshots_that_teach_are_not_trained_again(trained, selected, tone_store):
    folder, _, ledger = trained
    teachers = read_teachers(selected[0])
    (own,) = [teacher.trial for teacher in teachers if not teacher.trial.snapshot_epoch]
    student = replace(own, seed=5, schedule=replace(own.schedule, cycles=1), teachers=teachers)
    fingerprints = read_fingerprints([student], str(tone_store))
    stages = group_by_stage([student], fingerprints)
    trials = {signature: trial for stage in stages for signature, trial in stage.items()}
    signatures = {member.signature for member in read_ensemble(selected[0]).members}
    assert find_finished(trials, ledger, RunStorage.of(folder)) == signatures
    (requirement,) = [relations for relations in find_requirements(trials, fingerprints).values() if relations.teachers]
    assert set(requirement.teachers) == signatures


def test_the_report_shows_an_ensemble_of_snapshots(trained, selected, call_command, tmp_path):
    words = ("--runs", trained[0], "--no-test", "--out", tmp_path)
    assert call_command("ensemble/select.py", *words, "--method", "all", "--folds", 0).returncode == 0
    done = call_command("ensemble/report.py", *words)
    assert done.returncode == 0, done.stderr
    count = len(read_ensemble(selected[0]).members)
    assert f"ensemble of 1 to {count}" in done.stdout
    assert "snapshots, models of the trainings in other rows" in done.stdout
    assert f"{count} members are snapshots of one training" in (tmp_path / "report.html").read_text()


def test_the_snapshots_of_a_sweep_have_the_files_of_its_trials(trained, tone_store):
    folder, signature, ledger = trained
    candidates = find_candidates(ledger, [ledger.find_sweep("cycles")])
    for candidate in candidates:
        config = from_json(ledger.load_config(candidate.run))
        assert compute_signature(config, str(tone_store)) == candidate.signature
        assert (Path(folder) / "models" / candidate.signature / "bank.arrow").exists()
    assert sum(1 for _ in (Path(folder) / "models").iterdir()) == 7  # each of six epochs, and the best one
    assert ledger.find_sweep("cycles").signatures == [signature]
