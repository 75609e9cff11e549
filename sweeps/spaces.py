"""Named spaces: functions that return the trials of a sweep.

A space takes the splits of the corpus and the training precision. A fine-tuning contains its pretraining, so a space
returns only the trials that become candidates. A pretraining that several fine-tunings share is trained once.
"""

import inspect
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from data.errors import UserError, unknown_name_error
from data.splits import Splits
from trainables import recipes
from trainables.encoders import dual_models
from trainables.schedule import UNTRAINED, Schedule
from trainables.trial import Precision, Trial, iter_required_trials

Space = Callable[[Splits, Precision], list[Trial]]

CNN_RATE, PASST_RATE = recipes.SMALL_RATE, 7e-4
"""Peak learning rates for the small audio encoders from random weights; few others were tried."""

FEW_CLIPS_EPOCHS = (24, 6)
"""Epochs of a pretraining and of a fine-tuning in `small`."""

CLAP = "laion/clap-htsat-unfused"
CLAP_RATE = 2e-5
CLAP_AUDIO_SHARES = (1.0, 0.1)
"""Published dual encoder of the space `published`, the peak rate of its fine-tunings, and the shares of it that its
audio encoder has. The values are assumed; none was tried on the published model.
"""

TEXT_ENCODERS = ("bert-base", "roberta-base", "bert-large", "roberta-large")
"""Text encoders of the paper, in the order of its Table 2."""

PAPER_PAIRS = {"passt:N": TEXT_ENCODERS, "passt:S": TEXT_ENCODERS, "passt:S15": ("bert-large", "roberta-large")}
"""Encoder pairs of the paper's Table 2: the text encoders of each audio encoder."""

FIGURE_2_SEEDS = 3
"""Number of seeds of the fine-tunings in Figure 2 of the paper, over one pretraining."""

RATES = (4e-6, 8e-6, 1.6e-5)
PROBABILITIES = (0.0, 0.1, 0.3, 0.5)
"""Peak rates and paraphrase probabilities of the fine-tunings in `full`, around the paper's 8e-6 and 0.3."""


def demo(splits: Splits, precision: Precision) -> list[Trial]:
    """Return three encoder pairs on a small corpus, each fine-tuned with and without paraphrases. They are trained
    in minutes on two cores.

    The pairs have separate pretrainings, so that an ensemble of them gains. Fine-tuning takes two epochs: after the
    first, while the rate is high, scores are about those of the pretraining (on validation 0.6 points of mAP@10 lower,
    the mean of 30 fine-tunings), and after the second, at the low rate, 5.6 points above them.
    """
    pretrainings = [
        from_scratch(splits, precision, audio, rate, epochs=5, text=text)
        for audio, rate, text in (
            ("cnn:small5", CNN_RATE, "transformer:shallow"),
            ("cnn:small5", CNN_RATE, "transformer:small"),
            ("passt:tiny5", PASST_RATE, "transformer:shallow"),
        )
    ]
    return [
        fine_tuning(splits, pretraining, 0.5, epochs=2, warmup_epochs=0.25, paraphrase_probability=probability)
        for pretraining in pretrainings
        for probability in (0.0, recipes.PAPER_PARAPHRASES)
    ]


def small(splits: Splits, precision: Precision) -> list[Trial]:
    """Return the pairs of two audio and two text encoders on a small corpus of recordings, each pretrained with
    mixtures of clips, then fine-tuned for a few epochs without them. Clips pass through random filters in both stages.

    Chosen on the validation split, with 240 clips of real recordings to train on (docs/training.md). Pairs have
    separate pretrainings, since these make different errors, which an ensemble benefits from.
    """
    pretrainings = [
        from_few_clips(splits, precision, audio, rate, text)
        for text in ("transformer:small64", "transformer:shallow64")
        for audio, rate in (("cnn:small", CNN_RATE), ("passt:tiny", PASST_RATE))
    ]
    return [
        replace(fine_tuning(splits, pretraining, 0.3, epochs=FEW_CLIPS_EPOCHS[1]), mix_probability=0.0)
        for pretraining in pretrainings
    ]


