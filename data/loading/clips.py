"""Batches of clips without captions, for embedding: the clips of a split, or audio files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from data.decoding.audio import decode_file
from data.errors import UserError
from data.loading.batch import Batch, count_samples_by_segment, fill_segments
from data.loading.passages import Passage, build_batch
from data.schema import SAMPLE_RATE_HZ, Samples
from data.sources.audio_files import FileProblems
from data.store.stored_split import StoredSplit
from data.waveform import PCM16_FULL_SCALE, AudioError, count_segments, to_pcm16


def load_clips(split: StoredSplit, segment_s: float, longest_s: float, batch_size: int) -> Iterator[Batch]:
    """Yield batches of up to `batch_size` clips of a split in order, without captions. The first `longest_s`
    seconds of a clip are used, cut into segments of `segment_s` seconds.
    """
    segment_samples, longest_samples = round(segment_s * SAMPLE_RATE_HZ), round(longest_s * SAMPLE_RATE_HZ)
    for first in range(0, len(split.index), batch_size):
        clips = range(first, min(first + batch_size, len(split.index)))
        counts = [min(split.num_samples[clip].item(), longest_samples) for clip in clips]
        sizes = [count_segments(count, segment_samples) for count in counts]
        segments = torch.empty(sum(sizes), segment_samples)
        for clip, count, part in zip(clips, counts, segments.split(sizes), strict=True):
            fill_segments(split, clip, 0, count, part.numpy())
        yield Batch.without_captions(segments, sizes, clips, count_samples_by_segment(counts, sizes, segment_samples))


def load_files(
    paths: Sequence[Path], segment_s: float, longest_s: float, batch_size: int, problems: FileProblems
) -> Iterator[Batch]:
    """Yield batches of up to `batch_size` audio files in order, without captions: the first `longest_s` seconds, cut
    into segments and rounded to 16 bits as in a store. `clips` of a batch holds indices into `paths`.

    At most the first `longest_s` seconds are decoded. A file that can't be decoded is skipped, and the reason is added
    to `problems`; so are warnings about changes to the audio of decoded files.
    """
    longest_samples = round(longest_s * SAMPLE_RATE_HZ)
    for first in range(0, len(paths), batch_size):
        passages = []
        for clip in range(first, min(first + batch_size, len(paths))):
            try:
                samples, warnings = decode_start(paths[clip], longest_samples)
            except (AudioError, UserError) as error:
                problems.skipped[paths[clip]] = str(error)
                continue
            if warnings:
                problems.warnings[paths[clip]] = warnings
            passages.append(Passage(clip, 0, samples))
        if passages:
            yield build_batch(passages, segment_s).batch


def decode_start(path: Path, longest_samples: int) -> tuple[Samples, list[str]]:
    """Return the first `longest_samples` samples of an audio file, rounded to 16 bits, and a list of warnings about
    changes to the recording, such as that it was scaled down.

    Raises AudioError if the file can't be decoded, UserError if it can't be opened.
    """
    decoded, blocks, num_samples = decode_file(path), [], 0
    for block in decoded:
        blocks.append(to_pcm16(block[: longest_samples - num_samples]))
        num_samples += len(blocks[-1])
        if num_samples >= longest_samples:
            break
    return np.concatenate(blocks) * np.float32(1 / PCM16_FULL_SCALE), decoded.warnings
