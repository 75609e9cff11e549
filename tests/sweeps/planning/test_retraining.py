"""The members of an ensemble, trained once more on all splits."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest

from data.errors import UserError
from data.splits import Splits
from sweeps import grid, spaces
from sweeps.planning.retraining import build_retrained_ensemble, plan_retrainings
from trainables import recipes
from trainables import trial as trials
from trainables.records.embeddings import BANK_FILE, read_embeddings
from trainables.records.ensemble_file import (
    Ensemble,
    Estimate,
    Member,
    Normalisation,
    NormalisationForm,
    SplitMetrics,
    read_ensemble,
)
from trainables.records.mlflow_ledger import create_ledger, open_ledger

EVERYTHING = {"folder/train", "folder/validation", "folder/test"}


@pytest.fixture(scope="module")
def chosen(own_runs, call_command, tmp_path_factory):
    """An ensemble of the sweep's two fine-tunings and their pretraining."""
    folder = tmp_path_factory.mktemp("chosen")
    done = call_command("ensemble/select.py", "--runs", own_runs, "--sweep", "first", "--no-test", "--method", "all",
                        "--folds", 0, "--out", folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "ensemble.json"


@pytest.mark.parametrize("begin", ["pretraining", "finetuning"])
def test_each_member_is_trained_on_all_splits_up_to_its_best_epochs(chosen, begin):
    members = read_ensemble(chosen).members
    found = plan_retrainings(read_ensemble(chosen), chosen, begin)
    assert len(found) == len(members) == 3
    for retraining, member in zip(found, members, strict=True):
        before, after = trials.from_json(member.trial), retraining.trial
        if begin == "finetuning" and before.pretraining is None:
            assert not retraining.is_retrained
            continue
        assert set(after.train) == EVERYTHING
        assert after.final_epoch == member.epoch
        assert after.schedule == before.schedule
        if before.pretraining and begin == "pretraining":
            assert set(after.pretraining.train) == EVERYTHING
            assert after.pretraining.final_epoch == member.pretraining_epoch
        elif before.pretraining:
            assert after.pretraining == before.pretraining


def test_retrained_members_have_no_figures(chosen, own_runs, tone_store, call_command, cluster):
    """A sweep of its own: what a training without validation leaves."""
    runs = own_runs
    words = ("sweeps/grid.py", "--retrain", chosen, "--store", tone_store, "--runs", runs)
    done = call_command(*words, "--retrain-from", "finetuning", "--name", "final")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best validation" not in done.stdout
    ledger, path = open_ledger(runs), runs / "ensembles" / "final" / "ensemble.json"
    ensemble, before = read_ensemble(path), read_ensemble(chosen)
    assert ensemble.weights == before.weights
    assert ensemble.before_retraining == before
    assert (ensemble.validation, ensemble.test, ensemble.trajectory) == (None, None, ())
    changed = [member for member in ensemble.members if member.retrained]
    assert len(changed) == 2
    for member in changed:
        run = ledger.find_finished_trial(member.signature)
        assert run.run_id == member.run_id
        assert not {"map10", "validation_loss", "best_map10"} & set(run.metrics)
        assert not ledger.client.list_artifacts(run.run_id, "embeddings")
        banks = [read_embeddings(path) for path in (runs / "models").glob(f"*/{BANK_FILE}")]
        assert {bank.fingerprint for bank in banks} == {banks[0].fingerprint}, "the bank has no held-out captions"
        assert member.signature in {bank.signature for bank in banks}
    for refused in (
        call_command("ensemble/select.py", "--runs", runs, "--sweep", "final"),
        call_command("ensemble/select.py", "--runs", runs, "--evaluate", path),
        call_command("ensemble/select.py", "--runs", runs, "--export", path),
    ):
        assert refused.returncode == 2
        assert re.search("was trained on all splits, including those that would evaluate it", refused.stderr)
    again = call_command(*words, "--retrain-from", "finetuning", "--name", "again")
    assert "0 of them are still to be run" in again.stdout


SPLITS = Splits("folder/train", "folder/validation", "folder/test", ("folder/train",))
BASE = spaces.from_scratch(SPLITS, "float32", "cnn:small", 1e-3, epochs=6)
FINE = spaces.fine_tuning(SPLITS, BASE, 0.4, epochs=3)
BASELINE = recipes.baseline("cnn:small", "transformer:small", SPLITS, "float32")


def entry(trial=FINE, **changes):
    """A member as select.py writes it."""
    told = {"name": "one", "weight": 1.0, "epoch": 3, "pretraining_epoch": 5, "trial": trials.to_json(trial)}
    return told | changes


def plan(path, content, begin="pretraining"):
    """What is trained in place of the members of a file."""
    path.write_text(json.dumps(content))
    return plan_retrainings(read_ensemble(path), path, begin)


def without(key):
    return {"members": [{name: value for name, value in entry().items() if name != key}]}


def changed(**settings):
    """A member whose trial is changed."""
    return {"members": [entry() | {"trial": trials.to_json(FINE) | settings}]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            {"members": [{"name": "file", "weight": 1.0, "folder": "pool"}]},
            r"members\[0\], 'file': its config is missing",
        ),
        (without("epoch"), r"members\[0\], 'one': its config is missing"),
        ({"members": [entry() | {"trial": {}}]}, r"members\[0\], 'one': not a trial"),
        ({"members": [entry() | {"trial": [1]}]}, r"members\[0\].trial: .*not \[1\]"),
        ({"members": [entry() | {"trial": None}]}, r"members\[0\], 'one': its config is missing"),
        (changed(audio=[1]), r"members\[0\], 'one': audio encoder: it must be settings with a family, not \[1\]"),
        (changed(text={}), r"members\[0\], 'one': text encoder: it must be settings with a family"),
        (changed(pretraining="x"), r"members\[0\], 'one': not a trial: .*not 'x'"),
        (changed(batch_size="8"), r"members\[0\], 'one': not a trial: .*batch_size"),
        (changed(batch_size=1), r"members\[0\], 'one': batch_size is 1"),
        ({"members": [entry(), entry(epoch="3")]}, r"members\[1\].epoch: .*integer, not '3'"),
        ({"members": [entry(epoch=None)]}, r"members\[0\], 'one': its config is missing"),
        ({"members": [entry(epoch=4)]}, r"members\[0\], 'one': its epoch is 4: .*from 1 to 3"),
        ({"members": [entry(epoch=True)]}, r"members\[0\].epoch: .*not True"),
        ({"members": [entry(pretraining_epoch="5")]}, r"members\[0\].pretraining_epoch: .*not '5'"),
        ({"members": [entry(pretraining_epoch=None)]}, "the best epoch of its pretraining is unknown"),
        (without("pretraining_epoch"), "use --retrain-from finetuning"),
        ({"members": [entry(replace(FINE, final_epoch=2))]}, "is already trained on all splits"),
        ({"members": [entry(), entry(BASELINE)]},
         r"members\[1\], 'one': the schedule of its pretraining depends on .*: remove the member from the file, or"),
        ({"members": [entry(replace(FINE, pretraining=replace(BASE, schedule=BASELINE.schedule)))]},
         r"members\[0\], 'one': the schedule of its pretraining .*, or keep the pretraining with --retrain-from"),
        ({"members": [entry(replace(FINE, schedule=BASELINE.schedule))]},
         r"members\[0\], 'one': the schedule of its fine-tuning .*: remove the member from the file$"),
    ],
)  # fmt: skip
def test_what_can_not_be_trained_again_is_named(content, why, tmp_path):
    path = tmp_path / "ensemble.json"
    with pytest.raises(UserError, match=why) as caught:
        plan(path, content)
    assert str(path) in str(caught.value)


