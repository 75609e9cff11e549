"""What every ledger does: the one in MLflow, and the one in memory that other tests use."""

import json
import uuid

import numpy as np
import pytest

from data.errors import UserError
from sweeps import spaces
from trainables.records.embeddings import VALIDATION_FILE, Embeddings, write_embeddings
from trainables.records.ledger import Event, MissingArtifactError
from trainables.records.mlflow_ledger import MlflowLedger, create_ledger
from trainables.records.mlflow_log import RunLog
from trainables.signature import Relations
from trainables.trial import TRIAL_FILE, to_json


@pytest.fixture(scope="module")
def one_mlflow_ledger(tmp_path_factory):
    return create_ledger(tmp_path_factory.mktemp("ledger"))


@pytest.fixture(params=["mlflow", "memory"])
def ledger(request, make_memory_ledger, tmp_path):
    if request.param == "memory":
        return make_memory_ledger(tmp_path)
    # An experiment in the module's database, since making a database takes seconds.
    one = request.getfixturevalue("one_mlflow_ledger")
    experiment = one.client.create_experiment(uuid.uuid4().hex, (tmp_path / "artifacts").as_uri())
    return MlflowLedger(one.tracking_uri, experiment)


@pytest.fixture
def fine_tuning():
    splits = spaces.Splits("c/train", "c/validation", "c/test", ("c/train",))
    return next(trial for trial in spaces.demo(splits, "float32") if trial.pretraining)


def log(ledger, run_id, metrics, epoch):
    """Log metrics as a training does, which knows nothing of ledgers."""
    if hasattr(ledger, "log_metrics"):
        ledger.log_metrics(run_id, metrics, epoch)
    else:
        training = RunLog(ledger.tracking_uri, run_id)
        training.log_epoch({**metrics, "epoch": epoch})
        training.flush()


def keep(ledger, run_id, trial, embeddings, folder):
    """Keep a trial's config and embeddings as a training does."""
    if hasattr(ledger, "keep_embeddings"):
        ledger.keep_embeddings(run_id, VALIDATION_FILE, embeddings)
        return
    write_embeddings(folder / "embeddings" / VALIDATION_FILE, embeddings)
    (folder / TRIAL_FILE).write_text(json.dumps(to_json(trial)))
    RunLog(ledger.tracking_uri, run_id).log_files(folder, {})


def train(ledger, trial, signature, folder, parent=None):
    """Claim a trial, log three epochs, of which the second is the best, and finish it."""
    run_id = ledger.claim(trial, signature, None, Relations(parent))
    for epoch, map10 in ((1, 0.2), (2, 0.4), (3, 0.3)):
        log(ledger, run_id, {"map10": map10, "train_loss": 3 / epoch, "best_epoch": min(epoch, 2)}, epoch)
    vectors = np.eye(2, dtype=np.float32)
    found = Embeddings(signature, "c/validation", "f" * 16, ["a", "b"], ["x", "y"], [["a"], ["b"]], vectors, vectors)
    keep(ledger, run_id, trial, found, folder)
    ledger.finish(run_id)
    return run_id


def test_a_trial_is_found_by_its_signature_once_claimed_and_counts_once_finished(ledger, fine_tuning):
    assert ledger.find_trial("abc") is None
    run_id = ledger.claim(fine_tuning, "abc", None, Relations("def"))
    run = ledger.find_trial("abc")
    assert (run.run_id, run.name, run.signature, run.status) == (run_id, fine_tuning.name, "abc", "RUNNING")
    assert run.relations.pretraining == "def"
    assert run.settings["schedule.epochs"] == str(fine_tuning.schedule.epochs)
    assert [each.run_id for each in ledger.iter_running_trials()] == [run_id]
    assert ledger.find_finished_trial("abc") is None
    ledger.finish(run_id)
    assert ledger.find_finished_trial("abc").run_id == run_id
    assert not list(ledger.iter_running_trials())
    assert ledger.find_signature(run_id) == "abc"
    assert ledger.find_signature("0" * 32 + "f") is None


