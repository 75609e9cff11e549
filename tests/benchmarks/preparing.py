"""How preparation grows with workers, and what its CPU time goes into.

python tests/benchmarks/preparing.py [--hours 20]
"""

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import machine, say, told, write_recordings

from data import waveform
from data.corpora import folder as folder_corpus
from data.store import shard_writer
from data.waveform import CODECS

CLIP_S = 30.0
NUM_RECORDINGS = 40
"""That differ; the others are links to them, since the disk isn't what is measured."""

TIMED = """
import json, sys, time
from pathlib import Path
import ray
ray.init(num_cpus=int(sys.argv[1]), log_to_driver=False)
from data.preparation import build
from data.runtime.parallel import run_on_ray
from data.store.files import hash_json
list(run_on_ray(hash_json, [("",)] * 32))
time.sleep(3)
started = time.perf_counter()
build.prepare_corpus("folder", Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
print(json.dumps(time.perf_counter() - started))
"""


class Unread:
    """A digest that costs nothing."""

    def update(self, data: object) -> None:
        """Nothing."""


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=20)
    arguments = parser.parse_args()
    say(machine())
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        recordings = write_recordings(Path(folder) / "wav", NUM_RECORDINGS, CLIP_S)
        source.mkdir()
        number = round(arguments.hours * 3600 / CLIP_S)
        names = [f"{item:06d}.wav" for item in range(number)]
        for item, name in enumerate(names):
            os.link(recordings[item % len(recordings)], source / name)
        with (source / "captions.csv").open("w", newline="") as out:
            csv.writer(out).writerows(
                [("file_name", "caption", "split"), *((name, f"Recording {name}.", "train") for name in names)]
            )
        shares(source, Path(folder))
        for codec in CODECS:
            seconds = {}
            for workers in (1, 2):
                store = Path(folder) / f"{codec}-{workers}"
                command = [sys.executable, "-c", TIMED, str(workers), str(source), str(store), codec]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds[workers] = float(done.stdout.splitlines()[-1])
            rate = arguments.hours * 3600 / seconds[2]
            say(
                f"\n{arguments.hours:g} h into {codec}: {seconds[1]:.0f} s with one worker, {seconds[2]:.0f} s with "
                f"two, {rate:,.0f} times real time"
            )
            told("one worker's time / that of two", seconds[1] / seconds[2], "times", least=1.7)
            subprocess.run(["diff", "-r", f"{folder}/{codec}-1", f"{folder}/{codec}-2"], check=True)
            say("both stores hold the same bytes")


def shares(source: Path, folder: Path) -> None:
    """How much of a worker's CPU time is decoding, resampling and encoding."""
    clips = folder_corpus.read(source, 0)[0].clips[:160]
    say("\nThe share of a worker's CPU time that is decoding, resampling and encoding")
    for codec in CODECS:
        costs = []
        for _ in range(2):
            started = time.process_time()
            for first in range(0, len(clips), 32):
                path = folder / "shares" / codec / f"{first}.arrow"
                shard_writer.write_shard(path, "folder", "train", clips[first : first + 32], codec)
            whole = time.process_time() - started
            started = time.process_time()
            for clip in clips:
                waveform.encode(clip.load(), codec, io.BytesIO(), Unread())
            costs.append((time.process_time() - started) / whole)
        told(codec, max(costs), "", least=0.9)


if __name__ == "__main__":
    main()
