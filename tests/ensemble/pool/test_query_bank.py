"""Query-bank normalisation, compared with slow loops; hubness; and its choice in nested cross-validation."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from data.errors import UserError
from ensemble.pool import hubness, query_bank
from ensemble.pool.candidates import Candidate, load_pool
from ensemble.pool.query_bank import TEMPERATURES, BankLoader, compute_offsets, normalise_with, require_banks
from ensemble.record import normalisation
from ensemble.selection import cross_validation
from ensemble.selection.greedy import SelectionConfig, select
from ensemble.selection.pool_choice import PoolChooser
from trainables import retrieval
from trainables.records.embeddings import BANK_FILE, TEST_FILE, VALIDATION_FILE, Embeddings
from trainables.records.ledger import TrialRun
from trainables.retrieval import build_relevance

SIZE, CLIPS, BANK = 24, 40, 60
CONFIG = SelectionConfig(max_size=4)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_split(rng, signature, split, centre, hub_strength, noise):
    """Clips, of which every eighth is near to what all queries have in common, and three queries of each clip."""
    audio_AD = rng.normal(size=(CLIPS, SIZE)) * 0.6
    text_QD = np.repeat(audio_AD, 3, axis=0) + noise * rng.normal(size=(3 * CLIPS, SIZE)) + centre
    audio_AD[::8] += hub_strength * centre
    ids = [f"c/{split}/{index:02}.wav" for index in range(CLIPS)]
    return Embeddings(
        signature, f"c/{split}", f"f{split}", ids, [f"{split} {index}" for index in range(3 * CLIPS)],
        [[ids[index // 3]] for index in range(3 * CLIPS)], unit(audio_AD), unit(text_QD),
    )  # fmt: skip


def make_bank(rng, signature, centre):
    text_BD = unit(0.6 * rng.normal(size=(BANK, SIZE)) + centre)
    texts = [f"training {index}" for index in range(BANK)]
    return Embeddings(signature, "c/train", "bank", [], texts, [[] for _ in texts], np.zeros((0, SIZE), np.float32),
                      text_BD)  # fmt: skip


def add_trials(ledger, count, hub_strength=0.9):
    """Put finished trials with embeddings and banks into a ledger; return them as candidates."""
    candidates = []
    for number in range(count):
        rng, signature = np.random.default_rng(number), f"{number:016x}"
        run = TrialRun(f"run{number}", f"trial {number}", signature, "FINISHED")
        ledger.trials[run.run_id] = run
        centre = rng.normal(size=SIZE) * 0.8
        for split, file in (("validation", VALIDATION_FILE), ("test", TEST_FILE)):
            ledger.keep_embeddings(run.run_id, file, make_split(rng, signature, split, centre, hub_strength, 1.3))
        ledger.keep_embeddings(run.run_id, BANK_FILE, make_bank(rng, signature, centre))
        candidates.append(Candidate(run.name, signature, run))
    return candidates


@pytest.fixture
def ledger(make_memory_ledger, tmp_path):
    return make_memory_ledger(tmp_path)


@pytest.fixture
def candidates(ledger):
    return add_trials(ledger, 3)


def slow_offset(clip_D, bank_BD, temperature):
    """The offset of a clip, term by term."""
    total = 0.0
    for query_D in bank_BD:
        total += math.exp(sum(float(a) * float(b) for a, b in zip(clip_D, query_D, strict=True)) / temperature)
    return temperature * math.log(total / len(bank_BD))


@pytest.mark.parametrize("block", [7, 1024])
def test_offsets_are_those_of_a_loop(ledger, candidates, block, monkeypatch):
    monkeypatch.setattr(query_bank, "BLOCK", block)
    split = ledger.load_embeddings(candidates[0].run, VALIDATION_FILE)
    bank = ledger.load_embeddings(candidates[0].run, BANK_FILE)
    offsets_TA = compute_offsets(split.audio_AD, bank.text_QD, TEMPERATURES)
    expected = [[slow_offset(clip_D, bank.text_QD, t) for clip_D in split.audio_AD] for t in TEMPERATURES]
    np.testing.assert_allclose(offsets_TA, expected, atol=1e-6)


def test_an_offset_depends_on_the_clip_alone(ledger, candidates):
    """Clips that are added one by one get the offsets that they get together, to the last bit."""
    split = ledger.load_embeddings(candidates[0].run, VALIDATION_FILE)
    bank = ledger.load_embeddings(candidates[0].run, BANK_FILE)
    together = compute_offsets(split.audio_AD, bank.text_QD, [0.1])
    single = [compute_offsets(split.audio_AD[clip : clip + 1], bank.text_QD, [0.1]) for clip in range(CLIPS)]
    np.testing.assert_array_equal(np.concatenate(single, axis=1), together)


def slow_scores(split, bank, temperature, dynamic):
    """Normalised scores, query by query and clip by clip."""
    hubs = {max(range(CLIPS), key=lambda clip, q=q: float(split.audio_AD[clip] @ q)) for q in bank.text_QD}
    offsets = [slow_offset(clip_D, bank.text_QD, temperature) for clip_D in split.audio_AD]
    scores = []
    for query_D in split.text_QD:
        plain = [float(clip_D @ query_D) for clip_D in split.audio_AD]
        is_active = not dynamic or max(range(CLIPS), key=plain.__getitem__) in hubs
        scores.append([score - offset * is_active for score, offset in zip(plain, offsets, strict=True)])
    return np.array(scores)


@pytest.mark.parametrize("fusion", ["inverted-softmax", "dynamic-inverted-softmax"])
def test_normalised_scores_are_those_of_a_loop(ledger, fusion):
    """Of trials with queries and clips in another order, too."""
    (candidate,) = add_trials(ledger, 1)
    split = ledger.load_embeddings(candidate.run, VALIDATION_FILE)
    bank = ledger.load_embeddings(candidate.run, BANK_FILE)
    bank = replace(bank, queries=bank.queries[:9], text_QD=bank.text_QD[:9])  # so that some queries aren't active
    ledger.keep_embeddings(candidate.run.run_id, BANK_FILE, bank)
    expected = slow_scores(split, bank, 0.2, fusion.startswith("dynamic"))
    load = BankLoader(ledger, fusion).at(0.2)
    np.testing.assert_allclose(
        load_pool(ledger, [candidate], "validation", load=load).read_scores(0), expected, atol=1e-6
    )
    normalised = normalise_with(split, bank, fusion, 0.2)
    np.testing.assert_allclose(normalised.compute_scores(), expected, atol=1e-6)
    if fusion.startswith("dynamic"):
        assert 0 < normalised.text_QD[:, -1].sum() < len(split.queries)
    mixed = replace(split, clip_ids=split.clip_ids[::-1], audio_AD=split.audio_AD[::-1].copy())
    np.testing.assert_allclose(normalise_with(mixed, bank, fusion, 0.2).compute_scores()[:, ::-1], expected, atol=1e-6)


def test_the_skewness_of_occurrences():
    rng = np.random.default_rng(0)
    scores_QA = rng.normal(size=(50, 30)) + 2 * (np.arange(30) < 2)
    slow = np.zeros(30, int)
    for scores_A in scores_QA:
        for clip in sorted(range(30), key=lambda clip, scores=scores_A: -scores[clip])[:10]:
            slow[clip] += 1
    counts = hubness.count_occurrences(scores_QA)
    np.testing.assert_array_equal(counts, slow)
    deviations = slow - slow.mean()
    assert hubness.compute_skewness(counts) == pytest.approx((deviations**3).mean() / (deviations**2).mean() ** 1.5)
    assert hubness.compute_skewness(counts) == pytest.approx(scipy.stats.skew(slow))
    assert hubness.compute_skewness(hubness.count_occurrences(scores_QA[:, :10])) == 0


def score_forms(ledger, candidates, weights, temperatures):
    results = normalisation.evaluate_forms(ledger, candidates, weights, "map10", "validation", temperatures)
    return {result.form: result for result in results}


def test_per_member_and_after_fusion_agree_for_one_member(ledger, candidates):
    corrections = {
        (correction.form, correction.temperature): correction.factors_QN @ correction.offsets_NA
        for correction in normalisation.list_corrections(ledger, candidates[:1], [1.0], "validation")
    }
    for temperature in TEMPERATURES:
        np.testing.assert_allclose(
            corrections["per member", temperature], corrections["after fusion", temperature], atol=1e-12
        )
    forms = score_forms(ledger, candidates[:1], [2], {})
    assert replace(forms["after fusion"], form="per member") == forms["per member"]


def test_the_form_after_fusion_is_that_of_the_fused_scores(ledger, candidates):
    shares, temperature = [0.5, 0.3, 0.2], 0.1
    splits = [ledger.load_embeddings(candidate.run, VALIDATION_FILE) for candidate in candidates]
    banks = [ledger.load_embeddings(candidate.run, BANK_FILE) for candidate in candidates]
    fused_BA = sum(s * (b.text_QD @ own.audio_AD.T) for s, b, own in zip(shares, banks, splits, strict=True))
    expected = temperature * np.log(np.exp(fused_BA.astype(float) / temperature).mean(axis=0))
    fused_TA = normalisation.compute_fused_offsets(banks, splits, shares)
    np.testing.assert_allclose(fused_TA[TEMPERATURES.index(temperature)], expected, atol=1e-6)


@pytest.mark.parametrize("fusion", ["inverted-softmax", "dynamic-inverted-softmax"])
def test_normalisation_helps_where_there_are_hubs(ledger, candidates, fusion):
    """The metric rises and the skewness falls, and the compared form is what the selection scored."""
    plain = PoolChooser(ledger, candidates, "map10", "mean", "t2a", CONFIG)
    chooser = PoolChooser(ledger, candidates, "map10", fusion, "t2a", CONFIG)
    pruned, temperature = chooser.choose()
    selection = select(pruned, CONFIG)
    assert selection.value > select(plain.choose()[0], CONFIG).value + 0.02
    members = [candidates[model] for model in selection.members]
    weights = [selection.counts[model] for model in selection.members]
    described = normalisation.describe_normalisation(ledger, members, weights, "map10", fusion, temperature, True)
    forms = {form.name: form for form in described.forms}
    own = forms[normalisation.FORM_OF_FUSION[fusion]]
    assert (described.temperature, own.temperature) == (temperature, temperature)
    assert own.validation.value == pytest.approx(selection.value)
    assert own.validation.value > forms["none"].validation.value + 0.02
    assert own.skewness < forms["none"].skewness - 0.5
    assert own.test_skewness < forms["none"].test_skewness - 0.5
    shares = np.array(weights) / sum(weights)
    splits = [ledger.load_embeddings(candidate.run, TEST_FILE) for candidate in members]
    fused_QA = sum(share * split.compute_scores() for share, split in zip(shares, splits, strict=True))
    relevant = build_relevance(splits[0].relevant_clip_ids, splits[0].clip_ids)
    assert forms["none"].test.value == pytest.approx(
        retrieval.compute_metrics(fused_QA, relevant, ["map10"])["map10"], abs=1e-3
    )
    assert forms["none"].test_skewness == pytest.approx(scipy.stats.skew(hubness.count_occurrences(fused_QA)), abs=0.02)


def test_nested_cross_validation_chooses_the_temperature_within_the_folds(ledger, candidates):
    """By hand: the best of all temperatures on the other folds, with what it selects evaluated on the fold."""
    chooser = PoolChooser(ledger, candidates, "map10", "inverted-softmax", "t2a", CONFIG)
    pools = {temperature: chooser.prune(temperature) for temperature in TEMPERATURES}
    pool_for, _ = chooser.make_pool_for(chooser.read_scores(0.1))
    fold_Q = cross_validation.assign_folds(pools[0.1].group_Q, 4)
    result = cross_validation.cross_validate(pool_for, CONFIG, fold_Q)
    chosen = []
    for fold in range(4):
        values = {t: select(pruned, CONFIG, fold_Q != fold).value for t, pruned in pools.items()}
        best = max(values, key=values.get)
        selection = select(pools[best], CONFIG, fold_Q != fold)
        expected_Q = pools[best].score_ensemble(selection.counts) / pools[best].gains.perfect_score
        np.testing.assert_array_equal(result.ensemble_Q[fold_Q == fold], expected_Q[fold_Q == fold])
        chosen.append(best)
    assert set(chosen) <= set(TEMPERATURES)


def test_trials_without_a_bank_are_named_with_the_remedy(ledger, candidates):
    del ledger.kept[candidates[1].run.run_id, BANK_FILE]
    with pytest.raises(
        UserError, match=r"1 trials .* no query bank: trial 1 \(0{15}1\); .*embed\.py bank --sweep NAME"
    ):
        PoolChooser(ledger, candidates, "map10", "inverted-softmax", "t2a", CONFIG)
    PoolChooser(ledger, candidates, "map10", "mean", "t2a", CONFIG).choose()
    bank = ledger.load_embeddings(candidates[0].run, BANK_FILE)
    empty = replace(bank, queries=[], relevant_clip_ids=[], text_QD=bank.text_QD[:0])
    ledger.keep_embeddings(candidates[1].run.run_id, BANK_FILE, empty)
    with pytest.raises(UserError, match=r"1 trials have an empty query bank.*trial 1"):
        require_banks(ledger, candidates)


def test_files_of_scores_and_audio_queries_are_refused(call_command, tmp_path):
    for split in ("validation", "test"):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "a.npy", np.eye(4, dtype=np.float32))
        np.save(tmp_path / split / "relevance.npy", np.arange(4))
    words = ("ensemble/select.py", "--pool", tmp_path, "--runs", tmp_path / "runs", "--fusion", "inverted-softmax")
    failed = call_command(*words)
    assert failed.returncode == 2
    assert re.search("'a' is a file of scores and has no query bank", failed.stderr)
    failed = call_command(*words, "--direction", "a2t")
    assert failed.returncode == 2
    assert "no queries of --direction a2t" in failed.stderr
