"""The trials of a sweep by stage, and a check that their encoders can be built."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from data.errors import UserError
from data.store.storage import Location
from trainables import encoders
from trainables import trial as trials
from trainables.networks import network_of
from trainables.trial import Trial

Stages = list[dict[str, Trial]]
"""The trials of each stage by signature: pretrainings, then fine-tunings."""


def by_stage(wanted: Sequence[Trial], store: Location, weights: Path | None = None) -> Stages:
    """The trials by stage, each once, with the pretrainings that they start from."""
    with_parents = [parent for trial in wanted if (parent := trial.pretraining)] + list(wanted)
    stages: Stages = [{}, {}]
    for trial in with_parents:
        stages[trial.pretraining is not None].setdefault(trials.signature(trial, store, weights), trial)
    return stages


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
