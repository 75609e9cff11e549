"""Splits that the tests of this folder load."""

import numpy as np
import pytest
from loading_cases import DURATIONS_S

from data.schema import SAMPLE_RATE_HZ


@pytest.fixture
def split(make_clip, noise, write_split):
    """Seven clips with one to three captions each, no caption twice."""
    clips = [
        make_clip(f"{clip}.wav", noise(duration_s, clip), [f"Sound {clip}, said {n}." for n in range(1 + clip % 3)])
        for clip, duration_s in enumerate(DURATIONS_S)
    ]
    return write_split(clips)


@pytest.fixture
def ramp(make_clip, write_split):
    """A split of one clip of a second, whose n-th sample is n / 32768, and one of 0.3 s."""
    samples = np.arange(SAMPLE_RATE_HZ, dtype=np.float32) / 32_768
    return write_split([make_clip("ramp.wav", samples), make_clip("short.wav", samples[: round(0.3 * SAMPLE_RATE_HZ)])])
