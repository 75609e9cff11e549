"""What the benchmarks share: the machine, CPU time, recordings, and how a figure is told."""

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr

from data.corpora import synthetic
from data.schema import SAMPLE_RATE_HZ

PUBLISHED_RATE_HZ = 44_100
"""Of Clotho's files."""


def machine() -> str:
    """The processor and its cores."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    name = models[0] if models else platform.processor()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def say(line: str = "") -> None:
    """A line of the report."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def told(what: str, figure: float, unit: str, least: float | None = None, most: float | None = None) -> None:
    """A figure, and whether it is what was asked for."""
    target = f"at least {least:g}" if least is not None else f"at most {most:g}" if most is not None else ""
    met = (least is None or figure >= least) and (most is None or figure <= most)
    say(f"{what:<72} {figure:10.2f} {unit:<12} {target and ('ok  ' if met else 'MISSED')} {target}")


def cpu_s(function: Callable[[int], object], number: int) -> float:
    """CPU seconds of this process for function(0) .. function(number - 1), each called once before."""
    for item in range(min(number, 3)):
        function(item)
    started = time.process_time()
    for item in range(number):
        function(item)
    return time.process_time() - started


def write_recordings(folder: Path, number: int, duration_s: float) -> list[Path]:
    """WAV files as Clotho has them, mono at 44.1 kHz in 16 bits, of the synthetic corpus' scenes joined end to end."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = synthetic.Config(max(8, number), 1, 1, min_duration_s=5.0, max_duration_s=30.0)
    clips = synthetic.read(None, 0, sizes)[0].clips
    paths = []
    for item in range(number):
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < duration_s * SAMPLE_RATE_HZ:
            parts += clips[(item + len(parts)) % len(clips)].load()
        samples = np.concatenate(parts)[: round(duration_s * SAMPLE_RATE_HZ)]
        paths.append(folder / f"{item}.wav")
        resampled = soxr.resample(samples, SAMPLE_RATE_HZ, PUBLISHED_RATE_HZ)
        soundfile.write(paths[-1], resampled, PUBLISHED_RATE_HZ, subtype="PCM_16")
    return paths
