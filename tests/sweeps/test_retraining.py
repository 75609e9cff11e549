"""The members of an ensemble, trained once more on all splits."""

import json
import re

import pytest

from data.errors import UserError
from sweeps import retraining
from trainables import trial as trials
from trainables.ledger import open_ledger

EVERYTHING = {"folder/train", "folder/validation", "folder/test"}


@pytest.fixture(scope="module")
def chosen(swept, run_command, tmp_path_factory):
    """An ensemble of the sweep's two fine-tunings and their pretraining."""
    folder = tmp_path_factory.mktemp("chosen")
    done = run_command("ensemble/select.py", "--runs", swept[0], "--sweep", "first", "--no-test", "--method", "all",
                       "--folds", 0, "--out", folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "ensemble.json"


@pytest.mark.cluster
@pytest.mark.parametrize("begin", ["pretraining", "finetuning"])
def test_each_member_is_trained_on_all_splits_up_to_its_best_epochs(chosen, begin):
    entries = json.loads(chosen.read_text())["members"]
    found = retraining.members(chosen, begin)
    assert len(found) == len(entries) == 3
    for member, entry in zip(found, entries, strict=True):
        before, after = trials.from_json(entry["trial"]), member.trial
        if begin == "finetuning" and before.pretraining is None:
            assert not member.is_retrained
            continue
        assert set(after.train) == EVERYTHING
        assert after.final_epoch == entry["epoch"]
        assert after.schedule == before.schedule
        if before.pretraining and begin == "pretraining":
            assert set(after.pretraining.train) == EVERYTHING
            assert after.pretraining.final_epoch == entry["pretraining_epoch"]
        elif before.pretraining:
            assert after.pretraining == before.pretraining


@pytest.mark.cluster
def test_retrained_members_have_no_figures(chosen, swept, tone_store, run_command, tmp_path):
    runs = swept[0]
    words = ("sweeps/grid.py", "--retrain", chosen, "--store", tone_store, "--runs", runs)
    done = run_command(*words, "--retrain-from", "finetuning", "--name", "final")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best validation" not in done.stdout
    ledger, path = open_ledger(runs), runs / "ensembles" / "final" / "ensemble.json"
    ensemble, before = json.loads(path.read_text()), json.loads(chosen.read_text())
    assert [member["weight"] for member in ensemble["members"]] == [member["weight"] for member in before["members"]]
    assert ensemble["before_retraining"]["validation"] == before["validation"]
    retrained = [member for member in ensemble["members"] if member.get("retrained")]
    assert len(retrained) == 2
    for member in retrained:
        run = ledger.finished(member["signature"])
        assert run.info.run_id == member["run_id"]
        assert not {"map10", "validation_loss", "best_map10"} & set(run.data.metrics)
        assert not ledger.client.list_artifacts(run.info.run_id, "embeddings")
    for refused in (
        run_command("ensemble/select.py", "--runs", runs, "--sweep", "final"),
        run_command("ensemble/select.py", "--runs", runs, "--evaluate", path),
        run_command("ensemble/select.py", "--runs", runs, "--export", path),
    ):
        assert refused.returncode == 2
        assert re.search("was trained on all splits, those that it would be judged by included", refused.stderr)
    again = run_command(*words, "--retrain-from", "finetuning", "--name", "again")
    assert "0 of them are still to be run" in again.stdout


def entry(**changes):
    return {"name": "one", "weight": 1.0, "epoch": 1, "trial": {}} | changes


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "has no members"),
        (
            {"members": [{"name": "file", "weight": 1.0, "folder": "pool"}]},
            "member 1: it doesn't say how it was trained",
        ),
        ({"members": [entry()]}, "not a trial"),
    ],
)
def test_what_can_not_be_trained_again_is_named(content, why, tmp_path):
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=why):
        retraining.members(path, "pretraining")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--retrain-from", "finetuning"], "that is for --retrain"),
        (["--retrain", "x.json", "--space", "small"], "--space: the ensemble says what is trained"),
        (["--retrain", "x.json", "--corpus", "clotho"], "--corpus: the ensemble says"),
        (["--retrain", "x.json", "--scheduler", "asha"], "--scheduler: without validation"),
        (["--retrain", "x.json"], "x.json"),
    ],
)
def test_options_that_do_not_go_together(words, why, run_command, tmp_path):
    failed = run_command("sweeps/grid.py", *words, "--runs", tmp_path)
    assert failed.returncode == 2
    assert why in failed.stderr
    assert "Traceback" not in failed.stderr
