"""Estimated cost of trials in GPU hours, computed from their configs and the tables of their splits."""

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data.leakage.exclusions import read_excluded_ids, select_pairs
from data.runtime.tables import Column, TextTable
from data.schema import SAMPLE_RATE_HZ
from data.store.storage import Location, Store
from data.store.stored_split import open_split
from data.waveform import count_segments
from trainables import encoders
from trainables.encoders.audio import passt
from trainables.encoders.text import huggingface
from trainables.trial import Trial

END_TOKENS = 2
"""Start and end token of a caption. A word is assumed to be one token, as most are."""

STAND_INS = {"audio": passt.VARIANTS["N"], "text": huggingface.VARIANTS["bert-base"]}
"""Encoders that stand in for those of unknown size in the estimate."""


@dataclass(frozen=True)
class Gpu:
    """GPU that the estimate assumes: one of the workers in cluster.yaml."""

    name: str = "NVIDIA A10G"
    tflops: float = 70.0  # dense matrices in bfloat16, from NVIDIA's data sheet; half as many in float32 (TF32)
    used: float = 0.35  # share of the peak that training reaches (assumed)


A10G = Gpu()


@dataclass(frozen=True)
class EpochWork:
    """Amount of data in an epoch, which determines the amount of computation."""

    pairs: int
    segments: int  # segments of all pairs' clips
    tokens: float  # length that captions are padded to


def estimate_seconds(trial: Trial, store: Location, gpu: Gpu = A10G) -> float:
    """Return the estimated GPU seconds of a trial's training, if it runs to its last epoch. Its pretraining,
    validation and start-up are not included.

    A process reads the tables of each split once.
    """
    epoch = count_epoch_work(
        Store.of(store), trial.train, trial.audio.segment_s, trial.longest_audio_s, trial.batch_size
    )
    return estimate_epoch_seconds(trial, epoch, gpu)


def estimate_epoch_seconds(trial: Trial, epoch: EpochWork, gpu: Gpu = A10G) -> float:
    """Return the estimated GPU seconds of all epochs of a trial, given the amount of data in one epoch: the
    floating-point operations divided by the GPU's rate; 0 for a trial without training.

    An encoder that is trained costs three forward passes an epoch. A frozen one costs a single pass in all epochs, in
    the first trial that uses its features, or one an epoch if what it reads is augmented at random.
    """
    if not trial.is_trained:
        return 0.0
    text_once = 1 if not trial.mix_probability else trial.epochs
    audio_once = trial.epochs if trial.gain_db or trial.filter_db else text_once
    audio_passes = audio_once if trial.frozen_audio else 3 * trial.epochs
    text_passes = text_once if trial.frozen_text else 3 * trial.epochs
    audio = audio_passes * epoch.segments * count_flops(trial.audio, STAND_INS["audio"])
    text = text_passes * epoch.pairs * count_flops(trial.text, STAND_INS["text"], epoch.tokens)
    rate = gpu.tflops * 1e12 * gpu.used * (1.0 if trial.precision == "bfloat16" else 0.5)
    return (audio + text) / rate


@functools.cache
def count_epoch_work(
    store: Store, train: tuple[str, ...], segment_s: float, longest_s: float, batch_size: int
) -> EpochWork:
    """Return the amount of data in an epoch over the splits `train`: pairs, segments of `segment_s` seconds, and tokens
    per caption in batches of `batch_size`. Clips that are excluded from training don't count, nor does what is after
    the first `longest_s` seconds of a clip.

    A batch's captions are padded to the longest one, whose length is estimated as the maximum of `batch_size` captions.
    """
    excluded_ids = read_excluded_ids(store, train)
    pairs, segments, words = 0, 0, []
    for name in train:
        split = open_split(store, name)
        clips, captions = select_pairs(split, excluded_ids)
        lengths = np.minimum(split.num_samples, round(longest_s * SAMPLE_RATE_HZ))[clips]
        for length, count in zip(*np.unique(lengths, return_counts=True), strict=True):
            segments += int(count) * count_segments(int(length), round(segment_s * SAMPLE_RATE_HZ))
        texts = split.index["captions"].combine_chunks().flatten().take(captions)
        words.append(pc.list_value_length(pc.utf8_split_whitespace(texts)).to_numpy())
        pairs += len(clips)
    longest = np.quantile(np.concatenate(words), 1 - 1 / batch_size) if pairs else 0.0
    return EpochWork(pairs, segments, float(longest) + END_TOKENS)


