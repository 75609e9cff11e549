"""Score matrices of any system, as a user brings them."""

import json
import re
import shutil

import numpy as np
import pytest

from trainables import retrieval
from trainables.records.ensemble_file import read_ensemble
from trainables.records.mlflow_ledger import create_ledger
from trainables.retrieval import Relevance

QUERIES, CLIPS = 30, 12


@pytest.fixture
def folder(tmp_path):
    """A pool of three systems."""
    for seed, split in enumerate(("validation", "test")):
        rng = np.random.default_rng(seed)
        clip_Q = rng.integers(CLIPS, size=QUERIES)
        (tmp_path / "pool" / split).mkdir(parents=True)
        np.save(tmp_path / "pool" / split / "relevance.npy", clip_Q)
        for name in ("ours", "theirs", "third"):
            scores = np.eye(CLIPS)[clip_Q] + rng.normal(0, 0.7, (QUERIES, CLIPS))
            np.save(tmp_path / "pool" / split / f"{name}.npy", scores.astype(np.float32))
    return tmp_path / "pool"


@pytest.fixture(scope="module")
def new_ledger(tmp_path_factory):
    """A ledger that holds nothing yet: making its tables takes longer than most tests."""
    runs = tmp_path_factory.mktemp("runs")
    create_ledger(runs)
    return runs


@pytest.fixture
def select(call_command, tmp_path, folder, new_ledger):
    """A function that runs the command on the pool, in this process: what it prints, or says is wrong."""
    shutil.copytree(new_ledger, tmp_path / "runs")

    def run(*words):
        common = [] if "--pool" in words else ["--pool", folder]
        common += ["--runs", tmp_path / "runs"] + ([] if "--evaluate" in words else ["--out", tmp_path / "out"])
        done = call_command("ensemble/select.py", *common, *words)
        assert done.returncode in (0, 2), done.stderr
        return done.stderr if done.returncode else done.stdout

    return run


def test_matrices_of_any_system(select, folder, tmp_path):
    said = select("--method", "exact", "--cost", write(tmp_path / "costs.json", {"ours": 1, "theirs": 2, "third": 3}))
    assert "7 subsets of 3 candidates" in said
    ensemble = read_ensemble(tmp_path / "out" / "ensemble.json")
    for split in ("validation", "test"):
        clip_Q = np.load(folder / split / "relevance.npy")
        fused = sum(m.weight * np.load(folder / split / f"{m.name}.npy") for m in ensemble.members)
        expected = retrieval.compute_metrics(fused, Relevance(np.arange(QUERIES), clip_Q, clip_Q), ["map10"])["map10"]
        assert ensemble.metrics_on(split).systems["ensemble"]["map10"].value == pytest.approx(expected)
    page = (tmp_path / "out" / "ensemble.html").read_text()
    assert page.count("<svg") >= 2
    assert not re.search(r"(?:src|href)=\"http", page)
    again = select("--evaluate", tmp_path / "out" / "ensemble.json", "--split", "test")
    assert "before this one: 1" in again
    assert "only trials have embeddings" in select("--export", tmp_path / "out" / "ensemble.json")


