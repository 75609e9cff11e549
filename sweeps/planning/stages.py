"""The trials of a sweep by stage, and a check that their encoders can be built."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data.errors import UserError
from trainables import encoders
from trainables.networks import network_of
from trainables.signature import Fingerprints, sign
from trainables.trial import Trial

Stages = list[dict[str, Trial]]
"""The trials of each stage by signature: pretrainings, then fine-tunings."""


def by_stage(wanted: Sequence[Trial], fingerprints: Fingerprints) -> Stages:
    """The trials by stage, each once, with the pretrainings that they start from."""
    with_parents = [parent for trial in wanted if (parent := trial.pretraining)] + list(wanted)
    stages: Stages = [{}, {}]
    for trial in with_parents:
        stages[trial.pretraining is not None].setdefault(sign(trial, fingerprints), trial)
    return stages


def parents_of(every: Mapping[str, Trial], fingerprints: Fingerprints) -> dict[str, str | None]:
    """Return the signature of each trial's pretraining, by the trial's own; None where it has none."""
    return {
        signature: sign(trial.pretraining, fingerprints) if trial.pretraining else None
        for signature, trial in every.items()
    }


def require_encoders(wanted: Iterable[Trial], weights: Path | None) -> None:
    """Raise UserError for an encoder that can't be built: before a GPU waits for it."""
    captions = ["a dog barks", "rain falls on a roof"]  # for tokenizers that learn their vocabulary
    for encoder in dict.fromkeys(encoder for trial in wanted for encoder in (trial.audio, trial.text)):
        build = network_of(encoder).build
        try:
            build(encoder, weights) if hasattr(encoder, "segment_s") else build(encoder, captions, weights)
        except UserError:
            raise
        except Exception as error:  # of whatever an encoder of a user's own raises
            raise UserError(f"the encoder {encoders.label(encoder)} can't be built: {error} ({encoder})") from error
