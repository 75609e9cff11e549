"""Trials of a sweep grouped by stage."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from trainables.records.ledger import Ledger
from trainables.records.run_storage import RunStorage
from trainables.signature import Fingerprints, sign
from trainables.trial import Trial

logger = logging.getLogger("chorale.sweep")

Stages = list[dict[str, Trial]]
"""Trials of each stage by signature: pretrainings, then fine-tunings."""


def group_by_stage(trials: Sequence[Trial], fingerprints: Fingerprints) -> Stages:
    """Return two dicts of trials by signature, each trial once: the pretrainings, including those that the fine-tunings
    start from, and the fine-tunings. The signatures are computed with `fingerprints`, which identify the splits and the
    published weights.
    """
    with_parents = [parent for trial in trials if (parent := trial.pretraining)] + list(trials)
    stages: Stages = [{}, {}]
    for trial in with_parents:
        stages[trial.pretraining is not None].setdefault(sign(trial, fingerprints), trial)
    return stages


def find_parents(trials: Mapping[str, Trial], fingerprints: Fingerprints) -> dict[str, str | None]:
    """Return the signature of each trial's pretraining, None if it has none, by the trial's own signature. Signatures
    are computed with `fingerprints`, which identify the splits and the published weights.
    """
    return {
        signature: sign(trial.pretraining, fingerprints) if trial.pretraining else None
        for signature, trial in trials.items()
    }


def find_finished(signatures: Iterable[str], ledger: Ledger, runs: RunStorage) -> set[str]:
    """Return the signatures of the trials that have finished and whose models aren't damaged."""
    finished = {signature for signature in signatures if ledger.find_finished_trial(signature)}
    return {signature for signature in finished if not runs.has_damaged_model(signature)}


def mark_damaged(unfinished: Iterable[str], ledger: Ledger, runs: RunStorage) -> None:
    """Mark those of the `unfinished` trials (signatures) that had finished but whose models are damaged, as after a
    power cut, as FAILED in the ledger, so that they are trained again from their last complete checkpoints.
    """
    for signature in unfinished:
        run = ledger.find_finished_trial(signature)
        if run and runs.has_damaged_model(signature):
            logger.warning(
                "the model of %s is damaged (%s): it is trained again", run.name, runs.locate(f"models/{signature}")
            )
            ledger.mark_ended(run.run_id, "FAILED")
