"""Trials of a sweep grouped by stage, and a check that their encoders can be built."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from data.errors import UserError
from trainables import encoders
from trainables.encoders.audio import AudioConfig
from trainables.encoders.text import TextConfig
from trainables.networks import load_network_module
from trainables.signature import Fingerprints, sign
from trainables.trial import Trial

Stages = list[dict[str, Trial]]
"""Trials of each stage by signature: pretrainings, then fine-tunings."""


def group_by_stage(trials: Sequence[Trial], fingerprints: Fingerprints) -> Stages:
    """Return the trials of each stage by signature, each trial once: the pretrainings, including those that the
    fine-tunings start from, then the fine-tunings.
    """
    with_parents = [parent for trial in trials if (parent := trial.pretraining)] + list(trials)
    stages: Stages = [{}, {}]
    for trial in with_parents:
        stages[trial.pretraining is not None].setdefault(sign(trial, fingerprints), trial)
    return stages


def find_parents(trials: Mapping[str, Trial], fingerprints: Fingerprints) -> dict[str, str | None]:
    """Return the signature of each trial's pretraining by the trial's own signature; None if it has none."""
    return {
        signature: sign(trial.pretraining, fingerprints) if trial.pretraining else None
        for signature, trial in trials.items()
    }


def require_buildable_encoders(trials: Collection[Trial], weights: Path | None) -> None:
    """Build every encoder of the trials, and raise UserError if one cannot be built, so that the error is found
    before a GPU is reserved. `weights` is the folder of published checkpoints.
    """
    captions = ["a dog barks", "rain falls on a roof"]  # captions for tokenizers that learn their vocabulary
    for audio in dict.fromkeys(trial.audio for trial in trials):
        with encoder_errors_as_user_errors(audio):
            load_network_module(audio).build(audio, weights)
    for text in dict.fromkeys(trial.text for trial in trials):
        with encoder_errors_as_user_errors(text):
            load_network_module(text).build(text, captions, weights)


@contextlib.contextmanager
def encoder_errors_as_user_errors(config: AudioConfig | TextConfig) -> Iterator[None]:
    """Re-raise any error in building an encoder as a UserError that names the encoder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's encoder may raise any exception
        raise UserError(f"the encoder {encoders.format_label(config)} can't be built: {error} ({config})") from error
