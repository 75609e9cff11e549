"""The sweep as a user runs it: real commands, real Ray, real MLflow."""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data.schema import FORMAT_VERSION
from trainables import trial as trials
from trainables.records.mlflow_ledger import open_ledger
from trainables.records.run_storage import RunStorage

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
ROOT = Path(__file__).parents[2]


def test_it_says_what_it_will_do_then_what_came_of_it_and_what_to_do_next(swept):
    runs, done = swept
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Sweep first: space ")
    assert "1 pretrainings, then 2 fine-tunings; 3 of them are still to be run" in lines[1]
    assert str(runs) in done.stdout
    table = [line for line in lines if re.search(r"[0-9a-f]{16}$", line.strip())]
    assert len(table) == 3
    map10 = [float(line.split()[-5]) for line in table]  # mAP@10, R@1, R@5, R@10, signature
    assert map10 == sorted(map10, reverse=True)
    assert "mlflow ui --backend-store-uri sqlite:///" in done.stdout
    assert f"python ensemble/select.py --metric map10 --runs {runs} --sweep first" in done.stdout


def test_nothing_of_ray_or_hear21passt_reaches_the_console(swept):
    _, done = swept
    printed = done.stdout + done.stderr
    assert not re.search(r"\(pid=|\(raylet\)|\(RayTrain|INFO |WARNING|patch_embed|first_RUN", printed), printed


def test_each_trial_is_a_finished_run_with_a_metric_for_every_epoch(swept):
    ledger = open_ledger(swept[0])
    trials = list(ledger.iter_trials())
    assert [run.status for run in trials] == ["FINISHED"] * 3
    assert sorted(run.relations.pretraining is None for run in trials) == [False, False, True]
    assert {run.signature for run in trials} == set(ledger.find_sweep("first").signatures)
    for run in trials:
        for name in ("map10", "validation_loss", "train_loss"):
            assert [entry.step for entry in ledger.client.get_metric_history(run.run_id, name)] == [1, 2]
        assert not [name for name in run.metrics if "test" in name]


def test_a_trials_artifacts_hold_its_config_and_its_embeddings_of_both_splits(swept):
    ledger = open_ledger(swept[0])
    for run in ledger.iter_trials():
        for file, split in (("validation.arrow", "folder/validation"), ("test.arrow", "folder/test")):
            embeddings = ledger.load_embeddings(run, file)
            assert embeddings.signature == run.signature
            assert (embeddings.split, len(embeddings.clip_ids)) == (split, 6)
        kept = json.loads(Path(ledger.client.download_artifacts(run.run_id, "trial.json")).read_text())
        assert kept["train"] == ["folder/train"]
        assert trials.load_trial(swept[0] / "models" / run.signature)


def test_a_finished_trial_is_not_run_again_by_another_sweep(own_runs, call_command, space_file, tone_store):
    runs = own_runs
    words = ("--space", f"{space_file}:tiny", "--corpus", "folder", "--store", tone_store, "--runs", runs)
    again = call_command("sweeps/grid.py", *words, "--name", "second")
    assert again.returncode == 0, again.stderr
    assert "0 of them are still to be run" in again.stdout
    assert "started" not in again.stdout
    ledger = open_ledger(runs)
    assert len(list(ledger.iter_trials())) == 3
    assert ledger.find_sweep("second").signatures == ledger.find_sweep("first").signatures


def test_ctrl_c_stops_it_and_the_command_that_it_names_goes_on(cluster, space_file, tone_store, tmp_path):
    """In processes of their own, which alone get signals: the first with a cluster that it starts and ends itself."""
    words = ["--space", f"{space_file}:endless", "--corpus", "folder"]
    words += ["--store", str(tone_store), "--runs", str(tmp_path / "runs"), "--name", "long"]
    first = epochs_until_interrupted([sys.executable, "sweeps/grid.py", *words])
    ledger = open_ledger(tmp_path / "runs")
    (run,) = ledger.iter_trials()
    assert run.status == "KILLED"
    logged = ledger.client.get_metric_history(run.run_id, "map10")[-1].step
    second = epochs_until_interrupted([sys.executable, *first["named command"][1:]], RAY_ADDRESS=cluster)
    assert second["epochs"][0] > 1
    assert second["epochs"][0] <= logged + 1
    assert len(list(ledger.iter_trials())) == 1


