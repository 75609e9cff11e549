"""Model soups, and models after an earlier epoch than the best: their configs, signatures and weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from data.errors import UserError
from trainables import retrieval
from trainables.execution.resources import Allocation
from trainables.execution.session import RunContext, TrainingJob, train_in_process
from trainables.records import lease as leases
from trainables.records.embeddings import VALIDATION_FILE
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.run_storage import RunStorage
from trainables.schedule import Schedule
from trainables.signature import compute_signature, find_relations, read_fingerprints, sign
from trainables.training.averaging import compute_mean
from trainables.trial import MODEL_FILE, from_json, load_trial, make_soup, to_json


@pytest.fixture
def siblings(fine_tuning):
    """Three fine-tunings of one pretraining."""
    return [replace(fine_tuning, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A function that trains a trial after those that it requires, and returns its signature; their place; the
    ledger.
    """
    folder = tmp_path_factory.mktemp("soup")
    runs, ledger = RunStorage.of(folder), create_ledger(folder)

    def train(trial):
        fingerprints = read_fingerprints([trial], str(store))
        signature, relations = sign(trial, fingerprints), find_relations(trial, fingerprints)
        if ledger.find_finished_trial(signature):
            return signature
        for required in trial.average_of or filter(None, [trial.pretraining]):
            train(required)
        lease = leases.acquire(runs, signature)
        run_id = ledger.claim(trial, signature, None, relations)
        site = RunContext(str(store), runs, ledger.tracking_uri)
        train_in_process(TrainingJob(trial, lease, run_id, site, Allocation(), relations=relations), lambda _: None)
        ledger.finish(run_id)
        return signature

    return train, runs, ledger


def read_weights(runs, signature):
    return load_file(runs.folder / "models" / signature / MODEL_FILE)


def test_a_soup_is_the_same_in_any_order_and_survives_json(siblings, store):
    soup = make_soup(siblings)
    assert make_soup(reversed(siblings)) == soup
    assert from_json(json.loads(json.dumps(to_json(soup)))) == soup
    signature = compute_signature(soup, str(store))
    assert compute_signature(replace(soup, average_of=soup.average_of[::-1]), str(store)) == signature
    assert compute_signature(make_soup(siblings[:2]), str(store)) != signature


def test_a_soup_of_students_has_no_teachers_of_its_own(siblings, make_student):
    students = [make_student(sibling) for sibling in siblings]
    assert make_soup(students).teachers == ()
    assert make_soup(students).average_of[0].teachers


@pytest.fixture
def make_student(trial):
    from trainables.trial import Teacher

    return lambda sibling: replace(sibling, teachers=(Teacher(trial),), teacher_temperature=0.02, hard_share=0.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda one, trial: [one], "at least two trials"),
        (lambda one, trial: [one, one], "at least two trials"),
        (lambda one, trial: [trial, replace(trial, seed=5)], "fine-tunings of one pretraining"),
        (lambda one, trial: [one, replace(one, pretraining=replace(trial, seed=5))], "differ in pretraining"),
        (lambda one, trial: [one, replace(one, train=(*one.train, "other/split"))], "differ in train"),
        (lambda one, trial: [one, replace(one, seed=1, final_epoch=1)], "is trained on all splits"),
    ],
)
def test_models_without_a_common_origin_make_no_soup(siblings, trial, build, message):
    with pytest.raises(UserError, match=message):
        make_soup(build(siblings[0], trial))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"snapshot_epoch": 0}, "snapshot_epoch is 0: it must be from 1"),
        ({"snapshot_epoch": 99}, "snapshot_epoch is 99"),
        ({"snapshot_epoch": 1, "final_epoch": 1}, "both say when training ends"),
    ],
)
def test_epochs_that_a_schedule_does_not_have_are_refused(trial, settings, message):
    with pytest.raises(UserError, match=message):
        replace(trial, **settings)


