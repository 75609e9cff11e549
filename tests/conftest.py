"""What tests share: ways to run commands, one Ray cluster, a small corpus of real audio files, and a finished sweep.

Heavy packages are imported where they are used, so that tests are collected quickly.
"""

import contextlib
import csv
import dataclasses
import gc
import importlib
import io
import json
import os
import re
import runpy
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import filelock
import hypothesis
import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[1]
RATE_HZ = 32_000

# The same examples in every run, so that a run fails where the code was changed; more of them, and others in each run,
# with HYPOTHESIS_PROFILE=all.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("all", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="module")
def pass_over_earlier_objects():
    """Collections of garbage, which every training in this process makes, pass over what exists before the module: in a
    process that has imported everything and run for long, each would take seconds.
    """
    gc.collect()
    gc.freeze()


LEFT_OUT = pytest.StashKey[list[str]]()
CLUSTER_TESTS = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_addoption(parser):
    group = parser.getgroup("contract of encoders")
    group.addoption("--encoder", metavar="FILE", help="encoder that test_contract.py checks: its file (default: all)")
    group.addoption("--weights", metavar="DIR", help="published weights of that encoder")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Run files and tests that are named in this process, and folders of them in two to four."""
    named = all(".py" in word for word in config.args)
    return 0 if named else max(2, min(4, os.cpu_count() or 1))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Tell a process of pytest-xdist where to list the tests that use the cluster."""
    if CLUSTER_TESTS not in node.config.stash:
        node.config.stash[CLUSTER_TESTS] = tempfile.TemporaryDirectory()
        node.config.add_cleanup(node.config.stash[CLUSTER_TESTS].cleanup)
    node.workerinput["cluster_tests"] = f"{node.config.stash[CLUSTER_TESTS].name}/{node.gateway.id}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give all tests that use the cluster to one process, and the others file by file, for the fixtures of files.

    (Marks of `xdist_group` would say so, but pytest-xdist 3.8 doesn't see them with pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            if not hasattr(self, "on_cluster"):  # by now, every process has collected
                lists = Path(config.stash[CLUSTER_TESTS].name).iterdir()
                self.on_cluster = {line for path in lists for line in path.read_text().splitlines()}
            return "cluster" if nodeid in self.on_cluster else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Scheduler(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark what uses the cluster, and leave slow tests out that aren't asked for."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")
    asked_for = "slow" in config.option.markexpr or any("::" in word for word in config.args)
    left_out = [] if asked_for else [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = [item.nodeid for item in left_out]
    if hasattr(config, "workerinput"):
        # What takes longest begins at once, first the sweep that other tests wait for.
        items.sort(key=lambda item: 2 if not item.get_closest_marker("cluster") else "swept" not in item.fixturenames)
        on_cluster = [item.nodeid for item in items if item.get_closest_marker("cluster")]
        Path(config.workerinput["cluster_tests"]).write_text("\n".join(on_cluster))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take over what a process of pytest-xdist left out: each of them collects the same tests."""
    if left_out := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[LEFT_OUT] = left_out


def pytest_sessionfinish(session):
    """Tell the first process what this one left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, [])


def pytest_terminal_summary(terminalreporter, config):
    """Name the slow tests that were left out, and how to run them."""
    if left_out := config.stash.get(LEFT_OUT, []):
        terminalreporter.section(f"{len(left_out)} slow tests were left out")
        for nodeid in left_out:
            terminalreporter.line(nodeid)
        terminalreporter.line("To run them: python -m pytest -m slow")


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

    def uri(self, path):
        return f"s3://{path}?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def requests(self, pattern):
        """The paths of the requests made so far, of the methods that match."""
        return re.findall(rf"(?:{pattern}) /([^\s?]+)\S* HTTP", self.log.read_text())


def start(log):
    """An object store, and Arrow's way to it with keys that may do anything."""
    from pyarrow.fs import S3FileSystem

    server = ObjectStore(log)
    address = server.endpoint.removeprefix("http://")
    filesystem = S3FileSystem(
        access_key="k", secret_key="s", endpoint_override=address, scheme="http", allow_bucket_creation=True,
        allow_delayed_open=True,
    )  # fmt: skip
    filesystem.create_dir("bucket")
    return server, filesystem


@pytest.fixture(scope="session")
def start_object_store():
    return start


@pytest.fixture
def object_store_keys(monkeypatch, tmp_path):
    """The keys of the object store in the environment, and a folder of state that isn't the user's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
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
    """A function that runs a command in a process of its own, which takes seconds."""
    return run


@dataclasses.dataclass
class Called:
    """What became of a command that ran in this process."""

    returncode: int
    stdout: str
    stderr: str


def call(command, *words):
    """Run a command of the project in this process, by its `main`, with the warnings that a user would see."""
    module = importlib.import_module(command.removesuffix(".py").replace("/", "."))
    before, folder, out, err = dict(os.environ), Path.cwd(), io.StringIO(), io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            warnings.simplefilter("ignore")
            status = module.main([str(word) for word in words])
    finally:
        os.chdir(folder)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
    if status == 130:  # the command has answered Ctrl-C, which was meant for the test run
        raise KeyboardInterrupt
    return Called(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def call_command():
    """A function that runs a command in this process: nothing is started or imported anew."""
    return call


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
    prepared = call("data/prepare.py", "folder", "--source", tones, "--store", store)
    assert prepared.returncode == 0, prepared.stderr
    return store


@pytest.fixture(scope="session")
def cluster():
    """The cluster of the test run: this process is connected to it, others join it by RAY_ADDRESS.

    Its workers have keys for `object_store`, as a real cluster's nodes have.
    """
    import ray

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for name, value in KEYS.items():
            patch.setenv(name, value)
        # Else Ray warns everyone who is connected that many workers have been started, as so many commands share it.
        patch.setenv("RAY_worker_maximum_startup_concurrency", "8")
        context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_processes():
    """A function that finds processes of this run's clusters by a part of their command lines."""
    import psutil

    def find(title):
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    return find


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory):
    """A function that starts an MLflow server, or finds it running, at an address that stays; and one that ends it."""
    import requests

    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri, running = f"http://127.0.0.1:{port}", []
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "kept"),
    ]

    def answers():
        try:
            return requests.get(f"{uri}/health", timeout=2).ok
        except requests.RequestException:
            return False

    def start():
        if running:
            return uri
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

