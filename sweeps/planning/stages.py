"""Trials of a sweep grouped by stage."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from trainables.records.ledger import Ledger
from trainables.records.run_storage import RunStorage
from trainables.signature import Fingerprints, Relations, find_relations, sign
from trainables.trial import Trial, iter_required_trials

logger = logging.getLogger("chorale.sweep")

Stages = list[dict[str, Trial]]
"""Trials of each stage by signature: pretrainings, then fine-tunings."""


Requirements = Mapping[str, Relations]
"""The trials that each trial requires, by its signature."""


def iter_all_required(signature: str, requirements: Requirements) -> Iterator[str]:
    """Yield the signature of a trial, those of the trials that it requires, and those of the trials that these
    require, as far as they are in `requirements`.
    """
    yield signature
    for required in requirements[signature].required if signature in requirements else ():
        yield from iter_all_required(required, requirements)


def group_by_stage(trials: Sequence[Trial], fingerprints: Fingerprints) -> Stages:
    """Return two dicts of trials by signature, each trial once: the pretrainings and the fine-tunings, including those
    that other trials require. The signatures are computed with `fingerprints`,
    which identify the splits and the published weights.
    """
    stages: Stages = [{}, {}]
    all_trials = dict.fromkeys(required for listed in trials for required in reversed([*iter_required_trials(listed)]))
    for trial in all_trials:
        stages[trial.pretraining is not None].setdefault(sign(trial, fingerprints), trial)
    return stages


def find_requirements(trials: Mapping[str, Trial], fingerprints: Fingerprints) -> Requirements:
    """Return, by the signature of each trial, the trials that it requires. Signatures are computed with
    `fingerprints`, which identify the splits and the published weights.
    """
    return {signature: find_relations(trial, fingerprints) for signature, trial in trials.items()}


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
