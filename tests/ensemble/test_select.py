"""Selection as a user runs it, on a real sweep."""

import re
import select
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from data.errors import UserError
from ensemble.pool import candidates as pool
from ensemble.record.terminal_tables import describe_difference
from ensemble.selection import epoch_choice
from trainables import retrieval
from trainables.records.embeddings import TEST_FILE, VALIDATION_FILE, read_embeddings
from trainables.records.ensemble_file import Ensemble, Estimate, SplitMetrics, read_ensemble
from trainables.records.mlflow_ledger import open_ledger

METRICS = ("map10", "r1", "r5", "r10")


@pytest.fixture(scope="module")
def selected(own_runs, run_command):
    """The folder of runs, what the command printed in a process of its own, and the ensemble."""
    runs = own_runs
    done = run_command("ensemble/select.py", "--metric", "map10", "--runs", runs, "--sweep", "first")
    assert done.returncode == 0, done.stderr
    return runs, done, read_ensemble(runs / "ensembles" / "first" / "ensemble.json")


def test_ensemble_json_names_members_and_figures(selected):
    runs, _, ensemble = selected
    signatures = set(open_ledger(runs).find_sweep("first").signatures)
    for member in ensemble.members:
        assert member.name
        assert member.run_id
        assert None not in (member.shapley, member.without, member.alone)
        assert member.signature in signatures
    assert sum(member.weight for member in ensemble.members) == pytest.approx(1)
    assert "<h1>Ensemble of first</h1>" in (runs / "ensembles" / "first" / "ensemble.html").read_text()
    for split in ("validation", "test"):
        for system in ("ensemble", "best_single"):
            for metric in METRICS:
                found = ensemble.metrics_on(split).systems[system][metric]
                assert 0 <= found.interval[0] <= found.value <= found.interval[1] <= 1
    systems = ensemble.validation.systems
    assert systems["ensemble"]["map10"].value >= systems["best_single"]["map10"].value


def test_the_figures_are_those_of_the_members_embeddings(selected):
    runs, _, ensemble = selected
    ledger = open_ledger(runs)
    found = {candidate.signature: candidate for candidate in pool.find_candidates(ledger, [ledger.find_sweep("first")])}
    candidates = [found[member.signature] for member in ensemble.members]
    for split in ("validation", "test"):
        source = pool.load_pool(ledger, candidates, split)
        fused = sum(member.weight * source.read_scores(place) for place, member in enumerate(ensemble.members))
        for name, value in retrieval.compute_metrics(fused, source.relevance, METRICS).items():
            assert value == pytest.approx(ensemble.metrics_on(split).systems["ensemble"][name].value)


def test_it_prints_members_and_both_systems_on_both_splits(selected):
    _, done, ensemble = selected
    for member in ensemble.members:
        assert re.search(rf"{re.escape(member.name)}\t.*\t{member.weight:.3f}\t", done.stdout)
    for split in ("validation", "test"):
        for system in ("best_single", "ensemble"):
            figure = ensemble.metrics_on(split).systems[system]["map10"].percent.split()[0]
            assert re.search(rf"{split}, {system.replace('_', ' ')}\t{figure}", done.stdout)


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ((0.01, 0.05), "3.00 (1.0 to 5.0): the interval excludes zero."),
        ((-0.01, 0.05), "3.00 (-1.0 to 5.0): it may be due to chance: the interval includes zero."),
    ],
)
def test_it_says_whether_the_lead_on_test_may_be_chance(interval, told):
    test = SplitMetrics("s", "f", {"best_single": {}, "difference": {"map10": Estimate(0.03, interval)}})
    sentence = describe_difference(Ensemble((), metrics=("map10",), test=test), test)
    assert sentence == f"On test, mAP@10 of the ensemble minus that of the best single candidate is {told}"


def test_the_lead_on_test_is_told(selected):
    _, done, ensemble = selected
    assert describe_difference(ensemble, ensemble.test) in done.stdout.splitlines()


def test_the_ensemble_is_a_run_and_looks_at_test_are_counted(selected, call_command):
    runs, _, ensemble = selected
    seen = [run for kind in ("ensemble", "evaluation") for run in open_ledger(runs).iter_events(kind)]
    before = sum(run.test_fingerprint == ensemble.test.fingerprint for run in seen)
    again = call_command(
        "ensemble/select.py", "--runs", runs, "--sweep", "first", "--metric", "mrr", "--out", runs / "out"
    )
    assert f"before this one: {before}" in again.stdout
    newest = next(iter(open_ledger(runs).iter_events("ensemble")))
    assert open_ledger(runs).client.get_run(newest.run_id).info.status == "FINISHED"
    assert newest.settings["metric"] == "mrr"
    written = read_ensemble(runs / "out" / "ensemble.json")
    assert newest.metrics["test_ensemble_mrr"] == written.test.systems["ensemble"]["mrr"].value


