"""Model soups of really trained tiny trials: which parts are kept, what is stored and recorded, and honest folds."""

import functools
import json
import re
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from data.errors import UserError
from ensemble.pool import score_matrices
from ensemble.pool.candidates import compute_cosines, find_candidates
from ensemble.pool.query_bank import TEMPERATURES, normalise_with
from ensemble.selection import cross_validation, greedy
from ensemble.selection.greedy import SelectionConfig
from ensemble.selection.pruned_pool import prune
from ensemble.soups import groups
from ensemble.soups.averages import AverageEmbedder
from ensemble.soups.choice import SoupChooser, choose_greedily
from ensemble.soups.groups import find_groups
from trainables import retrieval
from trainables.execution.session import RunContext
from trainables.execution.soups import compute_under_lease
from trainables.records import lease as leases
from trainables.records.embeddings import BANK_FILE, TEST_FILE, VALIDATION_FILE
from trainables.records.ensemble_file import read_ensemble, write_ensemble
from trainables.records.mlflow_ledger import open_ledger
from trainables.records.run_storage import RunStorage
from trainables.signature import compute_signature
from trainables.trial import MODEL_FILE, TRIAL_FILE, load_trial, make_soup

FOLDS = 3
SELECT = ("ensemble/select.py", "--soup", "--folds", FOLDS)


def open_chooser(folder, store, scratch, metric="map10", direction="t2a"):
    """Return the chooser of the soups of a sweep, as the command makes it."""
    ledger, runs = open_ledger(folder), RunStorage.of(folder)
    candidates = find_candidates(ledger, [ledger.find_sweep("tiny")])
    site = RunContext(str(store), runs, ledger.tracking_uri)
    listed = find_groups(candidates, ledger, site)
    averages = AverageEmbedder(site, ledger, listed.fingerprints, scratch, with_bank=False)
    return SoupChooser(listed.groups, averages, candidates[0], metric, direction)


@pytest.fixture(scope="module")
def values_of(trained_siblings, tone_store, slow_average):
    """A function from the signatures of parts to the mAP@10 of their average on each query, computed slowly."""
    folder, _ = trained_siblings

    @functools.cache
    def compute(signatures):
        embeddings = slow_average(folder, tone_store, sorted(signatures)).embed("validation")
        relevant = retrieval.build_relevance(embeddings.relevant_clip_ids, embeddings.clip_ids)
        scores = compute_cosines(embeddings.text_QD, embeddings.audio_AD)
        return retrieval.find_metric("map10")(retrieval.compute_ranks(scores, relevant), relevant)

    return lambda signatures: compute(frozenset(signatures))


def choose_slowly(signatures, values_of, include_Q):
    """The parts of a greedy soup, by the rule as Wortsman et al. (2022) have it."""

    def metric(parts):
        return round(float(values_of(parts)[include_Q].mean()), 12)

    order = sorted(sorted(signatures), key=lambda part: -metric([part]))
    kept = [order[0]]
    for part in order[1:]:
        if metric([*kept, part]) >= metric(kept):
            kept.append(part)
    return order, kept


