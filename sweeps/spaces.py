"""Named spaces: functions that return the trials of a sweep.

A space takes the corpus' splits and the precision to train in. A fine-tuning carries its pretraining, so the trials
returned are those that are wanted; a pretraining that several of them share is trained once.
"""

import inspect
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from data.errors import UserError, unknown_name
from data.splits import Splits
from trainables import recipes
from trainables.trial import Precision, Trial

Space = Callable[[Splits, Precision], list[Trial]]


CNN_RATE, PASST_RATE = recipes.SMALL_RATE, 7e-4
"""Peak rates that the small audio encoders learn well at from scratch; few others were tried."""


def demo(splits: Splits, precision: Precision) -> list[Trial]:
    """Two encoder pairs on a small corpus with paraphrases: minutes on two cores."""
    pretrainings = [
        from_scratch(splits, precision, "cnn:small5", CNN_RATE, epochs=6),
        from_scratch(splits, precision, "passt:tiny5", PASST_RATE, epochs=6),
    ]
    return [
        fine_tuning(splits, pretraining, share, epochs=1, warmup_epochs=0.5, paraphrase_probability=probability)
        for pretraining in pretrainings
        for share in (0.2, 0.4)
        for probability in (0.0, 0.3)
    ]


def small(splits: Splits, precision: Precision) -> list[Trial]:
    """Two audio times two text encoders on a small corpus of recordings, without paraphrases.

    Pairs that were pretrained apart err apart, which is what an ensemble lives on: fine-tunings of one pretraining add
    little to each other (measured on 240 clips of real recordings).
    """
    pretrainings = [
        from_scratch(splits, precision, audio, rate, epochs=12, text=text)
        for text in ("transformer:small", "transformer:shallow")
        for audio, rate in (("cnn:small", CNN_RATE), ("passt:tiny", PASST_RATE))
    ]
    return [
        replace(fine_tuning(splits, pretraining, 0.4, epochs=3), seed=seed)
        for pretraining in pretrainings
        for seed in range(2)
    ]


def from_scratch(
    splits: Splits, precision: Precision, audio: str, rate: float, epochs: int, text: str = "transformer:small"
) -> Trial:
    """A pretraining of a small audio and a small text encoder, both from random weights."""
    trial = recipes.small(audio, text, splits, precision)
    return replace(trial, schedule=replace(trial.schedule, peak_rate=rate, final_rate=rate / 50, epochs=epochs))


def fine_tuning(
    splits: Splits,
    pretraining: Trial,
    rate_share: float,
    epochs: int,
    warmup_epochs: float = 1.0,
    paraphrase_probability: float = 0.0,
) -> Trial:
    """A fine-tuning on the split to train on, at a share of its pretraining's peak rate."""
    rate = rate_share * pretraining.schedule.peak_rate
    return replace(
        pretraining,
        train=(splits.train,),
        schedule=replace(
            pretraining.schedule, peak_rate=rate, final_rate=rate / 50, epochs=epochs, warmup_epochs=warmup_epochs
        ),
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
    """A space by name, or one of your own as 'path/to/file.py:function'; what is unknown is answered with the known."""
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return own_space(Path(path), function)
    if name not in named():
        raise unknown_name("space", name, sorted(named()))
    return named()[name]


def own_space(path: Path, function: str) -> Space:
    """A function of a Python file, which is run for it."""
    if not path.is_file():
        raise UserError(f"{path} is absent: a space of your own is named as path/to/file.py:function")
    functions = {name: value for name, value in runpy.run_path(str(path)).items() if inspect.isfunction(value)}
    if function not in functions:
        raise unknown_name(f"function of {path}", function, sorted(functions))
    return cast(Space, functions[function])
