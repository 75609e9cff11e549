"""Sounds of the synthetic corpus: twelve kinds of events and five backgrounds, drawn from a random generator.

A sound is a function of a random generator and a duration; no two draws of a kind are alike. Levels are arbitrary: the
caller scales a sound when mixing it into a clip.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.schema import SAMPLE_RATE_HZ, Samples

Wave = NDArray[np.float64]
"""Samples before scaling to a clip's level: [num_samples]."""

Sound = Callable[[Generator, float], Wave]
"""Function that generates `duration_s` seconds of a kind of sound with random pitch, rate and timbre."""


# Building blocks.


def _time(duration_s: float) -> Wave:
    return np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def _band(num_samples: int, low_hz: float, high_hz: float) -> Samples:
    """Return the gains [num_samples // 2 + 1], one per FFT frequency, of a band-pass filter from `low_hz` to
    `high_hz` with slopes of 12 dB per octave.
    """
    square_hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ).astype(np.float32) ** 2 + np.float32(1e-3)
    below, above = low_hz**2 / square_hz, square_hz / high_hz**2
    return np.asarray(1 / np.sqrt((1 + below * below) * (1 + above * above)), np.float32)


def _noise(rng: Generator, duration_s: float, low_hz: float, high_hz: float) -> Wave:
    """Return `duration_s` seconds of random noise of unit power in the band from `low_hz` to `high_hz`. Its spectrum is
    drawn directly, which is faster than filtering white noise.
    """
    num_samples = round(duration_s * SAMPLE_RATE_HZ)
    length = _fast_length(num_samples)
    gains = _band(length, low_hz, high_hz)
    spectrum = rng.standard_normal(2 * len(gains), dtype=np.float32).view(np.complex64) * gains
    wave = np.fft.irfft(spectrum, length)[:num_samples]
    return np.asarray(wave / wave.std(), np.float64)


def _filtered(wave: Wave, low_hz: float, high_hz: float) -> Wave:
    length = _fast_length(len(wave))
    return np.fft.irfft(np.fft.rfft(wave, length) * _band(length, low_hz, high_hz), length)[: len(wave)]


def _fast_length(num_samples: int) -> int:
    """Return the smallest FFT-friendly length of at least `num_samples`: 8, 9, 10, 12 or 15 times a power of two.

    A Fourier transform of a length with large prime factors takes several times as long.
    """
    exponent = max(num_samples.bit_length() - 4, 0)
    return min(
        factor << power
        for factor in (8, 9, 10, 12, 15)
        for power in (exponent, exponent + 1)
        if factor << power >= num_samples
    )


def _harmonic(freq_hz: Wave, levels: Wave) -> Wave:
    """Return a tone whose fundamental frequency at each sample is `freq_hz` [num_samples]. `levels` [num_harmonics]
    are the amplitudes of its harmonics, beginning with the fundamental.
    """
    phase = 2 * np.pi * np.cumsum(freq_hz) / SAMPLE_RATE_HZ
    last, sine, twice_cosine = np.zeros(len(phase)), np.sin(phase), 2 * np.cos(phase)
    wave: Wave = levels[0] * sine
    for level in levels[1:]:
        # sin((n + 1) x) = 2 cos(x) sin(n x) - sin((n - 1) x) takes a tenth of the time of a sine.
        last, sine = sine, twice_cosine * sine - last
        wave += level * sine
    return wave


def _struck(duration_s: float, freqs_hz: Wave, decays_s: Wave, levels: Wave) -> Wave:
    """Return `duration_s` seconds of the sound of a struck object, a sum of damped sines. The arrays [num_modes] have
    the frequency of each sine, the time constant of its decay, and its amplitude (`levels`).
    """
    time = _time(duration_s)
    wave = np.zeros(len(time))
    for freq_hz, decay_s, level in zip(freqs_hz, decays_s, levels, strict=True):
        wave += level * np.exp(-time / decay_s) * np.sin(2 * np.pi * freq_hz * time)
    return wave


def _wander(rng: Generator, duration_s: float, rate_hz: float) -> Wave:
    """Return a slow random curve of `duration_s` seconds: straight lines between random values from 0 to 1, `rate_hz`
    of them per second.
    """
    points = rng.uniform(size=int(duration_s * rate_hz) + 2)
    return np.interp(_time(duration_s) * rate_hz, np.arange(len(points)), points)


def compute_ramps(duration_s: float, attack_s: float, release_s: float) -> Wave:
    """Return gains [num_samples] that rise linearly from 0 to 1 in the first `attack_s` seconds and fall to 0 in
    the last `release_s` seconds.
    """
    time = _time(duration_s)
    return np.minimum(np.minimum(time / attack_s, 1), np.minimum((duration_s - time) / release_s, 1))


