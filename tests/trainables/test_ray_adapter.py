"""Training through Ray Train: two workers, and a training that goes on from its last checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray

from data.prepare import start_ray
from data.splits import Splits
from sweeps.spaces import own_space
from trainables import checkpoint, ray_adapter, trial
from trainables.embed import read_embeddings
from trainables.ledger import create_ledger

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster():
    start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def without_dropout(space_file):
    splits = Splits("folder/train", "folder/validation", "folder/test", pretrain=("folder/train",))
    tiny = own_space(space_file, "tiny")(splits, "float32")
    pretraining = tiny[0].pretraining
    audio, text = replace(pretraining.audio, dropout=0.0), replace(pretraining.text, dropout=0.0)
    return replace(pretraining, audio=audio, text=text, batch_size=7)


def fitted(one_trial, store, runs, workers):
    """The best epoch's metrics, the embeddings of the validation split, and the model, after training on `workers`."""
    ledger = create_ledger(runs)
    signature = trial.signature(one_trial, store)
    run_id = ledger.claim(one_trial, signature, None)
    site = ray_adapter.Site(store, runs, ledger.tracking_uri)
    resources = ray_adapter.Resources(workers=workers, cpus_per_worker=0.9)
    metrics = ray_adapter.fit(one_trial, signature, None, run_id, site, resources)
    path = ledger.client.download_artifacts(run_id, "embeddings/validation.arrow")
    return metrics, read_embeddings(Path(path)), site.model_folder(signature)


def test_two_workers_train_what_one_worker_trains(cluster, without_dropout, tone_store, tmp_path):
    one, alone, folder = fitted(without_dropout, tone_store, tmp_path / "one", workers=1)
    two, together, _ = fitted(without_dropout, tone_store, tmp_path / "two", workers=2)
    np.testing.assert_allclose(together.audio_AD, alone.audio_AD, atol=1e-4)
    np.testing.assert_allclose(together.text_QD, alone.text_QD, atol=1e-4)
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-4)
    assert checkpoint.load_trial(folder) == without_dropout


def test_a_training_that_is_asked_for_again_goes_on_where_it_was(cluster, without_dropout, tone_store, tmp_path):
    before, embeddings, _ = fitted(without_dropout, tone_store, tmp_path / "runs", workers=1)
    after, again, _ = fitted(without_dropout, tone_store, tmp_path / "runs", workers=1)
    np.testing.assert_array_equal(again.audio_AD, embeddings.audio_AD)
    assert after["map10"] == before["map10"]
