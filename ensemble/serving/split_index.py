"""Index of a split by an ensemble: concatenated, weighted embeddings whose dot products are the ensemble's scores.

Shapes: A clips, Q queries, D the size of all members' embeddings together.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from data.errors import UserError
from ensemble.pool.candidates import (
    EMBEDDINGS_FILES,
    Candidate,
    Role,
    build_query_keys,
    find_order,
    require_same_split,
)
from ensemble.selection.pool_choice import make_loader
from trainables.records.embeddings import Embeddings
from trainables.records.ledger import Ledger


def concatenate_embeddings(
    ledger: Ledger,
    candidates: Sequence[Candidate],
    weights: Sequence[float],
    role: Role,
    fusion: str = "mean",
    temperature: float | None = None,
) -> Embeddings:
    """Return the concatenated embeddings of an ensemble's members, each multiplied by the square root of its weight,
    for the split with this role. `candidates` are the members, and `weights` must sum to 1. If the fusion is by a query
    bank, it has a temperature, and vectors have one more dimension per member.

    The weights must sum to 1: then dot products are the weighted means of the members', and vectors have length 1
    unless scores are normalised by a query bank.
    Raises UserError if a candidate is a file of scores, or the trials were evaluated on different splits.
    """
    load = make_loader(ledger, fusion, temperature)
    all_embeddings = []
    for candidate in candidates:
        if candidate.run is None:
            raise UserError(f"{candidate.name!r} is a file of scores: only trials have embeddings to export")
        file = EMBEDDINGS_FILES[role]
        all_embeddings.append(load(candidate, file) if load else ledger.load_embeddings(candidate.run, file))
    first = all_embeddings[0]
    audio, text = [], []
    for embeddings, candidate, weight in zip(all_embeddings, candidates, weights, strict=True):
        require_same_split(embeddings, first, candidate, candidates[0])
        factor = np.float32(np.sqrt(weight))
        audio.append(factor * embeddings.audio_AD[find_order(embeddings.clip_ids, first.clip_ids)])
        text.append(factor * embeddings.text_QD[find_order(build_query_keys(embeddings), build_query_keys(first))])
    members = [[candidate.signature, weight] for candidate, weight in zip(candidates, weights, strict=True)]
    identity = json.dumps(members if temperature is None else [members, fusion, temperature])
    return Embeddings(
        signature=hashlib.sha256(identity.encode()).hexdigest()[:16],
        split=first.split,
        fingerprint=first.fingerprint,
        clip_ids=first.clip_ids,
        queries=first.queries,
        relevant_clip_ids=first.relevant_clip_ids,
        audio_AD=np.concatenate(audio, axis=1),
        text_QD=np.concatenate(text, axis=1),
    )
