"""The ledger on a real MLflow store."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from data.errors import UserError
from sweeps import spaces
from trainables.records.mlflow_ledger import MlflowLedger, create_ledger, flatten_settings, open_ledger

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
