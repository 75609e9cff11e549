"""Decoding, resampling, the codecs of a store, and the counting of segments."""

import hashlib
import io

import numpy as np
import pytest
import soundfile
import soxr

from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from data.waveform import (
    CODECS,
    AudioError,
    compute_crop_start,
    count_segments,
    decode_file,
    decode_stored,
    decode_window,
    encode,
    to_pcm16,
)

SEGMENT_SAMPLES = 10 * SAMPLE_RATE_HZ
EXTREMES = np.array([-32_768, -32_767, -1, 0, 1, 32_766, 32_767], np.int16)


@pytest.fixture
def pcm():
    some = np.random.default_rng(0).integers(-32_768, 32_768, 3 * SAMPLE_RATE_HZ, np.int16)
    return np.concatenate([EXTREMES, some])


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_gives_back_every_bit(codec, pcm):
    decoded = window(stored(pcm, codec), codec, 0, len(pcm))
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded * 32_768, pcm)
    np.testing.assert_array_equal(to_pcm16(decoded), pcm)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("start", "count"), [(0, 1), (1, 5_000), (40_000, 32_000), (96_000, 7), (96_006, 1)])
def test_a_window_is_a_slice_of_the_whole(codec, start, count, pcm):
    samples = window(stored(pcm, codec), codec, start, count)
    np.testing.assert_array_equal(samples * 32_768, pcm[start : start + count])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("start", [96_000, 200_000])
def test_a_window_beyond_the_end_is_refused(codec, start, pcm):
    with pytest.raises(AudioError):
        window(stored(pcm, codec), codec, start, 8)


def test_a_torn_stored_flac_is_refused(pcm):
    audio = stored(pcm, "flac")
    with pytest.raises(AudioError):
        window(audio[: len(audio) // 2], "flac", 0, len(pcm))


def test_what_lies_beyond_full_scale_is_clipped():
    np.testing.assert_array_equal(to_pcm16(np.array([-3, -1, 1, 3], np.float32)), [-32_768, -32_768, 32_767, 32_767])


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_a_sine_is_the_same_sine_at_32_khz(rate_hz, tmp_path):
    soundfile.write(tmp_path / "sine.wav", sine(1_000, rate_hz), rate_hz, subtype="FLOAT")
    samples = samples_of(tmp_path / "sine.wav")
    assert samples.dtype == np.float32
    assert len(samples) == SAMPLE_RATE_HZ
    middle = slice(1_000, -1_000)  # where a file begins and ends, its band is cut
    np.testing.assert_allclose(samples[middle], sine(1_000, SAMPLE_RATE_HZ)[middle], atol=1e-5)


def test_what_32_khz_cannot_hold_does_not_fold_back(tmp_path):
    soundfile.write(tmp_path / "high.wav", sine(19_000, 44_100), 44_100, subtype="FLOAT")
    assert np.abs(samples_of(tmp_path / "high.wav")[1_000:-1_000]).max() < 1e-4


def test_decoding_in_blocks_is_decoding_at_once(tmp_path):
    rng = np.random.default_rng(0)
    for rate_hz, seconds in ((44_100, 5), (48_000, 3.3), (8_000, 20)):
        samples = rng.uniform(-0.5, 0.5, round(seconds * rate_hz)).astype(np.float32)
        soundfile.write(tmp_path / "noise.wav", samples, rate_hz, subtype="FLOAT")
        assert len(list(decode_file(tmp_path / "noise.wav"))) > 2
        at_once = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
        np.testing.assert_array_equal(samples_of(tmp_path / "noise.wav"), at_once)


@pytest.mark.parametrize("codec", CODECS)
def test_blocks_of_any_size_are_stored_alike(codec, pcm):
    samples = pcm.astype(np.float32) / 32_768
    whole, digest = io.BytesIO(), hashlib.sha256()
    encode([samples], codec, whole, digest)
    assert digest.hexdigest() == hashlib.sha256(pcm.tobytes()).hexdigest()
    for size in (1_000, 4_096, 70_000):
        file, other_digest = io.BytesIO(), hashlib.sha256()
        encode(iter(np.split(samples, range(size, len(samples), size))), codec, file, other_digest)
        assert file.getvalue() == whole.getvalue()
        assert other_digest.digest() == digest.digest()


@pytest.mark.parametrize("codec", CODECS)
def test_a_stored_clip_is_decoded_as_a_whole(codec, pcm):
    blocks = list(decode_stored(io.BytesIO(stored(pcm, codec)), codec))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), pcm)


def test_an_mp3_is_decoded_whatever_it_is_called(tmp_path):
    soundfile.write(tmp_path / "sound.mp3", sine(1_000, 44_100), 44_100)
    (tmp_path / "sound.mp3").rename(tmp_path / "sound.wav")
    samples = samples_of(tmp_path / "sound.wav")
    assert abs(len(samples) - SAMPLE_RATE_HZ) < 0.1 * SAMPLE_RATE_HZ
    middle = slice(4_000, -4_000)
    assert abs(np.abs(samples[middle]).max() - 0.5) < 0.02