def list_masks(num_queries, seed=0):
    """All queries, and the queries that are left without each of three folds of clips."""
    fold_Q = cross_validation.assign_folds(np.arange(num_queries) // 2, FOLDS, seed)
    return [np.ones(num_queries, bool), *(fold_Q != fold for fold in range(FOLDS))]


def test_a_part_that_leaves_the_metric_as_it_is_is_kept_and_one_that_lowers_it_is_not():
    scores = {(0,): 5, (1,): 7, (2,): 7, (3,): 2, (1, 2): 7, (0, 1, 2): 6, (1, 2, 3): 9}
    asked = []

    def score(parts):
        asked.append(tuple(sorted(parts)))
        return scores[asked[-1]]

    assert choose_greedily(4, score) == ([1, 2, 0, 3], [1, 2, 3])
    assert len(asked) == len(set(asked)) == 7


@pytest.mark.parametrize("seed", range(20))
def test_the_greedy_choice_is_that_of_a_slow_one_for_any_scores(seed):
    rng = np.random.default_rng(seed)
    table = {}

    def score(parts):
        return table.setdefault(frozenset(parts), int(rng.integers(4)))

    order, kept = choose_greedily(6, score)
    assert [score([part]) for part in order] == sorted((score([part]) for part in range(6)), reverse=True)
    expected = order[:1]
    for part in order[1:]:
        if score([*expected, part]) >= score(expected):
            expected.append(part)
    assert kept == expected


def test_parts_are_kept_as_by_slow_averages_on_all_queries_and_on_those_of_folds(
    trained_siblings, tone_store, tmp_path, values_of
):
    folder, signatures = trained_siblings
    chooser = open_chooser(folder, tone_store, tmp_path)
    [group] = chooser.groups
    assert {part.signature for part in group.parts} == set(signatures)
    choices = []
    for include_Q in list_masks(12):
        order, kept = chooser.choose_parts(group, include_Q)
        choices.append([part.signature for part in kept])
        assert ([part.signature for part in order], choices[-1]) == choose_slowly(signatures, values_of, include_Q)
    assert chooser.choose_parts(group)[1] == chooser.choose_parts(group, np.ones(12, bool))[1]
    assert len({tuple(choice) for choice in choices}) > 1
    assert max(map(len, choices)) > 1
    assert chooser.averages.num_embedded == len([key for key in chooser.scores if len(key) > 1])


def test_in_audio_to_text_direction_parts_are_kept_by_that_metric(trained_siblings, tone_store, tmp_path, slow_average):
    folder, signatures = trained_siblings

    @functools.cache
    def compute(parts):
        embeddings = slow_average(folder, tone_store, sorted(parts)).embed("validation")
        relevant = retrieval.build_relevance(embeddings.relevant_clip_ids, embeddings.clip_ids)
        texts = [[text for text, clip in zip(relevant.query_P, relevant.clip_P, strict=True) if clip == number]
                 for number in range(len(embeddings.clip_ids))]  # fmt: skip
        across = retrieval.build_relevance(texts, range(len(embeddings.queries)))
        scores = compute_cosines(embeddings.audio_AD, embeddings.text_QD)
        return retrieval.find_metric("r5")(retrieval.compute_ranks(scores, across), across)

    chooser = open_chooser(folder, tone_store, tmp_path, "r5", "a2t")
    order, kept = chooser.choose_parts(chooser.groups[0])
    expected = choose_slowly(signatures, lambda parts: compute(frozenset(parts)), np.ones(6, bool))
    assert ([part.signature for part in order], [part.signature for part in kept]) == expected


@pytest.fixture(scope="module")
def selected(sibling_runs, call_command):
    """The folder of runs after a selection with soups, what was printed, and the ensemble."""
    folder, _ = sibling_runs
    done = call_command(*SELECT, "--runs", folder, "--compare")
    assert done.returncode == 0, done.stderr
    return folder, done, read_ensemble(folder / "ensembles" / "tiny" / "ensemble.json")


def test_soups_are_models_whose_weights_are_the_mean_and_candidates_of_the_selection(selected):
    folder, _, ensemble = selected
    ledger = open_ledger(folder)
    [soup] = ensemble.soups
    for signature, parts in (
        (soup.greedy, soup.kept),
        (soup.uniform, tuple(part.signature for part in soup.parts)),
    ):
        assert signature in ensemble.candidates
        weights = [load_file(folder / "models" / part / MODEL_FILE) for part in parts]
        for name, tensor in load_file(folder / "models" / signature / MODEL_FILE).items():
            mean = np.mean([one[name].astype(np.float64) for one in weights], axis=0)
            np.testing.assert_allclose(tensor, mean, rtol=1e-6, atol=1e-9)
        trial = load_trial(folder / "models" / signature)
        assert trial == make_soup([load_trial(folder / "models" / part) for part in parts])
        assert len(json.loads((folder / "models" / signature / TRIAL_FILE).read_text())["average_of"]) == len(parts)
        assert ledger.find_finished_trial(signature).relations.average_of == tuple(sorted(parts))
    assert len(ensemble.candidates) == 6 + len({soup.greedy, soup.uniform})


def compute_map10(scores_QA, embeddings):
    relevant = retrieval.build_relevance(embeddings.relevant_clip_ids, embeddings.clip_ids)
    return retrieval.compute_metrics(scores_QA, relevant, ["map10"])["map10"]


def test_the_record_compares_soups_with_their_parts_and_ensembles_on_both_splits(selected):
    folder, _, ensemble = selected
    ledger = open_ledger(folder)
    [soup] = ensemble.soups
    for estimates, file in ((soup.validation, VALIDATION_FILE), (soup.test, TEST_FILE)):
        embeddings = {
            signature: ledger.load_embeddings(ledger.find_finished_trial(signature), file)
            for signature in (*(part.signature for part in soup.parts), soup.greedy, soup.uniform)
        }
        scores = {name: one.text_QD.astype(np.float64) @ one.audio_AD.T for name, one in embeddings.items()}
        one = embeddings[soup.uniform]
        expected = {
            "best_part": compute_map10(scores[soup.parts[0].signature], one),
            "greedy": compute_map10(scores[soup.greedy], one),
            "kept_ensemble": compute_map10(sum(scores[part] for part in soup.kept), one),
            "uniform": compute_map10(scores[soup.uniform], one),
            "ensemble": compute_map10(sum(scores[part.signature] for part in soup.parts), one),
        }
        expected |= {
            "greedy_minus_best_part": expected["greedy"] - expected["best_part"],
            "greedy_minus_kept_ensemble": expected["greedy"] - expected["kept_ensemble"],
            "uniform_minus_ensemble": expected["uniform"] - expected["ensemble"],
        }
        assert {name: estimate.value for name, estimate in estimates.items()} == pytest.approx(expected)


def test_tables_and_the_page_show_soups_and_their_parts(selected, tmp_path):
    folder, done, ensemble = selected
    [soup] = ensemble.soups
    kept = f"{soup.origin}: {len(soup.kept)} of 5 kept"
    page = (folder / "ensembles" / "tiny" / "ensemble.html").read_text()
    values = [soup.validation["greedy"].percent, soup.test["greedy"].percent]
    assert "\t".join([kept, "best part", soup.validation["best_part"].percent]) in done.stdout
    assert "\t".join(["", "greedy soup", *values]) in done.stdout
    assert kept in page
    assert all(f"<td>{value}</td>" in page for value in values)
    members = [replace(member, average_of=soup.kept) for member in ensemble.members[:1]]
    path = tmp_path / "ensemble.json"
    write_ensemble(path, replace(ensemble, members=tuple(members)))
    names = {part.signature: part.name for part in soup.parts}
    assert read_ensemble(path).list_soups() == [(members[0], [names[part] for part in soup.kept])]


def test_a_member_that_is_a_soup_names_its_parts(selected, call_command, tmp_path):
    folder, _, _ensemble = selected
    words = ("--runs", folder, "--folds", 0, "--no-test", "--method", "all", "--out", tmp_path)
    done = call_command("ensemble/select.py", "--soup", *words)
    written = read_ensemble(tmp_path / "ensemble.json")
    members = {member.signature: member for member in written.members}
    [soup] = written.soups
    assert members[soup.uniform].average_of == tuple(sorted(part.signature for part in soup.parts))
    assert soup.test is None
    assert re.search(rf"\({soup.uniform}\) is a soup, the mean of the weights of: .*seed 0", done.stdout)
    assert f"({soup.uniform}) is a soup" in (tmp_path / "ensemble.html").read_text()


def test_metrics_of_soups_are_logged_and_test_is_looked_at_once(selected):
    folder, done, ensemble = selected
    [*_, first] = open_ledger(folder).iter_events("ensemble")
    assert first.metrics["soup_1_validation_greedy"] == ensemble.soups[0].validation["greedy"].value
    assert first.metrics["soup_1_test_uniform"] == ensemble.soups[0].test["uniform"].value
    assert "Looks at folder/test before this one: 0" in done.stdout


def test_finished_soups_are_used_again_and_are_no_candidates_without_the_option(selected, call_command, tmp_path):
    folder, _, ensemble = selected
    [soup] = ensemble.soups
    ledger = open_ledger(folder)
    before = list(ledger.iter_trials())
    times = {path: path.stat().st_mtime_ns for path in (folder / "models").rglob("*")}
    words = ("--runs", folder, "--no-test", "--out", tmp_path)
    again = call_command(*SELECT, *words)
    assert again.returncode == 0, again.stderr
    assert "is computed" not in again.stderr
    assert read_ensemble(tmp_path / "ensemble.json").soups[0].greedy == soup.greedy
    assert list(ledger.iter_trials()) == before
    assert {path: path.stat().st_mtime_ns for path in (folder / "models").rglob("*")} == times
    assert call_command("ensemble/select.py", *words).returncode == 0
    plain = read_ensemble(tmp_path / "ensemble.json")
    assert len(plain.candidates) == 6
    assert plain.soups == ()


def cross_validate_slowly(folder, store, signatures, slow_average, values_of, fusion, config, fold_Q):
    """The metric of each query by the ensemble that is selected without its fold, soups and temperature included."""
    ledger = open_ledger(folder)
    trials = [candidate.signature for candidate in find_candidates(ledger, [ledger.find_sweep("tiny")])]

    @functools.cache
    def embed(parts):
        if len(parts) == 1:
            run = ledger.find_finished_trial(*parts)
            return ledger.load_embeddings(run, VALIDATION_FILE), ledger.load_embeddings(run, BANK_FILE)
        average = slow_average(folder, store, sorted(parts))
        return average.embed("validation"), average.embed_bank()

    def build_pool(systems, temperature):
        pairs = [embed(system) for system in systems]
        vectors = [normalise_with(*pair, fusion, temperature) if temperature else pair[0] for pair in pairs]
        relevant = retrieval.build_relevance(vectors[0].relevant_clip_ids, vectors[0].clip_ids)
        arrays = [compute_cosines(one.text_QD, one.audio_AD) for one in vectors]
        names = ["-".join(sorted(system)) if len(system) == 1 else f"soup {sorted(system)}" for system in systems]
        return score_matrices.from_arrays(names, "v", "f", relevant, arrays)

    result_Q = np.empty(len(fold_Q))
    for fold in range(FOLDS):
        include_Q = fold_Q != fold
        _, kept = choose_slowly(signatures, values_of, include_Q)
        soups = {frozenset(parts) for parts in (kept, signatures) if len(parts) > 1}
        systems = [*(frozenset([trial]) for trial in trials), *sorted(soups, key=len)]
        choices = []
        for temperature in (None,) if fusion == "mean" else TEMPERATURES:
            source = build_pool(systems, temperature)
            choices.append((greedy.select(prune(source, "map10"), config, include_Q), source))
        selection, source = max(choices, key=lambda choice: choice[0].value)
        fused = sum(weight * source.read_scores(index).astype(np.float64)
                    for index, weight in enumerate(selection.counts))  # fmt: skip
        values_Q = retrieval.find_metric("map10")(retrieval.compute_ranks(fused, source.relevance), source.relevance)
        result_Q[~include_Q] = values_Q[~include_Q]
    return result_Q


@pytest.mark.parametrize("fusion", ["mean", "inverted-softmax"])
def test_folds_choose_the_greedy_soup_without_the_queries_that_evaluate_it(
    fusion, sibling_runs, tone_store, slow_average, values_of, call_command, tmp_path
):
    """With few steps, so that soups matter; the greedy soups of the folds differ from that of all queries."""
    folder, signatures = sibling_runs
    done = call_command(*SELECT, "--runs", folder, "--no-test", "--out", tmp_path, "--fusion", fusion, "--max-size", 2)
    assert done.returncode == 0, done.stderr
    nested = read_ensemble(tmp_path / "ensemble.json").nested
    fold_Q = cross_validation.assign_folds(np.arange(12) // 2, FOLDS)
    expected_Q = cross_validate_slowly(
        folder, tone_store, signatures, slow_average, values_of, fusion, SelectionConfig(max_size=2), fold_Q
    )
    assert nested.ensemble.value == pytest.approx(expected_Q.mean())
    assert not nested.redoes_epochs


def test_a_trial_without_a_model_is_named_and_the_others_are_averaged(fresh_runs, call_command):
    folder, signatures = fresh_runs
    shutil.rmtree(folder / "models" / signatures[2])
    done = call_command(*SELECT, "--runs", folder, "--no-test")
    assert done.returncode == 0, done.stderr
    place = folder / "models" / signatures[2]
    assert re.search(rf"\({signatures[2]}\) is part of no soup: its model isn't in {place}: restore it", done.stderr)
    ensemble = read_ensemble(folder / "ensembles" / "tiny" / "ensemble.json")
    assert {part.signature for part in ensemble.soups[0].parts} == set(signatures) - {signatures[2]}
    assert signatures[2] in ensemble.candidates


def test_a_store_with_other_contents_is_refused_with_the_remedy(fresh_runs, tone_store, call_command, tmp_path):
    folder, _signatures = fresh_runs
    store = shutil.copytree(tone_store, tmp_path / "store")
    for manifest in (store / "folder" / "train").glob("*.json"):
        content = json.loads(manifest.read_text())
        if "fingerprint" in content:
            manifest.write_text(json.dumps(content | {"fingerprint": "0123456789abcdef"}))
    failed = call_command(*SELECT, "--runs", folder, "--no-test", "--store", store)
    assert failed.returncode == 2
    assert "no two trials of the pool can be averaged" in failed.stderr
    assert f"{store} or the published weights aren't those that it was trained with" in failed.stderr
    absent = call_command(*SELECT, "--runs", folder, "--no-test", "--store", tmp_path / "absent")
    assert absent.returncode == 2
    assert "--store names their store" in absent.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--soup", "--filter", "seed=1"], "no two trials of the pool can be averaged"),
        (["--soup", "--pool", "{scores}"], "files of scores have no weights"),
        (["--store", "store"], "--store only applies to --soup"),
        (["--weights", "weights"], "--weights only applies to --soup"),
    ],
)
def test_what_has_no_soups_is_refused(words, message, trained_siblings, call_command, tmp_path):
    folder, _ = trained_siblings
    for role in ("validation", "test"):
        (tmp_path / role).mkdir()
        np.save(tmp_path / role / "relevance.npy", np.arange(4))
        np.save(tmp_path / role / "one.npy", np.eye(4, dtype=np.float32))
    words = [word.format(scores=tmp_path) for word in words]
    failed = call_command("ensemble/select.py", "--runs", folder, "--no-test", *words)
    assert failed.returncode == 2
    assert message in failed.stderr