def test_several_relevant_clips_and_groups(select, folder):
    rng = np.random.default_rng(0)
    for split in ("validation", "test"):
        relevant = np.eye(CLIPS, dtype=bool)[np.load(folder / split / "relevance.npy")] | (
            rng.random((QUERIES, CLIPS)) < 0.1
        )
        np.save(folder / split / "relevance.npy", relevant)
        np.save(folder / split / "groups.npy", np.arange(QUERIES) // 3)
    assert "mAP@16" in select("--metric", "map16", "--direction", "a2t", "--fusion", "rank")
    assert "ndcg10" in select("--metric", "ndcg10", "--fusion", "zscore", "--bags", 3, "--refine")


def test_all_methods_are_compared_in_one_look_at_test(select, tmp_path):
    said = select("--compare", "--folds", 3, "--refine")
    ensemble = read_ensemble(tmp_path / "out" / "ensemble.json")
    methods = {method.name: method for method in ensemble.methods}
    assert list(methods) == ["best single", "all", "greedy", "greedy, refined", "exact"]
    assert methods["best single"].test == ensemble.test.systems["best_single"]
    assert methods["greedy, refined"].test == ensemble.test.systems["ensemble"]
    assert methods["best single"].nested == ensemble.nested.best_single
    assert methods["greedy, refined"].nested == ensemble.nested.ensemble
    assert methods["exact"].validation["map10"].value >= methods["all"].validation["map10"].value
    assert len(methods["all"].members) == 3
    assert re.search(rf"greedy, refined\s+\d\s+{100 * methods['greedy, refined'].validation['map10'].value:.2f}", said)
    assert "before this one: 0" in said
    assert "before this one: 1" in select("--compare")


def test_systems_of_several_folders_keep_their_weights(select, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for split in ("validation", "test"):
        clip_Q = np.load(folder / split / "relevance.npy")
        for name in ("ours", "theirs", "third"):
            (other / split / f"{name}.npy").unlink()
        for seed, name in enumerate(("better", "best")):
            noise = np.random.default_rng(seed).normal(0, 0.4, (QUERIES, CLIPS))
            np.save(other / split / f"{name}.npy", np.eye(CLIPS)[clip_Q] + noise)
    both = ("--pool", folder, other)
    select(*both, "--method", "all")
    ensemble = json.loads((tmp_path / "out" / "ensemble.json").read_text())
    for number, member in enumerate(ensemble["members"], start=1):
        member["count"], member["weight"] = number, number / 15
    path = write(tmp_path / "weighted.json", ensemble)
    said = select(*both, "--evaluate", path, "--split", "validation")
    fused = sum(m["weight"] * np.load(f"{m['folder']}/validation/{m['name']}.npy") for m in ensemble["members"])
    clip_Q = np.load(folder / "validation" / "relevance.npy")
    expected = retrieval.compute_metrics(fused, Relevance(np.arange(QUERIES), clip_Q, clip_Q), ["map10"])["map10"]
    assert f"{100 * expected:.2f}" in said
    np.save(other / "validation" / "groups.npy", np.arange(QUERIES))
    assert "their queries are grouped differently" in select(*both)
    for split in ("validation", "test"):
        shutil.copy(other / split / "best.npy", other / split / "ours.npy")
    assert "both contain ours.npy: rename one of them" in select(*both)


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def scores(shape=(QUERIES, CLIPS), dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("ours.npy", scores((QUERIES, CLIPS + 1)), r"theirs.npy has shape \(30, 12\), but ours.npy has \(30, 13\)"),
        ("ours.npy", scores(dtype=np.int64), "scores must be float16, float32 or float64"),
        ("ours.npy", np.full((QUERIES, CLIPS), np.nan, np.float32), "ours: query 0 has a score that isn't finite"),
        ("ours.npy", np.full((QUERIES, CLIPS), 1e40), "ours: query 0 has a score that isn't finite"),
        ("ours.npy", np.full((QUERIES, CLIPS), 1e-50), "ours has scores too close to 0 for float32"),
        ("ours.npy", b"nonsense", "isn't a NumPy file"),
        ("ours.npy", b"\x93NUMPY\x01\x00\x01\x00(", "isn't a NumPy file .*write it again with np.save"),
        ("relevance.npy", None, "relevance.npy can't be read: No such file"),
        ("relevance.npy", np.full(QUERIES, CLIPS), "query 0 refers to clip 12 of 12"),
        ("relevance.npy", np.zeros((QUERIES, CLIPS), bool), "query 0 has no relevant clip"),
        ("relevance.npy", np.zeros(QUERIES), "it must be int"),
        ("groups.npy", np.zeros(3, int), "groups.npy is int64"),
    ],
)
def test_what_is_wrong_is_named(select, folder, tmp_path, file, content, why):
    path = folder / "validation" / file
    path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    assert re.search(f"(?m)^error: .*{why}", select())
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_test_is_named_and_nothing_is_written(select, folder, tmp_path):
    np.save(folder / "test" / "ours.npy", np.full((QUERIES, CLIPS), np.nan, np.float32))
    assert re.search("error: ours on .*test: query 0 has a score that isn't finite", select("--method", "all"))
    (folder / "test" / "ours.npy").unlink()
    assert re.search("ours.npy doesn't exist: add it, or select without a look at test", select())
    assert not (tmp_path / "out").exists()
    assert "Wrote" in select("--no-test")


def test_an_empty_split_is_named(select, folder):
    for name in ("ours", "theirs", "third"):
        np.save(folder / "validation" / f"{name}.npy", np.zeros((0, CLIPS), np.float32))
    assert "is empty (0, 12)" in select()


def test_float16_is_taken(select, folder):
    for name in ("ours", "theirs", "third"):
        for split in ("validation", "test"):
            np.save(folder / split / f"{name}.npy", np.load(folder / split / f"{name}.npy").astype(np.float16))
    assert "Wrote" in select()


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([{"name": "ours", "weight": -0.5}], "members[0].weight: Input should be greater than or equal to 0, not -0.5"),
        ([{"name": "ours", "weight": float("inf")}], "members[0].weight: Input should be a finite number, not inf"),
        (
            [{"name": "ours", "weight": 1, "count": -3}],
            "members[0].count: Input should be greater than",
        ),
        (
            [{"name": "ours", "weight": 1, "count": 2}, {"name": "third", "weight": 1}],
            "members: give a count",
        ),
        (
            [{"name": "ours", "weight": 9, "count": 1}, {"name": "third", "weight": 1, "count": 1}],
            "contradicts its weight",
        ),
        ([{"name": "fourth", "weight": 1}], "no test scores of 'fourth' exist"),
    ],
)
def test_what_is_wrong_with_members_is_named(select, tmp_path, members, why):
    assert why in select("--evaluate", write(tmp_path / "bad.json", {"members": members}))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--method", "exact", "--bags", 3), "--bags only applies to --method greedy"),
        (("--bag-share", 0.5), "--bag-share only applies to --bags"),
        (("--bags", 3, "--bag-share", 0), "bag_share is 0.0"),
        (("--seed", 7), "--seed only applies to --bags"),
        (("--method", "all", "--cost", "parameters"), "--cost can't be combined with --method all"),
        (("--evaluate", "x.json", "--no-test"), "select.py evaluate: error: unrecognized arguments: --no-test"),
        (("--evaluate", "x.json", "--export", "x.json"), "evaluate: error: unrecognized arguments: --export x.json"),
        (("--export", "x.json", "--fusion", "rank"), "export: error: unrecognized arguments: --fusion rank"),
        (("--bags", 2, "--seed", -1), "seed is -1"),
        (("--split", "test"), "unrecognized arguments: --split test"),
        (("--folds", 1), "give 2 or more"),
        (("--folds", 500), "can't be split into 500 folds"),
        (("--filter", "seed=1"), "files of scores have no parameters"),
        (("--cost", "parameters"), "has no model"),
    ],
)
def test_options_that_do_not_go_together(select, words, why):
    assert why in select(*words)