def test_channels_are_averaged(tmp_path):
    left, right = sine(440, SAMPLE_RATE_HZ), sine(660, SAMPLE_RATE_HZ)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), SAMPLE_RATE_HZ, subtype="FLOAT")
    np.testing.assert_allclose(samples_of(tmp_path / "stereo.wav"), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["torn.flac", "torn.wav"])
def test_a_torn_file_is_refused(name, kept, tmp_path, write_audio):
    path = write_audio(tmp_path / name, duration_s=2.0)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(AudioError, match=r"truncated|can't be decoded"):
        samples_of(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF024])
def test_a_wav_from_a_pipe_is_whole_though_its_header_is_not(size, tmp_path, write_audio, noise):
    path = write_audio(tmp_path / "piped.wav")
    path.write_bytes(b"RIFF" + size.to_bytes(4, "little") + path.read_bytes()[8:])
    np.testing.assert_array_equal(samples_of(path), noise(0.1))


def test_a_flac_that_leaves_its_length_open_is_refused(tmp_path, write_audio):
    path = write_audio(tmp_path / "piped.flac")
    contents = bytearray(path.read_bytes())
    contents[21] &= 0xF0  # STREAMINFO's 36 bits of "total samples", where 0 is "unknown"
    contents[22:26] = bytes(4)
    path.write_bytes(contents)
    with pytest.raises(AudioError, match="doesn't state its length"):
        samples_of(path)


@pytest.mark.parametrize("rate_hz", [SAMPLE_RATE_HZ, 44_100])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_samples_that_are_not_finite_are_refused(value, rate_hz, tmp_path):
    soundfile.write(tmp_path / "bad.wav", np.array([0, value, 0.1]), rate_hz, subtype="FLOAT")
    with pytest.raises(AudioError, match="aren't finite"):
        samples_of(tmp_path / "bad.wav")


def test_a_file_without_samples_is_refused(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), SAMPLE_RATE_HZ)
    with pytest.raises(AudioError, match="holds no samples"):
        samples_of(tmp_path / "none.wav")


def test_a_file_too_short_for_one_sample_at_32_khz_is_refused(tmp_path):
    soundfile.write(tmp_path / "short.wav", np.ones(1), 96_000)
    with pytest.raises(AudioError, match="too short: 1 samples at 96000 Hz"):
        samples_of(tmp_path / "short.wav")


@pytest.mark.parametrize("contents", [b"", b"file_name,caption\n", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(1_000)])
def test_what_is_not_audio_is_refused(contents, tmp_path):
    (tmp_path / "sound.wav").write_bytes(contents)
    with pytest.raises(AudioError, match="can't be decoded"):
        samples_of(tmp_path / "sound.wav")


def test_an_absent_file_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "absent.wav", tmp_path):
        with pytest.raises(UserError, match=r"can't be opened: .*; every machine"):
            samples_of(path)


@pytest.mark.parametrize(
    ("duration_s", "num_segments"),
    [(12, 2), (30, 3), (10.01, 1), (10, 1), (0.2, 1), (10.49, 1), (10.5, 2), (20.4, 2), (0.5, 1)],
)
def test_segments_of_10_s(duration_s, num_segments):
    assert count_segments(round(duration_s * SAMPLE_RATE_HZ), SEGMENT_SAMPLES) == num_segments


@pytest.mark.parametrize(("num_samples", "longest"), [(1, 10), (10, 10), (11, 10), (960_001, 320_000)])
def test_a_crop_lies_within_the_clip_and_reaches_both_ends(num_samples, longest):
    last = max(0, num_samples - longest)
    assert compute_crop_start(num_samples, longest, 0.0) == 0
    assert compute_crop_start(num_samples, longest, np.nextafter(1, 0)) == last
    assert all(
        0 <= compute_crop_start(num_samples, longest, draw) <= last for draw in np.linspace(0, 1, 99, endpoint=False)
    )


def sine(freq_hz, rate_hz):
    """One second."""
    return 0.5 * np.sin(2 * np.pi * freq_hz * np.arange(rate_hz) / rate_hz)


def samples_of(path):
    """A whole file."""
    return np.concatenate(list(decode_file(path)))


def stored(pcm, codec):
    """16-bit PCM as a store keeps it."""
    file = io.BytesIO()
    assert encode([pcm.astype(np.float32) / 32_768], codec, file, hashlib.sha256()) == len(pcm)
    return file.getvalue()


def window(audio, codec, start, count):
    out = np.empty(count, np.float32)
    decode_window(io.BytesIO(audio), codec, start, out)
    return out
