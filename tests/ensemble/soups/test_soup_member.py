"""A soup as the member of an ensemble: exported, searched with, embedded, submitted, reported, and as a teacher."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest

from data.errors import UserError
from data.store.stored_split import open_split
from ensemble.challenge.metadata import SubmissionInfo, build_metadata
from ensemble.challenge.systems import compute_system_scores, embed_member, list_stages, read_system
from ensemble.pool.candidates import Candidate
from ensemble.selection.costs import load_costs
from sweeps.planning.distillation import DistillationOptions, make_students, read_teachers
from sweeps.planning.estimate import build_estimate_table
from sweeps.planning.retraining import plan_retrainings
from sweeps.planning.stages import find_finished, find_requirements, group_by_stage
from trainables.records.embeddings import TEST_FILE, VALIDATION_FILE, read_embeddings
from trainables.records.ensemble_file import read_ensemble, write_ensemble
from trainables.records.mlflow_ledger import open_ledger
from trainables.records.run_storage import RunStorage
from trainables.signature import read_fingerprints, sign
from trainables.training.embedding import embed_files, embed_text
from trainables.trial import load_trial, make_soup

SENTENCES = ["a low tone", "four beeps of a high pitch"]


@pytest.fixture(scope="module")
def soup(sibling_runs, call_command):
    """The folder of runs, an ensemble.json of the uniform soup and one other trial, and the soup's signature."""
    folder, signatures = sibling_runs
    words = ("--runs", folder, "--sweep", "tiny", "--soup", "--method", "all", "--folds", 0, "--no-test")
    done = call_command("ensemble/select.py", *words)
    assert done.returncode == 0, done.stderr
    path = folder / "ensembles" / "tiny" / "ensemble.json"
    ensemble = read_ensemble(path)
    signature = ensemble.soups[0].uniform
    members = {member.signature: member for member in ensemble.members}
    pair = (replace(members[signature], weight=0.75, count=3), replace(members[signatures[0]], weight=0.25, count=1))
    write_ensemble(path, replace(ensemble, members=pair))
    return folder, path, signature


@pytest.fixture(scope="module")
def models(soup, sibling_runs, tone_store, slow_average):
    """The soup, whose weights are averaged here, and the other member."""
    folder, signatures = sibling_runs
    return [slow_average(folder, tone_store, parts) for parts in (sorted(signatures), signatures[:1])]


def test_an_exported_ensemble_with_a_soup_searches_without_its_parts(soup, models, tones, call_command, tmp_path):
    folder, path, signature = soup
    done = call_command("ensemble/export.py", "--ensemble", path, "--out", tmp_path / "exported", "--runs", folder)
    assert done.returncode == 0, done.stderr
    copies = {copy.name for copy in (tmp_path / "exported" / "members").iterdir()}
    assert copies == {member.signature for member in read_ensemble(path).members}
    assert signature in copies
    words = (tmp_path / "exported", "--index", tmp_path / "index", "--runs", tmp_path / "absent")
    searched = call_command("ensemble/search.py", *words, "--add", tones, SENTENCES[0])
    assert searched.returncode == 0, searched.stderr
    paths = sorted(tones.glob("*.wav"))
    scores = sum(
        weight * embed_text(one.model, one.trial, SENTENCES[:1]) @ embed_files(one.model, one.trial, paths)[0].T
        for weight, one in zip((0.75, 0.25), models, strict=True)
    )[0]
    lines = re.findall(r"^(-?\d\.\d{4})  .* s  (\S+)$", searched.stdout, re.MULTILINE)
    assert len(lines) == 10
    expected = dict(zip(map(str, paths), scores, strict=True))
    for score, hit in lines:
        assert float(score) == pytest.approx(expected[hit], abs=2e-4)
    assert float(lines[0][0]) == pytest.approx(max(scores), abs=2e-4)


def test_a_soup_embeds_sentences_and_recordings_by_its_signature(soup, models, tones, call_command, tmp_path):
    folder, _, signature = soup
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES))
    words = ("--checkpoint", signature, "--captions", tmp_path / "sentences.txt", "--audio", tones)
    done = call_command("trainables/embed.py", *words, "--out", tmp_path / "out.arrow", "--runs", folder)
    assert done.returncode == 0, done.stderr
    written = read_embeddings(tmp_path / "out.arrow")
    one = models[0]
    np.testing.assert_allclose(written.text_QD, embed_text(one.model, one.trial, SENTENCES), atol=1e-5)
    paths = [tones / name for name in written.clip_ids]
    np.testing.assert_allclose(written.audio_AD, embed_files(one.model, one.trial, paths)[0], atol=1e-5)


def test_a_soup_costs_as_much_as_one_of_its_parts(soup, sibling_runs):
    folder, _, signature = soup
    candidates = [Candidate("soup", signature), Candidate("part", sibling_runs[1][0])]
    costs = load_costs("parameters", candidates, RunStorage.of(folder))
    assert costs[0] == costs[1] > 0


