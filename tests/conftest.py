"""A small corpus of real audio files, prepared by the command, for the tests that run commands."""

import csv
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import ray
import soundfile

ROOT = Path(__file__).parents[1]
RATE_HZ = 32_000


def run(*words, cwd=ROOT, timeout=600, **environment):
    """Run a command of the project as a user would, with this Python."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def run_command():
    return run


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """A folder corpus: tones of different pitch and rhythm, with captions that say so."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    rows = []
    for split, count in (("train", 16), ("validation", 6), ("test", 6)):
        for index in range(count):
            pitch, beats = ["low", "middle", "high"][index % 3], 1 + index % 4
            time = np.arange(int(RATE_HZ * 2.5)) / RATE_HZ
            hz = {"low": 200, "middle": 800, "high": 3200}[pitch] * rng.uniform(0.9, 1.1)
            gate = (time * beats / 2.5) % 1 < 0.4
            samples = 0.3 * np.sin(2 * np.pi * hz * time) * gate + 0.01 * rng.normal(size=len(time))
            name = f"{split}-{index}.wav"
            soundfile.write(folder / name, samples, RATE_HZ)
            rows += [(name, f"A {pitch} tone sounds {beats} times, take {index}.", split)]
            rows += [(name, f"{beats} beeps of a {pitch} pitch", split)]
    with (folder / "captions.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("file_name", "caption", "split"), *rows])
    return folder


@pytest.fixture(scope="session")
def tone_store(tones, tmp_path_factory):
    """The tones in a store."""
    store = tmp_path_factory.mktemp("store")
    prepared = run("data/prepare.py", "folder", "--source", tones, "--store", store)
    assert prepared.returncode == 0, prepared.stderr
    return store


@pytest.fixture(scope="module")
def cluster():
    """A cluster that commands join by RAY_ADDRESS, which is quicker than one for each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield context.address_info["gcs_address"]
        ray.shutdown()


SPACE = """
from dataclasses import replace
from sweeps.spaces import fine_tuning, from_scratch
from trainables import encoders

def tiny(splits, precision):
    base = from_scratch(splits, "float32", "cnn:small", rate=1e-3, epochs=2)
    text = replace(base.text, width=32, layers=1, heads=2)
    audio = replace(base.audio, channels=(8, 16), convolutions=(1, 1), stem_channels=8, segment_s=1.0)
    base = replace(base, audio=audio, text=text, batch_size=8, embedding_size=16)
    return [replace(fine_tuning(splits, base, 0.3, epochs=2), seed=seed) for seed in (0, 1)]

def endless(splits, precision):
    base = tiny(splits, precision)[0].pretraining
    return [replace(base, schedule=replace(base.schedule, epochs=2000))]

def broken(splits, precision):
    return [replace(tiny(splits, precision)[0], temperature=-1.0)]
"""


@pytest.fixture(scope="session")
def space_file(tmp_path_factory):
    """Spaces of a user's own: the smallest trials that are real."""
    path = tmp_path_factory.mktemp("spaces") / "own.py"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="session")
def swept(tone_store, space_file, tmp_path_factory):
    """A finished sweep: the folder of runs, and what the command printed."""
    runs = tmp_path_factory.mktemp("runs")
    done = run(
        "sweeps/grid.py", "--space", f"{space_file}:tiny", "--corpus", "folder",
        "--store", tone_store, "--runs", runs, "--name", "first",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return runs, done
