"""Sentence and files of noise that the tests of libraries share."""

import numpy as np
import soundfile

SENTENCE = "a dog barks while it rains"
RATE_HZ = 32_000
HALF_PRECISION = 5e-4


def write_noise(path, seconds, seed=0, level=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, level, int(RATE_HZ * seconds)), RATE_HZ)
    return path


def list_paths(library):
    return sorted(recording.path for recording in library.recordings)