@pytest.mark.parametrize(("way", "metric"), [("from inside ensemble", "map16"), ("as a module", "r5")])
def test_it_runs_from_anywhere_where_the_standard_select_is_a_shared_library(way, metric, selected, tmp_path):
    """In processes of their own: what a module named select hides depends on how Python is started.

    The fixture `selected` runs the command from the root.
    """
    if select.__spec__.origin == "built-in":
        pytest.skip("this Python has select built in, where the shadowing can't bite")
    root = __file__.rpartition("/tests/")[0]
    words, folder = {
        "from inside ensemble": (["select.py"], f"{root}/ensemble"),
        "as a module": (["-m", "ensemble.select"], root),
    }[way]
    command = [sys.executable, *words, "--metric", metric, "--runs", str(selected[0]), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert metric in read_ensemble(tmp_path / "ensemble.json").validation.systems["ensemble"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--runs", "{empty}"], "holds no runs .*run python sweeps/grid.py first"),
        (["--sweep", "absent"], "no sweep is named 'absent'; known: .*first"),
        (["--metric", "accuracy"], "unknown metric 'accuracy'; known: .*mrr"),
        (["--max-size", "0"], "isn't an integer of at least 1"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(words, expected, selected, call_command, tmp_path):
    words = ["--runs", selected[0], *[word.format(empty=tmp_path) for word in words]]
    failed = call_command("ensemble/select.py", *words)
    assert failed.returncode == 2
    assert re.search(expected, failed.stderr)
    assert "Traceback" not in failed.stderr


def test_a_sweep_without_a_finished_trial_says_so(selected, tmp_path, call_command):
    runs = shutil.copytree(selected[0], tmp_path / "runs")
    ledger = open_ledger(runs)
    ledger.start_sweep("unfinished", ["0123456789abcdef"], {})
    failed = call_command("ensemble/select.py", "--runs", runs)
    assert failed.returncode == 2
    assert "sweep 'unfinished' has no finished trial of 1" in failed.stderr


def test_trials_whose_splits_differ_are_refused(selected):
    ledger = open_ledger(selected[0])
    first, second, *_ = pool.find_candidates(ledger, [ledger.find_sweep("first")])
    reference = ledger.load_embeddings(first.run, VALIDATION_FILE)
    other = ledger.load_embeddings(second.run, TEST_FILE)
    with pytest.raises(UserError, match="differ in their splits"):
        pool.align_scores(other, reference, second, first)


def test_rows_and_columns_are_aligned_by_query_and_clip(selected):
    ledger = open_ledger(selected[0])
    first = pool.find_candidates(ledger, [ledger.find_sweep("first")])[0]
    reference = ledger.load_embeddings(first.run, VALIDATION_FILE)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(len(reference.queries)), rng.permutation(len(reference.clip_ids))
    shuffled = replace(
        reference,
        queries=[reference.queries[row] for row in rows],
        relevant_clip_ids=[reference.relevant_clip_ids[row] for row in rows],
        clip_ids=[reference.clip_ids[column] for column in columns],
        text_QD=reference.text_QD[rows],
        audio_AD=reference.audio_AD[columns],
    )
    by_query, by_clip = pool.align_scores(shuffled, reference, first, first)
    np.testing.assert_allclose(by_query(0, len(rows)), reference.compute_scores(), atol=1e-6)
    np.testing.assert_array_equal(by_clip(0, len(columns)), by_query(0, len(rows)).T)
    np.testing.assert_array_equal(by_clip(1, 2), by_query(0, len(rows)).T[1:2])


def test_epochs_are_chosen_anew_within_the_folds(selected):
    runs, done, ensemble = selected
    ledger = open_ledger(runs)
    candidates = pool.find_candidates(ledger, [ledger.find_sweep("first")])
    kept = epoch_choice.load_epoch_scores(ledger, candidates)
    for candidate in candidates:
        own = kept[candidate.signature]
        told = ledger.client.get_metric_history(candidate.run.run_id, "map10")
        assert own.values_EQ.mean(axis=1) == pytest.approx([metric.value for metric in told])
        queries = own.values_EQ.shape[1]
        assert own.find_best(np.ones(queries, bool)).number == int(candidate.run.metrics["best_epoch"])
        one = np.arange(queries) == 0
        assert own.find_best(one) == own.epochs[int(np.argmax(own.values_EQ[:, 0]))]
        assert own.list_candidates(one) == [(candidate, own.find_best(one).file)]
    assert ensemble.nested.redoes_epochs
    assert "or more (epochs" not in done.stdout


def test_an_index_of_the_ensemble_has_its_scores(selected, call_command, tmp_path):
    runs, _, ensemble = selected
    path = runs / "ensembles" / "first" / "ensemble.json"
    done = call_command("ensemble/select.py", "--runs", runs, "--export", path, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    index = read_embeddings(tmp_path / "test-index.arrow")
    ledger = open_ledger(runs)
    members = {
        candidate.signature: candidate for candidate in pool.find_candidates(ledger, [ledger.find_sweep("first")])
    }
    source = pool.load_pool(ledger, [members[member.signature] for member in ensemble.members], "test")
    fused = sum(member.weight * source.read_scores(place) for place, member in enumerate(ensemble.members))
    np.testing.assert_allclose(index.compute_scores(), fused, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(index.audio_AD, axis=1), 1, atol=1e-5)


def test_an_ensemble_is_evaluated_again(selected, call_command):
    runs, _, ensemble = selected
    path = runs / "ensembles" / "first" / "ensemble.json"
    done = call_command("ensemble/select.py", "--runs", runs, "--evaluate", path, "--split", "test")
    assert done.returncode == 0, done.stderr
    assert ensemble.test.systems["ensemble"]["map10"].percent in done.stdout
    assert re.search(r"before this one: [1-9]", done.stdout)


def test_only_trials_with_some_settings(selected, call_command, tmp_path):
    runs = selected[0]
    ledger = open_ledger(runs)
    seeds = sorted({run.settings["seed"] for run in ledger.iter_trials()})
    words = ("ensemble/select.py", "--runs", runs, "--sweep", "first", "--no-test", "--out", tmp_path, "--folds", 0)
    done = call_command(*words, "--filter", f"seed={seeds[0]}")
    assert done.returncode == 0, done.stderr
    failed = call_command(*words, "--filter", "seed=77")
    assert "no trial matches; its values are: " in failed.stderr
    assert "NAME being one of: " in call_command(*words, "--filter", "nonsense=1").stderr
