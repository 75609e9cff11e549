"""Snapshots: what a training publishes after each cycle is what a training that ends there leaves, bit for bit."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from trainables.execution.resources import Allocation
from trainables.execution.session import RunContext, TrainingJob, train_in_process, train_rank
from trainables.execution.snapshots import SnapshotError, SnapshotKeeper, list_snapshot_epochs
from trainables.records import lease as leases
from trainables.records.embeddings import EPOCHS_FOLDER
from trainables.records.mlflow_ledger import create_ledger, open_ledger
from trainables.records.mlflow_log import RunLog
from trainables.records.run_storage import RunStorage
from trainables.schedule import Schedule
from trainables.signature import compute_signature, find_relations, read_fingerprints
from trainables.training.train import Callbacks, train
from trainables.trial import MODEL_FILE, make_soup

TIMES = {"step_s", "pairs_per_second", "waiting_share", "memory_gb", "training_s", "validation_s", "embedding_s"}


@pytest.fixture(scope="module")
def cyclic(trial):
    """Two cycles of two epochs."""
    return replace(trial, schedule=Schedule(3e-3, 1e-4, epochs=4, warmup_epochs=0.5, final_epochs=0.5, cycles=2))


@pytest.fixture(scope="module")
def make_job(store):
    """A function that prepares a training in a folder of runs, under the next lease of its trial."""

    def make(trial, folder, sweep_run_id=None, **settings):
        runs, ledger = RunStorage.of(folder), create_ledger(folder)
        relations = find_relations(trial, read_fingerprints([trial], str(store)))
        lease = leases.acquire(runs, compute_signature(trial, str(store)))
        run_id = ledger.claim(trial, lease.signature, sweep_run_id, relations)
        site = RunContext(str(store), runs, ledger.tracking_uri, **settings)
        return TrainingJob(trial, lease, run_id, site, Allocation(), relations=relations), ledger

    return make


@pytest.fixture(scope="module")
def run(make_job):
    """A function that trains a trial to its end, and returns its signature and the ledger."""

    def run_to_the_end(trial, folder, **settings):
        job, ledger = make_job(trial, folder, **settings)
        train_in_process(job, lambda metrics: None)
        ledger.finish(job.run_id)
        return job.lease.signature, ledger

    return run_to_the_end


@pytest.fixture(scope="module")
def whole(cyclic, run, tmp_path_factory):
    """The training of both cycles: its folder of runs, signature and ledger."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(cyclic, folder, sweep_run_id=None)


def list_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def artifacts_of(run):
    return list_files(Path(run.artifacts.removeprefix("file://")))


def metrics_of(ledger, run):
    names = sorted(name for name in run.metrics if not name.startswith("step/") and name not in TIMES)
    return ledger.load_curves(run, names)


def assert_same_snapshots(folder, ledger, expected_folder, expected_ledger, signature, count):
    snapshots = ledger.find_related("snapshot_of", signature)
    expected = expected_ledger.find_related("snapshot_of", signature)
    assert [run.signature for run in snapshots] == [run.signature for run in expected]
    assert len(snapshots) == count
    for run, other in zip(snapshots, expected, strict=True):
        assert artifacts_of(run) == artifacts_of(other)
        models = [list_files(where / "models" / run.signature) for where in (folder, expected_folder)]
        assert models[0] == models[1]
        assert metrics_of(ledger, run) == metrics_of(expected_ledger, other)


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_snapshot_is_what_a_training_that_ends_there_leaves_bit_for_bit(whole, cyclic, run, tmp_path, epoch):
    folder, whole_signature, ledger = whole
    signature, alone = run(replace(cyclic, snapshot_epoch=epoch), tmp_path)
    expected = alone.find_finished_trial(signature)
    published = ledger.find_finished_trial(signature)
    assert published.relations == expected.relations
    assert published.relations.snapshot_of == whole_signature
    assert (published.name, published.settings) == (expected.name, expected.settings)
    assert (published.gpus, published.cpus) == (expected.gpus, expected.cpus)
    assert artifacts_of(published) == artifacts_of(expected)
    assert {"trial.json", "embeddings/validation.arrow", "embeddings/test.arrow", "embeddings/bank.arrow"} == {
        str(name) for name in artifacts_of(published)
    }
    models = [list_files(where / "models" / signature) for where in (folder, tmp_path)]
    assert models[0].keys() == models[1].keys()
    assert models[0] == models[1]
    assert metrics_of(ledger, published) == metrics_of(alone, expected)
    assert ledger.load_best_metrics(published)["map10"] == alone.load_best_metrics(expected)["map10"]
    assert ledger.load_recipe(published)["epoch"] == epoch