def epochs_until_interrupted(command, **environment):
    """Start a sweep, interrupt it after its second epoch, and say what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    epochs = []
    for line in process.stdout:
        if match := re.search(r"epoch (\d+)/2000", line):
            epochs.append(int(match[1]))
            if len(epochs) == 2:
                break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in rest
    named = next(line for line in rest.splitlines() if line.startswith("Interrupted."))
    return {"epochs": epochs, "named command": named.partition(": ")[2].split()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--space", "nothing"],
            "unknown space 'nothing'; known: demo, full, published, salsa, small, small_paraphrases, table2",
        ),
        (["--corpus", "nothing"], "unknown corpus 'nothing'; known: audiocaps, clotho, folder, synthetic, wavcaps"),
        (
            ["--corpus", "clotho"],
            "holds no split 'clotho/development' .*prepare it with: python data/prepare.py clotho",
        ),
        (["--space", "{space}:broken"], "temperature is -1.0: it must be above 0"),
        (["--space", "{space}:absent"], "known: .*tiny"),
        (["--space", "{space}:twice"], "entries 1 and 3 of the space are the same trial"),
        (["--space", "{space}:unbuildable"], r"unknown\.py|neither a directory nor found on the hub"),
        (["--max-concurrent", "0"], "isn't an integer of at least 1"),
        (["--workers", "500", "--space", "{space}:tiny"], "500 workers need .* the cluster can place"),
        (["--gpus-per-worker", "1", "--space", "{space}:tiny"], "1 workers need .* and 1 GPUs each"),
        (["--tracking-uri", "http://127.0.0.1:9"], "no MLflow server answers at http://127.0.0.1:9"),
        (["--runs", "s3://KEY:HIDDEN@bucket/runs"], "s3://bucket/runs: remove the keys from the URI"),
        (["--status"], "holds no runs"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(words, expected, call_command, tone_store, space_file, tmp_path):
    corpus = [] if {"--corpus", "--status"} & set(words) else ["--corpus", "folder"]
    store = [] if "--status" in words else ["--store", tone_store]
    words = [word.format(space=space_file) for word in words]
    failed = call_command("sweeps/grid.py", *store, "--runs", tmp_path, *corpus, *words)
    assert failed.returncode == 2
    assert re.search(expected, failed.stderr), failed.stderr
    assert "HIDDEN" not in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_store_of_another_schema_version_is_refused_with_the_remedy(call_command, tone_store, tmp_path):
    store = shutil.copytree(tone_store, tmp_path / "store")
    for manifest in store.glob("*/*/manifest.json"):
        manifest.write_text(manifest.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 0'))
    failed = call_command("sweeps/grid.py", "--corpus", "folder", "--store", store, "--runs", tmp_path / "runs")
    assert failed.returncode == 2
    assert "schema version 0" in failed.stderr
    assert "python data/prepare.py folder" in failed.stderr


def test_an_address_where_something_else_answers_is_refused(call_command, tone_store, space_file, tmp_path):
    class Nonsense(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nonsense)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    failed = call_command(
        "sweeps/grid.py", "--corpus", "folder", "--store", tone_store, "--runs", tmp_path,
        "--space", f"{space_file}:tiny", "--tracking-uri", f"http://127.0.0.1:{server.server_port}",
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    assert failed.returncode == 2
    assert "isn't an MLflow server: 200 '<html>hello" in failed.stderr


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(call_command, tone_store, space_file, tmp_path):
    words = ("--space", f"{space_file}:tiny", "--corpus", "folder", "--store", tone_store, "--runs", tmp_path)
    done = call_command("sweeps/grid.py", *words, "--seeds", "3", "--dry-run")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if re.search(r"[0-9a-f]{16}\s*$", line)]
    assert len(rows) == 1 + 4  # seeds 0 and 1 of the space, each with three: 0 to 3
    assert "GPU hours remain" in done.stdout
    assert "Estimated on " in done.stdout
    assert not list(open_ledger(tmp_path).iter_trials())


def test_status_says_how_far_a_sweep_is_from_another_shell(swept, call_command):
    done = call_command("sweeps/grid.py", "--status", "--runs", swept[0])
    assert done.returncode == 0, done.stderr
    assert "3 trials: 3 finished, 0 running; about 0:00:00 left" in done.stdout


def test_results_lie_in_an_object_store_beside_an_mlflow_server(
    call_command, object_store, mlflow_server, tone_store, space_file, tmp_path
):
    """A sweep of its own: a fine-tuning starts from a model in the store, and selection reads what the server keeps."""
    start, _ = mlflow_server
    words = ("--runs", object_store.uri(f"bucket/{tmp_path.name}"), "--tracking-uri", start())
    sweep = ("--space", f"{space_file}:pair", "--corpus", "folder", "--store", tone_store, "--name", "far")
    done = call_command("sweeps/grid.py", *words, *sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "View run" not in done.stdout
    runs = RunStorage.of(words[1])
    signatures = open_ledger(runs, words[3]).find_sweep("far").signatures
    assert len(signatures) == 2
    assert all(runs.has_model(signature) for signature in signatures)
    selected = call_command("ensemble/select.py", "--metric", "map10", *words, "--out", tmp_path / "out")
    assert selected.returncode == 0, selected.stderr
    assert (tmp_path / "out" / "ensemble.json").exists()
