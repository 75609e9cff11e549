"""Query-bank normalisation: lower the scores of clips that are near to every query (Bogolin et al. 2022).

A trial's bank is the vectors of training captions. The inverted softmax of a score s(q, a), as its logarithm times the
temperature t, is s(q, a) minus one number per clip, its **offset**: t log mean_b exp(s(b, a) / t) over the bank's
queries b. (The paper has a sum; the mean differs by the same number for all clips and keeps scores small.) The dynamic
form subtracts the offsets only for queries whose nearest clip is the nearest clip of a query of the bank.

Either form is one more dimension of the vectors: minus the offset for a clip, and 1 (or 0) for a query. The weighted
mean of members' scores is then normalised per member wherever scores are dot products.

Shapes: A clips, Q queries, B queries of the bank, T temperatures, D the size of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from ensemble.pool.candidates import Candidate, LoadEmbeddings, compute_cosines
from trainables.records.embeddings import BANK_FILE, Embeddings, read_embeddings
from trainables.records.ledger import Ledger, MissingArtifactError

TEMPERATURES = (1.0, 0.5, 0.2, 0.1, 0.05)
"""Temperatures to choose from, the weakest normalisation first. Assumed: at lower ones it did harm in a first trial."""

BLOCK = 1024
"""Number of clips or queries whose scores are computed at a time."""

MAX_NAMED = 3
"""Maximum number of trials without a bank that a message names."""


def compute_offsets(
    audio_AD: NDArray[np.float32], bank_BD: NDArray[np.float32], temperatures: Sequence[float]
) -> NDArray[np.float64]:
    """Return the offset of each clip for each temperature [T, A]. An offset depends on the clip and the bank alone, not
    on the other clips. The bank must not be empty.
    """
    from scipy.special import logsumexp

    offsets_TA = np.empty((len(temperatures), len(audio_AD)))
    for first in range(0, len(audio_AD), BLOCK):
        scores_AB = compute_cosines(audio_AD[first : first + BLOCK], bank_BD).astype(np.float64)
        for row, temperature in enumerate(temperatures):
            log_means_A = logsumexp(scores_AB / temperature, axis=1) - np.log(len(bank_BD))
            offsets_TA[row, first : first + BLOCK] = temperature * log_means_A
    return offsets_TA


def find_nearest_clips(text_QD: NDArray[np.float32], audio_AD: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the index of the clip with the highest score for each query [Q]; the first of equal ones."""
    nearest_Q = np.empty(len(text_QD), np.int64)
    for first in range(0, len(text_QD), BLOCK):
        nearest_Q[first : first + BLOCK] = compute_cosines(text_QD[first : first + BLOCK], audio_AD).argmax(axis=1)
    return nearest_Q


