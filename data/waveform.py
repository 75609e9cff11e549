"""Audio as samples: decode files and stored clips, mix down to mono, resample, and cut into segments.

Everything here is a pure function. Samples are float32 [num_samples], mono, at SAMPLE_RATE_HZ, unless stated otherwise.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ, Samples

Codec = Literal["flac", "pcm16"]
CODECS: tuple[Codec, ...] = ("flac", "pcm16")

PCM16_FULL_SCALE = 32_768
PCM16_BYTES = 2
MIN_LAST_SEGMENT_S = 0.5
"""Minimum length of a last segment, unless it is the only one: many "10-s" clips last 10.01 s."""


BLOCK_FRAMES = 2**16
"""Number of frames decoded and resampled at a time: the fastest of the sizes tried with soxr."""

MIN_RATE_HZ = 1_000
"""Minimum sample rate (assumed): a lower one comes from a broken header, and would make a clip over 32 times longer."""

MAX_AMPLITUDE = 1e12
"""Bound on samples (assumed).

Full scale is 1, or 2**31 if integers were written as floats; near 1e38, resampling produces NaN.
"""

UNKNOWN_LENGTH = 2**63 - 1
"""Number of samples that libsndfile reports if the header doesn't state it."""

SIZE_FIELDS: dict[bytes, tuple[slice, Literal["little", "big"], int, int]] = {
    b"RIFF": (slice(4, 8), "little", 8, 0x7FFFF000),
    b"FORM": (slice(4, 8), "big", 8, 0x7F000000),
    b".snd": (slice(8, 12), "big", 24, 0x7F000000),
    b"RF64": (slice(20, 28), "little", 8, 2**62),
    b"riff": (slice(16, 24), "little", 0, 2**62),
}
"""Size fields in the headers of WAV, AIFF, AU, RF64 and W64, by the first bytes of the file.

For each: the position of the field, its byte order, the number of bytes that it doesn't count, and the value from which
on the size is unknown, as written by programs that stream to a pipe (sox, ffmpeg).
"""
SIZE_SLACK = 8
"""Tolerance in bytes: some writers count the first 8 bytes of a file in the size field, some don't."""

MAX_OGG_PAGE_BYTES = 65_307
"""Maximum size of an Ogg page (https://www.rfc-editor.org/rfc/rfc3533, section 6)."""
OGG_LAST_PAGE_FLAG = 4
"""Flag bit of the last page of a stream."""


class AudioError(Exception):
    """Error of a recording that can't be used; its message is the reason."""


def decode_file(path: Path) -> Iterator[Samples]:
    """Decode an audio file in any format that libsndfile reads, and yield blocks of samples.

    Raises AudioError as `decode` does, and UserError if the file can't be opened: it existed when the corpus was read,
    so the recording itself isn't at fault.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(
            f"{path} can't be opened: {error.strerror}; every machine that decodes needs it under this path"
        ) from error
    with file:
        yield from decode(file)


def decode(file: BinaryIO) -> Iterator[Samples]:
    """Decode a seekable audio file, and yield blocks of mono samples at SAMPLE_RATE_HZ, one block in memory at a time.

    Raises AudioError if the audio is truncated, empty, not finite or too loud, possibly after some blocks.
    """
    try:
        with soundfile.SoundFile(_LibsndfileAdapter(file)) as audio:
            rate_hz, num_announced = audio.samplerate, audio.frames
            if rate_hz < MIN_RATE_HZ:
                raise AudioError(f"its header states a sample rate of {rate_hz} Hz; the minimum is {MIN_RATE_HZ}")
            if num_announced == UNKNOWN_LENGTH:
                raise AudioError("its header doesn't state its length: encode it again, to a file and not to a pipe")
            resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
            num_decoded = num_resampled = 0
            while len(block := audio.read(BLOCK_FRAMES, dtype="float32")):
                num_decoded += len(block)
                with np.errstate(over="ignore", invalid="ignore"):  # refused below
                    mono = block if block.ndim == 1 else block.mean(axis=1)
                if not np.abs(mono).max() < MAX_AMPLITUDE:  # written so that NaN is refused too
                    raise AudioError(f"holds samples that aren't finite or exceed {MAX_AMPLITUDE:.0e} times full scale")
                resampled = mono if rate_hz == SAMPLE_RATE_HZ else resampler.resample_chunk(mono)
                num_resampled += len(resampled)
                yield resampled
            rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            num_resampled += len(rest)
            yield rest
        is_cut_off = is_truncated(file)
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "error_string", error)  # without the file object's address, which varies
        raise AudioError(f"can't be decoded: {reason}") from error
    if num_decoded < num_announced:
        raise AudioError(f"truncated: {num_decoded} of {num_announced} samples decoded")
    if is_cut_off:
        raise AudioError("truncated: its end is missing")
    if not num_decoded:
        raise AudioError("holds no samples")
    if not num_resampled:
        raise AudioError(f"too short: {num_decoded} samples at {rate_hz} Hz")


class _LibsndfileAdapter:
    """Wrapper that passes an open file to libsndfile, and ignores seeks before the start of the file, which a
    broken header can cause.

    Errors raised in a callback from C can't be caught; they would be printed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.tell, self.read = file, file.tell, file.read

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> None:
        """Seek like a file; ignore a position that can't be reached."""
        with contextlib.suppress(OSError, ValueError):
            self.file.seek(offset, whence)


def is_truncated(file: BinaryIO) -> bool:
    """Return whether a file was cut off in a way that libsndfile doesn't notice, so that it would be decoded as a
    shorter recording.

    WAV, AIFF, AU, RF64 and W64 state their size in the header; in Ogg the last page is marked. Returns False for other
    formats, which libsndfile checks itself.
    """
    file.seek(0)
    head, size = file.read(32), file.seek(0, io.SEEK_END)
    if head.startswith(b"OggS"):
        file.seek(max(0, size - MAX_OGG_PAGE_BYTES))
        _, _, page = file.read().rpartition(b"OggS")  # its flags are at 1, the number of its segments is at 22
        return (
            len(page) < 23
            or not page[1] & OGG_LAST_PAGE_FLAG
            or len(page) < 23 + page[22] + sum(page[23 : 23 + page[22]])
        )
    if head[:4] not in SIZE_FIELDS:
        return False
    size_field, order, num_uncounted, min_unknown = SIZE_FIELDS[head[:4]]
    stated_size = int.from_bytes(head[size_field], order)
    return stated_size < min_unknown and size + SIZE_SLACK < stated_size + num_uncounted


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """Convert samples to little-endian 16-bit PCM [num_samples]; values beyond full scale are clipped."""
    scaled = samples * np.float32(PCM16_FULL_SCALE)  # a power of two: exact
    np.rint(scaled, out=scaled)
    np.clip(scaled, -PCM16_FULL_SCALE, PCM16_FULL_SCALE - 1, out=scaled)
    return scaled.astype("<i2")


def encode(blocks: Iterable[Samples], codec: Codec, file: BinaryIO, digest: "hashlib._Hash") -> int:
    """Write samples into an open file in the format of a store, and return their number. `digest` is updated with
    the samples as 16-bit PCM.

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
    """Fill `out` with a stored clip's samples from sample `start` on, without decoding the rest of the clip.

    `audio` is opened at the clip. Raises AudioError if the clip is truncated or shorter.
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
