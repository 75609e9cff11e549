"""Batches of clips without captions, for embedding: the clips of a split, or audio files."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from data.loading.batch import Batch, fill_segments
from data.schema import SAMPLE_RATE_HZ, Samples
from data.store.stored_split import StoredSplit
from data.waveform import PCM16_FULL_SCALE, AudioError, count_segments, decode_file, to_pcm16


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
        yield Batch.without_captions(segments, sizes, clips)


def load_files(
    paths: Sequence[Path], segment_s: float, longest_s: float, batch_size: int, on_error: Callable[[Path, str], None]
) -> Iterator[Batch]:
    """Yield batches of up to `batch_size` audio files in order, without captions, cut into segments and rounded to
    16 bits as if they had been read from a store. `clips` of a batch holds indices into `paths`.

    At most the first `longest_s` seconds are decoded. A file that can't be decoded is skipped: `on_error` is called
    with its path and the reason.
    """
    segment_samples, longest_samples = round(segment_s * SAMPLE_RATE_HZ), round(longest_s * SAMPLE_RATE_HZ)
    for first in range(0, len(paths), batch_size):
        clips, parts = [], []
        for clip in range(first, min(first + batch_size, len(paths))):
            try:
                samples = decode_start(paths[clip], longest_samples)
            except AudioError as error:
                on_error(paths[clip], str(error))
                continue
            part = torch.zeros(count_segments(len(samples), segment_samples), segment_samples)
            num_samples = min(len(samples), part.numel())
            part.view(-1)[:num_samples] = torch.from_numpy(samples[:num_samples])
            clips.append(clip)
            parts.append(part)
        if clips:
            yield Batch.without_captions(torch.cat(parts), [len(part) for part in parts], clips)


def decode_start(path: Path, longest_samples: int) -> Samples:
    """Return the first samples of an audio file, at most `longest_samples`, as float32 values rounded to 16 bits.
    Raises AudioError if the file can't be decoded.
    """
    blocks, num_samples = [], 0
    for block in decode_file(path):
        blocks.append(to_pcm16(block[: longest_samples - num_samples]))
        num_samples += len(blocks[-1])
        if num_samples >= longest_samples:
            break
    return np.concatenate(blocks) * np.float32(1 / PCM16_FULL_SCALE)
