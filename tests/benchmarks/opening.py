"""What a store of 400,000 clips costs to open, to shuffle and to read a first batch from.

python tests/benchmarks/opening.py [--clips 400000]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import machine, say, told

from data.schema import SourceClip, Split
from data.store import shard_writer, split_writer

CLIPS_PER_SHARD = 128
NUM_SAMPLES = 640
"""20 ms: what isn't read doesn't count, however long it is."""

MEASURED = """
import json, os, resource, sys, time
from pathlib import Path
from data.loading.loader import load_epoch
from data.loading.pairs import ClipCaptionDataset
from data.loading.sampler import order_epoch
from data.leakage.exclusions import read_excluded_ids
from data.store.stored_split import open_split

def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

before = resident_mb()
started = time.perf_counter()
split = open_split(sys.argv[1], "bench/train")
num_clips = len(split.index)
opened = time.perf_counter()
opened_mb = resident_mb()
pairs = ClipCaptionDataset([split], 10.0, 30.0, 0.0, 0, read_excluded_ids(sys.argv[1], ["bench/train"]))
next(load_epoch(pairs, 0, order_epoch(pairs, 0, 64)))
first = time.perf_counter()
next(load_epoch(pairs, 0, order_epoch(pairs, 0, 64)[len(pairs) // 64 - 1 :]))
resumed = time.perf_counter()
print(json.dumps({"open_s": opened - started, "open_mb": opened_mb - before, "first_s": first - started,
    "resume_s": resumed - first, "all_mb": resident_mb() - before, "clips": num_clips}))
"""


def silence(number: int) -> "list[np.ndarray]":
    """A short clip, unlike the others."""
    return [np.full(NUM_SAMPLES, (number % 30_000) / 32_768, np.float32)]


def write_store(store: Path, number: int) -> None:
    """A split of many short clips, in shards as they are prepared."""
    from functools import partial

    clips = tuple(
        SourceClip(
            f"bench/train/{item:07d}.wav", partial(silence, item), (f"The sound of recording number {item}.",), ""
        )
        for item in range(number)
    )
    folder = store / "bench" / "train"
    folder.mkdir(parents=True)
    parts = [clips[first : first + CLIPS_PER_SHARD] for first in range(0, number, CLIPS_PER_SHARD)]
    summaries = [
        shard_writer.write_shard(
            folder / shard_writer.build_shard_name(place, part, "pcm16"), "bench", "train", part, "pcm16"
        )
        for place, part in enumerate(parts)
    ]
    split_writer.write_split(folder, Split("bench", "train", clips), "pcm16", summaries)


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=400_000)
    arguments = parser.parse_args()
    say(machine())
    figures = {}
    for number in (arguments.clips // 40, arguments.clips):
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder), number)
            done = subprocess.run([sys.executable, "-c", MEASURED, folder], capture_output=True, text=True, check=True)
            figures[number] = json.loads(done.stdout)
    for number, measured in figures.items():
        say(f"\n{number:,} clips (the store was written just before: its pages are in memory)")
        told("opening", measured["open_s"], "s", most=1)
        told("memory after opening", measured["open_mb"], "MB", most=200)
        told("the first batch of 64, opening included", measured["first_s"], "s", most=2)
        told("going on at an epoch's last batch", measured["resume_s"], "s")
        told("memory by then, a batch included", measured["all_mb"], "MB")


if __name__ == "__main__":
    main()