def test_the_last_epochs_of_a_training_are_a_group_of_their_own(
    fresh_runs, siblings, train_trial, tone_store, slow_average, call_command, monkeypatch
):
    """With the models that --keep-epochs stores, which are no trials in the ledger; four of five epochs."""
    monkeypatch.setattr(groups, "NUM_LAST_EPOCHS", 4)
    folder, _ = fresh_runs
    trial = replace(siblings[0], seed=7, schedule=replace(siblings[0].schedule, epochs=5))
    training = train_trial(trial, folder, keep_epochs=True)
    ledger = open_ledger(folder)
    ledger.start_sweep("kept", [training], {"store": str(tone_store)})
    best = int(ledger.find_finished_trial(training).metrics["best_epoch"])
    done = call_command(*SELECT, "--runs", folder, "--sweep", "kept")
    assert done.returncode == 0, done.stderr
    ensemble = read_ensemble(folder / "ensembles" / "kept" / "ensemble.json")
    [soup] = ensemble.soups
    assert soup.origin == f"epochs of {ledger.find_finished_trial(training).name}"
    epochs = [replace(trial, snapshot_epoch=epoch) for epoch in (2, 3, 4, 5) if epoch != best]
    expected = {compute_signature(epoch, str(tone_store)) for epoch in epochs} | ({training} if best > 1 else set())
    signatures = {part.signature for part in soup.parts}
    assert signatures == expected
    assert len(signatures) == 4
    assert sum(ledger.find_finished_trial(part) is not None for part in signatures) == (best > 1)

    @functools.cache
    def embed(parts, role="validation"):
        return slow_average(folder, tone_store, sorted(parts)).embed(role)

    def compute(parts):
        embeddings = embed(frozenset(parts))
        relevant = retrieval.build_relevance(embeddings.relevant_clip_ids, embeddings.clip_ids)
        scores = compute_cosines(embeddings.text_QD, embeddings.audio_AD)
        return retrieval.find_metric("map10")(retrieval.compute_ranks(scores, relevant), relevant)

    order, kept = choose_slowly(signatures, compute, np.ones(12, bool))
    assert ([part.signature for part in soup.parts], list(soup.kept)) == (order, kept)
    for parts, name in (([order[0]], "best_part"), (kept, "greedy"), (order, "uniform")):
        test = embed(frozenset(parts), "test")
        assert soup.test[name].value == pytest.approx(compute_map10(test.compute_scores(), test))
        assert soup.validation[name].value == pytest.approx(compute(parts).mean())
    assert soup.uniform in ensemble.candidates
    assert not ensemble.nested.redoes_epochs  # the parts of a soup are those of all queries


