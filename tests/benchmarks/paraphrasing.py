"""Paraphrasing through a server that takes 50 ms for an answer: against the ideal time, and memory against captions.

python tests/benchmarks/paraphrasing.py [--captions 5000] [--rounds 3]

The ideal is that of a client that takes no time itself: captions / requests at a time x latency. The command runs in a
process of its own, and the server in another; asking lasts from the first request that the server sees to its last.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
from measure import machine, say, told

from data.schema import SourceClip, Split
from data.store import shard_writer, split_writer

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests" / "data" / "chat_server.py"
LATENCY_S = 0.05
CONCURRENCY = 64
CAPTIONS_PER_CLIP = 5


def load():
    """Hardly any audio."""
    yield np.zeros(320, np.float32)


def write_store(store: Path, number: int) -> None:
    """A split with so many captions."""
    clips = [
        SourceClip(
            f"test/train/{clip:06d}.wav",
            load,
            tuple(f"Sound {clip} of kind {kind} comes after some other sound." for kind in range(CAPTIONS_PER_CLIP)),
            origin="",
            keywords=("field-recording", "sound"),
        )
        for clip in range(number // CAPTIONS_PER_CLIP)
    ]
    folder = store / "test" / "train"
    parts = [clips[start : start + 128] for start in range(0, len(clips), 128)]
    summaries = [
        shard_writer.write_shard(
            folder / shard_writer.build_shard_name(place, part, "pcm16"), "test", "train", part, "pcm16"
        )
        for place, part in enumerate(parts)
    ]
    split_writer.write_split(folder, Split("test", "train", tuple(clips)), "pcm16", summaries)


class Measured(NamedTuple):
    """What one run of the command took."""

    whole_s: float
    asking_s: float
    cpu_s: float
    memory_mb: float


def run(store: Path) -> Measured:
    """Run the command against a server of its own."""
    faults = json.dumps({"latency_s": LATENCY_S, "canned": True})
    with subprocess.Popen([sys.executable, SERVER, faults], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline())
            words = [sys.executable, "data/paraphrase.py", "test", "--split", "train", "--store", str(store)]
            words += [
                "--model",
                "canned",
                "--base-url",
                f"http://127.0.0.1:{port}/v1",
                "--concurrency",
                str(CONCURRENCY),
            ]
            started = time.perf_counter()
            process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            whole_s = time.perf_counter() - started
            if status:
                raise RuntimeError(said)
            assert re.search(r"not a duplicate +100\.0 %", said)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/log") as answer:
                arrivals = json.load(answer)["arrivals"]
        finally:
            server.kill()
    asking_s = max(arrivals) - min(arrivals) + LATENCY_S
    return Measured(whole_s, asking_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    say(f"{machine()}, {arguments.captions} captions, {LATENCY_S * 1000:g} ms, {CONCURRENCY} at a time")
    with tempfile.TemporaryDirectory() as scratch:
        numbers = {"few": arguments.captions, "many": 10 * arguments.captions}
        for name, number in numbers.items():
            write_store(Path(scratch) / name, number)
        runs = []
        for _ in range(arguments.rounds):
            (Path(scratch) / "few" / "test" / "train" / "paraphrases.jsonl").unlink(missing_ok=True)
            runs.append(run(Path(scratch) / "few"))
        many = run(Path(scratch) / "many")
    asking_s, whole_s = statistics.median(run.asking_s for run in runs), statistics.median(run.whole_s for run in runs)
    ideal_s = arguments.captions / CONCURRENCY * LATENCY_S
    told("the ideal", ideal_s, "s")
    told("the command", whole_s, "s")
    told("of it, asking", asking_s, "s")
    told("asking, times the ideal", asking_s / ideal_s, "", most=1.5)
    told(
        "CPU of the command, a caption", 1000 * statistics.median(run.cpu_s for run in runs) / arguments.captions, "ms"
    )
    told(f"memory, {numbers['few']:,} captions", runs[0].memory_mb, "MB")
    told(f"memory, {numbers['many']:,} captions", many.memory_mb, "MB")
    told("memory, ten times the captions", many.memory_mb / runs[0].memory_mb, "", most=1.2)


if __name__ == "__main__":
    main()
