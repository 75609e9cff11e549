"""Named recipes: settings of a pretraining, and of the fine-tuning that starts from it.

The paper is P. Primus, K. Koutini and G. Widmer, "CP-JKU's submission to task 6b of the DCASE2023 challenge". Values
that the paper doesn't give are from the settings that its authors published with their code, or are assumed; the
docstrings say which. A recipe is a function from encoders and splits to a full Trial, from which spaces derive other
trials with `dataclasses.replace`.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from data.errors import unknown_name_error
from data.splits import Splits
from trainables import encoders
from trainables.schedule import Plateau, Schedule
from trainables.trial import Precision, Teacher, Trial

Recipe = Callable[[str, str, Splits, Precision], Trial]
"""Function from the audio and text encoder as 'family:variant', splits and precision to a pretraining."""

PAPER_PARAPHRASES = 0.3
"""Probability of a paraphrase in fine-tuning (section 3.2 of the paper)."""

SMALL_RATE = 1e-3
"""Peak learning rate for the small audio encoders from random weights; few other rates were tried."""


def paper(audio: str, text: str, splits: Splits, precision: Precision) -> Trial:
    """Return the paper's pretraining of the encoders `audio` and `text` ('family:variant'): 16 epochs of batches of 64,
    Adam from 2e-5 to 1e-7, NT-Xent.

    From the paper: batch size, rates, cosine decay, epochs (15, and one to warm up), 1024 dimensions, 30 s of audio.
    From the authors' settings: the temperature, learned from 0.01; text dropout of 0.2 and SpecAugment of up to 48
    bands and 192 frames, which are in the encoders' configs; the last epoch at the final rate. The authors trained with
    16-bit floats; `precision` is usually the fastest one of the hardware. Gradients aren't clipped.
    """
    return Trial(
        audio=encoders.config_of_variant("audio", audio),
        text=encoders.config_of_variant("text", text),
        train=splits.pretrain,
        validation=splits.validation,
        test=splits.test,
        schedule=Schedule(peak_rate=2e-5, final_rate=1e-7, epochs=16, warmup_epochs=1.0, final_epochs=1.0),
        batch_size=64,
        embedding_size=1024,
        temperature=0.01,
        paraphrase_probability=0.0,
        longest_audio_s=30.0,
        precision=precision,
    )


def paper_fine_tuning(
    pretraining: Trial, splits: Splits, peak_rate: float = 8e-6, paraphrase_probability: float = PAPER_PARAPHRASES
) -> Trial:
    """Return the paper's fine-tuning on the training split, which starts from `pretraining`: 5 epochs from a peak
    learning rate of 8e-6 to 1e-7, with captions replaced by paraphrases with a probability of 0.3, unless other values
    are given.

    From the paper: epochs, rates, the probability of a paraphrase. Assumed: the schedule has the shape of the one in
    pretraining, with a first epoch of warm-up and a last epoch at the final rate.
    """
    return replace(
        pretraining,
        train=(splits.train,),
        schedule=Schedule(peak_rate, min(1e-7, peak_rate), epochs=5, warmup_epochs=1.0, final_epochs=1.0),
        paraphrase_probability=paraphrase_probability,
        pretraining=pretraining,
    )


def distilled_fine_tuning(pretraining: Trial, teachers: Sequence[Trial], splits: Splits) -> Trial:
    """Return the second stage of CP-JKU's system for DCASE 2024: a fine-tuning of `pretraining` on the training split
    alone, of 20 epochs from a peak learning rate of 2e-5 to 1e-7, as a student of `teachers`, all with the same weight.

    From its published code (Primus and Widmer 2024): the loss is the cross entropy with the teachers' scores alone, at
    a fixed temperature of 0.05 in both; the rate decays until epoch 15. Different here: SpecAugment is as in the paper
    of 2023, and the optimiser is Adam, which equals AdamW without weight decay.
    """
    return replace(
        pretraining,
        train=(splits.train,),
        schedule=Schedule(peak_rate=2e-5, final_rate=1e-7, epochs=20, warmup_epochs=1.0, final_epochs=5.0),
        pretraining=pretraining,
        temperature=0.05,
        fixed_temperature=True,
        reset_temperature=not pretraining.fixed_temperature or pretraining.temperature != 0.05,
        teachers=tuple(Teacher(teacher) for teacher in teachers),
        teacher_temperature=0.05,
        hard_share=0.0,
    )


def baseline(audio: str, text: str, splits: Splits, precision: Precision) -> Trial:
    """Return the training of DCASE 2023's own baseline for task 6b. `audio` and `text` are encoders ('family:variant'),
    in the baseline cnn14:dcase2023 and huggingface:all-mpnet-base-v2.

    From its published code (https://github.com/xieh97/dcase2023-audio-retrieval, conf.yaml and models/): Clotho alone,
    clips of 30 s as one segment, a frozen text encoder, 300 dimensions, batches of 32, Adam at 1e-3, a constant
    temperature of 0.07, at most 80 epochs; the rate is cut to a tenth when the validation loss hasn't fallen by 0.005
    for more than 5 epochs, down to 1e-6; from epoch 60, training ends when the standard deviation of the last 10 losses
    is below 0.001. Both thresholds are halved here, since the baseline's loss is the sum over both directions, and the
    loss here is their mean.

    Differences from the baseline: all captions of a clip are positives of it, whereas for a pair, the baseline's loss
    ignores the other captions of its clip; the validation loss is computed over the split as one batch, not over
    batches of 32 (assumed: the thresholds suit both); the best epoch is the one with the best mAP@10; CNN14's last
    layer isn't followed by dropout.
    """
    return replace(
        paper(audio, text, splits, precision),
        train=(splits.train,),
        schedule=Plateau(
            peak_rate=1e-3,
            final_rate=1e-6,
            epochs=80,
            factor=0.1,
            patience=5,
            threshold=0.005 / 2,
            settled_std=0.001 / 2,
            settled_epochs=10,
            first_end=60,
        ),
        batch_size=32,
        embedding_size=300,
        temperature=0.07,
        fixed_temperature=True,
        frozen_text=True,
    )


def small(audio: str, text: str, splits: Splits, precision: Precision) -> Trial:
    """Return a pretraining of the encoders `audio` and `text` ('family:variant'), small ones with random weights, for
    one machine; its settings were chosen on small corpora of recordings.
    """
    return replace(
        paper(audio, text, splits, precision),
        schedule=Schedule(SMALL_RATE, SMALL_RATE / 50, epochs=6, final_epochs=0),
        batch_size=32,
        embedding_size=256,
        temperature=0.05,
    )


def list_recipes() -> dict[str, Recipe]:
    """Return the functions of all recipes for a pretraining, by name."""
    arguments = list(inspect.get_annotations(paper).values())
    functions = inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    return {
        name: function for name, function in functions if list(inspect.get_annotations(function).values()) == arguments
    }


def find_recipe(name: str) -> Recipe:
    """Return the function of the recipe with this name. Raises UserError that lists the known recipes for an unknown
    name.
    """
    if name not in list_recipes():
        raise unknown_name_error("recipe", name, sorted(list_recipes()))
    return list_recipes()[name]
