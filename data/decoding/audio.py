"""Decode audio files: mix down to mono, resample, and keep the level within the range of 16 bits.

Samples are float32 [num_samples], mono, at SAMPLE_RATE_HZ, unless stated otherwise.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data.decoding.containers import check_container
from data.decoding.formats import explain_format
from data.decoding.streams import split_streams
from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ, Samples
from data.waveform import BLOCK_FRAMES, PCM16_FULL_SCALE, AudioBlocks, AudioError

MIN_RATE_HZ = 1_000
"""Minimum sample rate (assumed): a lower one comes from a broken header, and would make a clip over 32 times longer."""

MAX_AMPLITUDE = 1e12
"""Bound on samples (assumed).

Full scale is 1, or 2**31 if integers were written as floats; near 1e38, resampling produces NaN.
"""

UNKNOWN_LENGTH = 2**63 - 1
"""Number of samples that libsndfile reports if the header doesn't state it."""

BOUNDED_SUBTYPES = {"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "G721_32", "GSM610"}
"""Encodings with at most 16 bits, whose samples can't exceed full scale."""

SCALED_PEAK = 0.89
"""Peak of a recording that was scaled down: 1 dB below full scale, because resampling may raise peaks a little."""
INTEGER_PEAK = 256
"""Peak above which samples were apparently written in the units of integers."""

MAX_DURATION_S = 24 * 3600
"""Maximum duration of a recording: an hour of silence is 300 kB of FLAC, and 230 MB in a store."""

TOO_LONG = f"lasts more than {MAX_DURATION_S // 3600} hours: split it"

QUIET_PEAK = 16 / PCM16_FULL_SCALE
"""Peak below which a recording with more than 16 bits is amplified, since 16 bits would distort or silence it."""
AMPLIFIED_PEAK = 0.1
SILENT_PEAK = 1e-6
"""Peak below which a recording isn't amplified: 24 bits hold nothing but noise there."""

CANCELLED_SHARE = 0.01
"""Share of the channels' mean power below which their mean has cancelled out.

The mean of independent channels has the share 1 / channels; of opposite ones, none.
"""

MIN_PAIRWISE_CHANNELS = 8
"""Number of channels from which on NumPy's mean sums them in another order; below, a loop is faster and the same."""

Warn = Callable[[str], None]


def decode_file(path: Path) -> AudioBlocks:
    """Decode an audio file in any format that libsndfile reads into blocks of samples; see `decode`.

    The blocks raise AudioError as those of `decode` do, and UserError if the file can't be opened: it existed when the
    corpus was read, so the recording itself isn't at fault.
    """
    return AudioBlocks(lambda warn: _decode_path(path, warn))


def _decode_path(path: Path, warn: Warn) -> Iterator[Samples]:
    try:
        file = path.open("rb")
    except PermissionError as error:
        raise AudioError(f"can't be opened: {error.strerror}") from error
    except OSError as error:
        raise UserError(
            f"{path} can't be opened: {error.strerror}; every machine that decodes needs it under this path"
        ) from error
    with file:
        yield from decode(file, warn)


def decode(file: BinaryIO, warn: Warn) -> Iterator[Samples]:
    """Decode a seekable audio file, and yield blocks of mono samples at SAMPLE_RATE_HZ, one block in memory at a time.
    `warn` is called with a description of each change to the audio.

    A file of several streams, such as a chained Ogg file, is decoded to its end. The channels are averaged; if they
    cancel each other out, the strongest is taken instead. A recording beyond full scale is scaled down, and one that
    16 bits can't represent is amplified; `warn` is called with a description of each such change.

    Raises AudioError if the audio is truncated, empty, not finite or too loud, possibly after some blocks.
    """
    try:
        file.seek(0)
        head = file.read(64)
        if not head:
            raise AudioError("is empty (0 bytes)")
        check_container(file)
        streams = split_streams(file, warn)
        mixdowns, gain = choose_levels(streams, warn)
        num_decoded = num_resampled = 0
        for stream, mixdown in zip(streams, mixdowns, strict=True):
            num_read = 0
            stream.seek(0)
            with open_sound(stream) as audio:
                resampler = soxr.ResampleStream(audio.samplerate, SAMPLE_RATE_HZ, 1, dtype="float32")
                for block in read_blocks(audio):
                    num_read += len(block)
                    mono = mix_down(block, mixdown) if gain == 1 else mix_down(block, mixdown) * np.float32(gain)
                    if not np.abs(mono).max() < MAX_AMPLITUDE:  # written so that NaN is refused too
                        raise AudioError(
                            f"holds samples that aren't finite or exceed {MAX_AMPLITUDE:.0e} times full scale"
                        )
                    resampled = mono if audio.samplerate == SAMPLE_RATE_HZ else resampler.resample_chunk(mono)
                    num_resampled += len(resampled)
                    if num_resampled > MAX_DURATION_S * SAMPLE_RATE_HZ:
                        raise AudioError(TOO_LONG)
                    yield resampled
                rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
                num_resampled += len(rest)
                yield rest
                if num_read < audio.frames != UNKNOWN_LENGTH:
                    raise AudioError(f"truncated: {num_read} of {audio.frames} samples decoded")
            num_decoded += num_read
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "error_string", error)  # without the file object's address, which varies
        raise AudioError(explain_format(head) or f"can't be decoded: {reason}") from error
    if not num_decoded:
        raise AudioError("holds no samples")
    if not num_resampled:
        raise AudioError(f"too short: {num_decoded} samples")