@functools.cache
def count_flops(config: Any, stand_in: Any, *num_tokens: float) -> float:
    """Return the number of floating-point operations in the forward pass of the encoder with this config: for one
    segment or, with `num_tokens`, for one caption of that length. If the encoder's size is unknown, the encoder with
    the config `stand_in` is counted instead.
    """
    num_flops = encoders.module_of_config(config).flops(config, *num_tokens)
    return float(encoders.module_of_config(stand_in).flops(stand_in, *num_tokens) if num_flops is None else num_flops)


def find_unknown_encoders(trial: Trial) -> dict[str, Any]:
    """Return the configs of a trial's encoders whose size isn't known, by kind: 'audio' or 'text'."""
    flops_by_kind = {
        "audio": encoders.module_of_config(trial.audio).flops(trial.audio),
        "text": encoders.module_of_config(trial.text).flops(trial.text, END_TOKENS),
    }
    return {kind: getattr(trial, kind) for kind, count in flops_by_kind.items() if count is None}


def build_estimate_table(
    stages: Sequence[Mapping[str, Trial]], finished: Collection[str], store: Location, gpu: Gpu = A10G
) -> TextTable:
    """Return a table with a row for each trial of a sweep: its stage, with how many others it shares its pretraining,
    whether it has finished, and its estimated GPU hours. `stages` has the trials by signature, `finished` the
    signatures of those that have finished.
    """
    trials = {signature: trial for stage in stages for signature, trial in stage.items()}
    fine_tunings = [trial for trial in trials.values() if trial.pretraining and not trial.average_of]
    num_fine_tunings = Counter(trial.pretraining for trial in fine_tunings)
    headings = ("trial", "stage", "pretraining", "state", "GPU hours", "signature")
    columns = [Column(heading, is_numeric=heading == "GPU hours") for heading in headings]
    rows = []
    for signature, trial in trials.items():
        num_others = num_fine_tunings[trial.pretraining] - 1 if trial.pretraining and not trial.average_of else 0
        num_children = num_fine_tunings[trial]
        shared = f"shared with {num_others}" if num_others else f"for {num_children}" if num_children else ""
        state = "finished" if signature in finished else "to run"
        rows.append(
            (trial.name, trial.stage, shared, state, format_hours(estimate_seconds(trial, store, gpu)), signature)
        )
    return TextTable("", columns, rows)


def describe_estimate(
    stages: Sequence[Mapping[str, Trial]], finished: Collection[str], store: Location, gpu: Gpu = A10G
) -> str:
    """Return a text with the remaining and the total GPU hours of a sweep, and the assumptions of the estimate.
    `stages` has the trials by signature, `finished` the signatures of those that have finished.
    """
    trials = {signature: trial for stage in stages for signature, trial in stage.items()}
    seconds = {signature: estimate_seconds(trial, store, gpu) for signature, trial in trials.items()}
    remaining_s = sum(value for signature, value in seconds.items() if signature not in finished)
    unknown = {kind: config for trial in trials.values() for kind, config in find_unknown_encoders(trial).items()}
    stand_ins = "".join(
        f" The size of {encoders.format_label(config)} is unknown: "
        f"it is counted as {encoders.format_label(STAND_INS[kind])}."
        for kind, config in unknown.items()
    )
    return (
        f"{format_hours(remaining_s)} GPU hours remain, of {format_hours(sum(seconds.values()))} in total. "
        f"Estimated on one {gpu.name}, at {gpu.used:.0%} of its {gpu.tflops:g} TFLOPS in bfloat16, or half of that in "
        f"float32: each pair costs three times the floating-point operations of a forward pass in each epoch; frozen "
        f"encoders run once, or once an epoch on augmented pairs. Trainings are assumed to run to their last epoch; "
        f"validation, start-up and waiting for data aren't counted.{stand_ins}"
    )


def format_hours(duration_s: float) -> str:
    """Return a duration as hours with two decimals, such as '1.25'; '< 0.01' for less than 36 s."""
    return f"{duration_s / 3600:.2f}" if duration_s >= 36 or not duration_s else "< 0.01"
