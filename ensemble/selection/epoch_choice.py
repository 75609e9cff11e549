"""Choice of each trial's epoch, repeated within the folds of cross-validation.

Training keeps the epoch with the highest mAP@10 of text-to-audio retrieval on the validation split (ties go to the
first), whatever the direction of a selection. If a sweep stored the validation embeddings of every epoch,
cross-validation can exclude a fold's queries from that choice, too. Otherwise it chooses, by the other folds' queries,
among the epochs that are stored: the best one and those of the snapshots, if there are any. The epoch of the
pretraining from which a fine-tuning started is not chosen again.

A training with snapshots (`ensemble.pool.snapshots`) has as candidates its model after the chosen epoch, and its
snapshots after all other epochs. In each fold these follow from the epoch that is chosen there: it may be that of a
snapshot, and the one that is the best on all queries may be a snapshot's.

Shapes: E epochs of a trial, Q queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.pool import evaluation
from ensemble.pool.candidates import EMBEDDINGS_FILES, Candidate, load_trial_scores
from ensemble.pool.score_matrices import ScoreMatrices
from ensemble.pool.snapshots import find_snapshots
from trainables.records.ledger import Ledger

EPOCH_METRIC = "map10"
"""Metric by which training chooses an epoch."""

VALIDATION = EMBEDDINGS_FILES["validation"]


@dataclass(frozen=True)
class StoredEpoch:
    """Epoch of a training whose validation embeddings are stored: its number, from 1, and where they are."""

    number: int
    candidate: Candidate  # the trial itself, or its snapshot after this epoch
    file: str  # artifact of its run


@dataclass(frozen=True)
class EpochScores:
    """Metric of each stored epoch of a training on each query [E, Q], and its snapshots."""

    epochs: tuple[StoredEpoch, ...]  # in order
    values_EQ: NDArray[np.float64]
    snapshots: tuple[Candidate, ...] = ()
    is_complete: bool = True  # whether all epochs are stored

    def find_best(self, include_Q: NDArray[np.bool_]) -> StoredEpoch:
        """Return the epoch with the highest mean metric on the queries of the mask `include_Q`, the first of equal
        ones.
        """
        return self.epochs[int(np.argmax(self.values_EQ[:, include_Q].mean(axis=1)))]

    def list_candidates(self, include_Q: NDArray[np.bool_]) -> list[tuple[Candidate, str]]:
        """Return the candidates of the training, each with its file of embeddings, if the queries of the mask
        `include_Q` choose its best epoch: the model after that epoch, and the snapshots after other epochs.
        """
        best = self.find_best(include_Q)
        others = [snapshot for snapshot in self.snapshots if snapshot.trial_run.snapshot_epoch != best.number]
        return [(best.candidate, best.file), *((snapshot, VALIDATION) for snapshot in others)]


def load_epoch_scores(ledger: Ledger, candidates: Sequence[Candidate]) -> dict[str, EpochScores]:
    """Return the metric of each stored epoch, by signature, for those trials whose embeddings of all epochs are stored,
    or that have snapshots. Snapshots themselves are left out, since their epoch isn't chosen.
    """
    trials = [candidate for candidate in candidates if candidate.run]
    scores = {}
    for trial in trials:
        if trial.trial_run.snapshot_epoch:
            continue
        snapshots = find_snapshot_candidates(ledger, trial, trials)
        epochs = [StoredEpoch(int(Path(file).stem), trial, file) for file in ledger.list_epochs(trial.trial_run)]
        is_complete = bool(epochs)
        if not is_complete and snapshots:
            best = int(trial.trial_run.metrics["best_epoch"])
            stored = {epoch: StoredEpoch(epoch, snapshot, VALIDATION) for epoch, snapshot in snapshots.items()}
            stored[best] = StoredEpoch(best, trial, VALIDATION)
            epochs = [stored[epoch] for epoch in sorted(stored)]
        if not epochs:
            continue
        reference = (trials[0], VALIDATION)  # its order of queries is that of the pool
        source = load_trial_scores(ledger, [reference, *[(epoch.candidate, epoch.file) for epoch in epochs]])
        values = [
            evaluation.compute_per_query(source.select([index]), [1], [EPOCH_METRIC])[EPOCH_METRIC]
            for index in range(1, len(epochs) + 1)
        ]
        scores[trial.signature] = EpochScores(tuple(epochs), np.stack(values), tuple(snapshots.values()), is_complete)
    return scores


def find_snapshot_candidates(ledger: Ledger, trial: Candidate, trials: Sequence[Candidate]) -> dict[int, Candidate]:
    """Return the snapshots of a trial by epoch: those after its cycles, of which one may be no candidate since it is
    the same model, and those among the candidates `trials`, which a space may list after any epoch.
    """
    listed = [other.trial_run for other in trials if other.trial_run.relations.snapshot_of == trial.signature]
    runs = [*find_snapshots(ledger, trial.trial_run).values(), *listed]
    return {run.snapshot_epoch: Candidate(run.name, run.signature, run) for run in runs if run.snapshot_epoch}


def list_candidates(
    candidates: Sequence[Candidate], epochs: Mapping[str, EpochScores], include_Q: NDArray[np.bool_]
) -> list[tuple[Candidate, str]]:
    """Return the candidates of a pool, each with its file of embeddings, if the queries of the mask `include_Q` choose
    the epochs. `epochs` has by signature the trainings among the `candidates` that have several stored epochs; all
    other candidates are returned as they are.
    """
    snapshots = {snapshot.signature for training in epochs.values() for snapshot in training.snapshots}
    entries: list[tuple[Candidate, str]] = []
    for candidate in candidates:
        if candidate.signature in epochs:
            entries += epochs[candidate.signature].list_candidates(include_Q)
        elif not candidate.run or candidate.signature not in snapshots:
            entries.append((candidate, VALIDATION))
    return sorted(entries, key=lambda entry: (entry[0].run is None, entry[0].signature))


def repeats_all_choices(candidates: Sequence[Candidate], epochs: Mapping[str, EpochScores]) -> bool:
    """Return whether `list_candidates` repeats the choice of the epoch of all candidates: whether all epochs of each
    one are stored, unless it is a snapshot, whose epoch isn't chosen. The epochs of a file of scores are unknown.
    """
    return all(
        (candidate.run is not None and candidate.run.snapshot_epoch is not None)
        or (candidate.signature in epochs and epochs[candidate.signature].is_complete)
        for candidate in candidates
    )


def select_captions(pool: ScoreMatrices, include_A: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of the captions whose clips are all selected by the mask `include_A`. `pool` is in audio-to-text
    direction: its queries are the clips.
    """
    include_Q = np.ones(pool.num_clips, bool)
    include_Q[pool.relevance.clip_P[~include_A[pool.relevance.query_P]]] = False
    return include_Q
