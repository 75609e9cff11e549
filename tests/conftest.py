"""A small corpus of real audio files, prepared by the command, for the tests that run commands."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow.fs
import pytest
import ray
import requests
import soundfile

ROOT = Path(__file__).parents[1]
RATE_HZ = 32_000

hypothesis.settings.register_profile("any time", deadline=None)
hypothesis.settings.load_profile("any time")

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAKEY",
    "AWS_SECRET_ACCESS_KEY": "SECRETWORD",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class ObjectStore:
    """moto's S3 server, with an empty bucket `bucket`."""

    def __init__(self, log):
        self.log = log
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=out)
        while not (running := re.search(r"Running on (http://\S+:\d+)", log.read_text())):
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        self.endpoint = running[1]

    def uri(self, path, keys=""):
        return f"s3://{keys}{path}?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def requests(self, pattern):
        """The paths of the requests made so far, of the methods that match."""
        return re.findall(rf"(?:{pattern}) /([^\s?]+)\S* HTTP", self.log.read_text())


def start(log):
    """An object store, and Arrow's way to it with keys that may do anything."""
    server = ObjectStore(log)
    address = server.endpoint.removeprefix("http://")
    filesystem = pyarrow.fs.S3FileSystem(
        access_key="k", secret_key="s", endpoint_override=address, scheme="http", allow_bucket_creation=True,
        allow_delayed_open=True,
    )  # fmt: skip
    filesystem.create_dir("bucket")
    return server, filesystem


@pytest.fixture(scope="session")
def start_object_store():
    return start


@pytest.fixture
def object_store_keys(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def one_object_store(tmp_path_factory):
    server, _ = start(tmp_path_factory.mktemp("object_store") / "log")
    yield server
    server.process.terminate()
    server.process.wait()


@pytest.fixture
def object_store(one_object_store, object_store_keys):
    """An object store for the tests of a session, and its keys in the environment."""
    return one_object_store


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


@pytest.fixture
def mlflow_server(tmp_path):
    """A function that starts an MLflow server at an address that stays the same, and one that ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri, running = f"http://127.0.0.1:{port}", []
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "kept"),
    ]

    def answers():
        try:
            return requests.get(f"{uri}/health", timeout=2).ok
        except requests.RequestException:
            return False

    def start():
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "100",  # as in cluster.yaml
        }
        running.append(
            subprocess.Popen(
                [*words, *places],
                env=environment,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        while not answers():
            assert running[-1].poll() is None
            time.sleep(0.1)
        return uri

    def stop():
        os.killpg(running[-1].pid, signal.SIGKILL)
        running.pop().wait()

    yield start, stop
    if running:
        stop()


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

def patient(splits, precision):
    pretraining = endless(splits, precision)[0]
    pretraining = replace(pretraining, schedule=replace(pretraining.schedule, epochs=6))
    return [fine_tuning(splits, pretraining, 0.3, epochs=2)]

def hopeless(splits, precision):
    base = tiny(splits, precision)[0].pretraining
    good = fine_tuning(splits, base, 0.3, epochs=8, warmup_epochs=0.0)
    return [good, replace(good, schedule=replace(good.schedule, peak_rate=1.0))]

def twice(splits, precision):
    one, two = tiny(splits, precision)
    return [one, two, one]

def unbuildable(splits, precision):
    one = tiny(splits, precision)[0].pretraining
    return [replace(one, text=encoders.family("text", "huggingface").Config("/no/such/folder"))]

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
        "--store", tone_store, "--runs", runs, "--name", "first", "--keep-epochs",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return runs, done
