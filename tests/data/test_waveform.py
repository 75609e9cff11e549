"""The codecs of a store, and the counting of segments."""

import hashlib
import io

import numpy as np
import pytest

from data.schema import SAMPLE_RATE_HZ
from data.waveform import (
    CODECS,
    AudioError,
    compute_crop_start,
    count_segments,
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


def stored(pcm, codec):
    """16-bit PCM as a store keeps it."""
    file = io.BytesIO()
    assert encode([pcm.astype(np.float32) / 32_768], codec, file, hashlib.sha256()) == len(pcm)
    return file.getvalue()


def window(audio, codec, start, count):
    out = np.empty(count, np.float32)
    decode_window(io.BytesIO(audio), codec, start, out)
    return out