def test_a_training_with_cycles_and_its_snapshots_are_one_group(
    fresh_runs, siblings, train_trial, tone_store, call_command
):
    folder, _ = fresh_runs
    trial = replace(siblings[0], seed=8, schedule=replace(siblings[0].schedule, epochs=2, cycles=2))
    training = train_trial(trial, folder)
    ledger = open_ledger(folder)
    ledger.start_sweep("cycles", [training], {"store": str(tone_store)})
    done = call_command(*SELECT, "--runs", folder, "--sweep", "cycles", "--method", "all")
    assert done.returncode == 0, done.stderr
    ensemble = read_ensemble(folder / "ensembles" / "cycles" / "ensemble.json")
    [soup] = ensemble.soups
    [other] = {part.signature for part in soup.parts} - {training}
    assert ledger.find_finished_trial(other).relations.snapshot_of == training
    assert len(ensemble.members) == 3
    assert f"({soup.uniform}) is a soup" in done.stdout
    assert "2 members are snapshots of one training" in done.stdout


def test_a_group_has_no_trials_that_compute_in_another_way(siblings):
    one, two, *_ = siblings
    parts = [
        groups.SoupPart(one, "a" * 16),
        groups.SoupPart(two, "b" * 16),
        groups.SoupPart(replace(two, longest_audio_s=1.0), "c" * 16),
    ]
    [group] = groups.group_by_pretraining(parts)
    assert [part.signature for part in group.parts] == ["a" * 16, "b" * 16]