def test_a_trial_that_was_given_up_is_claimed_again_in_the_same_run(ledger, fine_tuning):
    run_id = ledger.claim(fine_tuning, "abc", None)
    ledger.mark_ended(run_id, "KILLED")
    assert ledger.find_trial("abc").status == "KILLED"
    assert ledger.claim(fine_tuning, "abc", None) == run_id
    assert ledger.find_trial("abc").status == "RUNNING"


def test_a_finished_trial_has_its_curves_its_best_epoch_and_its_recipe(ledger, fine_tuning, tmp_path):
    train(ledger, fine_tuning.pretraining, "def", tmp_path / "one")
    train(ledger, fine_tuning, "abc", tmp_path / "other", parent="def")
    run = ledger.find_finished_trial("abc")
    assert ledger.load_curves(run)["map10"] == {1: 0.2, 2: 0.4, 3: 0.3}
    assert ledger.load_curves(run)["validation_loss"] == {}
    assert ledger.load_best_metrics(run) == {"map10": 0.4, "train_loss": 1.5, "best_epoch": 2, "epoch": 2}
    assert ledger.load_recipe(run) == {"trial": ledger.load_config(run), "epoch": 2, "pretraining_epoch": 2}
    assert ledger.load_config(run)["schedule"]["epochs"] == fine_tuning.schedule.epochs
    assert ledger.load_embeddings(run, VALIDATION_FILE).queries == ["x", "y"]
    assert ledger.list_epochs(run) == []


def test_embeddings_that_are_gone_are_named(ledger, fine_tuning):
    run_id = ledger.claim(fine_tuning, "abc", None)
    ledger.finish(run_id)
    with pytest.raises(MissingArtifactError, match=f"test.arrow can't be found in run {run_id}"):
        ledger.load_embeddings(ledger.find_finished_trial("abc"), "test.arrow")


def test_a_sweep_keeps_its_run_under_its_name_and_without_a_name_the_newest_is_meant(ledger):
    with pytest.raises(UserError, match="holds no sweep"):
        ledger.find_sweep()
    first = ledger.start_sweep("old", ["a"], {"space": "demo"})
    assert ledger.start_sweep("old", ["a", "b"], {"space": "demo"}) == first
    ledger.start_sweep("new", ["c"], {})
    assert (ledger.find_sweep("old").signatures, ledger.find_sweep("old").description["space"]) == (["a", "b"], "demo")
    assert ledger.find_sweep().name == "new"
    assert ledger.list_sweep_names() == ["new", "old"]
    with pytest.raises(UserError, match="no sweep is named 'other'; known: new, old"):
        ledger.find_sweep("other")


def test_events_are_found_by_kind_and_by_the_test_split(ledger, tmp_path):
    file = tmp_path / "ensemble.json"
    file.write_text("{}")
    for kind, test in (("ensemble", "aaaa"), ("ensemble", ""), ("evaluation", "aaaa")):
        metrics = [("trajectory", 0.1, 0), ("trajectory", 0.2, 1)]
        ledger.log_event(Event(kind, f"{kind} {test}", "m", test, "sweep", {"metric": "map10"}, metrics, [file]))
    assert [run.name for run in ledger.iter_events("ensemble")] == ["ensemble ", "ensemble aaaa"]
    (run,) = ledger.iter_events("ensemble", "aaaa")
    assert (run.sweep_run_id, run.test_fingerprint, run.settings["metric"]) == ("sweep", "aaaa", "map10")
    assert run.metrics["trajectory"] == 0.2
    assert len(list(ledger.iter_events("evaluation", "aaaa"))) == 1
    with ledger.open_event_file(run, "ensemble.json") as path:
        assert path.read_text() == "{}"
    with pytest.raises(MissingArtifactError):
        ledger.open_event_file(run, "absent.json").__enter__()
