"""A sweep of a training with cycles: it runs, shows and counts its trials alone, and its snapshots are candidates."""

import pytest

from trainables.records.ensemble_file import read_ensemble
from trainables.records.mlflow_ledger import open_ledger


@pytest.mark.slow
@pytest.mark.cluster
def test_the_snapshots_of_a_sweep_are_published_by_workers_and_selected_from(
    cluster, call_command, space_file, tone_store, tmp_path
):
    """The pretraining on two workers, through Ray Train; with a sweep, since only that has its time and its display.

    It is slow, and left out of CI: tests/trainables/execution/test_snapshots.py has two ranks without Ray.
    """
    runs = tmp_path / "runs"
    words = ("--space", f"{space_file}:cyclic", "--corpus", "folder", "--store", tone_store, "--runs", runs)
    words += ("--pretraining-workers", 2, "--cpus-per-worker", 0.45, "--name", "cycles")
    planned = call_command("sweeps/grid.py", *words, "--dry-run")
    assert "epoch 2" not in planned.stdout
    assert planned.stdout.count("\tto run\t") == 2
    done = call_command("sweeps/grid.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 pretrainings, then 1 fine-tunings; 2 of them are still to be run" in done.stdout
    assert ": epoch 4/4, loss" in done.stdout
    assert "epoch 2 seed" not in done.stdout
    ledger = open_ledger(runs)
    sweep = ledger.find_sweep("cycles")
    assert len(sweep.signatures) == len(sweep.description["trials"]) == 2
    (pretraining,) = [run for run in ledger.iter_trials() if run.cycle_ends and not run.snapshot_epoch]
    snapshots = ledger.find_related("snapshot_of", pretraining.signature)
    assert sorted(run.snapshot_epoch for run in snapshots) == [2, 4]
    assert len(list(ledger.iter_trials())) == 4
    tags = [ledger.client.get_run(run.run_id).data.tags["mlflow.parentRunId"] for run in snapshots]
    assert tags == [sweep.run_id] * 2
    status = call_command("sweeps/grid.py", "status", "--runs", runs)
    assert "2 trials: 2 finished, 0 running" in " ".join(status.stdout.split())

    words = ("--runs", runs, "--method", "all", "--no-test", "--folds", 0, "--out", tmp_path / "selected")
    assert call_command("ensemble/select.py", *words).returncode == 0
    members = read_ensemble(tmp_path / "selected" / "ensemble.json").members
    best = int(pretraining.metrics["best_epoch"])
    epochs = [member.epoch for member in members if pretraining.signature in (member.signature, member.snapshot_of)]
    assert sorted(epochs) == sorted({2, 4, best})
    assert len(members) == 1 + len(epochs)