def test_the_weights_of_a_soup_are_the_mean_and_it_is_evaluated_stored_and_logged_like_a_training(
    trained, siblings, store
):
    train, runs, ledger = trained
    soup = make_soup(siblings)
    signature = train(soup)
    parts = [read_weights(runs, train(sibling)) for sibling in siblings]
    weights = read_weights(runs, signature)
    assert weights.keys() == parts[0].keys()
    for name, tensor in weights.items():
        np.testing.assert_allclose(tensor, np.mean([part[name] for part in parts], axis=0), rtol=1e-6, atol=1e-9)
    assert any((weights[name] != parts[0][name]).any() for name in weights)
    assert load_trial(runs.folder / "models" / signature) == soup

    run = ledger.find_finished_trial(signature)
    assert run.relations.average_of == tuple(sorted(train(sibling) for sibling in siblings))
    assert set(run.settings["average_of"].split(", ")) == {sibling.name for sibling in siblings}
    embeddings = ledger.load_embeddings(run, VALIDATION_FILE)
    relevant = retrieval.build_relevance(embeddings.relevant_clip_ids, embeddings.clip_ids)
    metrics = retrieval.compute_metrics(embeddings.compute_scores(), relevant, ["map10"])
    assert ledger.load_best_metrics(run)["map10"] == pytest.approx(metrics["map10"])
    assert [run.signature for run in ledger.find_related("average_of", train(siblings[0]))] == [signature]


def test_a_part_without_a_model_is_named(trained, siblings, store, tmp_path):
    soup = make_soup(siblings)
    fingerprints = read_fingerprints([soup], str(store))
    runs, ledger = RunStorage.of(tmp_path), create_ledger(tmp_path)
    lease = leases.acquire(runs, sign(soup, fingerprints))
    site = RunContext(str(store), runs, ledger.tracking_uri)
    relations = find_relations(soup, fingerprints)
    job = TrainingJob(soup, lease, ledger.claim(soup, lease.signature, None), site, Allocation(), relations=relations)
    with pytest.raises(UserError, match=f"the model of {relations.average_of[0]} isn't in"):
        train_in_process(job, lambda _: None)


def test_the_mean_of_numbers_and_counters():
    models = [{"weight": torch.tensor([1.0, 3.0]), "count": torch.tensor(4)},
              {"weight": torch.tensor([2.0, 5.0]), "count": torch.tensor(9)}]  # fmt: skip
    mean = compute_mean(iter(models))
    assert mean["weight"].tolist() == [1.5, 4.0]
    assert mean["weight"].dtype == torch.float32
    assert mean["count"] == 4
    assert models[0]["weight"].tolist() == [1.0, 3.0]


def test_a_snapshot_is_the_model_after_its_epoch_whichever_was_the_best(trained, trial, store):
    """Three epochs of which each is trained as the last, with the rates of the whole schedule: a training from the
    checkpoint of the second ends with the bits of the third.
    """
    train, runs, ledger = trained
    whole = replace(trial, schedule=Schedule(1e-3, 1e-3, epochs=3, warmup_epochs=0, final_epochs=0))
    snapshots = [replace(whole, snapshot_epoch=epoch) for epoch in (1, 2, 3)]
    signatures = [train(snapshot) for snapshot in snapshots]
    best = int(ledger.load_best_metrics(ledger.find_finished_trial(train(whole)))["epoch"])
    by_epoch = [read_weights(runs, signature) for signature in signatures]
    whole_weights = read_weights(runs, train(whole))
    assert all((whole_weights[name] == by_epoch[best - 1][name]).all() for name in whole_weights)
    for epoch, signature in enumerate(signatures, start=1):
        run = ledger.find_finished_trial(signature)
        assert ledger.load_best_metrics(run)["epoch"] == epoch
        assert run.relations.snapshot_of == train(whole)
    assert any((by_epoch[0][name] != by_epoch[2][name]).any() for name in whole_weights)
    assert {run.signature for run in ledger.find_related("snapshot_of", train(whole))} == set(signatures)

    soup = make_soup(snapshots[1:])
    weights = read_weights(runs, train(soup))
    name = "audio_projection.weight"
    np.testing.assert_allclose(weights[name], (by_epoch[1][name] + by_epoch[2][name]) / 2, rtol=1e-6, atol=1e-9)
