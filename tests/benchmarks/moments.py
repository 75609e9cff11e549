"""Moments in long recordings: how often the best moment for a caption overlaps the clip that the caption describes.

python tests/benchmarks/moments.py EXPORTED CLOTHO [--files 10] [--minutes 10]

Clips of Clotho's evaluation split are joined to recordings of ten minutes. Each caption is searched for in the
recording with its clip: the planted sound is at a known place among the others. Chance is the share of a recording's
moments that overlap the clip, the mean over captions. The interval is a bootstrap over recordings.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from measure import machine, say, told

from ensemble.serving import load
from ensemble.serving.hits import Filter

RATE_HZ = 44_100
SPLIT = "evaluation"


def read_clips(source):
    """Clips of the split in random order: samples and captions."""
    with (source / f"clotho_captions_{SPLIT}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in np.random.default_rng(0).permutation(rows):
        samples, rate_hz = soundfile.read(source / SPLIT / row["file_name"], dtype="float32")
        assert rate_hz == RATE_HZ
        yield samples, [row[f"caption_{number}"] for number in range(1, 6)]


def write_recordings(source, folder, num_files, minutes):
    """Write the long recordings, each into a folder of its own, and return their clips: start, end, captions."""
    clips = read_clips(source)
    placed = {}
    for number in range(num_files):
        parts, spans, length = [], [], 0
        while length < minutes * 60 * RATE_HZ:
            samples, captions = next(clips)
            spans.append((length / RATE_HZ, (length + len(samples)) / RATE_HZ, captions))
            parts.append(samples)
            length += len(samples)
        (folder / f"{number}").mkdir(parents=True)
        soundfile.write(folder / f"{number}" / "long.flac", np.concatenate(parts), RATE_HZ)
        placed[f"{number}"] = spans
    return placed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path)
    parser.add_argument("clotho", type=Path)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    say(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "long"
        placed = write_recordings(arguments.clotho, folder, arguments.files, arguments.minutes)
        library = load(arguments.exported, Path(scratch) / "index")
        library.add([folder])
        hits, chances = [], []
        for name, spans in placed.items():
            number = library.view.find(next(one.id for one in library.recordings if one.folder == name))
            moments = library.view.index.read_intervals(library.view.index.find_rows(number, "moments"))
            for start_s, end_s, captions in spans:
                overlapping = (moments[:, 0] < end_s) & (moments[:, 1] > start_s)
                for caption in captions:
                    (hit,) = library.search(caption, k=1, where=Filter(folder=name))
                    best = hit.moments[0]
                    hits.append((name, best.start_s < end_s and best.end_s > start_s))
                    chances.append(overlapping.mean())
    names = np.array([name for name, _ in hits])
    shares = np.array([np.mean([hit for other, hit in hits if other == name]) for name in np.unique(names)])
    draws = np.random.default_rng(0).choice(shares, (2000, len(shares))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    say(f"{len(placed)} recordings of {arguments.minutes:g} min, {len(hits)} captions")
    told("best moments that overlap the planted clip", 100 * np.mean([hit for _, hit in hits]), "%")
    say(f"95 % interval over recordings: {100 * low:.1f} to {100 * high:.1f} %")
    told("chance", 100 * float(np.mean(chances)), "%")


if __name__ == "__main__":
    main()
