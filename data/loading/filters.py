"""Random filters of training clips: those of FilterAugment in its linear form, applied to samples.

Nam, Kim and Park 2022, "FilterAugment: An Acoustic Environmental Data Augmentation Method". The module is separate
from `data.loading.augmentation`, which trials import, because scipy.signal takes long to import.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from data.schema import SAMPLE_RATE_HZ

FILTER_TAPS = 511
"""Length of a random filter's impulse response in samples, 16 ms."""

FILTER_BANDS = (2, 5)
"""Smallest and largest number of frequency bands of a random filter."""


def draw_filter(rng: np.random.Generator, max_db: float) -> NDArray[np.float32]:
    """Return the impulse response [FILTER_TAPS] of a random filter of linear phase.

    Its gain in dB is piecewise linear over the mel scale: bands with random edges, whose ends have gains drawn from
    -max_db to max_db.
    """
    num_bands = int(rng.integers(FILTER_BANDS[0], FILTER_BANDS[1] + 1))
    highest_mel = to_mel(np.array(SAMPLE_RATE_HZ / 2))
    edges_mel = np.array([0, *np.sort(rng.uniform(0, highest_mel, num_bands - 1)), highest_mel])
    gains_db = rng.uniform(-max_db, max_db, num_bands + 1)
    frequencies_hz = np.linspace(0, SAMPLE_RATE_HZ / 2, FILTER_TAPS // 2 + 2)
    factors = 10 ** (np.interp(to_mel(frequencies_hz), edges_mel, gains_db) / 20)
    taps: NDArray[np.float32] = signal.firwin2(FILTER_TAPS, frequencies_hz, factors, fs=SAMPLE_RATE_HZ)
    return taps.astype(np.float32)


def filter_samples(samples: NDArray[np.float32], taps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the samples [N] filtered by an impulse response of odd length, without delay."""
    filtered: NDArray[np.float32] = signal.oaconvolve(samples, taps, mode="full")
    return filtered[len(taps) // 2 :][: len(samples)]


def to_mel(frequencies_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return frequencies on the mel scale, 1127 ln(1 + f / 700)."""
    return 1127 * np.log1p(frequencies_hz / 700)
