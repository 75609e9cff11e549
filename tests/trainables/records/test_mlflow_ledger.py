"""The ledger on a real MLflow store."""

import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from data.errors import UserError
from sweeps import spaces
from trainables.records.ledger import Event
from trainables.records.mlflow_ledger import LedgerOptions, MlflowLedger, create_ledger, open_ledger
from trainables.records.settings import flatten_settings
from trainables.records.tracking_store import make_absolute
from trainables.trial import TRIAL_FILE

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp("ledger")
    create_ledger(runs)
    return runs


@pytest.fixture
def ledger(runs):
    """A ledger of its own: an experiment in the module's database, since making a database takes seconds."""
    shared = open_ledger(runs)
    return MlflowLedger(
        shared.tracking_uri, shared.client.create_experiment(uuid.uuid4().hex, (runs / "artifacts").as_uri())
    )


@pytest.fixture
def trial():
    return spaces.demo(spaces.Splits("c/train", "c/validation", "c/test", ("c/train",)), "float32")[0]


def test_a_trials_run_says_its_parameters(ledger, trial):
    run = ledger.client.get_run(ledger.claim(trial, "abc", None))
    assert run.data.params["schedule.epochs"] == str(trial.schedule.epochs)
    assert run.data.params["pretraining.seed"] == "0"
    assert run.data.tags["signature"] == "abc"


def test_an_empty_ledger_says_so(ledger, tmp_path):
    with pytest.raises(UserError, match="no sweep"):
        ledger.find_sweep()
    with pytest.raises(UserError, match="holds no runs"):
        open_ledger(tmp_path / "absent")


def test_a_ledger_that_is_there_is_opened_not_made_again(runs):
    assert create_ledger(runs).experiment_id == open_ledger(runs).experiment_id


def test_a_database_of_something_else_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database")
    with pytest.raises(UserError, match="can't be read"):
        open_ledger(tmp_path)


def log_config(ledger, trial, signature):
    """A trial's run with its config as an artifact; return the run's id."""
    run_id = ledger.claim(trial, signature, None)
    ledger.client.log_dict(run_id, {"signature": signature}, TRIAL_FILE)
    return run_id


def test_a_folder_of_runs_that_was_moved_works(tmp_path, trial):
    old, new = tmp_path / "old_runs", tmp_path / "new runs"
    log_config(create_ledger(old), trial, "before")
    shutil.move(old, new)
    reader = open_ledger(new)
    assert reader.load_config(reader.find_trial("before")) == {"signature": "before"}
    (tmp_path / "ensemble.json").write_text("{}")
    reader.log_event(Event("ensemble", "e", "before", "", "", {}, [], [tmp_path / "ensemble.json"]))
    assert not old.exists()
    ledger = create_ledger(new)
    run_id = log_config(ledger, trial, "after")
    assert (new / "artifacts" / run_id / "artifacts" / TRIAL_FILE).exists()
    assert ledger.client.get_run(ledger.find_trial("before").run_id).info.artifact_uri.startswith(new.as_uri())
    assert not old.exists()


def test_a_deleted_experiment_is_restored_or_named_with_the_command_that_restores_it(tmp_path, trial):
    ledger = create_ledger(tmp_path)
    log_config(ledger, trial, "before")
    ledger.client.delete_experiment(ledger.experiment_id)
    with pytest.raises(UserError, match=f"mlflow experiments restore --experiment-id {ledger.experiment_id}"):
        open_ledger(tmp_path)
    assert create_ledger(tmp_path).find_trial("before").signature == "before"
    assert open_ledger(tmp_path).find_trial("before")


def test_a_lost_database_is_said_to_be_restored_by_the_same_command(tmp_path):
    (tmp_path / "trials" / "abc-1").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"mlflow.db is missing\), but .* re-run the same python sweeps/grid.py command"
    ):
        open_ledger(tmp_path)


def test_a_run_without_metrics_is_named_with_the_remedy(ledger, trial):
    run_id = ledger.claim(trial, "empty", None)
    with pytest.raises(UserError, match=f"mlflow runs delete --run-id {run_id}"):
        ledger.load_best_metrics(ledger.find_trial("empty"))


def test_a_tracking_uri_is_valid_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("sqlite:///mlflow.db", f"sqlite:///{tmp_path}/mlflow.db", "sqlite:///./a/../mlflow.db"):
        assert make_absolute(uri) == f"sqlite:///{tmp_path}/mlflow.db"
    assert make_absolute("mlruns") == make_absolute("file:mlruns") == str(tmp_path / "mlruns")
    for uri in ("http://host:5000", "postgresql://user@host/name", "databricks", f"file://{tmp_path}"):
        assert make_absolute(uri) == uri


def test_a_relative_sqlite_address_is_used_from_any_folder(tmp_path, monkeypatch, trial):
    monkeypatch.chdir(tmp_path)
    ledger = LedgerOptions(runs="runs", tracking_uri="sqlite:///mine.db").create()
    monkeypatch.chdir("/")
    log_config(MlflowLedger(ledger.tracking_uri, ledger.experiment_id), trial, "abc")
    monkeypatch.chdir(tmp_path)
    reader = LedgerOptions(runs="runs", tracking_uri="sqlite:///mine.db").open()
    assert reader.load_config(reader.find_trial("abc")) == {"signature": "abc"}
    assert {path.name for path in tmp_path.iterdir()} == {"mine.db", "runs"}


def test_settings_are_flattened():
    assert dict(flatten_settings({"a": 1, "b": {"c": 2, "d": {"e": 3}}})) == {"a": 1, "b.c": 2, "b.d.e": 3}


def test_commands_that_start_at_once_share_one_database(tmp_path):
    """Processes, as a database is made by one of them while the others wait for a lock on a file."""
    created = "print(create_ledger(sys.argv[1]).experiment_id)"
    code = f"import sys; from trainables.records.mlflow_ledger import create_ledger; {created}"
    started = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "runs"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate()[0].strip() for process in started]
    assert answers == [open_ledger(tmp_path / "runs").experiment_id] * 3
