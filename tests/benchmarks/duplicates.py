"""How well copies of held-out recordings are told from other recordings, and how fast.

python tests/benchmarks/duplicates.py [--seed N] [--held-out N]

100 copies of held-out recordings, changed in seven ways, are looked up among 1,000 others: once with scenes of the
synthetic corpus, and once with scenes mixed from real recordings (ESC-10), where their builder lies beside this
repository, in shared/corpora. Of the others, 400 or more hold the loudest two seconds of a held-out recording, or are
other mixes of the same real recordings. The constants of data/leakage/landmarks.py were chosen on seed 1.
"""

import argparse
import io
import os
import runpy
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import soundfile
import soxr
from measure import machine, say, told
from numpy.random import Generator

from data.corpora import synthetic
from data.leakage.landmarks import PHASES, LandmarkIndex, compute_landmarks
from data.schema import SAMPLE_RATE_HZ, Samples

BUILDER = Path(__file__).parents[2].parent / "shared" / "corpora" / "build.py"

NUM_COPIES, NUM_OTHERS, NUM_EXCERPTS = 100, 1000, 400
SHORTEST_CUT_S, LONGEST_CUT_S = 3.0, 10.0
EVENT_S = 2.0
MOST_CLIPPING_DB = 6.0
RATES_HZ = (8_000, 16_000, 22_050, 44_100, 48_000)
COMPRESSION = (0.0, 0.8)
"""Of libsndfile, whose scale is from 0, the best, to 1. At 32 kHz and 0.8, MP3 has about 70 kbit/s."""

Make = Callable[[int], tuple[Samples, frozenset[int]]]
"""Number -> a recording, always the same one, and which recordings go through its background."""


@dataclass(frozen=True)
class Material:
    """Recordings by number, without end; `related` are mixes of the same recordings as the held-out ones."""

    held_out: Make
    other: Make
    related: Make | None


# What makes a copy: samples -> samples. The generator draws how.


def at_rate(samples: Samples, rng: Generator) -> Samples:
    """Through another sample rate."""
    rate_hz = int(rng.choice(RATES_HZ))
    return soxr.resample(soxr.resample(samples, SAMPLE_RATE_HZ, rate_hz), rate_hz, SAMPLE_RATE_HZ)


def at_gain(samples: Samples, rng: Generator) -> Samples:
    """20 dB softer to 20 dB louder, but clipped by no more than MOST_CLIPPING_DB; in 16 bits."""
    loudest_db = 20 * np.log10(np.abs(samples).max())
    gain_db = rng.uniform(-20, min(20, MOST_CLIPPING_DB - loudest_db))
    pcm = np.clip(np.rint(samples * 10 ** (gain_db / 20) * 32_768), -32_768, 32_767)
    return (pcm / 32_768).astype(np.float32)


def encoded(samples: Samples, rng: Generator, container: str, subtype: str) -> Samples:
    """Through a lossy codec, whose delay stays."""
    file = io.BytesIO()
    level = rng.uniform(*COMPRESSION)
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format=container, subtype=subtype, compression_level=level)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def as_ogg(samples: Samples, rng: Generator) -> Samples:
    """Through Ogg Vorbis."""
    return encoded(samples, rng, "OGG", "VORBIS")


def as_mp3(samples: Samples, rng: Generator) -> Samples:
    """Through MP3."""
    return encoded(samples, rng, "MP3", "MPEG_LAYER_III")


def cut(samples: Samples, rng: Generator) -> Samples:
    """3 to 10 s of it, from any sample on."""
    length = round(rng.uniform(SHORTEST_CUT_S, LONGEST_CUT_S) * SAMPLE_RATE_HZ)
    start = int(rng.integers(max(1, len(samples) - length)))
    return samples[start : start + length]


def combined(samples: Samples, rng: Generator) -> Samples:
    """Cut out, at another rate and gain, through a codec."""
    change = (as_ogg, as_mp3)[int(rng.integers(2))]
    return change(at_gain(at_rate(cut(samples, rng), rng), rng), rng)


KINDS: dict[str, Callable[[Samples, Generator], Samples]] = {
    "another rate": at_rate,
    "another gain": at_gain,
    "Ogg Vorbis": as_ogg,
    "MP3": as_mp3,
    "cut out of it": cut,
    "in a longer one": lambda samples, rng: samples,
    "several of these": combined,
}


def within(samples: Samples, other: Samples, rng: Generator) -> Samples:
    """A recording in the midst of another one."""
    place = int(rng.integers(len(other)))
    return np.concatenate([other[:place], samples, other[place:]])


def over(event: Samples, background: Samples, rng: Generator) -> Samples:
    """The loudest two seconds of a recording, over another one 9 dB softer."""
    length = min(len(event), round(EVENT_S * SAMPLE_RATE_HZ))
    energy = np.concatenate([[0], np.cumsum(np.square(event, dtype=np.float64))])
    start = int(np.argmax(energy[length:] - energy[:-length]))
    mix = 0.35 * background / np.abs(background).max()
    place = int(rng.integers(max(1, len(mix) - length)))
    room = mix[place : place + length]
    room += (0.65 / np.abs(event).max() * event[start : start + length])[: len(room)]
    return mix


def synthetic_material(seed: int, num_held_out: int) -> Material:
    """Scenes of the synthetic corpus."""
    sizes = synthetic.Config(NUM_OTHERS + NUM_COPIES, num_held_out, 1, min_duration_s=5.0, max_duration_s=30.0)
    others, held_out, _ = synthetic.read(None, seed, sizes)
    return Material(
        lambda number: (np.concatenate(list(held_out.clips[number].load())), frozenset()),
        lambda number: (np.concatenate(list(others.clips[number].load())), frozenset()),
        None,
    )