def open_sound(stream: BinaryIO) -> soundfile.SoundFile:
    """Open a stream with libsndfile. Raises AudioError if its sample rate is too low, or if its header states a
    duration beyond MAX_DURATION_S.
    """
    audio = soundfile.SoundFile(_LibsndfileAdapter(stream))
    if audio.samplerate < MIN_RATE_HZ:
        raise AudioError(f"its header states a sample rate of {audio.samplerate} Hz; the minimum is {MIN_RATE_HZ}")
    if UNKNOWN_LENGTH > audio.frames > MAX_DURATION_S * audio.samplerate:
        raise AudioError(TOO_LONG)
    return audio


def read_blocks(audio: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    """Yield the samples of an open sound file in blocks [BLOCK_FRAMES, channels], the last of which may be shorter."""
    while len(block := audio.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
        yield block


def mix_down(block: NDArray[np.float32], channel: int | None) -> Samples:
    """Return one channel of a block [num_samples, channels]; None averages the channels."""
    num_channels = block.shape[1]
    if num_channels == 1 or channel is not None:
        return np.ascontiguousarray(block[:, channel or 0])
    with np.errstate(over="ignore", invalid="ignore"):  # refused by `decode`
        if num_channels >= MIN_PAIRWISE_CHANNELS:
            mean: Samples = block.mean(axis=1)
            return mean
        total: Samples = block[:, 0].copy()
        for index in range(1, num_channels):
            total += block[:, index]
        total /= np.float32(num_channels)
    return total


@dataclass
class Levels:
    """Peak and energy (sum of squares) of a stream of samples: of the channels' mean, and of each channel."""

    mean_peak: float
    mean_energy: float
    peaks: NDArray[np.float64]  # [channels]
    energies: NDArray[np.float64]  # [channels]

    def choose_channel(self) -> int | None:
        """Return the strongest channel if the channels' mean has cancelled out, otherwise None."""
        has_cancelled = self.mean_energy < CANCELLED_SHARE * float(self.energies.mean())
        return int(self.energies.argmax()) if has_cancelled else None


def measure_levels(stream: BinaryIO) -> Levels | None:
    """Decode a stream, and return the peak and the energy of its channels and of their mean. Return None, without
    decoding, for a mono stream in a format of at most 16 bits, whose level and channel are never changed.

    In a format of at most 16 bits, the peaks are left at zero.
    """
    stream.seek(0)
    with open_sound(stream) as audio, np.errstate(over="ignore", invalid="ignore"):
        is_bounded = audio.subtype in BOUNDED_SUBTYPES
        if audio.channels == 1 and is_bounded:
            return None
        levels = Levels(0.0, 0.0, np.zeros(audio.channels), np.zeros(audio.channels))
        for block in read_blocks(audio):
            mean = mix_down(block, None)
            levels.mean_energy += float(np.dot(mean, mean))
            channels = [mean] if audio.channels == 1 else [mix_down(block, index) for index in range(audio.channels)]
            levels.energies += [float(np.dot(channel, channel)) for channel in channels]
            if not is_bounded:
                levels.mean_peak = float(np.fmax(levels.mean_peak, find_peak(mean)))
                levels.peaks = np.fmax(levels.peaks, [find_peak(channel) for channel in channels])
    return levels


def find_peak(samples: Samples) -> np.float32:
    """Return the maximum of the absolute values of some samples."""
    return max(samples.max(), -samples.min())


def choose_levels(streams: Sequence[BinaryIO], warn: Warn) -> tuple[list[int | None], float]:
    """Return a pair: for each stream, the index of the channel to use, or None for the mean of the channels; and the
    factor by which the samples of all streams are multiplied. `warn` is called with a description if a channel replaces
    a mean, if the factor isn't 1, or if the recording is silent but for noise below 16 bits.
    """
    channels: list[int | None] = []
    peak = 0.0
    for stream in streams:
        levels = measure_levels(stream)
        channel = levels.choose_channel() if levels else None
        channels.append(channel)
        if levels:
            peak = max(peak, levels.mean_peak if channel is None else float(levels.peaks[channel]))
        if channel is not None:
            warn(f"its channels cancel each other out (opposite phase): channel {channel + 1} is used, not their mean")
    if not peak < MAX_AMPLITUDE:
        return channels, 1.0
    if peak > 1:
        units = " (its samples are apparently in the units of integers)" if peak > INTEGER_PEAK else ""
        stated = f"{peak:,.0f}" if peak > INTEGER_PEAK else f"{peak:.2f}"
        warn(f"its peak is {stated} times full scale{units}: scaled down, so that nothing is clipped")
        return channels, SCALED_PEAK / peak
    if SILENT_PEAK < peak < QUIET_PEAK:
        warn(f"its peak is {20 * np.log10(peak):.0f} dB below full scale, too quiet for 16 bits: amplified")
        return channels, AMPLIFIED_PEAK / peak
    if 0 < peak <= SILENT_PEAK:
        warn("it is silent but for noise below 16 bits: stored as silence")
    return channels, 1.0


class _LibsndfileAdapter:
    """Adapter through which libsndfile reads an open file: seeks before the start of the file, caused by a broken
    header, are ignored.

    Without it, such a seek would raise an error in a function called from C, where it is printed and can't be caught.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.tell, self.read = file, file.tell, file.read

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> None:
        """Set the position as the `seek` of a file does; ignore a position that can't be reached."""
        with contextlib.suppress(OSError, ValueError):
            self.file.seek(offset, whence)
