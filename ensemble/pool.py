"""The pool: the finished trials of a sweep as candidates whose scores are aligned by query and clip."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mlflow.entities import Run

from data.errors import UserError
from trainables.embed import Embeddings
from trainables.ledger import Ledger, Sweep
from trainables.retrieval import Relevance, Scores, relevance


@dataclass(frozen=True)
class Candidate:
    """A finished trial."""

    name: str
    run: Run
    signature: str


@dataclass(frozen=True)
class SplitScores:
    """What candidates score on a split: rows and columns mean the same in all matrices."""

    split: str
    fingerprint: str
    scores: list[Scores]
    relevance: Relevance


def find_candidates(ledger: Ledger, sweep: Sweep) -> list[Candidate]:
    """The sweep's finished trials in the order of their signatures, whoever ran them.

    Raises UserError where none is finished.
    """
    runs = {signature: ledger.finished(signature) for signature in sorted(sweep.signatures)}
    candidates = [Candidate(run.info.run_name, run, signature) for signature, run in runs.items() if run]
    if not candidates:
        raise UserError(
            f"sweep {sweep.name!r} has no finished trial of {len(runs)}: "
            f"go on with python sweeps/grid.py --name {sweep.name}"
        )
    return candidates


def load_scores(ledger: Ledger, candidates: Sequence[Candidate], file: str) -> SplitScores:
    """The candidates' scores on a split. Raises UserError where they have seen different splits."""
    reference: Embeddings | None = None
    scores = []
    for candidate in candidates:
        embeddings = ledger.embeddings(candidate.run, file)
        reference = reference or embeddings
        scores.append(aligned_scores(embeddings, reference, candidate, candidates[0]))
    if reference is None:
        raise ValueError("there are no candidates to load")
    return SplitScores(
        reference.split, reference.fingerprint, scores, relevance(reference.relevant_clip_ids, reference.clip_ids)
    )


def aligned_scores(embeddings: Embeddings, reference: Embeddings, candidate: Candidate, first: Candidate) -> Scores:
    """Scores [Q, A] with the reference's rows and columns."""
    if (embeddings.split, embeddings.fingerprint) != (reference.split, reference.fingerprint):
        raise UserError(
            f"trials differ in their splits and can't be compared: {candidate.name!r} has {embeddings.split} "
            f"({embeddings.fingerprint}), {first.name!r} has {reference.split} ({reference.fingerprint})"
        )
    rows = order_of(query_keys(embeddings), query_keys(reference))
    columns = order_of(embeddings.clip_ids, reference.clip_ids)
    return embeddings.scores()[np.ix_(rows, columns)]


def query_keys(embeddings: Embeddings) -> list[tuple[str, tuple[str, ...], int]]:
    """What tells queries apart: the text, its relevant clips, and a number where both occur again."""
    seen: dict[tuple[str, tuple[str, ...]], int] = {}
    keys = []
    for text, relevant in zip(embeddings.queries, embeddings.relevant_clip_ids, strict=True):
        key = (text, tuple(sorted(relevant)))
        seen[key] = seen.get(key, 0) + 1
        keys.append((*key, seen[key]))
    return keys


def order_of(keys: Sequence[object], wanted: Sequence[object]) -> list[int]:
    """Where each wanted key stands. Both sequences hold the same keys, each once."""
    place = {key: index for index, key in enumerate(keys)}
    if place.keys() != set(wanted) or len(keys) != len(wanted):
        raise UserError("two trials name different queries or clips for the same split: prepare the corpus again")
    return [place[key] for key in wanted]
