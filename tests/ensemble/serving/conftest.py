"""The untrained ensemble by short names, and recordings."""

import shutil

import numpy as np
import pytest
import soundfile

from ensemble.serving.library import Library


@pytest.fixture(scope="session")
def runs(untrained_runs):
    return untrained_runs


@pytest.fixture(scope="session")
def ensemble(untrained_ensemble):
    return untrained_ensemble


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


@pytest.fixture
def library(models, tmp_path):
    return Library(tmp_path / "index", models)


@pytest.fixture
def audio(sounds, tmp_path):
    """A copy of the recordings without the torn one."""
    shutil.copytree(sounds, tmp_path / "audio")
    (tmp_path / "audio" / "torn.wav").unlink()
    return tmp_path / "audio"
