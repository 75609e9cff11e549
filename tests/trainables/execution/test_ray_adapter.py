"""Training through Ray Train: the same as in this process, on one worker or two, and from the last checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from data.errors import UserError
from data.splits import Splits
from sweeps.spaces import load_user_space
from trainables import trial as trials
from trainables.execution import ray_adapter
from trainables.execution.resources import Allocation
from trainables.execution.session import RunContext, TrainingJob, train_in_process
from trainables.records import lease as leases
from trainables.records.embeddings import read_embeddings
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.run_storage import RunStorage
from trainables.signature import compute_signature
from trainables.trial import MODEL_FILE

pytestmark = pytest.mark.cluster

TRAINED = ("map10", "train_loss", "validation_loss", "epoch")


@pytest.fixture(scope="module")
def without_dropout(space_file):
    splits = Splits("folder/train", "folder/validation", "folder/test", pretrain=("folder/train",))
    tiny = load_user_space(space_file, "tiny")(splits, "float32")
    pretraining = tiny[0].pretraining
    audio, text = replace(pretraining.audio, dropout=0.0), replace(pretraining.text, dropout=0.0)
    return replace(pretraining, audio=audio, text=text, batch_size=7)


def fitted(one_trial, store, runs, workers):
    """The best epoch's metrics, the embeddings of the validation split, and the model, after training on `workers`.

    With 0 of them it is trained in this process.
    """
    ledger, place = create_ledger(runs), RunStorage.of(runs)
    lease = leases.acquire(place, compute_signature(one_trial, store))
    run_id = ledger.claim(one_trial, lease.signature, None)
    resources = Allocation(workers=workers or 1, cpus_per_worker=0.9)
    work = TrainingJob(one_trial, lease, run_id, RunContext(store, place, ledger.tracking_uri), resources)
    metrics = ray_adapter.fit(work) if workers else train_in_process(work, lambda metrics: None)
    path = ledger.client.download_artifacts(run_id, "embeddings/validation.arrow")
    return metrics, read_embeddings(Path(path)), runs / "models" / lease.signature


@pytest.fixture(scope="module")
def in_this_process(without_dropout, tone_store, tmp_path_factory):
    return fitted(without_dropout, tone_store, tmp_path_factory.mktemp("one"), workers=0)


@pytest.mark.slow
def test_a_worker_trains_what_this_process_trains(cluster, in_this_process, without_dropout, tone_store, tmp_path):
    """Both ways the same weights to the last bit. Slow: the next test compares two workers with this process."""
    here, _, folder = in_this_process
    there, _, other = fitted(without_dropout, tone_store, tmp_path, workers=1)
    assert {name: here[name] for name in TRAINED} == {name: there[name] for name in TRAINED}
    expected, got = (load_file(path / MODEL_FILE) for path in (folder, other))
    assert all((got[name] == tensor).all() for name, tensor in expected.items())


def test_two_workers_train_what_this_process_trains(cluster, in_this_process, without_dropout, tone_store, tmp_path):
    one, alone, folder = in_this_process
    two, together, _ = fitted(without_dropout, tone_store, tmp_path, workers=2)
    np.testing.assert_allclose(together.audio_AD, alone.audio_AD, atol=1e-4)
    np.testing.assert_allclose(together.text_QD, alone.text_QD, atol=1e-4)
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-4)
    assert trials.load_trial(folder) == without_dropout


@pytest.mark.slow
def test_a_training_that_is_asked_for_again_goes_on_where_it_was(cluster, without_dropout, tone_store, tmp_path):
    """Through Ray Train; the same in this process is in tests/trainables/execution/test_session.py."""
    before, embeddings, _ = fitted(without_dropout, tone_store, tmp_path / "runs", workers=1)
    (whole,) = (tmp_path / "runs").glob("trials/*-1/committed")
    assert whole.read_text()
    after, again, _ = fitted(without_dropout, tone_store, tmp_path / "runs", workers=1)
    np.testing.assert_array_equal(again.audio_AD, embeddings.audio_AD)
    assert after["map10"] == before["map10"]


def test_a_store_that_has_changed_since_is_refused(cluster, without_dropout, tone_store, tmp_path):
    place = RunStorage.of(tmp_path)
    lease = leases.acquire(place, "0123456789abcdef")
    ledger = create_ledger(place)
    run_id = ledger.claim(without_dropout, lease.signature, None)
    site = RunContext(tone_store, place, ledger.tracking_uri)
    with pytest.raises(UserError, match=r"have changed since cnn:custom .* re-run the command"):
        ray_adapter.fit(TrainingJob(without_dropout, lease, run_id, site, Allocation()))
