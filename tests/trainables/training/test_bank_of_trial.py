"""Query banks: which captions they contain, and how finished trials of earlier versions get one."""

from dataclasses import replace

import numpy as np
import pytest

from data.captions import normalise
from data.corpora import synthetic
from data.store.stored_split import open_split
from trainables.execution.artifacts import log_artifacts, store_model
from trainables.networks import dual_encoder
from trainables.records.embeddings import BANK_FILE, read_embeddings, write_embeddings
from trainables.records.ledger import MissingArtifactError
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.mlflow_log import RunLog
from trainables.records.run_storage import RunStorage
from trainables.signature import compute_signature
from trainables.training import query_bank
from trainables.training.embedding import embed_text
from trainables.training.query_bank import embed_bank, list_bank_splits, list_bank_texts


def open_splits(trial, store):
    return {name: open_split(store, name) for name in {*trial.train, trial.validation, trial.test}}


def list_queries(split):
    return {normalise(text) for text in split.queries["text"].to_pylist()}


def test_a_bank_has_the_training_captions_of_the_validation_corpus(trial):
    trial = replace(trial, train=("wavcaps/all", "clotho/development"), validation="clotho/validation")
    assert list_bank_splits(trial) == ["clotho/development"]
    assert list_bank_splits(replace(trial, train=("wavcaps/all", "audiocaps/train"))) == [
        "wavcaps/all",
        "audiocaps/train",
    ]
    retrained = replace(trial, train=("clotho/development", "clotho/validation", "clotho/evaluation"),
                        test="clotho/evaluation")  # fmt: skip
    assert list_bank_splits(retrained) == ["clotho/development"]


def test_a_bank_contains_no_caption_of_validation_or_test(trial, store, tmp_path, write_split):
    """Not even one that a training clip has as well: here every split has the clips of the training split."""
    texts = list_bank_texts(trial, open_splits(trial, store), store)
    captions = {normalise(text) for clip in open_split(store, trial.train[0]).captions for text in clip}
    held_out = set().union(*(list_queries(open_split(store, name)) for name in (trial.validation, trial.test)))
    assert texts
    assert set(texts) == captions - held_out
    train, validation, test = synthetic.read(None, config=synthetic.Config(4, 4, 4, 5.0, 6.0))
    shared = list(train.clips)
    for split in (train, replace(validation, clips=shared[:2]), replace(test, clips=shared[2:3])):
        write_split(tmp_path, replace(split, clips=shared if split is train else split.clips), "pcm16")
    splits = open_splits(trial, tmp_path)
    texts = list_bank_texts(trial, splits, tmp_path)
    held_out = list_queries(splits[trial.validation]) | list_queries(splits[trial.test])
    assert texts
    assert held_out
    assert not held_out & set(texts)
    retrained = replace(trial, train=(*trial.train, trial.validation, trial.test))
    assert list_bank_texts(retrained, splits, tmp_path) == texts


def test_all_trials_of_the_same_splits_have_the_same_bank(trial, store, monkeypatch):
    splits = open_splits(trial, store)
    texts = list_bank_texts(trial, splits, store)
    monkeypatch.setattr(query_bank, "MAX_BANK_QUERIES", 7)
    other = replace(trial, seed=5, batch_size=3, train=trial.train[::-1])
    assert list_bank_texts(other, splits, store) == texts[:7]


def test_a_bank_without_captions_is_written_and_read(trial, tmp_path):
    network = dual_encoder.build(trial, ["a dog barks"])
    bank = embed_bank(network, trial, "0" * 16, [])
    write_embeddings(tmp_path / BANK_FILE, bank)
    assert read_embeddings(tmp_path / BANK_FILE).text_QD.shape == (0, trial.embedding_size)


@pytest.fixture
def trained_earlier(trial, store, tmp_path):
    """A finished trial without a bank, as earlier versions left it: its ledger, the run storage and the network."""
    runs, ledger = RunStorage.of(tmp_path / "runs"), create_ledger(tmp_path / "runs")
    signature = compute_signature(trial, str(store))
    network = dual_encoder.build(trial, ["a dog barks"])
    splits = open_splits(trial, store)
    bank = embed_bank(network, trial, signature, list_bank_texts(trial, splits, store))
    run_id = ledger.claim(trial, signature, None)
    log = RunLog(ledger.tracking_uri, run_id)
    store_model(runs, signature, trial, network, bank)
    log_artifacts(log, trial, signature, network, splits[trial.validation], splits[trial.test], bank)
    ledger.finish(run_id)
    ledger.start_sweep("earlier", [signature], {})
    (runs.folder / "models" / signature / BANK_FILE).unlink()
    path = next(runs.folder.glob(f"**/{run_id}/artifacts/embeddings/{BANK_FILE}"))
    path.unlink()
    return ledger, runs, network, bank


def test_a_trial_of_an_earlier_version_gets_its_bank(trained_earlier, trial, store, call_command):
    ledger, runs, network, expected = trained_earlier
    run = ledger.find_finished_trial(expected.signature)
    with pytest.raises(MissingArtifactError):
        ledger.load_embeddings(run, BANK_FILE)
    words = ("trainables/embed.py", "bank", "--runs", runs, "--sweep", "earlier", "--store", store)
    done = call_command(*words)
    assert done.returncode == 0, done.stderr
    assert "1 finished trials, 1 of them without a bank" in done.stderr
    stored = read_embeddings(runs.folder / "models" / expected.signature / BANK_FILE)
    for bank in (ledger.load_embeddings(run, BANK_FILE), stored):
        assert bank.queries == expected.queries
        assert (bank.signature, bank.split, bank.fingerprint) == (
            expected.signature,
            expected.split,
            expected.fingerprint,
        )
        np.testing.assert_array_equal(bank.text_QD, embed_text(network, trial, expected.queries))
    assert "0 of them without a bank" in call_command(*words).stderr


def test_a_bank_is_not_taken_from_another_store(trained_earlier, write_split, tmp_path, call_command):
    _, runs, *_ = trained_earlier
    for split in synthetic.read(None, 1, synthetic.Config(4, 4, 4, 5.0, 6.0)):
        write_split(tmp_path / "other", split, "pcm16")
    failed = call_command("trainables/embed.py", "bank", "--runs", runs, "--store", tmp_path / "other")
    assert failed.returncode == 2
    assert "isn't the split that" in failed.stderr