def small_paraphrases(splits: Splits, precision: Precision) -> list[Trial]:
    """Return the trials of `small`, each once without and once with paraphrases, as in Figure 2 of the paper."""
    return [
        replace(trial, paraphrase_probability=probability)
        for trial in small(splits, precision)
        for probability in (0.0, recipes.PAPER_PARAPHRASES)
    ]


def table2(splits: Splits, precision: Precision) -> list[Trial]:
    """Return every trained row of the paper's Table 2, with the paper's corpora and paraphrases.

    The ten pairs are pretrained, and fine-tuned with paraphrases. PaSST-N with roberta-large is also fine-tuned without
    paraphrases, and evaluated without fine-tuning; both of its fine-tunings have the three seeds of Figure 2. CNN14
    with bert-base is trained by the same recipe without paraphrases, although the paper's row is a system with another
    recipe. DCASE's baseline is the last trial. `ensemble/select.py` computes the row of the ensemble.
    """
    pretrainings = {
        (audio, text): recipes.paper(audio, f"huggingface:{text}", splits, precision)
        for audio, texts in PAPER_PAIRS.items()
        for text in texts
    }
    compared = pretrainings["passt:N", "roberta-large"]
    figure_2 = [
        replace(recipes.paper_fine_tuning(compared, splits, paraphrase_probability=probability), seed=seed)
        for probability in (recipes.PAPER_PARAPHRASES, 0.0)
        for seed in range(FIGURE_2_SEEDS)
    ]
    cnn14 = recipes.paper("cnn14:audioset", "huggingface:bert-base", splits, precision)
    return deduplicate(
        *(recipes.paper_fine_tuning(pretraining, splits) for pretraining in pretrainings.values()),
        *figure_2,
        compared,
        recipes.paper_fine_tuning(cnn14, splits, paraphrase_probability=0.0),
        recipes.baseline("cnn14:dcase2023", "huggingface:all-mpnet-base-v2", splits, precision),
    )


def salsa(splits: Splits, precision: Precision) -> list[Trial]:
    """Return the two stages of CP-JKU's system for DCASE 2024 with the audio encoders of the paper and roberta-large.

    The first stage is the paper's pretraining with a fixed temperature of 0.05. In the second one, each model is
    fine-tuned on the training split, as a student of all models of the first stage.
    """
    first_stage = [
        replace(recipes.paper(audio, "huggingface:roberta-large", splits, precision), temperature=0.05,
                fixed_temperature=True)
        for audio in PAPER_PAIRS
    ]  # fmt: skip
    return [*first_stage, *(recipes.distilled_fine_tuning(trial, first_stage, splits) for trial in first_stage)]


def published(splits: Splits, precision: Precision) -> list[Trial]:
    """Return LAION's CLAP without training, fine-tuned on the training split with two rates for its audio encoder, and
    two models of the paper, for an ensemble of published models and models that are trained here.
    """
    model = dual_models.make_settings("clap", CLAP, None, embedding_size=512, segment_s=10.0)
    paper = [recipes.paper(audio, "huggingface:roberta-large", splits, precision) for audio in ("passt:N", "passt:S")]
    zero_shot = replace(paper[0], **model, train=(splits.train,), schedule=UNTRAINED)
    tuned = [
        replace(recipes.paper_fine_tuning(zero_shot, splits, CLAP_RATE), audio_rate_share=share)
        for share in CLAP_AUDIO_SHARES
    ]
    return [zero_shot, *tuned, *(recipes.paper_fine_tuning(trial, splits) for trial in paper)]