def mix_into(track: Wave, wave: Wave, onset_s: float) -> None:
    """Add `wave` to `track` in place, beginning `onset_s` seconds after the start of `track`. Samples beyond its
    end are dropped.
    """
    start = round(onset_s * SAMPLE_RATE_HZ)
    overlap = track[start : start + len(wave)]
    overlap += wave[: len(overlap)]


# Foreground sounds: one occurrence.


def _bell(rng: Generator, duration_s: float) -> Wave:
    """Return the sound of a church bell: its partials, from the hum tone up
    (https://en.wikipedia.org/wiki/Strike_tone), and the noise of the stroke.
    """
    ratios = np.array([0.5, 1, 1.2, 1.5, 2, 2.67, 3, 4.2, 5.4]) * rng.normal(1, 0.006, 9)
    levels = rng.uniform(0.4, 1, 9) / ratios**0.3
    wave = _struck(duration_s, ratios * rng.uniform(250, 800), duration_s / 5 / ratios**0.7, levels)
    return wave + 0.6 * _noise(rng, duration_s, 1500, 8000) * np.exp(-_time(duration_s) / 0.008)


def _siren(rng: Generator, duration_s: float) -> Wave:
    rise = np.sin(np.pi * _time(duration_s) / duration_s) ** rng.uniform(0.6, 1.2)
    low_hz = rng.uniform(420, 620)
    wave = _harmonic(low_hz * (1 + rng.uniform(0.9, 1.5) * rise), np.array([1, 0.5, 0.4, 0.2, 0.1]))
    return wave * compute_ramps(duration_s, 0.25, 0.3)


def _bird(rng: Generator, duration_s: float) -> Wave:
    """Return birdsong: three to seven chirps, each a tone that glides in pitch with a slight vibrato."""
    track = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    chirps = int(rng.integers(3, 8))
    chirp_s = duration_s / chirps * rng.uniform(0.5, 0.85)
    time = _time(chirp_s)
    start_hz, flutter_hz, bend = rng.uniform(2600, 5200), rng.uniform(20, 60), rng.uniform(-0.35, 0.45)
    for chirp in range(chirps):
        course = 1 + bend * np.sin(np.pi / 2 * time / chirp_s) + 0.03 * np.sin(2 * np.pi * flutter_hz * time)
        wave = _harmonic(start_hz * rng.normal(1, 0.05) * course, np.array([1, 0.15]))
        mix_into(track, wave * np.hanning(len(wave)) * rng.uniform(0.6, 1), chirp * duration_s / chirps)
    return track


def _footsteps(rng: Generator, duration_s: float) -> Wave:
    """Return the sound of footsteps: in each step, the thump of the heel is followed by the quieter scuff of the
    toe.
    """
    track = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    beat_s, toe_s, bright_hz = 1 / rng.uniform(1.7, 2.5), rng.uniform(0.05, 0.09), rng.uniform(1200, 4000)
    modes_hz = np.array([rng.uniform(70, 120), rng.uniform(180, 320)])
    fall = np.exp(-_time(0.3) / 0.018)
    for step_s in np.arange(0, duration_s - 0.25, beat_s):
        heel = _struck(0.3, modes_hz * rng.normal(1, 0.04), np.array([0.03, 0.02]), np.array([1, 0.8]))
        mix_into(track, (heel + 0.3 * _noise(rng, 0.3, 300, bright_hz) * fall) * rng.uniform(0.75, 1), step_s)
        mix_into(track, 0.15 * _noise(rng, 0.3, 600, bright_hz * 1.5) * fall, step_s + toe_s)
    return track


def _dog(rng: Generator, duration_s: float) -> Wave:
    course = np.sin(np.pi * (_time(duration_s) / duration_s) ** 0.6)
    wave = _harmonic(rng.uniform(220, 520) * (0.75 + 0.5 * course), 1 / np.arange(1, 17) ** 0.6)
    wave += rng.uniform(0.5, 1) * _noise(rng, duration_s, 400, 4000)
    return _filtered(wave * course**1.3, rng.uniform(450, 800), rng.uniform(1300, 2200))


