"""What earlier versions wrote still opens: a store, runs, an ensemble, exported and not, and an index of recordings."""

import json
import re
import shutil
from pathlib import Path

import pytest

from data.store.stored_split import open_split
from trainables.records.ensemble_file import read_ensemble
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
        words = ("--ensemble", ensemble, "--runs", folder / "runs", "--index", folder / "index", "--top", 3)
        done = call_command("ensemble/search.py", *words, "a low tone")
        assert done.returncode == 0, done.stderr
        # The recordings themselves aren't in the archive.
        found.append([Path(name).name for name in re.findall(r"gone: (\S+) no longer exists", done.stderr)])
    assert found == [["test-3.flac", "train-3.flac", "test-2.flac"]] * 2


def test_a_report_shows_its_trials_and_its_ensemble(folder, call_command, tmp_path):
    words = ("--runs", folder / "runs", "--store", folder / "store", "--out", tmp_path)
    done = call_command("ensemble/report.py", *words)
    assert done.returncode == 0, done.stderr
    assert "isn't shown" not in done.stdout + done.stderr
