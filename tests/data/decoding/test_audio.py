"""Decoding of audio files as people have them: formats, damage, several streams, levels and channels."""

import csv
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from data.decoding import audio
from data.decoding.audio import SCALED_PEAK, decode_file, mix_down
from data.decoding.streams import compute_crc
from data.errors import UserError
from data.schema import SAMPLE_RATE_HZ
from data.waveform import AudioError

RATE_HZ = 44_100


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
    contents = path.read_bytes()
    at = contents.index(b"data") + 4
    sizes = size.to_bytes(4, "little")
    path.write_bytes(b"RIFF" + sizes + contents[8:at] + sizes + contents[at + 4 :])
    np.testing.assert_array_equal(samples_of(path), noise(0.1))


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
    with pytest.raises(AudioError, match="too short: 1 samples"):
        samples_of(tmp_path / "short.wav")


@pytest.mark.parametrize("contents", [b"file_name,caption\n", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(1_000)])
def test_what_is_not_audio_is_refused(contents, tmp_path):
    (tmp_path / "sound.wav").write_bytes(contents)
    with pytest.raises(AudioError, match="can't be decoded"):
        samples_of(tmp_path / "sound.wav")


def test_an_absent_file_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "absent.wav", tmp_path):
        with pytest.raises(UserError, match=r"can't be opened: .*; every machine"):
            samples_of(path)


def sine(freq_hz, rate_hz):
    """One second."""
    return 0.5 * np.sin(2 * np.pi * freq_hz * np.arange(rate_hz) / rate_hz)


def samples_of(path):
    """A whole file."""
    return np.concatenate(list(decode_file(path)))


CASES = Path(__file__).parents[3].parent / "shared" / "cases" / "audio.py"


@pytest.mark.skipif(not CASES.exists(), reason=f"{CASES} is absent")
def test_the_shared_cases_are_decoded_named_or_kept_with_a_warning(tmp_path):
    """By the module that all commands use."""
    subprocess.run([sys.executable, CASES, tmp_path], check=True, capture_output=True)
    with (tmp_path / "expected.csv").open() as file:
        cases = list(csv.DictReader(file))
    outcomes = {}
    for case in cases:
        blocks = decode_file(tmp_path / case["file_name"])
        try:
            num_samples = sum(map(len, blocks))
        except AudioError:
            outcomes[case["file_name"]] = "name"
        else:
            # The ADPCM encodings pad the last block.
            assert num_samples / SAMPLE_RATE_HZ == pytest.approx(float(case["seconds"]), abs=0.025)
            outcomes[case["file_name"]] = "warn" if blocks.warnings else "keep"
    expected = {case["file_name"]: case["must"] for case in cases if case["must"] != "ignore"}
    assert {name: outcomes[name] for name in expected} == expected


def encode(samples, rate_hz=RATE_HZ, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, **options)
    return buffer.getvalue()


def tone(duration_s=1.0, freq_hz=440, level=0.5, rate_hz=RATE_HZ):
    return level * np.sin(2 * np.pi * freq_hz * np.arange(round(duration_s * rate_hz)) / rate_hz)


def decode_bytes(contents, tmp_path):
    """Samples and warnings of a file with these contents."""
    path = tmp_path / "file"
    path.write_bytes(contents)
    blocks = decode_file(path)
    return np.concatenate(list(blocks)), blocks.warnings


def count_seconds(contents, tmp_path):
    samples, warnings = decode_bytes(contents, tmp_path)
    assert not warnings
    return len(samples) / SAMPLE_RATE_HZ


