"""Query bank of a trial: training captions and their vectors, by which query-bank normalisation compares clips.

Selection, submission and search subtract from the scores of a clip how near it is to the captions of the bank
(`ensemble.pool.query_bank`).
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from data.captions import hash_caption, normalise
from data.leakage.exclusions import read_excluded_ids
from data.loading.pairs import ClipCaptionDataset
from data.store.storage import Location
from data.store.stored_split import StoredSplit
from trainables.networks.dual_encoder import DualEncoder
from trainables.records.embeddings import Embeddings
from trainables.training.embedding import embed_text
from trainables.trial import Trial

MAX_BANK_QUERIES = 4096
"""Maximum number of captions in a bank. Assumed: enough for a stable statistic of each clip, and 16 MiB of vectors."""


def list_bank_splits(trial: Trial) -> list[str]:
    """Return the training splits whose captions are a trial's bank: those of the corpus of its validation split or, if
    there is none, all. A trial that was retrained on its validation and test splits has neither in its bank.
    """
    splits = [name for name in trial.train if name not in (trial.validation, trial.test)]
    corpus = trial.validation.partition("/")[0]
    return [name for name in splits if name.partition("/")[0] == corpus] or splits


def list_bank_texts(trial: Trial, splits: Mapping[str, StoredSplit], store: Location) -> list[str]:
    """Return the texts of a trial's bank: at most MAX_BANK_QUERIES distinct normalised training captions, sorted by
    their hash, so that trials of the same splits have the same bank.

    Captions of excluded clips, and texts that are also a query of the validation or the test split, are left out: no
    such query is ever compared with itself.

    Args:
        trial: the trial.
        splits: the training, validation and test splits, by name.
        store: the store of the splits, for its exclusions.
    """
    names = list_bank_splits(trial)
    if not names:
        return []
    excluded = read_excluded_ids(store, names)
    pairs = ClipCaptionDataset([splits[name] for name in names], trial.audio.segment_s, trial.longest_audio_s, 0.0, 0,
                               excluded)  # fmt: skip
    texts = set(map(normalise, pairs.iter_captions()))
    for name in (trial.validation, trial.test):
        texts.difference_update(map(normalise, splits[name].queries["text"].to_pylist()))
    return sorted(texts, key=lambda text: (hash_caption(text), text))[:MAX_BANK_QUERIES]


def embed_bank(network: DualEncoder, trial: Trial, signature: str, texts: list[str]) -> Embeddings:
    """Return the bank of a trial with these texts as embeddings without clips, computed by its model `network`. The
    fingerprint is one of the texts: banks with equal fingerprints have the same queries.
    """
    return Embeddings(
        signature=signature,
        split=" + ".join(list_bank_splits(trial)),
        fingerprint=hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16],
        clip_ids=[],
        queries=texts,
        relevant_clip_ids=[[] for _ in texts],
        audio_AD=np.zeros((0, trial.embedding_size), np.float32),
        text_QD=embed_text(network, trial, texts),
    )
