"""The report: its figures are those of the trials, and its page works in a real browser, without the network."""

import asyncio
import csv
import io
import json
import re
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from chromium import needs_chromium, open_tab
from matplotlib.figure import Figure
from PIL import Image

from data import corpora
from data.schema import SAMPLE_RATE_HZ, SourceClip, Split
from data.splits import Splits
from data.store import shard_writer, split_writer
from data.store.files import write_json
from data.store.stored_split import open_split
from ensemble import report
from ensemble.pool import candidates
from ensemble.pool.candidates import Candidate
from ensemble.record.events import log_event
from ensemble.reporting import main_effects, paper_results, retrieval_examples, tables, trial_rows
from ensemble.reporting.ensemble_rows import EnsembleRow, find_row
from ensemble.reporting.plots import assign_colours, draw_hours, draw_interaction
from ensemble.reporting.report_page import summarise_costs
from sweeps import spaces
from trainables import bootstrap, recipes, retrieval
from trainables import trial as trials
from trainables.records import checkpoint
from trainables.records.embeddings import TEST_FILE, VALIDATION_FILE, Embeddings, write_embeddings
from trainables.records.ensemble_file import Ensemble, Estimate, Member, SplitMetrics, read_ensemble, write_ensemble
from trainables.records.ledger import TrialRun
from trainables.records.mlflow_ledger import LedgerOptions, MlflowLedger, create_ledger, open_ledger
from trainables.schedule import Schedule
from trainables.signature import UNRELATED, Relations

PHONE, DESKTOP = 390, 1200
SPLITS = Splits("made/train", "made/validation", "made/test", ("made/train",))
CLOTHO = Splits("clotho/development", "clotho/validation", "clotho/evaluation",
                tuple(f"{corpus}/{name}" for corpus in ("clotho", "audiocaps", "wavcaps")
                      for name in corpora.load(corpus).PRETRAINING))  # fmt: skip
NUM_CLIPS, NUM_CAPTIONS = 12, 2
METRICS = ("map10", "r1", "r5", "r10")


@pytest.fixture(scope="module")
def reported(own_runs, tone_store, call_command, run_command, tmp_path_factory):
    """The folder of a report on the tiny sweep, and what the command said in a process of its own, as a user runs."""
    runs, out = own_runs, tmp_path_factory.mktemp("report")
    chosen = call_command(
        "ensemble/select.py", "--runs", runs, "--sweep", "first", "--out", out / "ensemble", "--folds", 0
    )
    assert chosen.returncode == 0, chosen.stderr
    done = run_command("ensemble/report.py", "--runs", runs, "--sweep", "first", "--out", out, "--store", tone_store)
    assert done.returncode == 0, done.stderr
    return out, done