CONTAINERS = {
    "WAV": {"format": "WAV"},
    "RIFX": {"format": "WAV", "endian": "BIG"},
    "RF64": {"format": "RF64"},
    "W64": {"format": "W64"},
    "AIFF": {"format": "AIFF"},
    "CAF": {"format": "CAF"},
    "AU": {"format": "AU"},
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_container_that_was_cut_off_is_refused(name, kept, tmp_path):
    contents = encode(tone(), subtype="PCM_16", **CONTAINERS[name])
    with pytest.raises(AudioError, match=r"truncated|can't be decoded"):
        decode_bytes(contents[: int(kept * len(contents))], tmp_path)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_decoded_whole(name, tmp_path):
    assert count_seconds(encode(tone(), subtype="PCM_16", **CONTAINERS[name]), tmp_path) == 1


SIZE_OF_WHOLE = {"WAV": ("<I", 4), "RIFX": (">I", 4), "AIFF": (">I", 4), "RF64": ("<Q", 20), "W64": ("<Q", 16)}


@pytest.mark.parametrize("name", SIZE_OF_WHOLE)
@pytest.mark.parametrize("error", [-44, -1, 1, 44])
def test_the_stated_size_of_the_whole_file_may_be_wrong(name, error, tmp_path):
    contents = bytearray(encode(tone(), subtype="PCM_16", **CONTAINERS[name]))
    form, position = SIZE_OF_WHOLE[name]
    (size,) = struct.unpack_from(form, contents, position)
    struct.pack_into(form, contents, position, size + error)
    assert count_seconds(contents, tmp_path) == 1


SIZE_OF_AUDIO = {"WAV": ("<I", b"data", 4), "RIFX": (">I", b"data", 4), "AIFF": (">I", b"SSND", 4)}


@pytest.mark.parametrize("name", SIZE_OF_AUDIO)
@pytest.mark.parametrize(("share", "reason"), [(0, "never finished"), (0.1, "sizes wrap"), (0.9, "sizes wrap")])
def test_audio_behind_the_stated_size_is_named(name, share, reason, tmp_path):
    contents = bytearray(encode(tone(), subtype="PCM_16", **CONTAINERS[name]))
    form, chunk, offset = SIZE_OF_AUDIO[name]
    position = contents.index(chunk) + offset
    (size,) = struct.unpack_from(form, contents, position)
    struct.pack_into(form, contents, position, int(share * size) & ~1)
    with pytest.raises(AudioError, match=reason):
        decode_bytes(contents, tmp_path)


@pytest.mark.parametrize("trailer", [b"TAG" + bytes(125), bytes(100_000), b"id3 \x04\0\0\0abcd", b"\0"])
def test_tags_and_padding_after_the_audio_are_ignored(trailer, tmp_path):
    assert count_seconds(encode(tone(), format="WAV", subtype="PCM_16") + trailer, tmp_path) == 1


def test_a_chained_ogg_of_other_rates_and_codecs_is_decoded_to_its_end(tmp_path):
    links = [
        encode(tone(2), format="OGG", subtype="VORBIS"),
        encode(tone(3, rate_hz=48_000), 48_000, format="OGG", subtype="OPUS"),
        encode(np.stack([tone(1, rate_hz=22_050)] * 2, 1), 22_050, format="OGG", subtype="VORBIS"),
    ]
    assert count_seconds(b"".join(links), tmp_path) == pytest.approx(6, abs=0.001)


def without_end_flag(contents):
    """An Ogg file whose last page isn't marked as such, with the right checksum."""
    start = contents.rindex(b"OggS")
    page = bytearray(contents[start:])
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", compute_crc(page, 0x04C11DB7, 32))
    return contents[:start] + bytes(page)


def test_an_ogg_without_a_last_page_is_decoded_with_a_warning(tmp_path):
    samples, warnings = decode_bytes(without_end_flag(encode(tone(20), format="OGG", subtype="VORBIS")), tmp_path)
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(20, abs=0.03)
    assert "isn't marked as the end" in warnings[0]


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_an_ogg_that_was_cut_off_is_refused_or_said_to_be(kept, tmp_path):
    contents = encode(tone(20), format="OGG", subtype="VORBIS")
    with pytest.raises(AudioError, match="truncated"):
        decode_bytes(contents[: int(kept * len(contents))], tmp_path)


def without_info(mp3):
    """An MP3 without the header that counts its frames."""
    length = 144_000 * 128 // RATE_HZ  # the encoder writes the header at 128 kbit/s
    assert b"Info" in mp3[:40] or b"Xing" in mp3[:40]
    return mp3[length:]


def noise_and_silence(duration_s):
    """Samples that an encoder of variable bit rate gives many bits, then few."""
    num_samples = round(duration_s * RATE_HZ)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, num_samples)
    noise[num_samples // 3 :] *= 1e-3
    return noise


def test_an_mp3_of_variable_rate_without_a_count_of_frames_is_decoded_to_its_end(tmp_path):
    mp3 = encode(noise_and_silence(20), format="MP3")
    with soundfile.SoundFile(io.BytesIO(without_info(mp3))) as file:
        assert file.frames / RATE_HZ < 15, "libsndfile doesn't need help any more"
    samples, _ = decode_bytes(without_info(mp3), tmp_path)
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(20, abs=0.1)
    whole, _ = decode_bytes(mp3, tmp_path)
    shift = len(samples) - len(whole)  # the header also states how many samples the encoder added
    assert 0 <= shift < 0.1 * SAMPLE_RATE_HZ


@pytest.mark.parametrize("strip", [(False, False), (True, True), (False, True), (True, False)])
def test_joined_mp3_files_are_decoded_to_their_end(strip, tmp_path):
    parts = [encode(noise_and_silence(seconds), format="MP3") for seconds in (20, 10)]
    contents = b"".join(without_info(part) if bare else part for part, bare in zip(parts, strip, strict=True))
    assert count_seconds(contents, tmp_path) == pytest.approx(30, abs=0.2)


def test_joined_mp3_files_of_other_rates_with_tags_between_are_decoded_to_their_end(tmp_path):
    tag = b"ID3\x03\0\0\0\0\x02\0" + bytes(256)
    parts = [
        encode(tone(10), format="MP3"),
        b"TAG" + bytes(125),
        tag + encode(tone(5, rate_hz=22_050), 22_050, format="MP3"),
        encode(np.stack([tone(3)] * 2, 1), format="MP3"),
    ]
    assert count_seconds(b"".join(parts), tmp_path) == pytest.approx(18, abs=0.1)


def test_a_torn_mp3_is_refused_or_warned_about(tmp_path):
    mp3 = encode(tone(20), format="MP3")
    with pytest.raises(AudioError, match="truncated"):
        decode_bytes(mp3[: len(mp3) // 2], tmp_path)
    _, warnings = decode_bytes(without_info(mp3)[: len(mp3) // 2], tmp_path)
    assert "its last frame is incomplete" in warnings[0]


def with_unknown_length(flac):
    contents = bytearray(flac)
    contents[21] &= 0xF0  # STREAMINFO's 36 bits of "total samples", where 0 is "unknown"
    contents[22:26] = bytes(4)
    return bytes(contents)


@pytest.mark.parametrize("duration_s", [0.01, 0.0929, 1, 30])
def test_a_flac_of_unknown_length_is_decoded_to_its_end(duration_s, tmp_path):
    flac = encode(np.random.default_rng(0).uniform(-0.5, 0.5, round(duration_s * RATE_HZ)), format="FLAC")
    whole, _ = decode_bytes(flac, tmp_path)
    samples, warnings = decode_bytes(with_unknown_length(flac), tmp_path)
    np.testing.assert_array_equal(samples, whole)
    assert not warnings


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_flac_of_unknown_length_that_was_cut_off_is_refused(kept, tmp_path):
    flac = with_unknown_length(encode(noise_and_silence(5), format="FLAC"))
    with pytest.raises(AudioError, match="truncated"):
        decode_bytes(flac[: int(kept * len(flac))], tmp_path)


@pytest.mark.parametrize("options", [{"format": "WAV", "subtype": "FLOAT"}, {"format": "AIFF", "subtype": "DOUBLE"},
                                     {"format": "OGG", "subtype": "VORBIS"}])  # fmt: skip
@pytest.mark.parametrize("level", [1.3, 4.0])
def test_a_recording_beyond_full_scale_is_scaled_down(options, level, tmp_path):
    samples, warnings = decode_bytes(encode(tone(level=level), **options), tmp_path)
    assert "scaled down" in warnings[0]
    assert np.abs(samples).max() == pytest.approx(SCALED_PEAK, rel=0.02)
    pure = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
    middle = slice(4_000, -4_000)
    assert np.corrcoef(samples[middle], pure[middle])[0, 1] > 0.999


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("difference", [0, 1e-3])
def test_channels_that_cancel_out_leave_the_strongest(subtype, difference, tmp_path):
    left = tone(level=0.4)
    both = np.stack([-left, left * (1 + difference)], 1)
    samples, warnings = decode_bytes(encode(both, format="WAV", subtype=subtype), tmp_path)
    assert "opposite phase" in warnings[0]
    assert np.abs(samples).max() == pytest.approx(0.4, abs=0.01)


def test_channels_of_independent_noise_are_averaged_without_a_warning(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, (RATE_HZ, 16))
    _, warnings = decode_bytes(encode(noise, format="WAV", subtype="PCM_16"), tmp_path)
    assert not warnings


@pytest.mark.parametrize("options", [{"format": "WAV", "subtype": "PCM_24"}, {"format": "FLAC", "subtype": "PCM_24"}])
def test_a_recording_too_quiet_for_16_bits_is_amplified(options, tmp_path):
    samples, warnings = decode_bytes(encode(tone(level=1e-4), **options), tmp_path)
    assert "amplified" in warnings[0]
    assert np.abs(samples).max() == pytest.approx(0.1, rel=0.05)


def test_quiet_noise_of_24_bits_is_said_to_be_stored_as_silence(tmp_path):
    _, warnings = decode_bytes(encode(tone(level=3e-7), format="WAV", subtype="PCM_24"), tmp_path)
    assert "silent" in warnings[0]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "is empty"),
        (b"\x00\x00\x00\x20ftypM4A ", "m4a, mp4.*ffmpeg"),
        (b"\x1aE\xdf\xa3", "webm.*ffmpeg"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "wma.*ffmpeg"),
        (b" <!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_the_reason_names_the_format_and_the_remedy(head, reason, tmp_path):
    with pytest.raises(AudioError, match=reason):
        decode_bytes(head + bytes(200) if head else head, tmp_path)


@pytest.mark.parametrize("num_channels", [1, 2, 3, 6, 7, 8, 16])
def test_the_mean_of_channels_is_numpys_to_the_last_bit(num_channels):
    block = np.random.default_rng(0).normal(size=(10_000, num_channels)).astype(np.float32)
    np.testing.assert_array_equal(mix_down(block, None), block.mean(axis=1))


def test_a_recording_of_more_than_a_day_is_refused_before_it_is_decoded(tmp_path):
    """56 kB of silence, which would take gigabytes in a store; its header is enough to refuse it."""
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 1_000, 1, "PCM_16") as file:
        for _ in range(25):
            file.write(np.zeros(3_600 * 1_000, np.int16))
    assert (tmp_path / "long.flac").stat().st_size < 2**20
    with pytest.raises(AudioError, match="lasts more than 24 hours: split it"):
        next(decode_file(tmp_path / "long.flac"))


def test_streams_that_are_together_too_long_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MAX_DURATION_S", 5)
    parts = [encode(tone(4), format="OGG", subtype="VORBIS")] * 2
    assert count_seconds(parts[0], tmp_path) == pytest.approx(4, abs=0.01)
    with pytest.raises(AudioError, match="lasts more than"):
        decode_bytes(b"".join(parts), tmp_path)
