"""A sweep of tiny trials that are really trained in this process, a slow average of their models, and an ensemble of
models that are random as they are.
"""

import json
import runpy
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from data.splits import Splits
from data.store.stored_split import open_split
from ensemble.export import export_ensemble
from ensemble.serving import bundle
from sweeps.spaces import fine_tuning, from_scratch
from trainables.execution.resources import Allocation
from trainables.execution.session import RunContext, TrainingJob, train_in_process
from trainables.networks import dual_encoder
from trainables.records import checkpoint
from trainables.records import lease as leases
from trainables.records.checkpoint import load_model
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.run_storage import RunStorage
from trainables.schedule import Schedule
from trainables.signature import find_relations, read_fingerprints, sign
from trainables.training.embedding import embed_split
from trainables.training.query_bank import embed_bank, list_bank_texts
from trainables.trial import MODEL_FILE, list_requirements, load_trial

CAPTIONS = ["a low tone beats once", "a high tone beats twice", "a middle tone, again and again"]
SPLITS = Splits("folder/train", "folder/validation", "folder/test", ("folder/train",))
RATES = (3e-3, 1e-3, 1e-2, 3e-4, 2e-2)


def make_siblings():
    """Five fine-tunings of one pretraining, at different rates.

    Their encoders' pooling is the plain one: these models are poor enough that averages of several are kept as soups.
    """
    base = from_scratch(SPLITS, "float32", "cnn:small", rate=1e-3, epochs=2)
    text = replace(base.text, width=32, layers=1, heads=2, pooling="first")
    audio = replace(base.audio, channels=(8, 16), convolutions=(1, 1), stem_channels=8, segment_s=1.0, final_norm=False)
    one = fine_tuning(SPLITS, replace(base, audio=audio, text=text, batch_size=8, embedding_size=16), 0.3, epochs=2)
    schedules = [Schedule(rate, rate / 10, epochs=2, warmup_epochs=0, final_epochs=1) for rate in RATES]
    return [replace(one, seed=seed, schedule=schedule) for seed, schedule in enumerate(schedules)]


@pytest.fixture(scope="session")
def siblings():
    return make_siblings()


@pytest.fixture(scope="session")
def train_trial(tone_store):
    """A function that trains a trial after those that it requires, as a sweep does, and returns its signature."""

    def train(trial, folder, keep_epochs=False):
        runs, ledger = RunStorage.of(folder), create_ledger(folder)
        fingerprints = read_fingerprints([trial], str(tone_store))
        signature, relations = sign(trial, fingerprints), find_relations(trial, fingerprints)
        if ledger.find_finished_trial(signature):
            return signature
        for required in list_requirements(trial):
            train(required, folder)
        site = RunContext(str(tone_store), runs, ledger.tracking_uri, keep_epochs=keep_epochs)
        lease = leases.acquire(runs, signature)
        run_id = ledger.claim(trial, signature, None, relations)
        train_in_process(TrainingJob(trial, lease, run_id, site, Allocation(), relations=relations), lambda _: None)
        leases.release(runs, lease)
        ledger.finish(run_id)
        return signature

    return train


@pytest.fixture(scope="session")
def trained_siblings(siblings, train_trial, tone_store, tmp_path_factory):
    """The folder of runs of the sweep 'tiny', and the signatures of the siblings. Tests only read it."""
    folder = tmp_path_factory.mktemp("siblings") / "runs"
    signatures = [train_trial(trial, folder) for trial in siblings]
    pretraining = train_trial(siblings[0].pretraining, folder)
    create_ledger(folder).start_sweep("tiny", [pretraining, *signatures], {"store": str(tone_store), "trials": {}})
    return folder, signatures


@pytest.fixture(scope="module")
def sibling_runs(trained_siblings, copy_runs, tmp_path_factory):
    """A copy of the sweep's folder for the tests of a module, which may add to it; and the signatures."""
    folder, signatures = trained_siblings
    return copy_runs(folder, tmp_path_factory.mktemp("own") / "runs"), signatures


@pytest.fixture
def fresh_runs(trained_siblings, copy_runs, tmp_path):
    """A copy of the sweep's folder for one test, and the signatures."""
    folder, signatures = trained_siblings
    yield copy_runs(folder, tmp_path / "runs"), signatures
    shutil.rmtree(tmp_path / "runs")


class SlowAverage:
    """The mean of some models' weights, tensor by tensor, as a model that embeds."""

    def __init__(self, runs, store, signatures):
        folders = [runs / "models" / signature for signature in signatures]
        self.trial, self.store = load_trial(folders[0]), store
        self.model = load_model(folders[0])
        weights = [load_file(folder / MODEL_FILE) for folder in folders]
        mean = {name: torch.stack([one[name].double() for one in weights]).mean(0).to(weights[0][name].dtype)
                for name in weights[0]}  # fmt: skip
        self.model.load_state_dict(self.model.convert_temperature(mean))

    def embed(self, role):
        return embed_split(self.model, self.trial, "", open_split(self.store, getattr(self.trial, role)))

    def embed_bank(self):
        names = {*self.trial.train, self.trial.validation, self.trial.test}
        texts = list_bank_texts(self.trial, {name: open_split(self.store, name) for name in names}, self.store)
        return embed_bank(self.model, self.trial, "", texts)


@pytest.fixture(scope="session")
def slow_average():
    return SlowAverage


def save(runs, trial, signature):
    """A model, random as it is."""
    network = dual_encoder.build(trial, CAPTIONS)
    checkpoint.save_model(runs / "models" / signature, trial, network, checkpoint.copy_weights(network))


@pytest.fixture(scope="session")
def save_model():
    return save


@pytest.fixture(scope="session")
def exported(untrained_ensemble, untrained_runs, tmp_path_factory):
    """The folder of the exported ensemble."""
    folder = tmp_path_factory.mktemp("ensemble") / "exported"
    export_ensemble(untrained_ensemble, folder, RunStorage.of(untrained_runs))
    return folder


@pytest.fixture(scope="session")
def models(exported):
    """The loaded ensemble."""
    return bundle.load_models(exported)


@pytest.fixture(scope="session")
def untrained_runs(space_file, tmp_path_factory):
    """A folder of runs with two models, random as they are, and the trials."""
    folder = tmp_path_factory.mktemp("runs")
    splits = Splits("folder/train", "folder/validation", "folder/test", ("folder/train",))
    found = runpy.run_path(str(space_file))["tiny"](splits, "float32")
    for number, trial in enumerate(found):
        save(folder, trial, f"{number:016x}")
    return folder


@pytest.fixture(scope="session")
def untrained_ensemble(untrained_runs):
    """An ensemble of the two, as select.py writes it."""
    signatures = sorted(path.name for path in (untrained_runs / "models").iterdir())
    members = [
        {"name": f"member {place}", "weight": weight, "signature": signature}
        for place, (signature, weight) in enumerate(zip(signatures, (0.75, 0.25), strict=True))
    ]
    path = untrained_runs / "ensemble.json"
    path.write_text(json.dumps({"format_version": 3, "members": members}))
    return path
