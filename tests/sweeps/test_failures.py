"""Failures that a sweep survives: each ends with the trials and, to the last bit, the models of an undisturbed one.

What is lost of a training is what it did since its last checkpoint, here the last step. The sweeps are processes, since
only these can be killed and show what is left of them. Those that take longest are marked slow.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from trainables.records import lease as leases
from trainables.records.checkpoint import MODEL_FILE
from trainables.records.mlflow_ledger import open_ledger
from trainables.records.run_storage import RunStorage

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
EACH = ("--cpus-per-worker", "0.9", "--checkpoint-every-s", "0")
"""Of every sweep: there is room for the trials of two, and a checkpoint after each step."""

TRAINED = ("map10", "train_loss", "validation_loss", "best_epoch")


@pytest.fixture(scope="module")
def nodes():
    """A cluster whose nodes can be lost, which the test run's own can't: two CPUs on a node that isn't the head."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    made.worker = made.add_node(num_cpus=2)
    yield made
    made.shutdown()


@pytest.fixture
def sweep(cluster, space_file, tone_store):
    """A function that starts a sweep in a process group of its own."""
    started = []

    def start(runs, *more, name="sweep", space="patient", address=cluster):
        words = ["--space", f"{space_file}:{space}", "--corpus", "folder", "--store", tone_store, "--runs", runs]
        process = subprocess.Popen(
            [sys.executable, "sweeps/grid.py", *map(str, words), "--name", name, *EACH, *more],
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": address},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def ended(process):
    """What a sweep printed, once it has come to a good end."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


def underway(process, runs, seconds=600):
    """Wait until a sweep has a checkpoint that somebody would go on from."""
    for _ in range(seconds * 10):
        if committed(runs):
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError("no checkpoint")


def committed(runs):
    """Checkpoints that somebody would go on from."""
    return list(runs.glob("trials/*/committed"))


WORKER, DRIVER = "RayTrainWorker", "ray::ImplicitFunc"


def results(runs, tracking_uri=None):
    """Of each trial, by signature, what it logged under each epoch and its model."""
    ledger = open_ledger(runs, tracking_uri)
    found = {}
    for run in ledger.iter_trials():
        signature = run.signature
        assert signature not in found, "a trial has two runs"
        assert run.status == "FINISHED"
        logged = {
            name: {entry.step: entry.value for entry in ledger.client.get_metric_history(run.run_id, name)}
            for name in TRAINED
        }
        found[signature] = logged, load_file(runs / "models" / signature / MODEL_FILE)
    return found


def assert_same(runs, expected, tracking_uri=None):
    got = results(runs, tracking_uri)
    assert got.keys() == expected.keys()
    for signature, (logged, model) in expected.items():
        assert got[signature][0] == logged
        assert all((got[signature][1][name] == tensor).all() for name, tensor in model.items())


@pytest.fixture(scope="module")
def undisturbed(cluster, space_file, tone_store, call_command, tmp_path_factory):
    """What a sweep comes to that nothing happens to."""
    runs = tmp_path_factory.mktemp("undisturbed")
    done = call_command(
        "sweeps/grid.py", "--space", f"{space_file}:patient", "--corpus", "folder", "--store", tone_store,
        "--runs", runs, "--name", "sweep", *EACH,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(runs)
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def undisturbed_pretraining(undisturbed):
    """The same of its pretraining, which the space `lasting` has alone."""
    return {signature: found for signature, found in undisturbed.items() if max(found[0]["map10"]) == 6}


def test_a_lost_process_of_a_trial_is_replaced(ray_processes, sweep, undisturbed_pretraining, tmp_path):
    """The one that trains it."""
    process = sweep(tmp_path, space="lasting")
    underway(process, tmp_path)
    ray_processes(DRIVER)[0].kill()
    ended(process)
    assert_same(tmp_path, undisturbed_pretraining)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [WORKER, DRIVER])
def test_a_lost_process_of_a_trial_on_two_workers_is_replaced(lost, ray_processes, sweep, tmp_path):
    """Through Ray Train, compared with a sweep on two workers. Slow: tests/trainables/test_pretrain.py has the like."""
    words = ("--workers", "2", "--cpus-per-worker", "0.45")
    ended(sweep(tmp_path / "whole", *words, space="lasting"))
    process = sweep(tmp_path / "runs", *words, space="lasting")
    underway(process, tmp_path / "runs")
    ray_processes(lost)[0].kill()
    ended(process)
    assert_same(tmp_path / "runs", results(tmp_path / "whole"))


def test_a_sweep_whose_driver_was_killed_goes_on_by_its_command_under_any_name(sweep, undisturbed, tmp_path):
    process = sweep(tmp_path)
    underway(process, tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    ended(sweep(tmp_path, name="another"))
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_lost_node_is_made_up_for_by_another(sweep, nodes, undisturbed_pretraining, tmp_path):
    process = sweep(tmp_path, space="lasting", address=nodes.address)
    underway(process, tmp_path)
    nodes.remove_node(nodes.worker, allow_graceful=False)
    nodes.worker = nodes.add_node(num_cpus=2)
    ended(process)
    assert_same(tmp_path, undisturbed_pretraining)


@pytest.mark.slow
def test_a_tracking_server_that_is_away_for_a_while_misses_nothing(
    sweep, mlflow_server, undisturbed_pretraining, tmp_path
):
    """The whole sweep; tests/trainables/records/test_mlflow_log.py has the same of what one training tells."""
    start, stop = mlflow_server
    uri = start()
    process = sweep(tmp_path / "runs", "--tracking-uri", uri, space="lasting")
    underway(process, tmp_path / "runs")
    stop()
    time.sleep(10)
    assert process.poll() is None
    start()
    ended(process)
    assert_same(tmp_path / "runs", undisturbed_pretraining, uri)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, which can be filled."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system can't be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.slow
def test_storage_that_is_full_for_a_while_loses_nothing(sweep, undisturbed, small_disk):
    runs = small_disk / "runs"
    process = sweep(runs)
    underway(process, runs)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**10, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    time.sleep(10)
    assert process.poll() is None
    filler.unlink()
    ended(process)
    assert_same(runs, undisturbed)


@pytest.mark.slow
def test_of_two_sweeps_at_once_one_runs_each_trial(sweep, undisturbed, tmp_path):
    """By their commands. Slow: tests/trainables/records/test_lease.py has processes that want one trial."""
    both = [sweep(tmp_path, name="one"), sweep(tmp_path, name="two")]
    for process in both:
        ended(process)
    assert_same(tmp_path, undisturbed)
    ledger = open_ledger(tmp_path)
    for run in ledger.iter_trials():
        logged = ledger.client.get_metric_history(run.run_id, "map10")
        assert [entry.step for entry in logged] == list(range(1, int(run.settings["schedule.epochs"]) + 1))


@pytest.mark.slow
def test_a_driver_that_hangs_past_its_lease_finds_its_trial_finished_by_another(
    ray_processes, sweep, undisturbed, tmp_path
):
    hanging = sweep(tmp_path, name="hanging")
    underway(hanging, tmp_path)
    (driver,) = ray_processes(DRIVER)
    driver.suspend()
    signature = committed(tmp_path)[0].parent.name.rpartition("-")[0]
    ended(sweep(tmp_path, name="waiting"))
    assert leases.find_newest_number(RunStorage.of(tmp_path), signature) == 2
    driver.resume()
    ended(hanging)
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_what_asha_stops_is_not_finished_and_goes_on_without_it(sweep, nodes, tmp_path):
    """On the cluster with Ray's dashboard, by which the place of a stopped trial is given back."""
    words = ("--max-concurrent", "1")
    printed, _ = (
        process := sweep(tmp_path, *words, "--scheduler", "asha", space="hopeless", address=nodes.address)
    ).communicate(timeout=600)
    assert process.returncode == 1, printed
    ledger = open_ledger(tmp_path)
    status = {run.name: run.status for run in ledger.iter_trials()}
    assert sorted(status.values()) == ["FINISHED", "FINISHED", "KILLED"], printed
    (stopped,) = [run for run in ledger.iter_trials() if run.status == "KILLED"]
    assert stopped.settings["schedule.peak_rate"] == "1.0"
    epochs = max(entry.step for entry in ledger.client.get_metric_history(stopped.run_id, "map10"))
    ended(sweep(tmp_path, *words, space="hopeless", address=nodes.address))
    again = ledger.client.get_run(stopped.run_id)
    assert again.info.status == "FINISHED"
    steps = [entry.step for entry in ledger.client.get_metric_history(stopped.run_id, "map10")]
    assert steps[-1] == int(again.data.params["schedule.epochs"])
    assert epochs < steps[-1]