def real_material(seed: int) -> Material:
    """Scenes of real recordings, the held-out ones from fold 5; their events last two seconds at most."""
    builder = runpy.run_path(str(BUILDER))
    library: Any = builder["Recordings"]()

    def scenes(folds: str, stream: int) -> Make:
        def make(number: int) -> tuple[Samples, frozenset[int]]:
            rng = np.random.default_rng([seed, stream, number])
            scene, backgrounds = builder["draw_scene"](rng), set[int]()

            class Noted:
                """The library; it notes what it lends for a background."""

                def pick(self, kind: str, folds: str, rng: Generator) -> Any:
                    found = library.pick(kind, folds, rng)
                    if kind == scene.background:
                        backgrounds.add(id(found))
                    return found

            duration_s = int(rng.integers(20, 60)) / 2  # numbers of samples that a Fourier transform is quick for
            mix = builder["render"](scene, duration_s, folds, Noted(), rng)
            return builder["resample"](mix, SAMPLE_RATE_HZ), frozenset(backgrounds)

        return make

    return Material(scenes("5", 0), scenes("123", 1), scenes("5", 2))


@dataclass(frozen=True)
class Query:
    """A recording to look up."""

    kind: str
    samples: Samples
    copy_of: int | None
    backgrounds: frozenset[int]


def queries(material: Material, rng: Generator) -> Iterator[Query]:
    """The copies, then the others."""
    for number in range(NUM_COPIES):
        kind = list(KINDS)[number % len(KINDS)]
        samples, backgrounds = material.held_out(number)
        copy = KINDS[kind](samples, rng)
        if kind == "in a longer one":
            copy = within(copy, material.other(NUM_OTHERS + number)[0], rng)
        yield Query(kind, copy, number, backgrounds)
    for number in range(NUM_OTHERS):
        samples, backgrounds = material.other(number)
        if number < NUM_EXCERPTS:
            yield Query("2 s of it", over(material.held_out(number % NUM_COPIES)[0], samples, rng), None, frozenset())
        elif material.related and number < 2 * NUM_EXCERPTS:
            yield Query("other mix of the same", *material.related(number)[:1], None, material.related(number)[1])
        else:
            yield Query("other", samples, None, backgrounds)


def measure(material: Material, seed: int, num_held_out: int) -> None:
    """Look everything up, and tell how often that was right and what it cost."""
    spent_s = heard_s = 0.0
    found, backgrounds_of = [], {}
    for number in range(num_held_out):
        samples, backgrounds_of[str(number)] = material.held_out(number)
        started = time.process_time()
        found.append((str(number), compute_landmarks([samples], PHASES)))
        spent_s += time.process_time() - started
        heard_s += len(samples) / SAMPLE_RATE_HZ
    started = time.process_time()
    index = LandmarkIndex.build(found)
    spent_s += time.process_time() - started
    num_bytes = index.sounding_ticks.nbytes + index.hash_starts.nbytes + index.positions.nbytes
    say(f"{num_held_out} held out, {heard_s / 3600:.2f} h; index of {num_bytes / 1e6:.0f} MB")
    told("indexing, seconds of audio a CPU second", heard_s / spent_s, "")

    planted, right, wrong, same_background = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    landmarks_s = find_s = heard_s = 0.0
    for query in queries(material, np.random.default_rng([seed, 9])):
        started = time.process_time()
        query_landmarks = compute_landmarks([query.samples])
        between = time.process_time()
        matches = index.find_matches(query_landmarks)
        landmarks_s, find_s = landmarks_s + between - started, find_s + time.process_time() - between
        heard_s += len(query.samples) / SAMPLE_RATE_HZ
        planted[query.kind] += 1
        if query.copy_of is not None:
            right[query.kind] += bool(matches) and matches[0].clip_id == str(query.copy_of)
        elif any(not backgrounds_of[match.clip_id] & query.backgrounds for match in matches):
            wrong[query.kind] += 1
        elif matches:
            same_background[query.kind] += 1
    for kind, number in planted.items():
        if kind in KINDS:
            say(f"    {kind:<24} {right[kind]:4} of {number} found")
        else:
            say(
                f"    {kind:<24} {wrong[kind]:4} of {number} reported by mistake",
            )
    reported = right.total() + wrong.total()
    told("recall", right.total() / NUM_COPIES, "", least=0.98)
    told("precision", right.total() / reported, "", least=0.98)
    if same_background:
        say(f"    besides, {same_background.total()} were reported that have a background recording in common with the")
        precision = right.total() / (reported + same_background.total())
        say(f"    held-out one they are taken for; were that a mistake, precision would be {precision:.2f}")
    told("landmarks and look-up, seconds of audio a CPU second", heard_s / (landmarks_s + find_s), "", least=2000)
    say(f"    30 s of audio: landmarks {landmarks_s / heard_s * 3e4:.1f} ms, look-up {find_s / heard_s * 3e4:.1f} ms")


def main() -> None:
    """Measure both materials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=200, help="recordings in the index, 100 or more")
    arguments = parser.parse_args()
    say(machine())
    say(f"\nsynthetic scenes, seed {arguments.seed}")
    measure(synthetic_material(arguments.seed, arguments.held_out), arguments.seed, arguments.held_out)
    if BUILDER.exists():
        say(f"\nscenes of real recordings, seed {arguments.seed}")
        measure(real_material(arguments.seed), arguments.seed, arguments.held_out)


if __name__ == "__main__":
    main()
