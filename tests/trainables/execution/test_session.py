"""Training in this process: one trial after another, from a checkpoint, and what is kept of it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from data.corpora import synthetic
from data.errors import UserError
from data.store.stored_split import open_split
from trainables.execution.resources import Allocation
from trainables.execution.session import (
    RunContext,
    TrainingJob,
    commit_checkpoint,
    commit_file,
    find_last_checkpoint,
    train_in_process,
)
from trainables.records import lease as leases
from trainables.records.checkpoint import PROGRESS_FILE
from trainables.records.embeddings import (
    BANK_FILE,
    EMBEDDINGS_FOLDER,
    EPOCHS_FOLDER,
    TEST_FILE,
    VALIDATION_FILE,
    read_embeddings,
)
from trainables.records.lease import LeaseLostError
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.mlflow_log import RunLog
from trainables.records.run_storage import RunStorage
from trainables.signature import compute_signature
from trainables.trial import MODEL_FILE

OTHER_SIZES = synthetic.Config(development=5, validation=5, evaluation=5, min_duration_s=5.0, max_duration_s=6.0)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    return create_ledger(tmp_path_factory.mktemp("ledger"))


def work_of(trial, store, runs, ledger, **settings):
    """What there is to do for a trial, under its next lease."""
    lease = leases.acquire(runs, compute_signature(trial, str(store)))
    run_id = ledger.claim(trial, lease.signature, None)
    return TrainingJob(
        trial, lease, run_id, RunContext(str(store), runs, ledger.tracking_uri, **settings), Allocation()
    )


def weights_of(runs, work):
    return load_file(runs.folder / "models" / work.lease.signature / MODEL_FILE)


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    assert all((got[name] == tensor).all() for name, tensor in expected.items())


@pytest.fixture(scope="module")
def alone(trial, store, ledger, tmp_path_factory):
    """A trial that is trained on its own: its work, metrics and weights, and what it reported."""
    runs, reported = RunStorage.of(tmp_path_factory.mktemp("alone")), []
    work = work_of(trial, store, runs, ledger, keep_epochs=True)
    metrics = train_in_process(work, reported.append)
    return work, metrics, weights_of(runs, work), reported


def test_each_epoch_is_reported_and_the_best_one_returned(alone, trial):
    _, metrics, _, reported = alone
    assert [epoch["epoch"] for epoch in reported] == list(range(1, trial.epochs + 1))
    best = max(reported, key=lambda epoch: (epoch["map10"], -epoch["epoch"]))
    assert metrics["epoch"] == best["epoch"]
    assert metrics["map10"] == best["map10"]


def test_model_and_embeddings_are_kept_and_one_checkpoint(alone, ledger, trial):
    work, *_ = alone
    names = {file.path for file in ledger.client.list_artifacts(work.run_id, EMBEDDINGS_FOLDER)}
    assert names == {f"{EMBEDDINGS_FOLDER}/{name}" for name in (VALIDATION_FILE, TEST_FILE, BANK_FILE, EPOCHS_FOLDER)}
    (folder,) = (work.site.runs.folder / "trials" / work.lease.folder).glob("checkpoint_*")
    assert work.site.runs.read(commit_file(work.lease)).decode() == folder.name
    assert folder.name == f"checkpoint_{trial.epochs:06}"


def test_a_trial_after_another_one_is_trained_as_in_a_process_of_its_own(alone, trial, store, ledger, tmp_path):
    """Tune's process of a trial is used again: nothing of the trial before may be left, be it a generator's state."""
    runs = RunStorage.of(tmp_path)
    train_in_process(work_of(replace(trial, seed=trial.seed + 1), store, runs, ledger), lambda metrics: None)
    work = work_of(trial, store, runs, ledger)
    metrics = train_in_process(work, lambda metrics: None)
    assert_same(weights_of(runs, work), alone[2])
    assert metrics["validation_loss"] == alone[1]["validation_loss"]


def test_a_training_that_was_ended_goes_on_from_its_last_checkpoint_to_the_same_bits(
    alone, trial, store, ledger, tmp_path
):
    """By an exception of who is told of an epoch, as Tune ends what a scheduler has stopped."""
    runs = RunStorage.of(tmp_path)

    def end(metrics):
        raise SystemExit

    work = work_of(trial, store, runs, ledger)
    with pytest.raises(SystemExit):
        train_in_process(work, end)
    assert not runs.has_model(work.lease.signature)
    again = work_of(trial, store, runs, ledger)
    assert (again.lease.signature, again.lease.number) == (work.lease.signature, 2)
    assert find_last_checkpoint(runs, again.lease) == f"trials/{work.lease.folder}/checkpoint_000001"
    reported = []
    train_in_process(again, reported.append)
    assert [epoch["epoch"] for epoch in reported] == list(range(2, trial.epochs + 1))
    assert_same(weights_of(runs, again), alone[2])
    assert not (runs.folder / "trials" / work.lease.folder).exists()


def test_a_training_uses_the_splits_that_it_started_with_though_they_are_prepared_again(
    alone, trial, store, ledger, tmp_path, write_split
):
    """Their shards are removed while it runs. The model and the clips of its embeddings are those of an undisturbed
    training.
    """
    again, runs = shutil.copytree(store, tmp_path / "store"), RunStorage.of(tmp_path / "runs")
    shards = sorted(again.glob("*/*/clips-*.arrow"))

    def prepare_again(metrics):
        if metrics["epoch"] == 1:
            for split in synthetic.read(None, 1, OTHER_SIZES):
                write_split(again, split, "pcm16")
            assert not any(shard.exists() for shard in shards)

    work = work_of(trial, again, runs, ledger)
    assert train_in_process(work, prepare_again)["map10"] == alone[1]["map10"]
    assert_same(weights_of(runs, work), alone[2])
    with RunLog(ledger.tracking_uri, work.run_id).open_artifact(f"{EMBEDDINGS_FOLDER}/{TEST_FILE}") as path:
        assert read_embeddings(path).clip_ids == open_split(store, trial.test).clip_ids


def copy_of_storage(work, to):
    shutil.copytree(work.site.runs.folder, to)
    return RunStorage.of(to)


def test_a_finished_trial_whose_run_was_lost_is_restored_without_training(alone, trial, store, tmp_path):
    """In a new tracking store, as after mlflow.db was lost or a run deleted."""
    runs, lost = copy_of_storage(alone[0], tmp_path / "runs"), create_ledger(tmp_path / "ledger")
    work, reported = work_of(trial, store, runs, lost), []
    metrics = train_in_process(work, reported.append)
    assert reported == []
    assert {name: value for name, value in metrics.items() if name != "embedding_s"} == {
        name: value for name, value in alone[1].items() if name != "embedding_s"
    }
    run = lost.find_trial(work.lease.signature)
    curves = lost.load_curves(run)
    assert curves["map10"] == {int(epoch["epoch"]): epoch["map10"] for epoch in alone[3]}
    assert len(lost.load_embeddings(run, VALIDATION_FILE).clip_ids)
    train_in_process(work_of(trial, store, runs, lost), reported.append)
    assert lost.load_curves(run) == curves


def test_a_checkpoint_that_a_power_cut_left_incomplete_is_not_resumed_from(alone, trial, store, tmp_path, caplog):
    runs, ledger = copy_of_storage(alone[0], tmp_path / "runs"), create_ledger(tmp_path / "ledger")
    (path,) = runs.folder.glob(f"trials/*/*/{MODEL_FILE}")
    path.write_bytes(path.read_bytes()[:-1])
    work, reported = work_of(trial, store, runs, ledger), []
    assert find_last_checkpoint(runs, work.lease) is None
    assert f"{path.parent} is incomplete" in caplog.text
    train_in_process(work, reported.append)
    assert len(reported) == trial.epochs
    assert_same(weights_of(runs, work), alone[2])


def test_a_checkpoint_is_on_the_disk_before_it_counts(ledger, tmp_path, monkeypatch):
    """Ray writes the checkpoints of several workers, and doesn't wait for the disk; the calls of the kernel say so."""
    runs = RunStorage.of(tmp_path / "runs")
    lease = leases.acquire(runs, "a" * 16)
    folder = runs.folder / "trials" / lease.folder / "checkpoint_000001"
    (folder / "below").mkdir(parents=True)
    for name in ("model.safetensors", "below/progress.json"):
        (folder / name).write_bytes(b"x")
    synced, fsync = [], os.fsync

    def record(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    commit_checkpoint(runs, lease, folder.name, RunLog(ledger.tracking_uri, ledger.create_run("trial", {})))
    before, after = synced[: synced.index("committed")], synced[synced.index("committed") :]
    assert {*before} == {"model.safetensors", "progress.json", "below", folder.name, lease.folder}
    assert after == ["committed", lease.folder]
    assert runs.read(commit_file(lease)) == folder.name.encode()


def test_a_checkpoint_of_an_earlier_version_without_metrics_is_refused_with_the_remedy(alone, trial, store, tmp_path):
    runs, lost = copy_of_storage(alone[0], tmp_path / "runs"), create_ledger(tmp_path / "ledger")
    (path,) = runs.folder.glob(f"trials/*/*/{PROGRESS_FILE}")
    progress = json.loads(path.read_text())
    path.write_text(json.dumps(progress | {"history": progress["history"][1:]}))
    with pytest.raises(UserError, match=r"lacks the metrics of 1 epochs.*remove .*/trials/[0-9a-f]{16}-\*"):
        train_in_process(work_of(trial, store, runs, lost), lambda metrics: None)


def test_a_training_whose_trial_was_taken_over_ends_and_leaves_nothing(trial, store, ledger, tmp_path):
    runs = RunStorage.of(tmp_path)
    work = work_of(trial, store, runs, ledger)
    leases.release(runs, work.lease)
    leases.acquire(runs, work.lease.signature, command="another")
    with pytest.raises(LeaseLostError):
        train_in_process(work, lambda metrics: None)
    assert not runs.has_model(work.lease.signature)
    assert runs.read(commit_file(work.lease)) is None


def test_checkpoints_and_models_are_kept_in_an_object_store(alone, trial, store, ledger, object_store):
    runs = RunStorage.of(object_store.uri("bucket/session"))

    def end(metrics):
        raise SystemExit

    with pytest.raises(SystemExit):
        train_in_process(work_of(trial, store, runs, ledger), end)
    again = work_of(trial, store, runs, ledger)
    train_in_process(again, lambda metrics: None)
    folder = runs.fetch(f"models/{again.lease.signature}", tmp := runs.local_folder / again.lease.signature)
    assert folder == tmp
    assert_same(load_file(folder / MODEL_FILE), alone[2])
    kept = runs.list_names(f"trials/{again.lease.folder}")
    assert {name.split("/")[2] for name in kept} == {"committed", f"checkpoint_{trial.epochs - 1:06}"}
