"""Two tiny models, random as they are, an ensemble of them, and recordings."""

import json
import runpy

import numpy as np
import pytest
import soundfile

from data.splits import Splits
from ensemble.export import export_ensemble
from ensemble.serving import bundle
from trainables.networks import dual_encoder
from trainables.records import checkpoint
from trainables.records.run_storage import RunStorage

CAPTIONS = ["a low tone beats once", "a high tone beats twice", "a middle tone, again and again"]


def save(runs, trial, signature):
    """A model, random as it is."""
    network = dual_encoder.build(trial, CAPTIONS)
    checkpoint.save_model(runs / "models" / signature, trial, network, checkpoint.copy_weights(network))


@pytest.fixture(scope="session")
def save_model():
    return save


@pytest.fixture(scope="session")
def exported(ensemble, runs, tmp_path_factory):
    """The folder of the exported ensemble."""
    folder = tmp_path_factory.mktemp("ensemble") / "exported"
    export_ensemble(ensemble, folder, RunStorage.of(runs))
    return folder


@pytest.fixture(scope="session")
def models(exported):
    """The loaded ensemble."""
    return bundle.load_models(exported)


@pytest.fixture(scope="session")
def runs(space_file, tmp_path_factory):
    """A folder of runs with two models, random as they are, and the trials."""
    folder = tmp_path_factory.mktemp("runs")
    splits = Splits("folder/train", "folder/validation", "folder/test", ("folder/train",))
    found = runpy.run_path(str(space_file))["tiny"](splits, "float32")
    for number, trial in enumerate(found):
        save(folder, trial, f"{number:016x}")
    return folder


@pytest.fixture(scope="session")
def ensemble(runs):
    """An ensemble of the two, as select.py writes it."""
    signatures = sorted(path.name for path in (runs / "models").iterdir())
    members = [
        {"name": f"member {place}", "weight": weight, "signature": signature}
        for place, (signature, weight) in enumerate(zip(signatures, (0.75, 0.25), strict=True))
    ]
    path = runs / "ensemble.json"
    path.write_text(json.dumps({"format_version": 3, "members": members}))
    return path


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    """Recordings of other rates, lengths, channels and names, one of them torn, and what isn't audio."""
    folder = tmp_path_factory.mktemp("sounds")
    (folder / "below").mkdir()
    rng = np.random.default_rng(0)
    for name, rate_hz, seconds, channels in (
        ("dög, barking.wav", 44_100, 3.2, 1),
        ("below/rain.flac", 32_000, 1.0, 2),
        ("below/[wind].ogg", 48_000, 40.0, 1),
    ):
        soundfile.write(folder / name, rng.normal(0, 0.1, (int(rate_hz * seconds), channels)), rate_hz)
    whole = (folder / "dög, barking.wav").read_bytes()
    (folder / "torn.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no sound")
    return folder
