"""What earlier versions wrote still opens: a store, runs, an ensemble, exported and not, and an index of recordings."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.store.stored_split import open_split
from ensemble.pool.candidates import Candidate, load_pool
from ensemble.pool.evaluation import fuse_block
from ensemble.selection.pool_choice import make_loader
from ensemble.serving.bundle import load_models
from trainables.records.embeddings import BANK_FILE, read_embeddings
from trainables.records.ensemble_file import read_ensemble
from trainables.records.mlflow_ledger import open_ledger
from trainables.trial import load_trial, to_json

ARCHIVES = sorted(Path(__file__).parent.glob("*.zip"))


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.stem)
def folder(request, tmp_path_factory):
    """The unpacked archive; its ledger states where the artifacts were when it was written."""
    unpacked = tmp_path_factory.mktemp(request.param.stem)
    shutil.unpack_archive(request.param, unpacked)
    return unpacked


def test_a_store_is_as_it_was_written(folder, call_command):
    done = call_command("data/prepare.py", "verify", "--store", folder / "store")
    assert done.returncode == 0, done.stderr
    for split, count in (("train", 6), ("validation", 4), ("test", 4)):
        assert f"folder/{split}: {count} clips are intact" in done.stderr
    (aside,) = open_split(folder / "store", "folder/train").set_aside
    assert (aside.kind, aside.file) == ("absent", "absent.flac")


def test_the_config_of_a_model_is_read_as_it_was_written(folder):
    models = list((folder / "runs" / "models").iterdir())
    assert len(models) == 2
    for path in models:
        trial = load_trial(path)
        assert json.loads(json.dumps(to_json(trial))) == json.loads((path / "trial.json").read_text())


def test_a_sweep_is_finished(folder, call_command):
    done = call_command("sweeps/grid.py", "--status", "--runs", folder / "runs")
    assert "2 trials: 2 finished, 0 running" in done.stdout, done.stderr


def test_the_same_ensemble_is_selected(folder, call_command, tmp_path):
    words = ("--metric", "map10", "--runs", folder / "runs", "--folds", 2, "--method", "all", "--out", tmp_path)
    done = call_command("ensemble/select.py", *words)
    assert done.returncode == 0, done.stderr
    before = folder / "runs" / "ensembles" / "sweep" / "ensemble.json"
    assert json.loads(before.read_text())["format_version"] == 2
    assert read_ensemble(tmp_path / "ensemble.json") == read_ensemble(before)


def test_an_ensemble_is_evaluated(folder, call_command):
    path = folder / "runs" / "ensembles" / "sweep" / "ensemble.json"
    words = ("--evaluate", path, "--split", "test", "--runs", folder / "runs")
    assert call_command("ensemble/select.py", *words).returncode == 0


def test_an_ensemble_searches_an_index(folder, call_command):
    found = []
    for ensemble in (folder / "exported", folder / "runs" / "ensembles" / "sweep" / "ensemble.json"):
        words = ("--runs", folder / "runs", "--index", folder / "index", "--top", 3)
        done = call_command("ensemble/search.py", ensemble, *words, "a low tone")
        assert done.returncode == 0, done.stderr
        # The recordings themselves aren't in the archive.
        found.append([Path(name).name for name in re.findall(r"gone: (\S+) no longer exists", done.stderr)])
    assert found == [["test-3.flac", "train-3.flac", "test-2.flac"]] * 2


def test_a_report_shows_its_trials_and_its_ensemble(folder, call_command, tmp_path):
    words = ("--runs", folder / "runs", "--store", folder / "store", "--out", tmp_path)
    done = call_command("ensemble/report.py", *words)
    assert done.returncode == 0, done.stderr
    assert "isn't shown" not in done.stdout + done.stderr


def test_its_trials_get_query_banks_and_are_selected_and_searched_with_them(folder, call_command, tmp_path):
    """The whole chain: banks from the stored models, selection, evaluation, an index of a split, export and search. The
    index of the recordings ranks the test clips as the ensemble's scores do.
    """
    shutil.copytree(folder, tmp_path / "copy")
    runs, store, out = tmp_path / "copy" / "runs", tmp_path / "copy" / "store", tmp_path / "out"

    def call(command, *words):
        done = call_command(command, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    select = ("ensemble/select.py", "--runs", runs, "--fusion", "inverted-softmax", "--method", "all", "--folds", 2)
    refused = call_command(*select, "--out", out)
    assert refused.returncode == 2
    assert "2 trials of an earlier version have no query bank" in refused.stderr
    assert "python trainables/embed.py bank --sweep NAME --store STORE" in refused.stderr
    call("trainables/embed.py", "bank", "--runs", runs, "--store", store)
    printed = call(*select, "--out", out)
    ensemble = read_ensemble(out / "ensemble.json")
    assert [form.name for form in ensemble.normalisation.forms] == ["none", "per member", "after fusion", "dynamic"]
    assert ensemble.normalisation.forms[1].temperature == ensemble.normalisation.temperature
    for form in ensemble.normalisation.forms:
        assert form.validation.percent in printed
    own, systems = ensemble.normalisation.forms[1], ensemble.validation.systems
    assert own.validation.value == pytest.approx(systems["ensemble"]["map10"].value)
    assert own.test.value == pytest.approx(ensemble.test.systems["ensemble"]["map10"].value)
    assert "Normalisation by a query bank" in (out / "ensemble.html").read_text()
    evaluated = call("ensemble/select.py", "evaluate", out / "ensemble.json", "--split", "test", "--runs", runs)
    assert ensemble.test.systems["ensemble"]["map10"].percent in evaluated
    call("ensemble/select.py", "export", out / "ensemble.json", "--split", "test", "--runs", runs)
    index = read_embeddings(out / "test-index.arrow")
    ledger = open_ledger(runs)
    members = [Candidate(m.name, m.signature, ledger.find_finished_trial(m.signature)) for m in ensemble.members]
    load = make_loader(ledger, ensemble.fusion, ensemble.temperature)
    scores = load_pool(ledger, members, "test", load=load)
    fused_QA = fuse_block(scores, ensemble.weights, 0, scores.num_queries) / sum(ensemble.weights)
    assert (np.diff(np.sort(fused_QA)) > 1e-6).all(), "no ties"
    np.testing.assert_allclose(index.compute_scores(), fused_QA, atol=1e-6)
    report = call("ensemble/report.py", "--runs", runs, "--store", store, "--out", tmp_path / "report")
    assert "isn't shown" not in report
    call("ensemble/export.py", "--ensemble", out / "ensemble.json", "--runs", runs, "--out", tmp_path / "exported")
    models = load_models(tmp_path / "exported")
    np.testing.assert_allclose(models.embed_text(index.queries), index.text_QD, atol=1e-5)
    for member in models.members:
        assert set(member.bank.queries) == {""}, "an export has no training captions"
    call("ensemble/export.py", "--ensemble", runs / "ensembles" / "sweep" / "ensemble.json", "--runs", runs, "--out",
         tmp_path / "plain")  # fmt: skip
    assert not list((tmp_path / "plain").rglob(BANK_FILE))