def test_a_pretraining_that_goes_by_losses_can_stay_as_it_is(tmp_path):
    own = replace(FINE, pretraining=replace(BASE, schedule=BASELINE.schedule))
    (member,) = plan(tmp_path / "x.json", {"members": [entry(own)]}, "finetuning")
    assert (member.trial.pretraining, member.trial.final_epoch) == (own.pretraining, 3)


def test_a_published_model_stays_as_it_is_under_its_fine_tuning_too(tmp_path):
    zero_shot, tuned, *_ = spaces.published(SPLITS, "float32")
    members = [entry(zero_shot, epoch=1, pretraining_epoch=None), entry(tuned, pretraining_epoch=1)]
    first, second = plan(tmp_path / "x.json", {"members": members})
    assert (first.trial, first.is_retrained) == (zero_shot, False)
    assert (second.trial.pretraining, second.trial.final_epoch) == (zero_shot, 3)
    assert set(second.trial.train) == EVERYTHING


class BeginsError(Exception):
    """The command has come to where it would start Ray."""


@pytest.fixture
def retrain(call_command, tmp_path, monkeypatch):
    """Runs the command in this process up to where it would start Ray; and the ensemble that it would retrain."""
    path = tmp_path / "runs" / "ensembles" / "first" / "ensemble.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"members": [entry()]}))

    def begins(arguments):
        raise BeginsError

    monkeypatch.setattr(grid, "start_cluster", begins)

    return partial(call_command, "sweeps/grid.py", "--runs", tmp_path / "runs"), path


