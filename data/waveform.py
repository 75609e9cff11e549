"""Audio as samples: encode and decode stored clips, and cut recordings into segments.

Everything here is a pure function. Samples are float32 [num_samples], mono, at SAMPLE_RATE_HZ, unless stated otherwise.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from data.schema import SAMPLE_RATE_HZ, Samples

Codec = Literal["flac", "pcm16"]
CODECS: tuple[Codec, ...] = ("flac", "pcm16")

PCM16_FULL_SCALE = 32_768
PCM16_BYTES = 2
MIN_LAST_SEGMENT_S = 0.5
"""Minimum length of a last segment, unless it is the only one: many "10-s" clips last 10.01 s."""

NUM_PEAKS = 240
"""Number of values that describe a recording's waveform in an index."""

BLOCK_FRAMES = 2**16
"""Number of frames decoded and resampled at a time: the fastest of the sizes tried with soxr."""


class AudioError(Exception):
    """Error of a recording that can't be used; its message is the reason."""


class AudioBlocks(Iterator[Samples]):
    """Consecutive blocks of a recording's samples, and warnings about changes made to the recording.

    Args:
        decode: Function that yields the blocks; it is given a function to call with each warning.
    """

    def __init__(self, decode: Callable[[Callable[[str], None]], Iterator[Samples]]) -> None:
        self.warnings: list[str] = []  # complete when all blocks have been read
        self.scratch: Path | None = None  # folder for temporary files, set before reading; None: the system's
        self._blocks = decode(self.warnings.append)

    def __next__(self) -> Samples:
        return next(self._blocks)


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """Convert samples to little-endian 16-bit PCM [num_samples]; values beyond full scale are clipped."""
    scaled = samples * np.float32(PCM16_FULL_SCALE)  # a power of two: exact
    np.rint(scaled, out=scaled)
    np.clip(scaled, -PCM16_FULL_SCALE, PCM16_FULL_SCALE - 1, out=scaled)
    return scaled.astype("<i2")


def encode(blocks: Iterable[Samples], codec: Codec, file: BinaryIO, digest: "hashlib._Hash") -> int:
    """Write blocks of samples into an open file in the format `codec`, 'flac' or 'pcm16', and return the number of
    samples. `digest` is updated with the samples as 16-bit PCM.

    Both codecs are lossless.
    """
    num_samples = 0
    with contextlib.ExitStack() as stack:
        if codec == "flac":
            out = stack.enter_context(
                soundfile.SoundFile(file, "w", SAMPLE_RATE_HZ, channels=1, format="FLAC", subtype="PCM_16")
            )
        for block in blocks:
            pcm = to_pcm16(block)
            digest.update(pcm.data)
            num_samples += len(pcm)
            if codec == "flac":
                out.write(pcm)
            else:
                file.write(pcm.data)
    return num_samples


def decode_window(audio: BinaryIO, codec: Codec, start: int, out: Samples) -> None:
    """Fill the array `out` with a stored clip's samples from sample `start` on, without decoding the rest of the clip.
    `audio` is a file object that holds only this clip, in the format `codec`.

    Raises AudioError if the clip is damaged, or has fewer samples from `start` on than `out` has space for.
    """
    if codec == "pcm16":
        audio.seek(start * PCM16_BYTES)
        pcm = np.frombuffer(audio.read(len(out) * PCM16_BYTES), dtype="<i2")
        num_read = len(pcm)
        np.multiply(pcm, np.float32(1 / PCM16_FULL_SCALE), out=out[:num_read])
    else:
        try:
            with soundfile.SoundFile(audio) as file:
                file.seek(start)
                num_read = len(file.read(len(out), dtype="float32", out=out))
        except soundfile.SoundFileError as error:
            raise AudioError(f"can't be decoded: {error}") from error
    if num_read < len(out):
        raise AudioError(f"holds {num_read} of the {len(out)} samples from {start} on")


def decode_stored(audio: BinaryIO, codec: Codec) -> Iterator[NDArray[np.int16]]:
    """Decode a stored clip, and yield its samples in consecutive blocks of 16-bit PCM. Raises AudioError if it is
    truncated.
    """
    if codec == "pcm16":
        while block := audio.read(BLOCK_FRAMES * PCM16_BYTES):
            yield np.frombuffer(block, dtype="<i2")
        return
    try:
        with soundfile.SoundFile(audio) as file:
            while len(pcm := file.read(BLOCK_FRAMES, dtype="int16")):
                yield pcm
    except soundfile.SoundFileError as error:
        raise AudioError(f"can't be decoded: {error}") from error


def compute_crop_start(num_samples: int, max_samples: int, draw: float) -> int:
    """Return the first sample of a random window of at most `max_samples` in a recording of `num_samples` samples;
    `draw` is uniform on [0, 1).
    """
    return int(draw * (max(0, num_samples - max_samples) + 1))


def count_segments(num_samples: int, segment_samples: int) -> int:
    """Return the number of consecutive segments of `segment_samples` that a recording of `num_samples` is cut into.

    A last segment shorter than MIN_LAST_SEGMENT_S is dropped unless it is the only one.

    Example:
        >>> count_segments(num_samples=10 * SAMPLE_RATE_HZ + 320, segment_samples=10 * SAMPLE_RATE_HZ)
        1
    """
    num_full, rest = divmod(num_samples, segment_samples)
    return num_full + (rest >= MIN_LAST_SEGMENT_S * SAMPLE_RATE_HZ or num_full == 0)