def test_an_average_without_a_model_names_the_remedy(fresh_runs, tone_store, tmp_path):
    folder, signatures = fresh_runs
    chooser = open_chooser(folder, tone_store, tmp_path)
    shutil.rmtree(folder / "models" / signatures[0])
    with pytest.raises(UserError, match=f"the model of {signatures[0]} isn't in .*: train it first"):
        chooser.averages.embed(chooser.groups[0].parts)


def test_soups_and_files_of_scores_are_selected_from_together(fresh_runs, call_command, tmp_path):
    folder, signatures = fresh_runs
    ledger = open_ledger(folder)
    first = min(ledger.find_sweep("tiny").signatures)
    for role, file in (("validation", VALIDATION_FILE), ("test", TEST_FILE)):
        embeddings = ledger.load_embeddings(ledger.find_finished_trial(first), file)
        (tmp_path / "scores" / role).mkdir(parents=True)
        relevant = [embeddings.clip_ids.index(clip) for [clip] in embeddings.relevant_clip_ids]
        np.save(tmp_path / "scores" / role / "relevance.npy", np.array(relevant))
        np.save(tmp_path / "scores" / role / "other.npy", embeddings.compute_scores().astype(np.float32))
    words = ("--runs", folder, "--sweep", "tiny", "--pool", tmp_path / "scores", "--method", "all", "--out", tmp_path)
    done = call_command(*SELECT, *words)
    assert done.returncode == 0, done.stderr
    ensemble = read_ensemble(tmp_path / "ensemble.json")
    members = {member.signature or member.name: member for member in ensemble.members}
    assert {"other", ensemble.soups[0].uniform, *signatures} <= members.keys()
    by_itself = ledger.load_embeddings(ledger.find_finished_trial(first), VALIDATION_FILE)
    assert members["other"].alone == pytest.approx(compute_map10(by_itself.compute_scores(), by_itself))
    soup = ledger.load_embeddings(ledger.find_finished_trial(ensemble.soups[0].uniform), VALIDATION_FILE)
    assert members[ensemble.soups[0].uniform].alone == pytest.approx(compute_map10(soup.compute_scores(), soup))


