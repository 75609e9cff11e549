"""What a training tells MLflow: on a real server that goes away, and by many at once."""

import ast
import logging
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from sweeps import spaces
from trainables.records import mlflow_log
from trainables.records.embeddings import EMBEDDINGS_FOLDER, VALIDATION_FILE, Embeddings, write_embeddings
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.mlflow_log import RunLog
from trainables.records.timing import TrainingStep
from trainables.trial import TRIAL_FILE

TRIALS, EPOCHS = 100, 5
ROOT = Path(__file__).parents[3]


def history(client, run_id, name):
    return {entry.step: entry.value for entry in client.get_metric_history(run_id, name)}


@pytest.fixture
def ledger(mlflow_server, tmp_path):
    """A ledger on a server, a process that can be ended: what is told while it is away is what this is about."""
    start, _ = mlflow_server
    return create_ledger(tmp_path, start())


def test_what_is_told_while_the_server_is_away_is_there_once_it_is_back(ledger, mlflow_server):
    start, stop = mlflow_server
    run_id = ledger.client.create_run(ledger.experiment_id).info.run_id
    log = RunLog(ledger.tracking_uri, run_id)
    log.log_epoch({"epoch": 1, "map10": 0.1})
    log.flush()
    stop()
    for epoch in (2, 3):
        log.log_epoch({"epoch": epoch, "map10": epoch / 10})
    time.sleep(3)
    start()
    log.flush()
    assert history(ledger.client, run_id, "map10") == {1: 0.1, 2: 0.2, 3: 0.3}


def test_files_read_from_a_server_leave_nothing_behind(ledger, tmp_path, monkeypatch):
    trial = spaces.demo(spaces.Splits("c/train", "c/validation", "c/test", ("c/train",)), "float32")[0]
    run_id = ledger.claim(trial, "abc", None)
    vectors = np.eye(3, 8, dtype=np.float32)
    written = Embeddings("abc", "c/validation", "f", list("xyz"), list("uvw"), [["x"], ["y"], ["z"]], vectors, vectors)
    write_embeddings(tmp_path / VALIDATION_FILE, written)
    ledger.client.log_artifact(run_id, str(tmp_path / VALIDATION_FILE), EMBEDDINGS_FOLDER)
    ledger.client.log_dict(run_id, {"name": "config"}, TRIAL_FILE)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    run = ledger.find_trial("abc")
    assert ledger.load_config(run) == {"name": "config"}
    embeddings = ledger.load_embeddings(run, VALIDATION_FILE)
    assert not list(scratch.iterdir())
    np.testing.assert_array_equal(embeddings.audio_AD, vectors)


def test_one_function_downloads_artifacts():
    """MLflow leaves what it downloads without a folder in the temporary folder for ever."""
    callers = [
        (path.name, function.name)
        for package in ("data", "trainables", "sweeps", "ensemble")
        for path in (ROOT / package).rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef) and "download_artifacts" in ast.unparse(function)
    ]
    assert callers == [("mlflow_log.py", "open_artifact")]


def test_a_hundred_trials_at_once_lose_nothing(ledger):
    run_ids = [ledger.client.create_run(ledger.experiment_id).info.run_id for _ in range(TRIALS)]
    logs = [RunLog(ledger.tracking_uri, run_id) for run_id in run_ids]

    def tell(number):
        for epoch in range(1, EPOCHS + 1):
            logs[number].log_epoch({"epoch": epoch, "map10": number + epoch / 10, "loss": epoch})

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(TRIALS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.flush()
    for number, run_id in enumerate(run_ids):
        expected = {epoch: number + epoch / 10 for epoch in range(1, EPOCHS + 1)}
        assert history(ledger.client, run_id, "map10") == expected


def test_steps_are_told_with_the_time_that_is_left(tmp_path):
    ledger = create_ledger(tmp_path)
    run_id = ledger.client.create_run(ledger.experiment_id).info.run_id
    log = RunLog(ledger.tracking_uri, run_id)
    log.log_steps(
        [TrainingStep(10, 0.5, 2.0, 8, 0.2, 0.1, 10**9), TrainingStep(11, 0.55, 1.0, 8, 0.4, 0.0, 10**9)], epochs=2
    )
    log.flush()
    metrics = ledger.client.get_run(run_id).data.metrics
    assert metrics["step/loss"] == pytest.approx(1.5)
    assert metrics["step/left_s"] == pytest.approx((2 - 0.55) * 20 * 0.3)


def test_what_will_not_pass_is_raised_at_once(tmp_path):
    ledger = create_ledger(tmp_path)
    log = RunLog(ledger.tracking_uri, "no such run")
    log.log_epoch({"epoch": 1, "map10": 0.1})
    with pytest.raises(MlflowException, match="no such run"):
        log.flush()


def test_storage_that_fails_is_tried_again():
    tries = []

    def write():
        tries.append(1)
        if len(tries) < 3:
            raise OSError("no space left on device")
        return "written"

    assert mlflow_log.with_retries(write) == "written"
    assert len(tries) == 3


@pytest.mark.parametrize("name", ["mlflow.tracking", "alembic", "sqlalchemy.engine", "huey"])
def test_control_characters_in_mlflows_log_are_shown(name, capsys):
    mlflow_log.connect("http://127.0.0.1:9")
    logging.getLogger(name).error("run %s", "\x1b]0;title\x07 http://me:secret@host")
    said = capsys.readouterr().err
    assert said.endswith(f" ERROR {name}: run \\x1b]0;title\\x07 http://***@host\n")