def test_the_cost_of_soups_is_on_the_pareto_front_that_the_command_computes(soup, call_command, tmp_path):
    folder, _, _ = soup
    words = ("--runs", folder, "--sweep", "tiny", "--soup", "--cost", "parameters", "--no-test", "--folds", 0)
    done = call_command("ensemble/select.py", *words, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    front = read_ensemble(tmp_path / "ensemble.json").front
    assert front
    assert front[0].cost == load_costs("parameters", [Candidate("", soup[2])], RunStorage.of(folder))[0]


def test_a_system_with_a_soup_has_its_scores_and_names_the_stages_of_its_parts(soup, models, tone_store):
    folder, path, signature = soup
    runs, split = RunStorage.of(folder), open_split(tone_store, "folder/test")
    system = read_system(path, open_ledger(folder), runs)
    member = system.members[0]
    assert member.candidate.signature == signature
    assert list_stages(member.trial) == [member.trial.pretraining, *member.trial.average_of[::-1]]
    embeddings = {
        one.candidate.signature: embed_member(runs, one.candidate.signature, str(tone_store), "folder/test", 1)
        for one in system.members
    }
    slow = [one.embed("test") for one in models]
    expected = 0.75 * slow[0].compute_scores() + 0.25 * slow[1].compute_scores()
    scores = compute_system_scores(system, embeddings, split)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    metadata = build_metadata(system, SubmissionInfo("Doe_EX_task6b_1", None, None, [], None))
    rates = {f"{part.schedule.peak_rate:g} (fine-tuning)" for part in member.trial.average_of}
    assert rates <= set(metadata["system"]["description"]["learning_rate"].split(", "))


def test_an_index_of_a_split_and_an_evaluation_use_the_soups_embeddings(soup, models, call_command, tmp_path):
    folder, path, _ = soup
    done = call_command("ensemble/select.py", "export", path, "--runs", folder, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    slow = [one.embed("test") for one in models]
    expected = 0.75 * slow[0].compute_scores() + 0.25 * slow[1].compute_scores()
    np.testing.assert_allclose(read_embeddings(tmp_path / "test-index.arrow").compute_scores(), expected, atol=1e-5)
    evaluated = call_command("ensemble/select.py", "evaluate", path, "--split", "validation", "--runs", folder)
    assert evaluated.returncode == 0, evaluated.stderr


def test_a_report_has_a_row_for_a_soup_that_is_a_member(soup, call_command, tmp_path):
    folder, _, _ = soup
    done = call_command("ensemble/report.py", "--runs", folder, "--sweep", "tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.reader(file))
    heading = next(index for index, row in enumerate(rows) if "other settings" in row)
    column, seed = rows[heading].index("other settings"), rows[heading].index("seed")
    [uniform] = [row for row in rows if row[column] == "soup of 5"]
    assert uniform[seed] == ""
    assert "ensemble of 1 to" in (tmp_path / "report.md").read_text()
    assert "isn't shown" not in done.stdout
    assert "soup of 5" in (tmp_path / "report.html").read_text()


def test_an_ensemble_with_a_soup_is_not_retrained(soup):
    _, path, _ = soup
    with pytest.raises(UserError, match="it is a soup, the mean of several models"):
        plan_retrainings(read_ensemble(path), path, "pretraining")


def test_a_soup_teaches_and_its_parts_are_trained_first_where_they_are_missing(
    soup, siblings, train_trial, tone_store, tmp_path
):
    folder, path, signature = soup
    trial = load_trial(folder / "models" / signature)
    assert read_teachers(path)[0].trial == trial
    [student] = make_students([replace(siblings[1], seed=9)], DistillationOptions(teachers=path))
    assert [teacher.weight for teacher in student.teachers] == [0.75, 0.25]

    fingerprints = read_fingerprints([student], str(tone_store))
    stages = group_by_stage([student], fingerprints)
    trials = {name: one for stage in stages for name, one in stage.items()}
    requirements = find_requirements(trials, fingerprints)
    taught = sign(student, fingerprints)
    assert set(requirements[taught].required) >= {signature}
    assert set(requirements[signature].required) == {sign(part, fingerprints) for part in trial.average_of}
    assert len(trials) == 1 + 5 + 1 + 1
    assert find_finished(trials, open_ledger(folder), RunStorage.of(folder)) == set(trials) - {taught}
    rows = {row[-1]: row for row in build_estimate_table(stages, set(), str(tone_store)).rows}
    assert rows[sign(siblings[0].pretraining, fingerprints)][2] == "for 6"
    assert rows[signature][2] == ""

    # in another folder of results, which has none of them
    assert train_trial(student, tmp_path / "runs") == taught
    ledger = open_ledger(tmp_path / "runs")
    assert {run.signature for run in ledger.iter_trials()} == set(trials)
    assert ledger.find_finished_trial(taught).relations.teachers[0] == signature
    stored = RunStorage.of(tmp_path / "runs").list_names(f"teachers/{signature}")
    assert len(stored) == 1
    again, before = (ledger.load_embeddings(ledger.find_finished_trial(signature), VALIDATION_FILE)
                     for ledger in (ledger, open_ledger(folder)))  # fmt: skip
    np.testing.assert_allclose(again.compute_scores(), before.compute_scores(), atol=1e-4)
    taught_split = ledger.load_embeddings(ledger.find_finished_trial(taught), TEST_FILE)
    assert np.isfinite(taught_split.compute_scores()).all()
    assert make_soup(trial.average_of) == trial
