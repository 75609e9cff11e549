"""Choice of each trial's epoch, repeated within the folds of cross-validation.

Training keeps the epoch with the highest mAP@10 of text-to-audio retrieval on the validation split (ties go to the
first), whatever the direction of a selection. If a sweep stored the validation embeddings of every epoch,
cross-validation can exclude a fold's queries from that choice, too. The epoch of the pretraining from which a
fine-tuning started is not chosen again.

Shapes: E epochs of a trial, Q queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.pool import evaluation
from ensemble.pool.candidates import EMBEDDINGS_FILES, Candidate, load_trial_scores
from ensemble.pool.score_matrices import ScoreMatrices
from trainables.records.ledger import Ledger

EPOCH_METRIC = "map10"
"""Metric by which training chooses an epoch."""


@dataclass(frozen=True)
class EpochScores:
    """Metric of each epoch of a trial on each query [E, Q], and the files with the epochs' embeddings."""

    files: tuple[str, ...]  # artifacts with their embeddings
    values_EQ: NDArray[np.float64]

    def find_best_file(self, include_Q: NDArray[np.bool_]) -> str:
        """Return the file with the embeddings of the epoch that has the highest mean metric on the queries of the mask
        `include_Q`.
        """
        return self.files[int(np.argmax(self.values_EQ[:, include_Q].mean(axis=1)))]


def load_epoch_scores(ledger: Ledger, candidates: Sequence[Candidate]) -> dict[str, EpochScores]:
    """Return the metric of each epoch, by signature, for those trials whose embeddings of all epochs are stored."""
    trials = [candidate for candidate in candidates if candidate.run]
    scores = {}
    for trial in trials:
        files = ledger.list_epochs(trial.trial_run)
        if not files:
            continue
        reference = (trials[0], EMBEDDINGS_FILES["validation"])  # its order of queries is that of the pool
        source = load_trial_scores(ledger, [reference, *[(trial, file) for file in files]])
        values = [
            evaluation.compute_per_query(source.select([index]), [1], [EPOCH_METRIC])[EPOCH_METRIC]
            for index in range(1, len(files) + 1)
        ]
        scores[trial.signature] = EpochScores(tuple(files), np.stack(values))
    return scores


def choose_epoch_files(epochs: Mapping[str, EpochScores], include_Q: NDArray[np.bool_]) -> dict[str, str]:
    """Return, by signature, the file with the embeddings of each trial's best epoch, judged by the queries of the mask
    `include_Q` only.
    """
    return {signature: scores.find_best_file(include_Q) for signature, scores in epochs.items()}


def select_captions(pool: ScoreMatrices, include_A: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of the captions whose clips are all selected by the mask `include_A`. `pool` is in audio-to-text
    direction: its queries are the clips.
    """
    include_Q = np.ones(pool.num_clips, bool)
    include_Q[pool.relevance.clip_P[~include_A[pool.relevance.query_P]]] = False
    return include_Q