def pair(splits, precision):
    return tiny(splits, precision)[:1]

def endless(splits, precision):
    base = tiny(splits, precision)[0].pretraining
    return [replace(base, schedule=replace(base.schedule, epochs=2000))]

def patient(splits, precision):
    pretraining = endless(splits, precision)[0]
    pretraining = replace(pretraining, schedule=replace(pretraining.schedule, epochs=6))
    return [fine_tuning(splits, pretraining, 0.3, epochs=2)]

def lasting(splits, precision):
    return [patient(splits, precision)[0].pretraining]

def hopeless(splits, precision):
    base = tiny(splits, precision)[0].pretraining
    good = fine_tuning(splits, base, 0.3, epochs=8, warmup_epochs=0.0)
    return [good, replace(good, schedule=replace(good.schedule, peak_rate=1.0))]

def twice(splits, precision):
    one, two = tiny(splits, precision)
    return [one, two, one]

def cyclic(splits, precision):
    base = tiny(splits, precision)[0].pretraining
    cycles = replace(base.schedule, epochs=4, warmup_epochs=0.5, final_epochs=0.5, cycles=2)
    return [fine_tuning(splits, replace(base, schedule=cycles), 0.3, epochs=2)]

def unbuildable(splits, precision):
    one = tiny(splits, precision)[0].pretraining
    return [replace(one, text=encoders.load_family("text", "huggingface").Config("/no/such/folder"))]

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
def swept(request, tone_store, space_file, tmp_path_factory):
    """A finished sweep, made by the command in a process of its own: the folder of runs, and what was printed.

    Tests share it and only read it; `own_runs` is for those that change it. It is made once a test run, by the first
    process of pytest-xdist that needs it: that is the one with the cluster, whose tests come first.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "swept"
    folder.mkdir(exist_ok=True)
    runs, printed = folder / "runs", folder / "printed.json"
    with filelock.FileLock(folder / "lock"):
        if not printed.exists():
            done = run(
                "sweeps/grid.py", "--space", f"{space_file}:tiny", "--corpus", "folder", "--store", tone_store,
                "--runs", runs, "--name", "first", "--keep-epochs", RAY_ADDRESS=request.getfixturevalue("cluster"),
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            printed.write_text(json.dumps(dataclasses.asdict(Called(done.returncode, done.stdout, done.stderr))))
    return runs, Called(**json.loads(printed.read_text()))


@pytest.fixture(scope="session")
def make_memory_ledger():
    """A function that makes a ledger in memory, whose files lie in a folder."""
    return runpy.run_path(str(ROOT / "tests" / "memory_ledger.py"))["MemoryLedger"]


def copy_of_runs(runs, to):
    """Copy a folder of runs, whose ledger then says that its artifacts are in the copy."""
    shutil.copytree(runs, to)
    before, after = runs.as_uri(), to.as_uri()
    database = to / "mlflow.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, after))
    return to


@pytest.fixture(scope="session")
def copy_runs():
    """A function that copies a folder of runs."""
    return copy_of_runs


@pytest.fixture(scope="module")
def own_runs(swept, tmp_path_factory):
    """A copy of the finished sweep for the tests of a module, which may add to it."""
    return copy_of_runs(swept[0], tmp_path_factory.mktemp("own") / "runs")