def _clock(rng: Generator, duration_s: float) -> Wave:
    """Return the sound of a clock: alternating ticks and tocks, the tocks slightly lower in pitch."""
    track = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    beat_s = 1 / rng.uniform(2.5, 4.5)
    modes_hz, lower = np.array([1, 1.7, 2.6]) * rng.uniform(1700, 2800), rng.uniform(0.75, 0.9)
    click = 0.5 * _noise(rng, 0.06, 2000, 9000) * np.exp(-_time(0.06) / 0.002)
    decays_s, levels = np.array([0.009, 0.006, 0.004]), np.array([1, 0.7, 0.5])
    ticks = [click + _struck(0.06, modes_hz * pitch, decays_s, levels) for pitch in (1.0, lower)]
    for beat, tick_s in enumerate(np.arange(0, duration_s - 0.06, beat_s)):
        mix_into(track, ticks[beat % 2], tick_s)
    return track


def _telephone(rng: Generator, duration_s: float) -> Wave:
    """Return the ring of a mechanical telephone: two small gongs, struck alternately."""
    track = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    low_hz, beat_s = rng.uniform(900, 1500), 1 / rng.uniform(18, 26)
    partials = np.array([1, 2.4, 4.3])
    gongs = [
        _struck(0.4, low_hz * interval * partials, np.array([0.15, 0.08, 0.04]), np.array([1, 0.6, 0.4]))
        for interval in (1.0, rng.uniform(1.15, 1.35))
    ]
    for beat, strike_s in enumerate(np.arange(0, duration_s - 0.2, beat_s)):
        mix_into(track, gongs[beat % 2] * rng.uniform(0.7, 1), strike_s)
    return track * compute_ramps(duration_s, 0.002, 0.15)


def _knock(rng: Generator, duration_s: float) -> Wave:
    modes_hz = np.array([rng.uniform(130, 240), rng.uniform(330, 560), rng.uniform(800, 1300)])
    wave = _struck(duration_s, modes_hz, np.array([0.03, 0.02, 0.01]), np.array([1, 0.9, 0.6]))
    return wave + 0.4 * _noise(rng, duration_s, 500, 5000) * np.exp(-_time(duration_s) / 0.004)


def _whistle(rng: Generator, duration_s: float) -> Wave:
    """Return the sound of a referee's whistle, with the flutter that the ball inside it causes."""
    trill = np.sin(2 * np.pi * rng.uniform(28, 45) * _time(duration_s))
    pitch_hz = rng.uniform(2300, 3600)
    wave = _harmonic(pitch_hz * (1 + 0.025 * trill), np.array([1, 0.25, 0.1])) * (1 + 0.45 * trill)
    breath = 0.12 * _noise(rng, duration_s, pitch_hz * 0.8, pitch_hz * 1.6)
    return (wave + breath) * compute_ramps(duration_s, 0.02, 0.04)


def _gunshot(rng: Generator, duration_s: float) -> Wave:
    time = _time(duration_s)
    crack = _noise(rng, duration_s, 200, 11000) * np.exp(-time / rng.uniform(0.01, 0.025))
    echo = _noise(rng, duration_s, 120, rng.uniform(1200, 2500)) * np.exp(
        -time / (duration_s * rng.uniform(0.15, 0.25))
    )
    thump: Wave = np.sin(2 * np.pi * rng.uniform(60, 110) * time) * np.exp(-time / 0.04)
    return crack + 0.3 * echo + thump


def _insect(rng: Generator, duration_s: float) -> Wave:
    """Return the buzz of an insect that flies past: it gets louder, drops in pitch by the Doppler effect, and fades."""
    away = _time(duration_s) / duration_s - rng.uniform(0.4, 0.6)
    beat_hz = rng.uniform(150, 270) * (1 - 0.06 * np.tanh(6 * away)) * (0.98 + 0.04 * _wander(rng, duration_s, 12))
    wave = _harmonic(beat_hz, rng.uniform(0.5, 1, 24) / np.arange(1, 25) ** 0.8)
    return wave * (0.7 + 0.3 * _wander(rng, duration_s, 25)) / (1 + (rng.uniform(4, 7) * away) ** 2)


def _horn(rng: Generator, duration_s: float) -> Wave:
    """Return the sound of a car horn: two tones whose pitches are about a third apart."""
    steady_hz = np.full(round(duration_s * SAMPLE_RATE_HZ), rng.uniform(320, 450))
    levels = rng.uniform(0.4, 1, 18) / np.arange(1, 19) ** 0.5
    wave = _harmonic(steady_hz, levels) + _harmonic(steady_hz * rng.uniform(1.19, 1.27), levels)
    return wave * compute_ramps(duration_s, 0.02, 0.05)


# Backgrounds: they last for the complete clip.


