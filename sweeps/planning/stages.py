"""Trials of a sweep grouped by stage."""

from collections.abc import Mapping, Sequence

from trainables.signature import Fingerprints, sign
from trainables.trial import Trial

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