def find_active_queries(embeddings: Embeddings, bank_BD: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return a mask of the queries that the dynamic form normalises [Q]: those whose nearest clip is the nearest clip
    of a query of the bank.
    """
    hubs = find_nearest_clips(bank_BD, embeddings.audio_AD)
    return np.isin(find_nearest_clips(embeddings.text_QD, embeddings.audio_AD), hubs)


def append_column(vectors_ND: NDArray[np.float32], column_N: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return vectors with one more dimension, whose value in each vector is in `column_N`."""
    return np.concatenate([vectors_ND, column_N[:, None].astype(np.float32)], axis=1)


@dataclass(frozen=True)
class ClipStatistics:
    """Statistics of a split by a trial's bank: the offsets of its clips, and a mask of the queries that the fusion
    normalises.
    """

    offsets_TA: NDArray[np.float64]
    active_Q: NDArray[np.bool_]


@dataclass(frozen=True)
class BankLoader:
    """Loader of trials' embeddings with one more dimension, so that their dot products are normalised scores. What it
    computes is kept for other temperatures.
    """

    ledger: Ledger
    fusion: str  # one of BANK_FUSIONS
    temperatures: Sequence[float] = TEMPERATURES
    statistics: dict[tuple[str, str], ClipStatistics] = field(default_factory=dict)

    def at(self, temperature: float) -> LoadEmbeddings:
        """Return a function that loads a trial's file of embeddings, normalised with this temperature, which must be
        one of `temperatures`.
        """
        return lambda candidate, file: self.load(candidate, file, temperature)

    def load(self, candidate: Candidate, file: str, temperature: float) -> Embeddings:
        """Return a trial's embeddings in a file, normalised with this temperature."""
        embeddings = self.ledger.load_embeddings(candidate.trial_run, file)
        statistics = self.compute_statistics(candidate, file, embeddings)
        offset_A = statistics.offsets_TA[list(self.temperatures).index(temperature)]
        return normalise_embeddings(embeddings, offset_A, statistics.active_Q)

    def compute_statistics(self, candidate: Candidate, file: str, embeddings: Embeddings) -> ClipStatistics:
        """Return the statistics of a trial's embeddings, which are those in `file`."""
        key = candidate.signature, file
        if key not in self.statistics:
            bank_BD = load_bank(self.ledger, candidate).text_QD
            offsets_TA = compute_offsets(embeddings.audio_AD, bank_BD, self.temperatures)
            self.statistics[key] = ClipStatistics(offsets_TA, choose_active(embeddings, bank_BD, self.fusion))
        return self.statistics[key]


def choose_active(embeddings: Embeddings, bank_BD: NDArray[np.float32], fusion: str) -> NDArray[np.bool_]:
    """Return a mask of the queries that the fusion normalises [Q]: all of them, except with the dynamic form."""
    if fusion == "dynamic-inverted-softmax":
        return find_active_queries(embeddings, bank_BD)
    return np.ones(len(embeddings.text_QD), bool)


def normalise_embeddings(
    embeddings: Embeddings, offset_A: NDArray[np.float64], active_Q: NDArray[np.bool_]
) -> Embeddings:
    """Return embeddings with one more dimension: minus the offset of each clip; 1 for each query that is normalised,
    and 0 for the others.
    """
    return replace(
        embeddings,
        audio_AD=append_column(embeddings.audio_AD, -offset_A),
        text_QD=append_column(embeddings.text_QD, active_Q),
    )


def normalise_with(embeddings: Embeddings, bank: Embeddings, fusion: str, temperature: float) -> Embeddings:
    """Return embeddings of a split, normalised by the bank of the same trial in the form that the fusion names."""
    (offset_A,) = compute_offsets(embeddings.audio_AD, bank.text_QD, [temperature])
    return normalise_embeddings(embeddings, offset_A, choose_active(embeddings, bank.text_QD, fusion))


def load_bank(ledger: Ledger, candidate: Candidate) -> Embeddings:
    """Return the bank of a trial. Raises UserError if it has none, or an empty one."""
    bank = find_bank(ledger, candidate)
    if bank is None or not bank.queries:
        raise explain_unusable_banks([candidate] if bank is None else [], [candidate])
    return bank


def find_bank(ledger: Ledger, candidate: Candidate) -> Embeddings | None:
    """Return the bank of a trial, which may be empty; None if the trial has none."""
    try:
        return ledger.load_embeddings(candidate.trial_run, BANK_FILE)
    except MissingArtifactError:
        return None


def require_banks(ledger: Ledger, candidates: Sequence[Candidate]) -> None:
    """Raise UserError, which names the candidates and the remedy, unless all candidates are trials with a bank."""
    files = [candidate.name for candidate in candidates if candidate.run is None]
    if files:
        raise UserError(
            f"{files[0]!r} is a file of scores and has no query bank, which this --fusion needs: leave --pool out, or "
            "choose --fusion mean, zscore or rank"
        )
    without, empty = [], []
    for candidate in candidates:
        bank = find_bank(ledger, candidate)
        if bank is None:
            without.append(candidate)
        elif not bank.queries:
            empty.append(candidate)
    if without or empty:
        raise explain_unusable_banks(without, empty)


def explain_unusable_banks(without: Sequence[Candidate], empty: Sequence[Candidate]) -> UserError:
    """Return the error to raise for trials without a bank or, if there are none, for trials whose bank is empty."""
    if without:
        return UserError(
            f"{len(without)} trials of an earlier version have no query bank: {describe(without)}; embed the banks "
            "with python trainables/embed.py bank --sweep NAME --store STORE"
        )
    return UserError(
        f"{len(empty)} trials have an empty query bank, since all their training captions are also captions of "
        f"their validation or test split: {describe(empty)}; choose another --fusion"
    )


def read_stored_bank(folder: Path, size: int) -> Embeddings:
    """Return the bank that is stored with the model in a folder, whose vectors have this size. Raises UserError if it
    is missing, empty or damaged.
    """
    path = folder / BANK_FILE
    if not path.exists():
        raise UserError(
            f"{path} doesn't exist, and its fusion needs a query bank: embed it with python trainables/embed.py bank "
            "--sweep NAME --store STORE"
        )
    bank = read_embeddings(path)
    if not bank.text_QD.size or bank.text_QD.shape[1] != size or not np.isfinite(bank.text_QD).all():
        raise UserError(f"{path} isn't the query bank of this model: copy or export the model again")
    return bank


def describe(candidates: Sequence[Candidate]) -> str:
    """Return the first few candidates as text, by name and signature."""
    named = [f"{candidate.name} ({candidate.signature})" for candidate in candidates[:MAX_NAMED]]
    return ", ".join([*named, *["..."] * (len(candidates) > MAX_NAMED)])