def full(splits: Splits, precision: Precision) -> list[Trial]:
    """Return every audio encoder of the paper's table with every text encoder, each pair fine-tuned with all
    combinations of the peak learning rates in RATES and the paraphrase probabilities in PROBABILITIES.

    CNN14 is included; all-mpnet-base-v2, which only the baseline uses, is not.
    """
    pretrainings = [
        recipes.paper(audio, f"huggingface:{text}", splits, precision)
        for audio in (*PAPER_PAIRS, "cnn14:audioset")
        for text in TEXT_ENCODERS
    ]
    return [
        recipes.paper_fine_tuning(pretraining, splits, peak_rate=rate, paraphrase_probability=probability)
        for pretraining in pretrainings
        for rate in RATES
        for probability in PROBABILITIES
    ]


def from_scratch(
    splits: Splits, precision: Precision, audio: str, rate: float, epochs: int, text: str = "transformer:small"
) -> Trial:
    """Return a pretraining of the audio encoder `audio` and the text encoder `text`, small ones named 'family:variant',
    from random weights: this number of epochs at the peak learning rate `rate`.
    """
    trial = recipes.small(audio, text, splits, precision)
    return replace(trial, schedule=replace(trial.schedule, peak_rate=rate, final_rate=rate / 50, epochs=epochs))


def from_few_clips(splits: Splits, precision: Precision, audio: str, rate: float, text: str) -> Trial:
    """Return a pretraining of small encoders, as `from_scratch` does, for a corpus of a few hundred clips: half of the
    clips are mixed with others, whose captions are joined, all pass through random filters, and the temperature is
    fixed.
    """
    trial = from_scratch(splits, precision, audio, rate, FEW_CLIPS_EPOCHS[0], text)
    return replace(trial, fixed_temperature=True, mix_probability=0.5, filter_db=6.0)


def fine_tuning(
    splits: Splits,
    pretraining: Trial,
    rate_share: float,
    epochs: int,
    warmup_epochs: float = 1.0,
    paraphrase_probability: float = 0.0,
) -> Trial:
    """Return a fine-tuning on the training split that starts from `pretraining`, of `epochs` epochs of which the first
    `warmup_epochs` are warm-up. Its peak learning rate is `rate_share` times that of the pretraining; captions are
    replaced by paraphrases with the given probability.
    """
    rate = rate_share * pretraining.schedule.peak_rate
    return replace(
        pretraining,
        train=(splits.train,),
        schedule=Schedule(rate, rate / 50, epochs, warmup_epochs, final_epochs=0),
        paraphrase_probability=paraphrase_probability,
        pretraining=pretraining,
    )


def deduplicate(*trials: Trial) -> list[Trial]:
    """Return the trials, each once."""
    return list(dict.fromkeys(trials))


def with_seeds(trials: Sequence[Trial], seeds: int | None = None, pretraining_seeds: int | None = None) -> list[Trial]:
    """Return each trial with several consecutive seeds, beginning with its own: `seeds` for each fine-tuning,
    `pretraining_seeds` for each pretraining; None means that no seeds are added. No trial is returned twice.

    `seeds` is the number of seeds of each fine-tuning of one pretraining; trials without a pretraining are unchanged.
    `pretraining_seeds` is the number of seeds of each pretraining. The seeds of the pretraining's fine-tunings are
    shifted as well, unless `seeds` is given: with both, each fine-tuning becomes `seeds` times `pretraining_seeds`
    trials.
    """
    with_further_seeds = []
    for trial in trials:
        for shift in range(pretraining_seeds or 1):
            shifts = range(seeds) if seeds and trial.pretraining else (shift,)
            parent = shift_seeds(trial.pretraining, shift) if trial.pretraining else None
            with_further_seeds += [replace(trial, seed=trial.seed + tuned, pretraining=parent) for tuned in shifts]
    return deduplicate(*with_further_seeds)


def shift_seeds(trial: Trial, shift: int) -> Trial:
    """Return the trial with `shift` added to its seed and to that of its pretraining."""
    parent = shift_seeds(trial.pretraining, shift) if trial.pretraining else None
    return replace(trial, seed=trial.seed + shift, pretraining=parent)


