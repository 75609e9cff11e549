"""Forms of query-bank normalisation, compared for a selected ensemble: its metric and its hubness with each.

In every form the ensemble's scores are its scores without normalisation minus a product of two small matrices, so that
the scores are computed once for all forms and temperatures.

Shapes: N members, Q queries, A clips, B queries of the bank, P (query, relevant clip) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.pool import evaluation, hubness
from ensemble.pool.candidates import (
    EMBEDDINGS_FILES,
    Candidate,
    Role,
    build_query_keys,
    compute_cosines,
    find_order,
    load_pool,
)
from ensemble.pool.query_bank import BLOCK, TEMPERATURES, BankLoader, load_bank
from trainables import retrieval
from trainables.records.embeddings import Embeddings
from trainables.records.ensemble_file import Estimate, Fusion, Normalisation, NormalisationForm
from trainables.records.ledger import Ledger

NONE, PER_MEMBER, AFTER_FUSION, DYNAMIC = "none", "per member", "after fusion", "dynamic"

FORM_OF_FUSION: Mapping[Fusion, str] = {"inverted-softmax": PER_MEMBER, "dynamic-inverted-softmax": DYNAMIC}
"""Form that a fusion uses."""


@dataclass(frozen=True)
class Correction:
    """Matrix that a form subtracts from the scores [Q, A] at a temperature: `factors_QN` times `offsets_NA`."""

    form: str
    temperature: float | None
    factors_QN: NDArray[np.float64]
    offsets_NA: NDArray[np.float64]


@dataclass(frozen=True)
class FormResult:
    """Metric and hubness of an ensemble with one form of normalisation on a split."""

    form: str
    temperature: float | None
    metric: Estimate
    skewness: float


def list_corrections(
    ledger: Ledger, candidates: Sequence[Candidate], shares: Sequence[float], role: Role
) -> list[Correction]:
    """Return the corrections of all forms and temperatures for an ensemble of trials with these shares, on the split
    with this role. Queries and clips are in the order of the first trial's embeddings.
    """
    banks = BankLoader(ledger, "dynamic-inverted-softmax")
    file = EMBEDDINGS_FILES[role]
    embeddings = [ledger.load_embeddings(candidate.trial_run, file) for candidate in candidates]
    first = embeddings[0]
    offsets, active = [], []
    for candidate, vectors in zip(candidates, embeddings, strict=True):
        statistics = banks.compute_statistics(candidate, file, vectors)
        offsets.append(statistics.offsets_TA[:, find_order(vectors.clip_ids, first.clip_ids)])
        active.append(statistics.active_Q[find_order(build_query_keys(vectors), build_query_keys(first))])
    offsets_NTA, active_QN = np.stack(offsets), np.stack(active, axis=1)
    fused_TA = compute_fused_offsets([load_bank(ledger, candidate) for candidate in candidates], embeddings, shares)
    ones_Q1 = np.ones((len(first.queries), 1))
    corrections = [Correction(NONE, None, 0 * ones_Q1, np.zeros((1, len(first.clip_ids))))]
    for index, temperature in enumerate(TEMPERATURES):
        corrections += [
            Correction(PER_MEMBER, temperature, ones_Q1 * np.array(shares), offsets_NTA[:, index]),
            Correction(AFTER_FUSION, temperature, ones_Q1, fused_TA[index : index + 1]),
            Correction(DYNAMIC, temperature, active_QN * np.array(shares), offsets_NTA[:, index]),
        ]
    return corrections


def compute_fused_offsets(
    banks: Sequence[Embeddings], embeddings: Sequence[Embeddings], shares: Sequence[float]
) -> NDArray[np.float64]:
    """Return the offset of each clip by the ensemble's own scores of the bank's queries, for each of TEMPERATURES
    [T, A]. Of banks that differ, the queries that all have are used; without any, all offsets are 0.
    """
    from scipy.special import logsumexp

    shared = set.intersection(*(set(bank.queries) for bank in banks))
    texts = [text for text in banks[0].queries if text in shared]
    clip_ids = embeddings[0].clip_ids
    fused_TA = np.zeros((len(TEMPERATURES), len(clip_ids)))
    rows = [[{text: row for row, text in enumerate(bank.queries)}[text] for text in texts] for bank in banks]
    columns = [find_order(vectors.clip_ids, clip_ids) for vectors in embeddings]
    for start in range(0, len(clip_ids) if texts else 0, BLOCK):
        scores_AB = sum(
            share
            * compute_cosines(vectors.audio_AD[order[start : start + BLOCK]], bank.text_QD[row]).astype(np.float64)
            for share, vectors, order, bank, row in zip(shares, embeddings, columns, banks, rows, strict=True)
        )
        for index, temperature in enumerate(TEMPERATURES):
            log_means_A = logsumexp(scores_AB / temperature, axis=1) - np.log(len(texts))
            fused_TA[index, start : start + BLOCK] = temperature * log_means_A
    return fused_TA


def evaluate_forms(
    ledger: Ledger,
    candidates: Sequence[Candidate],
    weights: Sequence[float],
    metric: str,
    role: Role,
    temperatures: Mapping[str, float | None],
) -> list[FormResult]:
    """Return the metric and the hubness of an ensemble of trials with each form of normalisation, on the split with
    this role. The temperature of a form is the one in `temperatures` or, if it has none for the form, the one with the
    highest metric.
    """
    shares = [weight / sum(weights) for weight in weights]
    pool = load_pool(ledger, candidates, role)
    corrections = [
        correction
        for correction in list_corrections(ledger, candidates, shares, role)
        if temperatures.get(correction.form, correction.temperature) == correction.temperature
    ]
    ranks = [np.empty(len(pool.relevance.query_P), np.int64) for _ in corrections]
    occurrences = [np.zeros(pool.num_clips, np.int64) for _ in corrections]
    for start, stop, block_P, part in evaluation.iter_blocks(pool):
        plain_QA = evaluation.fuse_block(pool, shares, start, stop)
        for index, correction in enumerate(corrections):
            scores_QA = plain_QA - correction.factors_QN[start:stop] @ correction.offsets_NA
            ranks[index][block_P] = retrieval.compute_ranks(scores_QA, part)
            occurrences[index] += hubness.count_occurrences(scores_QA)
    values = [retrieval.find_metric(metric)(ranks_P, pool.relevance) for ranks_P in ranks]
    results = []
    for form in (NONE, PER_MEMBER, AFTER_FUSION, DYNAMIC):
        indices = [index for index, correction in enumerate(corrections) if correction.form == form]
        best = max(indices, key=lambda index: values[index].mean())
        estimate = evaluation.estimate(values[best], pool.relevance)
        skewness = hubness.compute_skewness(occurrences[best])
        results.append(FormResult(form, corrections[best].temperature, estimate, skewness))
    return results


def describe_normalisation(
    ledger: Ledger,
    candidates: Sequence[Candidate],
    weights: Sequence[float],
    metric: str,
    fusion: Fusion,
    temperature: float,
    looks_at_test: bool,
) -> Normalisation:
    """Return what ensemble.json says about the query-bank normalisation of an ensemble of trials: the temperature of
    its fusion, and its metric and hubness with each form on validation and, if `looks_at_test` is set, on test. The
    temperature of the other forms is the best one on validation.
    """
    chosen = {FORM_OF_FUSION[fusion]: temperature}
    validation = evaluate_forms(ledger, candidates, weights, metric, "validation", chosen)
    forms = [
        NormalisationForm(result.form, result.metric, result.skewness, result.temperature) for result in validation
    ]
    if looks_at_test:
        fixed = {result.form: result.temperature for result in validation}
        on_test = evaluate_forms(ledger, candidates, weights, metric, "test", fixed)
        forms = [
            NormalisationForm(form.name, form.validation, form.skewness, form.temperature, test.metric, test.skewness)
            for form, test in zip(forms, on_test, strict=True)
        ]
    return Normalisation(temperature, tuple(forms))