def test_publishing_changes_nothing_in_the_training(whole, cyclic, store):
    """Embedding between two epochs draws no number that the training draws."""
    folder, signature, _ = whole
    network = train(cyclic, str(store), Callbacks(lambda metrics, snapshot: None))
    stored = load_file(folder / "models" / signature / MODEL_FILE)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())


def test_only_cycles_of_a_whole_training_are_published(cyclic, trial, whole):
    assert list_snapshot_epochs(cyclic) == (2, 4)
    assert list_snapshot_epochs(trial) == ()
    for settings in ({"final_epoch": 3}, {"snapshot_epoch": 3}):
        assert list_snapshot_epochs(replace(cyclic, **settings)) == ()
    parts = [replace(cyclic, snapshot_epoch=epoch) for epoch in (2, 4)]
    assert list_snapshot_epochs(make_soup(parts)) == ()
    _, signature, ledger = whole
    assert {run.signature for run in ledger.iter_trials()} == {
        signature, *(run.signature for run in ledger.find_related("snapshot_of", signature))
    }  # fmt: skip
    assert not list(ledger.iter_running_trials())


def test_snapshots_are_runs_of_the_sweep_of_their_training(cyclic, make_job, store, tmp_path):
    sweep = create_ledger(tmp_path).start_sweep("made", [], {})
    job, ledger = make_job(cyclic, tmp_path, sweep_run_id=sweep)
    train_in_process(job, lambda metrics: None)
    snapshots = ledger.find_related("snapshot_of", job.lease.signature)
    tags = [ledger.client.get_run(run.run_id).data.tags for run in snapshots]
    assert [tag["mlflow.parentRunId"] for tag in tags] == [sweep, sweep]


class EndedError(Exception):
    """Stands for a process that is killed."""


def end_at(epoch):
    """A function that makes the callback of a training which ends before the checkpoint of an epoch is written."""

    def report(metrics, snapshot):
        if metrics and metrics["epoch"] == epoch:
            raise EndedError

    return lambda log: report


@pytest.mark.parametrize("last", [2, 4])
def test_a_training_that_is_killed_between_publishing_and_its_checkpoint_ends_with_the_same_snapshots(
    whole, cyclic, make_job, run, tmp_path, last
):
    folder, signature, ledger = whole
    job, own_ledger = make_job(cyclic, tmp_path)
    with pytest.raises(EndedError):
        train_rank(job, torch.device("cpu"), end_at(last), None, tmp_path / "scratch")
    before = {run.signature: run for run in own_ledger.find_related("snapshot_of", signature)}
    assert len(before) == last / 2
    leases.release(job.site.runs, job.lease)
    run(cyclic, tmp_path)
    assert_same_snapshots(tmp_path, own_ledger, folder, ledger, signature, 2)
    after = {run.signature: run for run in own_ledger.find_related("snapshot_of", signature)}
    assert all(after[key].run_id == run.run_id for key, run in before.items())
    assert sum(1 for _ in own_ledger.iter_trials()) == 3