def read_csv(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_the_table_of_a_real_sweep_has_the_figures_of_its_trials_and_of_its_ensemble(reported, own_runs):
    out, done = reported
    ledger = open_ledger(own_runs)
    lines = read_csv(out / "report.csv")
    expected = set()
    for signature in ledger.find_sweep("first").signatures:
        found = ledger.load_embeddings(ledger.find_finished_trial(signature), TEST_FILE)
        relevant = retrieval.build_relevance(found.relevant_clip_ids, found.clip_ids)
        values = retrieval.compute_metrics(found.compute_scores(), relevant, ["map10", "r1"])
        expected.add((f"{100 * values['map10']:.2f}", f"{100 * values['r1']:.2f}"))
    assert {(line["mAP@10"], line["R@1"]) for line in lines if line["no."]} == expected
    ensemble = read_ensemble(out / "ensemble" / "ensemble.json")
    figure = ensemble.test.systems["ensemble"]["map10"].percent.split()[0]
    assert figure in [line["mAP@10"] for line in lines if line["audio"].startswith("ensemble of ")]
    assert figure in done.stdout


def test_a_report_is_a_look_at_test_that_others_count(reported, own_runs, call_command, tmp_path):
    before = int(re.search(r"before this one: (\d+)", reported[1].stdout)[1])
    words = ("--runs", own_runs, "--sweep", "first", "--out", tmp_path)
    assert "before this one" not in call_command("ensemble/report.py", *words, "--no-test").stdout
    again = call_command("ensemble/select.py", *words, "--folds", 0)
    assert f"before this one: {before + 1}" in again.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a split to test on: a second of a tone in each clip."""
    folder = tmp_path_factory.mktemp("store")
    where = folder / "made" / "test"
    where.mkdir(parents=True)
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    clips = [
        SourceClip(
            f"made/test/{number}, a <b> & c.wav",
            partial(iter, ((0.3 * np.sin(2 * np.pi * 100 * (number + 2) * time_s)).astype(np.float32),)),
            tuple(f"Tone {number} sounds, take {take}." for take in range(NUM_CAPTIONS)),
            origin="made up",
        )
        for number in range(NUM_CLIPS)
    ]
    shard = shard_writer.write_shard(
        where / shard_writer.build_shard_name(0, clips, "pcm16"), "made", "test", clips, "pcm16"
    )
    split_writer.write_split(where, Split("made", "test", tuple(clips)), "pcm16", [shard])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    create_ledger(folder)
    return folder


@pytest.fixture
def ledger(runs, monkeypatch):
    """A ledger of its own: an experiment in the module's database, since making a database takes seconds."""
    shared = open_ledger(runs)
    artifacts = (runs / "artifacts" / uuid.uuid4().hex).as_uri()
    own = MlflowLedger(shared.tracking_uri, shared.client.create_experiment(uuid.uuid4().hex, artifacts))
    monkeypatch.setattr(LedgerOptions, "open", lambda _: own)
    return own


class Sweep:
    """A finished sweep whose trials weren't trained: their embeddings are made up, all else is as a sweep leaves it."""

    def __init__(self, ledger, store, wanted, described=None):
        self.ledger, self.store = ledger, store
        self.split = open_split(store, "made/test")
        self.rng = np.random.default_rng(0)
        self.signatures = [f"{number:016x}" for number in range(len(wanted))]
        self.run_id = ledger.start_sweep("made", self.signatures, described or {"store": str(store)})
        self.base = {which: self.rng.normal(size=(NUM_CLIPS, 8)) for which in ("validation", "test")}
        self.embedded = {}
        for trial, signature in zip(wanted, self.signatures, strict=True):
            self.add(trial, signature)

    def add(self, trial, signature, relations=UNRELATED, best_epoch=3):
        client = self.ledger.client
        run_id = self.ledger.claim(trial, signature, self.run_id, relations)
        client.log_metric(run_id, "best_epoch", best_epoch, step=best_epoch)
        for epoch in (1, 2, 3):
            for name, value in (
                ("map10", 0.2 + 0.1 * epoch),
                ("validation_loss", 5 / epoch),
                ("train_loss", 4 / epoch),
            ):
                client.log_metric(run_id, name, value + 0.01 * trial.seed, step=epoch)
        folder = Path(self.ledger.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
        write_json(folder / checkpoint.TRIAL_FILE, trials.to_json(trial))
        for which, file in (("validation", VALIDATION_FILE), ("test", TEST_FILE)):
            own = self.embeddings(signature, which)
            self.embedded[signature, which] = own
            (folder / "embeddings").mkdir(exist_ok=True)
            write_embeddings(folder / "embeddings" / file, own)
        self.ledger.finish(run_id)

    def embeddings(self, signature, which):
        noisy = [np.repeat(self.base[which], times, axis=0) for times in (1, NUM_CAPTIONS)]
        audio, text = (one + 1.5 * self.rng.normal(size=one.shape) for one in noisy)
        queries = self.split.queries
        return Embeddings(
            signature, f"made/{which}", self.split.fingerprint if which == "test" else "of validation",
            self.split.clip_ids, queries["text"].to_pylist(), queries["relevant_clip_ids"].to_pylist(),
            *((one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in (audio, text)),
        )  # fmt: skip

    def file(self, signature, name):
        run = self.ledger.find_finished_trial(signature)
        return Path(run.artifacts.removeprefix("file://")) / name

    def choose(self, weights, tmp_path, **more):
        """An ensemble of these trials, as `select.py` leaves it; without figures unless they are given."""
        members = tuple(Member(f"trial {signature}", weight, signature, alone=0.5, shapley=0.1)
                        for signature, weight in weights.items())  # fmt: skip
        likeness = tuple(map(tuple, np.eye(len(weights)).tolist()))
        ensemble = Ensemble(members, "made", method="greedy forward selection", likeness=likeness, **more)
        path = tmp_path / "ensemble.json"
        write_ensemble(path, ensemble)
        log_event(self.ledger, "ensemble", "ensemble of made", ensemble, [path], self.run_id)


def naive(scores_QA, truth_Q):
    """The metrics, straight from their definitions, in percent."""
    better_Q = [(row >= row[truth]).sum() for row, truth in zip(scores_QA, truth_Q, strict=True)]
    found = {f"r{k}": 100 * np.mean([rank <= k for rank in better_Q]) for k in (1, 5, 10)}
    return found | {"map10": 100 * np.mean([1 / rank if rank <= 10 else 0 for rank in better_Q])}


@pytest.fixture
def grid():
    """Two pairs, each pretrained and fine-tuned with and without paraphrases, with two seeds."""
    pretrainings = [
        spaces.from_scratch(SPLITS, "float32", "passt:tiny", 1e-3, epochs=6, text=text)
        for text in ("transformer:small", "transformer:shallow")
    ]
    fine = [
        replace(spaces.fine_tuning(SPLITS, pretraining, 0.4, epochs=3), paraphrase_probability=p, seed=seed)
        for pretraining in pretrainings
        for p in (0.0, 0.3)
        for seed in (0, 1)
    ]
    return [*pretrainings, *fine]


@pytest.fixture
def make(call_command, runs):
    """A function that runs the command in this process, to a good end or one that is expected: what it prints."""

    def run(out, *words, status=0):
        done = call_command("ensemble/report.py", "--runs", runs, "--out", out, *words)
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    return run


def test_figures_are_those_of_the_embeddings_in_every_format(ledger, store, grid, make, tmp_path):
    sweep = Sweep(ledger, store, grid)
    weights = {sweep.signatures[3]: 0.75, sweep.signatures[9]: 0.25}
    sweep.choose(weights, tmp_path)
    printed = make(tmp_path)
    truth_Q = np.repeat(np.arange(NUM_CLIPS), NUM_CAPTIONS)
    scores = {key: one.text_QD.astype(float) @ one.audio_AD.T.astype(float) for key, one in sweep.embedded.items()}
    expected = {f"{number}": naive(scores[sweep.signatures[place], "test"], truth_Q)
                for number, place in enumerate((1, 6, 7, 8, 9, 0, 2, 3, 4, 5), start=1)}  # fmt: skip
    expected[""] = naive(sum(weight * scores[key, "test"] for key, weight in weights.items()), truth_Q)
    lines = read_csv(tmp_path / "report.csv")
    assert [line["no."] for line in lines] == list(expected)
    texts = [(tmp_path / f"report.{kind}").read_text() for kind in ("md", "tex", "html")]
    for line in lines:
        for name, title in zip(METRICS, ("mAP@10", "R@1", "R@5", "R@10"), strict=True):
            told = f"{expected[line['no.']][name]:.2f}"
            assert line[title] == told
            assert float(line[f"{title} low"]) <= float(told) <= float(line[f"{title} high"])
            assert all(told in text for text in (*texts, printed))
    assert lines[-1]["audio"] == "ensemble of 5, 8"
    assert [line["fine-tuned"] + line["GPT"] for line in lines[:5]] == ["", "x", "x", "xx", "xx"]
    assert {line["overlap"] for line in lines[:10]} == {"none"}
    found = sweep.embedded[sweep.signatures[1], "test"]
    relevant = retrieval.build_relevance(found.relevant_clip_ids, found.clip_ids)
    per_query = retrieval.find_metric("map10")(retrieval.compute_ranks(found.compute_scores(), relevant), relevant)
    low, high = bootstrap.bootstrap_interval(per_query, relevant, draws=1000)
    assert (lines[0]["mAP@10 low"], lines[0]["mAP@10 high"]) == (f"{100 * low:.2f}", f"{100 * high:.2f}")
    seeds = read_csv(tmp_path / "seeds.csv")
    assert [(line["no."], line["seeds"]) for line in seeds] == [(f"{n}, {n + 1}", "2") for n in (2, 4, 7, 9)]
    for line, first in zip(seeds, (2, 4, 7, 9), strict=True):
        own = [expected[f"{number}"]["map10"] for number in (first, first + 1)]
        assert [line["mAP@10"], line["mAP@10 least"], line["mAP@10 greatest"]] == [
            f"{value:.2f}" for value in (np.mean(own), min(own), max(own))
        ]


def test_a_report_is_one_look_at_test_and_one_of_validation_is_none(ledger, store, grid, make, tmp_path):
    sweep = Sweep(ledger, store, grid[:1])
    assert "before this one" not in make(tmp_path / "a", "--no-test")
    assert not list(ledger.iter_events("evaluation"))
    for earlier in (0, 1):
        out = make(tmp_path / "a")
        assert f"Looks at made/test before this one: {earlier}" in out
        assert "These trials have no ensemble" in out
    newest, *_ = ledger.iter_events("evaluation")
    assert newest.test_fingerprint == sweep.split.fingerprint
    kept = {file.path for file in ledger.client.list_artifacts(newest.run_id)}
    assert kept == {"report.csv", "report.md", "report.tex", "report.html"}


def test_what_is_missing_is_named_and_the_rest_is_shown(ledger, store, grid, make, tmp_path):
    sweep = Sweep(ledger, store, grid[:4])
    recorded = dict.fromkeys(METRICS, Estimate(0.4321, (0.4, 0.5)))
    test = SplitMetrics("made/test", sweep.split.fingerprint, {"ensemble": recorded})
    sweep.choose({sweep.signatures[2]: 0.5, sweep.signatures[3]: 0.5}, tmp_path)
    sweep.choose({sweep.signatures[0]: 0.5, sweep.signatures[3]: 0.5}, tmp_path, test=test)
    sweep.choose({"f" * 16: 1.0}, tmp_path)
    sweep.choose({sweep.signatures[0]: 1.0}, tmp_path, direction="a2t")
    sweep.choose({sweep.signatures[0]: 1.0}, tmp_path)
    newest = next(ledger.iter_events("ensemble"))
    (Path(newest.artifacts.removeprefix("file://")) / "ensemble.json").unlink()
    sweep.file(sweep.signatures[3], "embeddings/test.arrow").unlink()
    sweep.file(sweep.signatures[1], checkpoint.TRIAL_FILE).unlink()
    out = " ".join(make(tmp_path / "out").split())
    lines = read_csv(tmp_path / "out" / "report.csv")
    assert [line["mAP@10"] == "" for line in lines] == [False, False, True, False, True]
    assert lines[3]["audio"] == "ensemble of 1, 3"
    assert lines[3]["mAP@10"] == "43.21"
    assert "No metrics of 3, passt:tiny transformer:small" in out
    assert "its embeddings of test can't be found in run " in out
    assert "The ensemble of 1, 3: the embeddings of 3 are missing: its metrics are those logged at selection" in out
    assert "The ensemble of 2, 3: the embeddings of 3 are missing: it has no metrics" in out
    assert "its member 'trial ffffffffffffffff' isn't a trial in this report" in out
    assert "isn't shown: its ensemble.json no longer exists" in out
    assert re.search(
        "passt:tiny transformer:shallow .* is left out: its config can't be read: it no longer exists", out
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "its embeddings of test can&#39;t be found" in page
    assert "What the ensemble retrieves" not in page


def test_without_any_figures_of_test_validation_is_offered(ledger, store, grid, make, tmp_path):
    sweep = Sweep(ledger, store, grid[:2])
    for signature in sweep.signatures:
        sweep.file(signature, "embeddings/test.arrow").unlink()
    refused = make(tmp_path, status=2)
    assert re.search("no trial of made has test metrics: its embeddings .*; --no-test reports on", refused)
    assert not list(ledger.iter_events("evaluation"))
    make(tmp_path, "--no-test")
    assert all(line["mAP@10"] for line in read_csv(tmp_path / "report.csv"))
    for signature in sweep.signatures:
        sweep.file(signature, "embeddings/validation.arrow").unlink()
    assert re.search("no trial of made has test metrics: [^;]*$", make(tmp_path, status=2))


def test_an_ensemble_that_another_version_wrote_is_named_and_the_rest_is_shown(ledger, store, grid, make, tmp_path):
    sweep = Sweep(ledger, store, grid[:4])
    first, second = sweep.signatures[:2]
    sweep.choose({first: 0.5, second: 0.5}, tmp_path)
    path = tmp_path / "ensemble.json"
    whole = json.loads(path.read_text())
    written = read_ensemble(path)
    for number, change in enumerate(({"likeness": 3}, {"format_version": 99}, {"fusion": "x"})):
        write_json(path, whole | change)
        log_event(ledger, "ensemble", f"ensemble {number}", written, [path], sweep.run_id)
    out = " ".join(make(tmp_path / "out").split())
    for number, why in enumerate(("likeness: Input should be", "format_version is 99", "fusion: Input should be")):
        assert re.search(rf"ensemble {number} \(\w+\) isn't shown: .*{why}", out)
    lines = read_csv(tmp_path / "out" / "report.csv")
    assert [line["mAP@10"] != "" for line in lines if line["audio"].startswith("ensemble of ")] == [True]
    assert "Error correlation" in (tmp_path / "out" / "report.html").read_text()


def test_brackets_in_a_cell_are_no_markup(capsys):
    label = "text.model /models/[/v2]/bert"
    table = tables.ReportTable(
        "Title", ("no.", "other settings"), ("low", "high"), [tables.TableLine(["1", label], {})]
    )
    tables.print_table(table)
    assert label in capsys.readouterr().out


def test_mistakes_are_told_before_test_is_looked_at(ledger, store, grid, make, tmp_path):
    Sweep(ledger, store, grid[:1])
    assert "holds no split 'made/test'" in make(tmp_path, "--store", tmp_path / "absent", status=2)
    (tmp_path / "file").write_text("")
    assert re.search("--out .*file: .*give a folder", make(tmp_path / "file", status=2))
    assert "no sweep is named 'other'; known: made" in make(tmp_path, "--sweep", "other", status=2)
    assert not list(ledger.iter_events("evaluation"))


def test_a_store_that_is_gone_leaves_the_text(ledger, store, grid, make, tmp_path):
    sweep = Sweep(ledger, store, grid[:1], {"store": str(tmp_path / "gone")})
    sweep.choose({sweep.signatures[0]: 1.0}, tmp_path)
    assert "Recordings are missing: " in make(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Tone 3 sounds, take 0." in page
    assert "data:audio" not in page
    assert "holds no split &#39;made/test&#39;" in page


def test_clips_that_the_store_lacks_are_named_and_the_others_are_heard(store):
    split = open_split(store, "made/test")
    clips = [
        retrieval_examples.RetrievedClip(clip_id, "", 0.5, 1, True)
        for clip_id in (*split.clip_ids[:2], "made/test/gone.wav")
    ]
    heard = retrieval_examples.load_excerpts(
        store, [retrieval_examples.RetrievalExample("a tone", clips, clips[:1])], "made/test", split.fingerprint
    )
    assert list(heard.excerpts) == split.clip_ids[:2]
    assert len(heard.problems) == 1
    assert "has no clip made/test/gone.wav" in heard.problems[0]
    changed = retrieval_examples.load_excerpts(store, [], "made/test", "another")
    assert "has changed since it was embedded" in changed.problems[0]


def test_a_page_stays_small(store, monkeypatch):
    split = open_split(store, "made/test")
    clips = [retrieval_examples.RetrievedClip(clip_id, "", 0.5, 1, False) for clip_id in split.clip_ids]
    answers = [retrieval_examples.RetrievalExample("a tone", clips, [])]
    whole = retrieval_examples.load_excerpts(store, answers, "made/test", split.fingerprint).excerpts
    monkeypatch.setattr(retrieval_examples, "MAX_SOUND_BYTES", sum(map(len, whole.values())) // 2)
    heard = retrieval_examples.load_excerpts(store, answers, "made/test", split.fingerprint)
    assert 0 < len(heard.excerpts) < len(whole)
    assert f"{len(whole) - len(heard.excerpts)} of {len(whole)} clips have no recording" in heard.problems[0]


def test_the_truth_is_last_of_equally_good_clips_and_shown_wherever_it_is():
    named = [(str(clip), "") for clip in range(8)]
    clips = retrieval_examples.rank_clips(np.array([0.5, 0.9, 0.5, 0.1, 0.2, 0.3, 0.4, 0.05]), {0, 7}, named)
    assert [(clip.clip_id, clip.rank) for clip in clips if clip.is_relevant] == [("0", 3), ("7", 8)]
    assert [clip.clip_id for clip in clips[:5]] == ["1", "2", "0", "6", "5"]


def test_the_papers_figures_stand_beside_the_rows_of_its_table_on_test():
    best = recipes.paper("passt:N", "huggingface:roberta-large", CLOTHO, "float32")
    own = recipes.paper_fine_tuning(best, CLOTHO)
    assert paper_results.find_published(own) == (38.56, 26.07, 55.27, 69.30)
    assert paper_results.find_published(replace(own, seed=7)) == (38.56, 26.07, 55.27, 69.30)
    assert paper_results.find_published(replace(own, paraphrase_probability=0.0)) == (38.00, 25.51, 55.06, 68.56)
    assert paper_results.find_published(best) == (36.27, 24.38, 52.54, 66.22)
    assert paper_results.find_published(replace(own, paraphrase_probability=0.5)) is None
    assert paper_results.find_published(recipes.paper_fine_tuning(best, CLOTHO, peak_rate=4e-6)) is None
    assert report.list_published_metrics(paper_results.find_published(own), "test")["map10"] == 38.56
    assert report.list_published_metrics(paper_results.find_published(own), "validation") == {}
    every = [trial for trial in spaces.table2(CLOTHO, "float32") if paper_results.find_published(trial)]
    assert every == spaces.table2(CLOTHO, "float32")
    assert {paper_results.make_key(trial) for trial in every} == set(paper_results.TABLE_2)
    held_out = replace(CLOTHO, pretrain=tuple(name for name in CLOTHO.pretrain if name != "audiocaps/test"))
    assert all(map(paper_results.find_published, spaces.table2(held_out, "float32")))
    assert len(paper_results.ENSEMBLE_MEMBERS) == 8
    assert set(paper_results.TABLE_2) >= paper_results.ENSEMBLE_MEMBERS


@pytest.mark.parametrize(
    "splits",
    [
        SPLITS,
        replace(CLOTHO, test="clotho/evaluation_2025"),
        replace(CLOTHO, train="made/train", pretrain=("made/train",)),
        replace(CLOTHO, train="clotho/other", pretrain=("clotho/development", "wavcaps/freesound")),
    ],
    ids=["another corpus", "another test split", "trained on another corpus", "without a corpus"],
)
def test_the_papers_figures_stand_beside_nothing_else(splits):
    wanted = spaces.table2(splits, "float32")
    shown = {paper_results.make_key(trial).audio for trial in wanted if paper_results.find_published(trial)}
    assert shown == set()
    members = [trial_rows.TrialRow(number, None, trial, {}, 1.0) for number, trial in enumerate(wanted)
               if paper_results.make_key(trial) in paper_results.ENSEMBLE_MEMBERS and not trial.seed]  # fmt: skip
    assert not EnsembleRow("one", {}, members, {}).matches_paper_ensemble


def test_the_papers_ensemble_is_that_of_its_members():
    trials_of_table = enumerate(spaces.table2(CLOTHO, "float32"))
    members = [trial_rows.TrialRow(number, None, trial, {}, 1.0) for number, trial in trials_of_table
               if paper_results.make_key(trial) in paper_results.ENSEMBLE_MEMBERS and not trial.seed]  # fmt: skip
    assert EnsembleRow("one", {}, members, {}).matches_paper_ensemble
    assert not EnsembleRow("one", {}, members[1:], {}).matches_paper_ensemble


def test_another_rate_of_pretraining_is_not_the_papers():
    best = recipes.paper("passt:N", "huggingface:roberta-large", CLOTHO, "float32")
    other = replace(best, schedule=replace(best.schedule, peak_rate=1e-4))
    assert paper_results.find_published(other) is None
    assert paper_results.find_published(recipes.paper_fine_tuning(other, CLOTHO)) is None


def test_snapshots_are_rows_of_the_table_and_change_nothing_else(ledger, store, grid, make, tmp_path):
    """Four trainings of three cycles: their third epochs are the best, so that two snapshots of each are rows."""
    schedule = Schedule(1e-3, 1e-5, epochs=3, warmup_epochs=0.5, final_epochs=0, cycles=3)
    trainings = [replace(trial, schedule=schedule) for trial in grid[2:6]]
    sweep = Sweep(ledger, store, trainings)
    make(tmp_path / "before")
    for number, (trial, signature) in enumerate(zip(trainings, sweep.signatures, strict=True)):
        for epoch in (1, 2, 3):
            snapshot = replace(trial, snapshot_epoch=epoch)
            sweep.add(snapshot, f"{16 * number + epoch:015x}f", Relations(snapshot_of=signature), best_epoch=epoch)
    first, second = sweep.signatures[0], f"{1:015x}f"
    sweep.choose({first: 0.5, second: 0.5}, tmp_path)
    printed = make(tmp_path / "after")
    assert "2, 3, 5, 6, 8, 9, 11, 12: snapshots, models of the trainings in other rows" in " ".join(printed.split())
    lines = read_csv(tmp_path / "after" / "report.csv")
    assert [line["other settings"] for line in lines[:6]] == ["", "epoch 1", "epoch 2"] * 2
    assert [line["seed"] for line in lines[:6]] == ["0"] * 3 + ["1"] * 3
    assert lines[12]["audio"] == "ensemble of 1, 2"
    before = read_csv(tmp_path / "before" / "report.csv")
    assert [line["mAP@10"] for line in lines[:12:3]] == [line["mAP@10"] for line in before]
    seeds = [read_csv(tmp_path / name / "seeds.csv") for name in ("before", "after")]
    assert [line["mAP@10"] for line in seeds[1]] == [line["mAP@10"] for line in seeds[0]]
    assert [line["seeds"] for line in seeds[1]] == ["2", "2"]

    rows, _ = trial_rows.build_rows(ledger, candidates.find_candidates(ledger, [ledger.find_sweep("made")]))
    kept = trial_rows.leave_out_snapshots(rows)
    assert [row.candidate.signature for row in kept] == sweep.signatures
    by_signature = {row.candidate.signature: row for row in rows}
    best = Member("the best epoch, selected without its training", 1.0, f"{3:015x}f", epoch=3, snapshot_of=first)
    assert best.signature not in by_signature
    assert find_row(best, by_signature) is kept[0]
    assert find_row(replace(best, epoch=2), by_signature) is None
    assert find_row(Member("listed", 1.0, second), by_signature).trial.snapshot_epoch == 1
    (cost,) = summarise_costs(kept)
    assert cost.num_trials == 4
    pages = [(tmp_path / name / "report.html").read_text() for name in ("before", "after")]
    parts = [re.search(r"<h2>Cost</h2>.*</table>", page, re.DOTALL)[0] for page in pages]
    assert parts[0] == parts[1]
    assert all(page.count("<svg") > 3 for page in pages)
    effects = [re.search(r"<h2>Main effects</h2>.*?<h2>", page, re.DOTALL)[0] for page in pages]
    texts = [re.findall(r"<!--(.*?)-->", section) for section in effects]  # the plots' labels are drawn as paths
    assert texts[0] == texts[1]
    assert any("(2)" in text for text in texts[0])


@pytest.fixture
def factorial():
    """A full grid of two rates, three batch sizes and two seeds, over one pretraining."""
    pretraining = spaces.from_scratch(SPLITS, "float32", "cnn:small", 1e-3, epochs=6)
    return [
        replace(spaces.fine_tuning(SPLITS, pretraining, share, epochs=3), batch_size=size, seed=seed)
        for share in (0.2, 0.4)
        for size in (8, 16, 64)
        for seed in (0, 1)
    ]


def value_of(trial):
    return 0.3 + 0.05 * (trial.schedule.peak_rate > 3e-4) + 0.01 * (trial.batch_size == 16) + 0.002 * trial.seed


@pytest.mark.parametrize("left_out", [(), (0, 3, 7)], ids=["full", "with gaps"])
def test_main_effects_are_those_that_made_the_values(factorial, left_out):
    those = [trial for place, trial in enumerate(factorial) if place not in left_out]
    levels, left_out = main_effects.estimate_main_effects(those, [value_of(trial) for trial in those])
    assert left_out == []
    means = {(level.factor, level.level): level.mean for level in levels}
    rate = "peak rate / pretraining's"
    assert means[rate, "0.4"] - means[rate, "0.2"] == pytest.approx(0.05)
    assert means["batch size", "16"] - means["batch size", "8"] == pytest.approx(0.01)
    assert means["batch size", "64"] - means["batch size", "8"] == pytest.approx(0, abs=1e-9)
    assert means["seed", "1"] - means["seed", "0"] == pytest.approx(0.002)
    assert list(dict.fromkeys(level.factor for level in levels)) == [rate, "batch size", "seed"]
    assert [level.level for level in levels if level.factor == "batch size"] == ["8", "16", "64"]


def test_means_of_a_full_grid_are_plain_means_and_intervals_leave_out_what_others_do(factorial):
    noise = 0.001 * np.random.default_rng(0).normal(size=len(factorial))
    values = np.array([value_of(trial) for trial in factorial]) + noise
    for level in main_effects.estimate_main_effects(factorial, values)[0]:
        if level.factor == "batch size":
            own = values[[str(trial.batch_size) == level.level for trial in factorial]]
            assert level.mean == pytest.approx(own.mean())
            low, high = level.interval
            assert low < level.mean < high
            assert high - low < 0.01  # rates alone make a difference of 0.05 within each level
    assert main_effects.estimate_main_effects(factorial[:1], values[:1]) == ([], [])
    two = [factorial[0], factorial[6]]
    assert main_effects.estimate_main_effects(two, [0.1, np.nan]) == ([], [])
    assert [level.interval for level in main_effects.estimate_main_effects(two, [0.1, 0.2])[0]] == [None, None]


@pytest.mark.parametrize("left_out", [(), (0, 3, 7)], ids=["full", "with gaps"])
def test_intervals_hold_the_truth_as_often_as_they_say(factorial, left_out):
    truth = {
        (level.factor, level.level): level.mean
        for level in main_effects.estimate_main_effects(factorial, [value_of(trial) for trial in factorial])[0]
    }
    those = [trial for place, trial in enumerate(factorial) if place not in left_out]
    rng, held = np.random.default_rng(0), []
    for _ in range(150):
        drawn = [value_of(trial) + 0.01 * rng.normal() for trial in those]
        for level in main_effects.estimate_main_effects(those, drawn)[0]:
            low, high = level.interval
            held.append(low <= truth[level.factor, level.level] <= high)
    assert 0.93 < np.mean(held) < 0.97


def test_intervals_are_those_of_ordinary_least_squares(factorial):
    """A factor of two levels with three trials each: textbook figures."""
    those = [replace(factorial[0], batch_size=size, schedule=replace(factorial[0].schedule, peak_rate=rate))
             for size in (8, 16) for rate in (1e-4, 2e-4, 3e-4)]  # fmt: skip
    values = np.array([0.1, 0.2, 0.33, 0.3, 0.37, 0.5])
    means, sizes = values.reshape(2, 3), np.array([8, 16])
    left = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
    reach = scipy.stats.t.ppf(0.975, 2) * np.sqrt((left**2).sum() / 2 / 3)
    found = {
        level.level: level
        for level in main_effects.estimate_main_effects(those, values)[0]
        if level.factor == "batch size"
    }
    for size, mean in zip(sizes, means.mean(axis=1), strict=True):
        assert found[str(size)].interval == pytest.approx((mean - reach, mean + reach))


def test_a_factor_that_cant_be_told_apart_from_others_is_named_and_left_out(factorial):
    """Batch sizes that go with an encoder, and so say which one it is."""
    pretrainings = {audio: spaces.from_scratch(SPLITS, "float32", audio, 1e-3, epochs=6)
                    for audio in ("cnn:small", "passt:tiny")}  # fmt: skip
    nested = [
        replace(spaces.fine_tuning(SPLITS, pretrainings[audio], share, epochs=3), batch_size=size, seed=seed)
        for audio, size in (("cnn:small", 8), ("cnn:small", 16), ("passt:tiny", 32), ("passt:tiny", 64))
        for share in (0.2, 0.4)
        for seed in (0, 1)
    ]
    values = [0.3 + 0.1 * (trial.batch_size > 16) + 0.002 * trial.seed for trial in nested]
    levels, left_out = main_effects.estimate_main_effects(nested, values)
    assert left_out == ["batch size"]
    means = {level.level: level.mean for level in levels if level.factor == "audio"}
    assert means == pytest.approx({"cnn:small": 0.301, "passt:tiny": 0.401})
    assert {level.factor for level in levels} == {"audio", "peak rate / pretraining's", "seed"}


def test_two_factors_are_crossed_with_gaps(factorial):
    those = [trial for trial in factorial if (trial.batch_size, trial.schedule.peak_rate) != (64, 4e-4)]
    values = [value_of(trial) for trial in those]
    levels, _ = main_effects.estimate_main_effects(those, values)
    found = main_effects.compute_interaction(those, values, levels)
    assert found.factors == ("batch size", "peak rate / pretraining's")
    assert found.levels == (["8", "16", "64"], ["0.2", "0.4"])
    np.testing.assert_allclose(found.means, [[0.301, 0.351], [0.311, 0.361], [0.301, np.nan]])
    few = [trial for trial in those if trial.batch_size == 8]
    assert (
        main_effects.compute_interaction(
            few, values[: len(few)], main_effects.estimate_main_effects(few, values[: len(few)])[0]
        )
        is None
    )
    axes = Figure().subplots()
    draw_interaction(axes, found)
    assert [text.get_text() for text in axes.texts] == ["30.10", "35.10", "31.10", "36.10", "30.10"]


def test_what_follows_from_another_factor_is_no_factor(grid):
    other = [
        spaces.fine_tuning(SPLITS, spaces.from_scratch(SPLITS, "float32", "cnn:small", 2e-3, epochs=6), share, epochs=3)
        for share in (0.2, 0.4)
    ]
    expected = ["audio", "text", "paraphrases", "peak rate / pretraining's", "seed"]
    assert list(main_effects.find_varying_factors([*grid[2:], *other])) == expected


def test_accuracy_by_hours_begins_where_the_pretraining_ends(grid):
    def make_row(number, trial, parent, hours, curve):
        run = TrialRun(f"run{number}", trial.name, f"{number}", "FINISHED", relations=Relations(parent))
        return trial_rows.TrialRow(number, Candidate(trial.name, f"{number}", run), trial, {"map10": curve}, hours)

    tuned = next(trial for trial in grid if trial.pretraining)
    rows = [
        make_row(0, tuned.pretraining, None, 2.0, {1: 0.1, 2: 0.2, 3: 0.15, 4: 0.25}),
        make_row(1, tuned, "0", 1.0, {1: 0.2, 2: 0.3}),
        make_row(2, tuned, "of another sweep", 1.0, {1: 0.4}),
    ]
    axes = Figure().subplots()
    draw_hours(axes, rows, assign_colours(rows))
    lines = [(line.get_linestyle(), line.get_xydata().tolist()) for line in axes.lines[:3]]
    assert lines == [
        ("--", [[0.5, 10.0], [1.0, 20.0], [1.5, 15.0], [2.0, 25.0]]),
        ("-", [[2.5, 20.0], [3.0, 30.0]]),
        ("-", [[1.0, 40.0]]),
    ]


def test_a_band_goes_from_the_least_to_the_greatest_seed(grid):
    curves = [{1: 5.0, 2: 4.0}, {1: 7.0, 2: 3.0, 3: 2.0}]
    assert trial_rows.average_curves(curves) == {1: (6.0, 5.0, 7.0), 2: (3.5, 3.0, 4.0)}
    rows = [trial_rows.TrialRow(number, None, trial, {"validation_loss": {1: float(trial.seed)}, "map10": {}}, 1.0)
            for number, trial in enumerate([*grid, replace(grid[2], batch_size=7)])]  # fmt: skip
    bands = trial_rows.build_bands(rows)
    assert list(bands) == [
        "passt:tiny, transformer:small, batch size 32",
        "passt:tiny, transformer:shallow, batch size 32",
        "passt:tiny, transformer:small, batch size 7",
    ]
    two, _, one = bands.values()
    assert [(band.share, band.seeds, band.points) for band in two] == [
        (share, 2, {1: (0.5, 0.0, 1.0)}) for share in (0.0, 0.3)
    ]
    assert [band.seeds for band in one] == [1]


def test_hours_of_gpus_are_told_where_they_are_known(grid):
    rows = [trial_rows.TrialRow(1, None, grid[0], {}, 2.0, 4.0, 8.0),
            trial_rows.TrialRow(2, None, grid[0], {}, 1.0, 0.0, 2.0),
            trial_rows.TrialRow(3, None, grid[2], {}, 3.0, None, None)]  # fmt: skip
    pretraining, fine_tuning = summarise_costs(rows)
    assert (pretraining.hours, pretraining.gpu_hours, pretraining.cpu_hours) == (3.0, 8.0, 2.0)
    assert (fine_tuning.hours, fine_tuning.gpu_hours, fine_tuning.cpu_hours) == (3.0, None, None)


def test_tables_escape_what_their_formats_need():
    odd = r"50 % & a|b_c #1 {x} ~ ^ \ $"
    line = tables.TableLine(["1", odd], {"map10": tables.Cell(38.2449, 31.0, 45.05)}, {"map10": 38.56})
    ensemble = tables.TableLine(["", "ensemble of 1_2"], {}, {}, is_ensemble=True)
    table = tables.ReportTable("Title", ("no.", "50 %"), ("low", "high"), [line, ensemble])
    assert r"50 % & a\|b_c #1 {x} ~ ^ \\ $ | 38.24 (31.0 to 45.0) | 38.56 |" in tables.to_markdown(table)
    latex = tables.to_latex(table)
    escaped = r"50 \% \& a|b\_c \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} \$"
    assert rf"1 & {escaped} & 38.24 {{\scriptsize 31.0--45.0}} & 38.56 &" in latex
    assert r"\midrule" + "\n" + r" & \multicolumn{1}{l}{ensemble of 1\_2} &" in latex
    assert {row.count(" & ") for row in latex.splitlines() if row.endswith(r"\\")} == {6}
    read = next(csv.DictReader(io.StringIO(tables.to_csv(table))))
    assert (read["50 %"], read["mAP@10"], read["mAP@10 paper"], read["R@1"]) == (odd, "38.24", "38.56", "")


def test_rows_tell_in_what_else_they_differ(grid):
    wanted = [*grid, replace(grid[2], batch_size=7), replace(grid[2], paraphrase_probability=0.5)]
    rows = [trial_rows.TrialRow(number, None, trial, {}, 1.0) for number, trial in enumerate(wanted)]
    others = trial_rows.describe_other_settings(rows)
    assert (others[0], others[2], others[10], others[11]) == (
        "", "p 0, batch size 32", "p 0, batch size 7", "p 0.5, batch size 32",
    )  # fmt: skip
    headings = [list(table.headings) for table in report.build_tables(rows, [], "made/test", "test")]
    assert [heading.count("other settings") for heading in headings] == [1]
    headings = [list(table.headings) for table in report.build_tables(rows[:10], [], "made/test", "test")]
    assert [heading.count("other settings") for heading in headings] == [0]


def test_numbers_are_told_as_in_the_paper():
    assert report.format_ranges([1, 2, 3, 4, 5, 6, 7, 8]) == "1 to 8"
    assert report.format_ranges([4, 8, 9, 12, 13, 14]) == "4, 8, 9, 12 to 14"


@pytest.fixture
def page(ledger, store, grid, make, tmp_path):
    """The page of a report with an ensemble and sounds."""
    sweep = Sweep(ledger, store, grid)
    sweep.choose({sweep.signatures[3]: 0.75, sweep.signatures[9]: 0.25}, tmp_path)
    make(tmp_path)
    return tmp_path / "report.html"


@needs_chromium
def test_the_page_fits_plays_and_asks_for_nothing(page, tmp_path):
    for width in (PHONE, DESKTOP):
        seen = asyncio.run(look(page, width, tmp_path / f"{width}"))
        assert seen["asked"] == []
        assert seen["width"] <= width
        assert seen["beyond"] == []
        assert seen["buttons"] > NUM_CLIPS
        assert seen["duration"] == pytest.approx(1, abs=0.2)
        assert seen["errors"] == []
        assert len(seen["plots"]) >= 8
        for picture in (seen["picture"], *seen["plots"]):
            assert np.asarray(Image.open(io.BytesIO(picture)).convert("L")).std() > 10


@needs_chromium
def test_a_page_that_asks_or_is_too_wide_would_be_noticed(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<meta name="viewport" content="width=device-width"><p style="width: 900px">wide'
                    '<img src="http://127.0.0.1:9/picture.png"><div id="player"></div>')  # fmt: skip
    seen = asyncio.run(look(page, PHONE, tmp_path))
    assert seen["asked"] == ["http://127.0.0.1:9/picture.png"]
    assert seen["width"] > PHONE
    assert "P" in seen["beyond"]


BEYOND = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll, svg')
    && one.getBoundingClientRect().right > WIDTH + 1).map(one => one.tagName)"""
"""What lies beyond the right edge of the page, but for what scrolls in a box of its own."""

PLAY = """new Promise(done => {
    const audio = document.querySelector('#player audio'), button = document.querySelector('button[data-clip]');
    if (!button) return done(null);
    audio.addEventListener('loadedmetadata', () => done(audio.duration));
    audio.addEventListener('error', () => done(-1));
    button.click();
})"""

PLOTS = """[...document.querySelectorAll('svg')].map(one => one.getBoundingClientRect())
    .map(box => ({x: box.x, y: box.y + scrollY, width: box.width, height: box.height, scale: 1}))"""


async def look(page, width, folder):
    """Open a page in Chromium: what it asks the network for, how wide it is, what it looks like, what is heard."""
    async with open_tab(folder) as tab:
        return await visit(tab, page, width)


async def visit(tab, page, width):
    await tab.resize(width)
    await tab.open(page.as_uri())
    found = {
        "width": await tab.value("document.documentElement.scrollWidth"),
        "beyond": await tab.value(BEYOND.replace("WIDTH", str(width))),
        "buttons": await tab.value("document.querySelectorAll('button[data-clip]').length"),
        "plots": [await tab.picture(**clip) for clip in await tab.value(PLOTS)],
        "picture": await tab.picture(),
        "duration": await tab.value(PLAY),
    }
    urls = [asked["request"]["url"] for asked in tab.told("Network.requestWillBeSent")]
    return found | {
        "asked": [url for url in urls if not url.startswith((page.as_uri(), "data:", "about:"))],
        "errors": [str(error["exceptionDetails"]) for error in tab.told("Runtime.exceptionThrown")],
    }