def test_a_retraining_leaves_its_ensemble_and_other_sweeps_alone(retrain, tmp_path):
    run, path = retrain
    refused = run("--retrain", path, "--name", "first")
    assert refused.returncode == 2
    assert re.search(r"--name first: .*first/ensemble.json is the ensemble that is retrained", refused.stderr)
    ledger = create_ledger(tmp_path / "runs")
    moved = path.rename(tmp_path / "ensemble.json")
    ledger.start_sweep("first", ["0" * 16], {"retrain": None})
    refused = run("--retrain", moved, "--name", "first")
    assert refused.returncode == 2
    assert re.search("--name first: a sweep of that name exists and isn't this retraining of .*ensem", refused.stderr)
    assert ledger.find_sweep("first").signatures == ["0" * 16]
    with pytest.raises(BeginsError):
        run("--retrain", moved, "--name", "final")
    ledger.start_sweep("final", ["0" * 16], {"retrain": [str(moved), "pretraining"]})
    with pytest.raises(BeginsError):  # the same command goes on
        run("--retrain", moved, "--name", "final")
    refused = run("--retrain", moved, "--name", "final", "--retrain-from", "finetuning")
    assert refused.returncode == 2
    assert "--name final: a sweep of that name exists" in refused.stderr


def test_what_is_written_is_of_what_was_read(retrain, tmp_path):
    members = tuple(Member("one", 1.0, epoch=3, trial=trials.to_json(trial)) for trial in (FINE, BASE))
    ensemble = Ensemble(members, validation=SplitMetrics("folder/validation", "f"))
    form = NormalisationForm("none", Estimate(0.5, (0.4, 0.6)), 1.0)
    ensemble = replace(ensemble, fusion="inverted-softmax", normalisation=Normalisation(0.1, (form,)))
    found = plan_retrainings(ensemble, tmp_path / "gone.json", "finetuning")
    done = {found[0].trial: ("f" * 16, "run")}
    written = build_retrained_ensemble(ensemble, found, done)
    assert [member.retrained for member in written.members] == [True, False]
    assert (written.before_retraining, written.validation) == (ensemble, None)
    assert (written.fusion, written.normalisation) == ("inverted-softmax", Normalisation(0.1))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--retrain-from", "finetuning"], "unrecognized arguments: --retrain-from finetuning"),
        (["--retrain", "x.json", "--space", "small"], "grid.py retrain: error: unrecognized arguments: --space small"),
        (["--retrain", "x.json", "--corpus", "clotho"], "unrecognized arguments: --corpus clotho"),
        (["--retrain", "x.json", "--scheduler", "asha"], "unrecognized arguments: --scheduler asha"),
        (["--retrain", "x.json"], "x.json"),
    ],
)
def test_options_that_do_not_go_together(words, why, call_command, tmp_path):
    failed = call_command("sweeps/grid.py", *words, "--runs", tmp_path)
    assert failed.returncode == 2
    assert why in failed.stderr
    assert "Traceback" not in failed.stderr
