"""Audio as samples: decode a file or a window of a stored clip, mix down, resample, cut into segments.

Everything here is a pure function. Samples are float32 [num_samples], mono, at SAMPLE_RATE_HZ, unless said otherwise.
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
SHORTEST_LAST_SEGMENT_S = 0.5
"""A shorter rest is left out, unless it is all there is: many "10-s" clips last 10.01 s."""


BLOCK_FRAMES = 2**16
"""Decoded and resampled at a time: of the sizes tried, soxr was fastest with this one."""

LOWEST_RATE_HZ = 1_000
"""Assumed: a lower one is a broken header's, and would blow a clip up to more than 32 times its length."""

LOUDEST = 1e12
"""Assumed: full scale is 1, or 2**31 where integers were written as floats; near 1e38, resampling makes NaN of them."""

LENGTH_UNKNOWN = 2**63 - 1
"""The number of samples that libsndfile gives where a header leaves it open."""

SIZES: dict[bytes, tuple[slice, Literal["little", "big"], int, int]] = {
    b"RIFF": (slice(4, 8), "little", 8, 0x7FFFF000),
    b"FORM": (slice(4, 8), "big", 8, 0x7F000000),
    b".snd": (slice(8, 12), "big", 24, 0x7F000000),
    b"RF64": (slice(20, 28), "little", 8, 2**62),
    b"riff": (slice(16, 24), "little", 0, 2**62),
}
"""Of WAV, AIFF, AU, RF64 and W64, by their first bytes: where the size of the file stands, what it doesn't count, and
from which value on it is what programs write that don't know yet, as sox and ffmpeg do to a pipe."""
SIZE_SLACK = 8
"""Bytes: some writers count a file's first 8 in the size that its header gives, some don't."""

LONGEST_OGG_PAGE = 65_307
"""Bytes (https://www.rfc-editor.org/rfc/rfc3533, section 6)."""
OGG_LAST_PAGE = 4
"""Of a page's flags."""


class AudioError(Exception):
    """A recording that can't be used; the message is the reason."""


def decode_file(path: Path) -> Iterator[Samples]:
    """An audio file in any format that libsndfile reads, in blocks.

    Raises AudioError as `decode` does, and UserError where it can't be opened: it was there when its corpus was read,
    so nothing is wrong with the recording itself.
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
    """The audio of an open file that can seek, in blocks, of which at most one is held in memory.

    Raises AudioError for what is torn, empty or not finite, be it after some blocks.
    """
    try:
        with soundfile.SoundFile(_ForLibsndfile(file)) as audio:
            rate_hz, announced = audio.samplerate, audio.frames
            if rate_hz < LOWEST_RATE_HZ:
                raise AudioError(
                    f"its header gives a rate of {rate_hz} Hz; the lowest that is taken is {LOWEST_RATE_HZ}"
                )
            if announced == LENGTH_UNKNOWN:
                raise AudioError("its header leaves its length open: encode it again, into a file and not into a pipe")
            resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
            num_decoded = num_given = 0
            while len(block := audio.read(BLOCK_FRAMES, dtype="float32")):
                num_decoded += len(block)
                with np.errstate(over="ignore", invalid="ignore"):  # refused below
                    mono = block if block.ndim == 1 else block.mean(axis=1)
                if not np.abs(mono).max() < LOUDEST:  # so that NaN is refused too
                    raise AudioError(f"holds samples that aren't finite, or beyond {LOUDEST:.0e} times full scale")
                resampled = mono if rate_hz == SAMPLE_RATE_HZ else resampler.resample_chunk(mono)
                num_given += len(resampled)
                yield resampled
            rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            num_given += len(rest)
            yield rest
        is_torn = lacks_its_end(file)
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "error_string", error)  # without the file object's address, which differs by process
        raise AudioError(f"can't be decoded: {reason}") from error
    if num_decoded < announced:
        raise AudioError(f"torn: {num_decoded} of {announced} samples decoded")
    if is_torn:
        raise AudioError("torn: its end is missing")
    if not num_decoded:
        raise AudioError("holds no samples")
    if not num_given:
        raise AudioError(f"too short: {num_decoded} samples at {rate_hz} Hz")


class _ForLibsndfile:
    """An open file as libsndfile calls it: a broken header sends it to places before a file's start.

    Errors raised in a call from C can't be caught, they are printed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.tell, self.read = file, file.tell, file.read

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> None:
        """As a file's; what can't be reached leaves it where it is."""
        with contextlib.suppress(OSError, ValueError):
            self.file.seek(offset, whence)


def lacks_its_end(file: BinaryIO) -> bool:
    """Whether a file was cut off, where libsndfile takes it for a shorter one; False for formats that it checks itself.

    WAV, AIFF, AU, RF64 and W64 give their size; the last page of Ogg is marked.
    """
    file.seek(0)
    head, size = file.read(32), file.seek(0, io.SEEK_END)
    if head.startswith(b"OggS"):
        file.seek(max(0, size - LONGEST_OGG_PAGE))
        _, _, page = file.read().rpartition(b"OggS")  # its flags stand at 1, the number of its segments at 22
        return (
            len(page) < 23 or not page[1] & OGG_LAST_PAGE or len(page) < 23 + page[22] + sum(page[23 : 23 + page[22]])
        )
    if head[:4] not in SIZES:
        return False
    place, order, uncounted, unknown = SIZES[head[:4]]
    announced = int.from_bytes(head[place], order)
    return announced < unknown and size + SIZE_SLACK < announced + uncounted


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """Little-endian 16-bit PCM [num_samples]; what lies beyond full scale is clipped."""
    scaled = samples * np.float32(PCM16_FULL_SCALE)  # a power of two: exact
    np.rint(scaled, out=scaled)
    np.clip(scaled, -PCM16_FULL_SCALE, PCM16_FULL_SCALE - 1, out=scaled)
    return scaled.astype("<i2")


def encode(blocks: Iterable[Samples], codec: Codec, file: BinaryIO, digest: "hashlib._Hash") -> int:
    """Write samples into an open file as a store keeps them, and their 16-bit PCM into `digest`.

    Both codecs are lossless. Returns the number of samples.
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
    """Fill `out` with a stored clip's samples from `start` on, without decoding what lies before or after.

    `audio` is open at the clip. Raises AudioError where the clip is torn or shorter.
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
    """A whole stored clip as 16-bit PCM, in blocks. Raises AudioError where it is torn."""
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


def crop_start(num_samples: int, longest: int, draw: float) -> int:
    """Where a window of at most `longest` samples begins; `draw` is uniform on [0, 1)."""
    return int(draw * (max(0, num_samples - longest) + 1))


def count_segments(num_samples: int, segment_samples: int) -> int:
    """How many consecutive segments a recording is cut into.

    A last segment of under SHORTEST_LAST_SEGMENT_S is left out unless it is the only one.
    """
    whole, rest = divmod(num_samples, segment_samples)
    return whole + (rest >= SHORTEST_LAST_SEGMENT_S * SAMPLE_RATE_HZ or whole == 0)
