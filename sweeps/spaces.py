"""Named spaces: functions that return the trials of a sweep.

A space takes the corpus' splits and the precision to train in. A fine-tuning carries its pretraining, so the trials
returned are those that are wanted; a pretraining that several of them share is trained once.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from data.errors import unknown_name
from trainables import encoders
from trainables.schedule import Schedule
from trainables.trial import Precision, Trial


@dataclass(frozen=True)
class Splits:
    """The splits to train, validate and test on, 'corpus/split'."""

    train: str
    validation: str
    test: str


Space = Callable[[Splits, Precision], list[Trial]]


def demo(splits: Splits, precision: Precision) -> list[Trial]:
    """Two encoder pairs on a small corpus with paraphrases: minutes on two cores."""
    rates = {"cnn:small": 1e-3, "passt:tiny": 5e-4}
    pretrainings = [from_scratch(splits, precision, audio, rate, epochs=1) for audio, rate in rates.items()]
    return [
        fine_tuning(
            pretraining, rate_share * pretraining.schedule.peak_rate, epochs=1, paraphrase_probability=probability
        )
        for pretraining in pretrainings
        for rate_share in (0.3, 0.6)
        for probability in (0.0, 0.3)
    ]


def small(splits: Splits, precision: Precision) -> list[Trial]:
    """Two encoder pairs on a small corpus of real recordings without paraphrases: under an hour on two cores."""
    rates = {"cnn:small": 1e-3, "passt:tiny": 5e-4}
    pretrainings = [from_scratch(splits, precision, audio, rate, epochs=8) for audio, rate in rates.items()]
    return [
        replace(fine_tuning(pretraining, 0.3 * pretraining.schedule.peak_rate, epochs=3), seed=seed)
        for pretraining in pretrainings
        for seed in range(3)
    ]


def from_scratch(splits: Splits, precision: Precision, audio: str, rate: float, epochs: int) -> Trial:
    """A pretraining of a small audio encoder and the small transformer, both from random weights."""
    return Trial(
        audio=encoders.choose("audio", audio),
        text=encoders.choose("text", "transformer:small"),
        train=(splits.train,),
        validation=splits.validation,
        test=splits.test,
        schedule=Schedule(rate, rate / 50, epochs, final_epochs=0),
        batch_size=32,
        embedding_size=256,
        temperature=0.05,
        precision=precision,
    )


def fine_tuning(pretraining: Trial, rate: float, epochs: int, paraphrase_probability: float = 0.0) -> Trial:
    """A fine-tuning of a pretraining on the same splits."""
    return replace(
        pretraining,
        schedule=replace(pretraining.schedule, peak_rate=rate, final_rate=rate / 50, epochs=epochs),
        paraphrase_probability=paraphrase_probability,
        pretraining=pretraining,
    )


def named() -> dict[str, Space]:
    """The spaces of this file by name: its functions that take splits and a precision and return trials."""
    functions = inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    return {
        name: function
        for name, function in functions
        if list(inspect.get_annotations(function).values()) == [Splits, Precision, list[Trial]]
    }


def space(name: str) -> Space:
    """A space by name; an unknown one's error lists the known ones."""
    if name not in named():
        raise unknown_name("space", name, sorted(named()))
    return named()[name]