def test_a_snapshot_that_was_half_published_by_a_lost_process_is_published_at_once(
    whole, cyclic, make_job, tmp_path, store
):
    """Its lease is still held by the lost process, and its run is still marked as running."""
    folder, signature, ledger = whole
    job, own_ledger = make_job(cyclic, tmp_path)
    snapshot = replace(cyclic, snapshot_epoch=2)
    lost = leases.acquire(job.site.runs, compute_signature(snapshot, str(store)), f"snapshots of {signature}")
    own_ledger.claim(snapshot, lost.signature, None, replace(job.relations, snapshot_of=signature))
    train_in_process(job, lambda metrics: None)
    assert_same_snapshots(tmp_path, own_ledger, folder, ledger, signature, 2)


def test_a_snapshot_that_another_command_trains_is_left_to_it(cyclic, make_job, tmp_path, store, caplog):
    job, ledger = make_job(cyclic, tmp_path)
    caplog.set_level("INFO", "chorale.snapshots")
    other = leases.acquire(job.site.runs, compute_signature(replace(cyclic, snapshot_epoch=2), str(store)), "another")
    train_in_process(job, lambda metrics: None)
    (published,) = ledger.find_related("snapshot_of", job.lease.signature)
    assert published.settings["snapshot_epoch"] == "4"
    assert other.is_held(job.site.runs)
    assert "isn't published: it is being trained by process" in caplog.text


def test_snapshots_are_restored_with_their_training_when_the_tracking_store_is_lost(
    whole, cyclic, make_job, tmp_path, store, caplog
):
    folder, signature, ledger = whole
    runs = tmp_path / "runs"

    shutil.copytree(folder, runs, ignore=shutil.ignore_patterns("mlflow.db*", "artifacts"))
    job, own_ledger = make_job(cyclic, runs)
    reported = []
    train_in_process(job, reported.append)
    assert reported == []
    assert_same_snapshots(runs, own_ledger, folder, ledger, signature, 2)

    gone = compute_signature(replace(cyclic, snapshot_epoch=2), str(store))
    shutil.rmtree(runs / "models" / gone)
    own_ledger.client.delete_run(own_ledger.find_finished_trial(gone).run_id)
    train_in_process(make_job(cyclic, runs)[0], reported.append)
    assert reported == []
    assert "can't be restored: its model isn't in" in caplog.text
    assert own_ledger.find_finished_trial(gone) is None


def test_a_training_whose_lease_is_lost_publishes_nothing_more(cyclic, make_job, tmp_path):
    job, ledger = make_job(cyclic, tmp_path)
    leases.release(job.site.runs, job.lease)
    leases.acquire(job.site.runs, job.lease.signature, command="another")
    with pytest.raises(leases.LeaseLostError):
        train_rank(job, torch.device("cpu"), end_at(None), None, tmp_path / "scratch")
    assert ledger.find_related("snapshot_of", job.lease.signature) == []


def test_a_ledger_that_cannot_be_read_ends_the_training_with_an_error_that_is_no_refusal(
    cyclic, make_job, tmp_path, store
):
    """So that Ray Train restarts all ranks, instead of letting the others wait for rank 0."""
    job, ledger = make_job(cyclic, tmp_path)
    signature = compute_signature(replace(cyclic, snapshot_epoch=2), str(store))
    ledger.create_run("damaged", {"kind": "trial", "signature": signature, "gpus": "many"})
    with pytest.raises(SnapshotError, match=r"the snapshot cnn:.* epoch 2 seed 0 can't be published: MLflow run"):
        train_rank(job, torch.device("cpu"), end_at(None), None, tmp_path / "scratch")
    assert RunLog(ledger.tracking_uri, job.run_id).refusal() == ""


def test_nothing_is_published_under_a_wrong_signature_if_the_store_has_changed(cyclic, make_job, tmp_path):
    job, _ = make_job(cyclic, tmp_path)
    changed = replace(job, lease=replace(job.lease, signature="0" * 16))
    with pytest.raises(SnapshotError, match=r"have changed since cnn:.* was started"):
        SnapshotKeeper.start(changed, {}, [], None)
    without_cycles = replace(changed, trial=replace(cyclic, snapshot_epoch=2))
    assert not SnapshotKeeper.start(without_cycles, {}, [], None).is_needed