def test_a_soup_whose_model_was_removed_is_computed_again_as_it_was(fresh_runs, call_command):
    folder, _ = fresh_runs
    words = (*SELECT, "--runs", folder, "--no-test", "--folds", 0)
    assert call_command(*words).returncode == 0
    [soup] = read_ensemble(folder / "ensembles" / "tiny" / "ensemble.json").soups
    path = folder / "models" / soup.uniform
    before, runs = load_file(path / MODEL_FILE), {run.run_id for run in open_ledger(folder).iter_trials()}
    shutil.rmtree(path)
    again = call_command(*words)
    assert f"({soup.uniform}) is computed" in again.stderr
    assert f"({soup.greedy}) is computed" not in again.stderr
    after = load_file(path / MODEL_FILE)
    assert all((after[name] == before[name]).all() for name in before)
    assert {run.run_id for run in open_ledger(folder).iter_trials()} == runs
    assert {run.status for run in open_ledger(folder).iter_trials()} == {"FINISHED"}


def test_a_soup_that_another_command_computes_is_awaited(fresh_runs, tone_store, tmp_path):
    folder, _ = fresh_runs
    chooser = open_chooser(folder, tone_store, tmp_path)
    averages, parts = chooser.averages, chooser.groups[0].parts
    average, site, ledger = averages.describe(parts), averages.site, averages.ledger
    lease = leases.acquire(site.runs, average.signature, "another command")
    stored = []
    waiting = threading.Thread(target=lambda: stored.append(averages.store(parts, None)))
    waiting.start()
    waiting.join(1.5)
    assert waiting.is_alive()
    assert ledger.find_trial(average.signature) is None
    compute_under_lease(average, lease, site, ledger, None)
    leases.release(site.runs, lease)
    waiting.join(60)
    assert [soup.signature for soup in stored] == [average.signature]
    assert len([run for run in ledger.iter_trials() if run.signature == average.signature]) == 1


def test_models_in_an_object_store_are_copied_once_for_all_averages(
    trained_siblings, tone_store, object_store, values_of, tmp_path
):
    folder, signatures = trained_siblings
    runs = RunStorage.of(object_store.uri("bucket/soups"))
    for signature in signatures[:3]:
        runs.store_model(signature, folder / "models" / signature)
    chooser = open_chooser(folder, tone_store, tmp_path)
    chooser.averages.site = replace(chooser.averages.site, runs=runs)
    [group] = chooser.groups
    parts = [part for part in group.parts if part.signature in signatures[:3]]
    for chosen in (parts[:2], parts[1:], parts):
        scores_Q = chooser.score_average(chosen)
        expected_Q = values_of(frozenset(part.signature for part in chosen))
        np.testing.assert_allclose(scores_Q / scores_Q.max(), expected_Q / expected_Q.max())
    fetched = [path for path in object_store.requests("GET") if "soups/models" in path and MODEL_FILE in path]
    assert sorted(fetched) == sorted(f"bucket/soups/models/{signature}/{MODEL_FILE}" for signature in signatures[:3])
