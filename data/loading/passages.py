"""Passages of whole audio files, for an index in which long recordings are searched.

A file is cut into consecutive passages of the length that a model embeds as one clip, and each passage into segments.
The first passage is what `load_files` loads of a file. A last passage shorter than MIN_LAST_SEGMENT_S is dropped unless
it is the only one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.decoding.audio import decode_file
from data.errors import UserError
from data.loading.batch import Batch, count_samples_by_segment
from data.schema import SAMPLE_RATE_HZ, Samples
from data.sources.audio_files import FileProblems
from data.waveform import MIN_LAST_SEGMENT_S, NUM_PEAKS, PCM16_FULL_SCALE, AudioError, count_segments, to_pcm16

PEAK_SAMPLES = SAMPLE_RATE_HZ // 50
"""Samples per peak while the length of the recording is unknown."""


@dataclass(frozen=True)
class Passage:
    """Passage of an audio file."""

    file: int  # index of the file
    start: int  # its first sample
    samples: Samples  # rounded to 16 bits


@dataclass(frozen=True)
class PassageBatch:
    """Passages as a batch of segments. `batch.clips` has the file of each passage."""

    batch: Batch
    starts: list[int]  # first sample of each passage
    num_samples: list[int]  # of each passage


@dataclass
class Waveform:
    """Length and peaks of a recording, collected while it is decoded."""

    num_samples: int = 0
    maxima: list[NDArray[np.float32]] = field(default_factory=list)
    rest: Samples = field(default_factory=lambda: np.zeros(0, np.float32))

    def add(self, block: Samples) -> None:
        """Add a block of samples."""
        self.num_samples += len(block)
        joined = np.concatenate([self.rest, np.abs(block)])
        num_full = len(joined) // PEAK_SAMPLES
        self.maxima.append(joined[: num_full * PEAK_SAMPLES].reshape(num_full, PEAK_SAMPLES).max(axis=1))
        self.rest = joined[num_full * PEAK_SAMPLES :]

    def compute_peaks(self) -> NDArray[np.uint8]:
        """Return the peaks of NUM_PEAKS parts of equal length, relative to the highest one, which is 255. All are 0 for
        silence.
        """
        maxima = np.concatenate([*self.maxima, self.rest.max(keepdims=True) if len(self.rest) else self.rest])
        if len(maxima) < NUM_PEAKS:
            maxima = np.repeat(maxima, -(-NUM_PEAKS // max(1, len(maxima))))
        starts = np.arange(NUM_PEAKS) * len(maxima) // NUM_PEAKS
        peaks = np.maximum.reduceat(maxima, starts)
        highest = peaks.max()
        return np.round(peaks * (255 / highest if highest > 0 else 0)).astype(np.uint8)


def iter_passages(
    paths: Sequence[Path], longest_s: float, problems: FileProblems, waveforms: dict[int, Waveform]
) -> Iterator[Passage]:
    """Yield the passages of audio files in order, each at most `longest_s` seconds long. At most one passage and one
    block of samples are in memory.

    The length and the peaks of each file are added to `waveforms`, by its index. A file that can't be decoded is added
    to `problems.skipped`, possibly after some of its passages were yielded; ignore these. Warnings about changes to the
    audio are added to `problems.warnings`.
    """
    longest_samples = round(longest_s * SAMPLE_RATE_HZ)
    for file, path in enumerate(paths):
        waveform = waveforms[file] = Waveform()
        decoded, blocks, num_waiting, start = decode_file(path), [np.zeros(0, np.float32)], 0, 0
        try:
            for block in decoded:
                waveform.add(block)
                blocks.append(to_pcm16(block) * np.float32(1 / PCM16_FULL_SCALE))
                num_waiting += len(block)
                while num_waiting >= longest_samples:
                    joined = np.concatenate(blocks)
                    yield Passage(file, start, joined[:longest_samples])
                    blocks, start = [joined[longest_samples:]], start + longest_samples
                    num_waiting -= longest_samples
        except (AudioError, UserError) as error:
            problems.skipped[path] = str(error)
            continue
        if decoded.warnings:
            problems.warnings[path] = decoded.warnings
        if num_waiting >= MIN_LAST_SEGMENT_S * SAMPLE_RATE_HZ or start == 0:
            yield Passage(file, start, np.concatenate(blocks))


def load_passages(
    paths: Sequence[Path],
    segment_s: float,
    longest_s: float,
    batch_size: int,
    problems: FileProblems,
    waveforms: dict[int, Waveform],
) -> Iterator[PassageBatch]:
    """Yield batches of up to `batch_size` passages of audio files, cut into segments of `segment_s` seconds. The other
    arguments are those of `iter_passages`.
    """
    waiting: list[Passage] = []
    for passage in iter_passages(paths, longest_s, problems, waveforms):
        waiting.append(passage)
        if len(waiting) == batch_size:
            yield build_batch(waiting, segment_s)
            waiting = []
    if waiting:
        yield build_batch(waiting, segment_s)


def build_batch(passages: Sequence[Passage], segment_s: float) -> PassageBatch:
    """Return passages as a batch of segments of `segment_s` seconds; zeros fill the last segment of each."""
    segment_samples = round(segment_s * SAMPLE_RATE_HZ)
    counts = [len(passage.samples) for passage in passages]
    sizes = [count_segments(count, segment_samples) for count in counts]
    segments = torch.zeros(sum(sizes), segment_samples)
    for passage, part in zip(passages, segments.split(sizes), strict=True):
        num_samples = min(len(passage.samples), part.numel())
        part.view(-1)[:num_samples] = torch.from_numpy(passage.samples[:num_samples])
    batch = Batch.without_captions(
        segments,
        sizes,
        [passage.file for passage in passages],
        count_samples_by_segment(counts, sizes, segment_samples),
    )
    return PassageBatch(batch, [passage.start for passage in passages], counts)