def test_snapshots_are_kept_in_an_object_store_and_restored_from_it(whole, cyclic, store, object_store, tmp_path):
    _, signature, ledger = whole
    runs, reported = RunStorage.of(object_store.uri("bucket/snapshots")), []
    for name in ("first", "second"):
        own_ledger = create_ledger(tmp_path / name)
        lease = leases.acquire(runs, signature)
        run_id = own_ledger.claim(cyclic, signature, None)
        site = RunContext(str(store), runs, own_ledger.tracking_uri)
        train_in_process(TrainingJob(cyclic, lease, run_id, site, Allocation()), reported.append)
        snapshots = own_ledger.find_related("snapshot_of", signature)
        expected = ledger.find_related("snapshot_of", signature)
        assert [artifacts_of(run) for run in snapshots] == [artifacts_of(run) for run in expected]
        leases.release(runs, lease)
    assert len(reported) == cyclic.epochs, "the second time, nothing is trained"


def test_models_of_all_epochs_are_kept_on_request_for_soups(cyclic, run, tmp_path, store):
    folder, alone = tmp_path / "kept", tmp_path / "alone"
    signature, ledger = run(cyclic, folder, keep_epochs=True)
    snapshots = [replace(cyclic, snapshot_epoch=epoch) for epoch in (1, 2, 3, 4)]
    signatures = [compute_signature(snapshot, str(store)) for snapshot in snapshots]
    assert {path.name for path in (folder / "models").iterdir()} == {signature, *signatures}
    assert {run.signature for run in ledger.iter_trials()} == {signature, signatures[1], signatures[3]}
    assert len(ledger.list_epochs(ledger.find_finished_trial(signature))) == 4
    assert not any(EPOCHS_FOLDER in str(name) for name in artifacts_of(ledger.find_finished_trial(signatures[1])))
    run(snapshots[2], alone)
    assert list_files(folder / "models" / signatures[2]) == list_files(alone / "models" / signatures[2])
    soup, _ = run(make_soup(snapshots[1:]), folder)
    parts = [load_file(folder / "models" / one / MODEL_FILE) for one in signatures[1:]]
    name = "audio_projection.weight"
    mean = torch.stack([part[name] for part in parts]).mean(0)
    torch.testing.assert_close(load_file(folder / "models" / soup / MODEL_FILE)[name], mean)


def log_epochs(log):
    """The callback of a training that logs its epochs and writes no checkpoints."""
    return lambda metrics, snapshot: log.log_epoch(metrics) if metrics else None


def train_on_rank(rank, job, folder):
    """Train on one of two ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    try:
        train_rank(job, torch.device("cpu"), log_epochs, None, folder / f"scratch{rank}", rank=rank)
    finally:
        dist.destroy_process_group()


def test_rank_0_alone_publishes(cyclic, make_job, tmp_path):
    job, ledger = make_job(cyclic, tmp_path / "runs")
    torch.multiprocessing.spawn(train_on_rank, args=(job, tmp_path), nprocs=2)
    published = open_ledger(tmp_path / "runs").find_related("snapshot_of", job.lease.signature)
    assert sorted(run.settings["snapshot_epoch"] for run in published) == ["2", "4"]
    assert sum(1 for _ in ledger.iter_trials()) == 3
    best = ledger.load_best_metrics(ledger.find_trial(job.lease.signature))
    own = load_file(tmp_path / "runs" / "models" / job.lease.signature / MODEL_FILE)
    for run in published:
        snapshot = load_file(tmp_path / "runs" / "models" / run.signature / MODEL_FILE)
        is_best = best["epoch"] == float(run.settings["snapshot_epoch"])
        assert all(torch.equal(tensor, snapshot[name]) for name, tensor in own.items()) == is_best
