"""Audio as samples: decode a file or a window of a stored clip, mix down, resample, cut into segments.

Everything here is a pure function. Samples are float32 [num_samples], mono, at SAMPLE_RATE_HZ, unless said otherwise.
"""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import soundfile
import soxr
from numpy.typing import NDArray

from data.schema import SAMPLE_RATE_HZ, Samples

Codec = Literal["flac", "pcm16"]
CODECS: tuple[Codec, ...] = ("flac", "pcm16")

PCM16_FULL_SCALE = 32_768
SHORTEST_LAST_SEGMENT_S = 0.5
"""A shorter rest is left out, unless it is all there is: many "10-s" clips last 10.01 s."""


LENGTH_UNKNOWN = 2**63 - 1
"""The number of samples that libsndfile gives where a header leaves it open."""

RIFF_SIZE_SLACK = 8
"""Bytes: some writers count a file's first 8 in the size that its header gives, some don't."""
RIFF_SIZE_OPEN = 0x7FFFF000
"""Sizes from here on are what programs write that don't know yet, as sox and ffmpeg do to a pipe."""


class AudioError(Exception):
    """A recording that can't be used; the message is the reason."""


def decode_file(path: Path) -> Samples:
    """A whole audio file in any format that libsndfile reads.

    Raises AudioError for what is missing, torn, empty or not finite.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate_hz, announced = file.samplerate, file.frames
            if announced == LENGTH_UNKNOWN:
                raise AudioError("its header leaves its length open: encode it again, into a file and not into a pipe")
            samples_NC = file.read(dtype="float32", always_2d=True)
        missing_bytes = riff_bytes_missing(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"can't be decoded: {error}") from error
    if len(samples_NC) < announced:
        raise AudioError(f"torn: {len(samples_NC)} of {announced} samples decoded")
    if missing_bytes > RIFF_SIZE_SLACK:
        raise AudioError(f"torn: {missing_bytes} bytes fewer than its header says")
    if not len(samples_NC):
        raise AudioError("holds no samples")
    if not np.isfinite(samples_NC).all():
        raise AudioError("holds samples that aren't finite")
    samples: Samples = soxr.resample(samples_NC.mean(axis=1), rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
    if not len(samples):
        raise AudioError(f"too short: {len(samples_NC)} samples at {rate_hz} Hz")
    return samples


def riff_bytes_missing(path: Path) -> int:
    """How many bytes a WAV file is shorter than its header says: libsndfile takes a torn one for a short one.

    0 for other formats. RIFF: https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/
    """
    with path.open("rb") as file:
        magic, size = file.read(4), int.from_bytes(file.read(4), "little")
    return max(0, 8 + size - path.stat().st_size) if magic == b"RIFF" and size < RIFF_SIZE_OPEN else 0


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """Little-endian 16-bit PCM [num_samples]; what lies beyond full scale is clipped."""
    scaled = np.rint(samples.astype(np.float64) * PCM16_FULL_SCALE)
    return np.clip(scaled, -PCM16_FULL_SCALE, PCM16_FULL_SCALE - 1).astype("<i2")


def encode(pcm: NDArray[np.int16], codec: Codec) -> bytes:
    """16-bit PCM [num_samples] as a store keeps it. Both codecs are lossless."""
    if codec == "pcm16":
        return pcm.astype("<i2").tobytes()
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_window(audio: pa.Buffer, codec: Codec, start: int, count: int) -> Samples:
    """`count` samples of a stored clip from sample `start` on, without decoding what lies before or after.

    Raises AudioError where the clip is torn or shorter.
    """
    if codec == "pcm16":
        pcm = np.frombuffer(memoryview(audio), dtype="<i2")[start : start + count]
        window: Samples = pcm.astype(np.float32) / np.float32(PCM16_FULL_SCALE)
    else:
        try:
            with soundfile.SoundFile(pa.BufferReader(audio)) as file:
                file.seek(start)
                window = file.read(count, dtype="float32")
        except soundfile.SoundFileError as error:
            raise AudioError(f"can't be decoded: {error}") from error
    if len(window) < count:
        raise AudioError(f"holds {len(window)} of the {count} samples from {start} on")
    return window


def crop_start(num_samples: int, longest: int, draw: float) -> int:
    """Where a window of at most `longest` samples begins; `draw` is uniform on [0, 1)."""
    return int(draw * (max(0, num_samples - longest) + 1))


def cut_segments(samples: Samples, segment_samples: int) -> NDArray[np.float32]:
    """Consecutive segments [num_segments, segment_samples], the last one filled up with zeros.

    A last segment of under SHORTEST_LAST_SEGMENT_S is left out unless it is the only one.
    """
    whole, rest = divmod(len(samples), segment_samples)
    num_segments = whole + (rest >= SHORTEST_LAST_SEGMENT_S * SAMPLE_RATE_HZ or whole == 0)
    segments = np.zeros((num_segments, segment_samples), dtype=np.float32)
    kept = min(len(samples), segments.size)
    segments.reshape(-1)[:kept] = samples[:kept]
    return segments