def check_trials(trials: object) -> list[Trial]:
    """Return the trials of a space. Raises UserError if they cannot be one sweep.

    A space must return a non-empty list of trials, without repetitions. All trials, pretrainings and teachers must have
    the same validation and test splits, since the candidates of a pool do. A trial must not be trained on these splits,
    unless it ends at a given epoch and is not evaluated; such a trial can't be a teacher of others.
    """
    if not isinstance(trials, list | tuple):
        raise UserError(f"the space returned a {type(trials).__name__}: it must return a list of trials")
    if not trials:
        raise UserError("the space returned no trial: it must return at least one")
    number_of_trial: dict[Trial, int] = {}
    for number, trial in enumerate(trials, start=1):
        if not isinstance(trial, Trial):
            raise UserError(f"entry {number} of the space is a {type(trial).__name__}: each must be a Trial")
        if (first := number_of_trial.setdefault(trial, number)) < number:
            raise UserError(f"entries {first} and {number} of the space are the same trial, {trial.name}: remove one")
    first_trial = trials[0]
    for trial in (part for listed in trials for part in iter_required_trials(listed)):
        for role in ("validation", "test"):
            split, other = getattr(first_trial, role), getattr(trial, role)
            if split != other:
                raise UserError(
                    f"the {role} split of {first_trial.name} is {split}, that of {trial.name} is {other}: a sweep's "
                    "trials, their pretrainings and their teachers are compared on the same splits"
                )
        evaluated = {trial.validation, trial.test}
        if trial.final_epoch is None and (overlap := trial.training_splits & evaluated):
            raise UserError(
                f"{trial.name} would be trained on and evaluated on {', '.join(sorted(overlap))}, itself or by its "
                "pretraining or a teacher: remove it from the training splits, or evaluate on another one"
            )
    return list(trials)


def list_spaces() -> dict[str, Space]:
    """Return the spaces of this file by name: its functions that take splits and a precision and return trials."""
    functions = inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    return {
        name: function
        for name, function in functions
        if list(inspect.get_annotations(function).values()) == [Splits, Precision, list[Trial]]
    }


def find_space(name: str) -> Space:
    """Return a space by name, or a user's space as 'path/to/file.py:function'.

    Raises UserError if the name is unknown; the message lists the known names.
    """
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return load_user_space(Path(path), function)
    if name not in list_spaces():
        raise unknown_name_error("space", name, sorted(list_spaces()))
    return list_spaces()[name]


def load_user_space(path: Path, function: str) -> Space:
    """Return the space `function` that a user has written in the Python file `path`. Raises UserError, with the
    file and the line, if it cannot be used.
    """
    if not path.is_file():
        raise UserError(f"{path} doesn't exist: name your own space as path/to/file.py:function")
    try:
        contents = runpy.run_path(str(path))
    except Exception as error:
        raise UserError(f"{path} can't be run: {format_reason(path, error)}") from error
    functions = {name: value for name, value in contents.items() if inspect.isfunction(value)}
    if function not in functions:
        raise unknown_name_error(f"function of {path}", function, sorted(functions))
    user_space = cast(Space, functions[function])
    try:
        inspect.signature(user_space).bind(None, None)
    except TypeError as error:
        raise UserError(f"{path}:{function} must take the splits and the precision: {error}") from error

    def named_in_errors(splits: Splits, precision: Precision) -> list[Trial]:
        try:
            return user_space(splits, precision)
        except Exception as error:
            raise UserError(f"{path}:{function} returned no trials: {format_reason(path, error)}") from error

    return named_in_errors


def format_reason(path: Path, error: Exception) -> str:
    """Return an error's message for the user, with the line of the file `path` in which it was raised, if it was
    raised there.
    """
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{f'line {lines[-1]}: ' if lines else ''}{kind}{error}"