def _rain(rng: Generator, duration_s: float) -> Wave:
    """Return the sound of rain: a hiss, and single drops nearby."""
    drops = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    positions = rng.integers(len(drops), size=rng.poisson(rng.uniform(30, 200) * duration_s))
    drops[positions] = rng.exponential(1.0, len(positions))
    drops = _filtered(drops, 2000, 7000)
    hiss = _noise(rng, duration_s, rng.uniform(500, 1500), rng.uniform(6000, 11000))
    return hiss + drops * float(rng.uniform(2, 5) / np.abs(drops).max())


def _wind(rng: Generator, duration_s: float) -> Wave:
    """Return the sound of wind: three bands of noise whose levels rise and fall independently."""
    track = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    for center_hz in (rng.uniform(90, 160), rng.uniform(250, 400), rng.uniform(500, 900)):
        gust = 0.15 + _wander(rng, duration_s, rng.uniform(0.4, 1.2)) ** 2
        track += _noise(rng, duration_s, center_hz * 0.85, center_hz * 1.15) * gust * (120 / center_hz) ** 0.4
    return track


def _waves(rng: Generator, duration_s: float) -> Wave:
    """Return the sound of surf: noise that swells and ebbs, and is brighter the louder it is."""
    cycle = (_time(duration_s) / rng.uniform(3.5, 6) + rng.uniform()) % 1
    swell: Wave = np.where(cycle < 0.35, cycle / 0.35, (1 - cycle) / 0.65) ** 1.5
    deep = _noise(rng, duration_s, 100, rng.uniform(500, 900)) * (0.15 + swell)
    return deep + rng.uniform(0.6, 1) * _noise(rng, duration_s, 900, 7000) * swell**2


def _engine(rng: Generator, duration_s: float) -> Wave:
    firing_hz = rng.uniform(24, 60) * (0.96 + 0.08 * _wander(rng, duration_s, 1.5))
    wave = _harmonic(firing_hz, rng.uniform(0.2, 1, 12) / np.arange(1, 13) ** 0.4)
    beat: Wave = 1 + np.sin(2 * np.pi * np.cumsum(firing_hz) / SAMPLE_RATE_HZ)
    return wave + rng.uniform(0.3, 0.7) * _noise(rng, duration_s, 150, rng.uniform(800, 1800)) * beat


def _crickets(rng: Generator, duration_s: float) -> Wave:
    """Return the sound of three crickets, each with its own pitch, rhythm and level."""
    track = np.zeros(round(duration_s * SAMPLE_RATE_HZ))
    pitch_hz = rng.uniform(3800, 5400)
    for level in (1.0, rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.4)):
        chirp_s = rng.uniform(0.08, 0.16)
        pulses = np.abs(np.sin(np.pi * rng.integers(3, 6) * _time(chirp_s) / chirp_s)) ** 1.5
        chirp = level * pulses * np.sin(2 * np.pi * pitch_hz * rng.normal(1, 0.06) * _time(chirp_s))
        beat_s = rng.uniform(0.3, 0.6)
        for onset_s in np.arange(rng.uniform(0, beat_s), duration_s, beat_s):
            mix_into(track, chirp, onset_s + rng.uniform(0, 0.03))
    return track


@dataclass(frozen=True)
class SoundKind:
    """Kind of foreground sound: the function that generates it, the range of its duration in seconds, and how many
    times in a row it may occur in a clip.
    """

    sound: Sound
    duration_s: tuple[float, float]
    max_count: int = 3


FOREGROUNDS: dict[str, SoundKind] = {
    "bell": SoundKind(_bell, (1.6, 2.6)),
    "siren": SoundKind(_siren, (1.5, 2.5)),
    "bird": SoundKind(_bird, (0.6, 1.3)),
    "footsteps": SoundKind(_footsteps, (2.5, 4.0), max_count=1),
    "dog": SoundKind(_dog, (0.18, 0.38)),
    "clock": SoundKind(_clock, (2.5, 4.0), max_count=1),
    "telephone": SoundKind(_telephone, (0.9, 1.6)),
    "knock": SoundKind(_knock, (0.15, 0.25)),
    "whistle": SoundKind(_whistle, (0.4, 0.9)),
    "gunshot": SoundKind(_gunshot, (0.6, 1.1)),
    "insect": SoundKind(_insect, (1.0, 2.0)),
    "car horn": SoundKind(_horn, (0.3, 0.9)),
}

BACKGROUNDS: dict[str, Sound] = {
    "rain": _rain,
    "wind": _wind,
    "waves": _waves,
    "engine": _engine,
    "crickets": _crickets,
}
