"""Requests a second, and the time of an answer, of a server of the search page, for one user and for many.

python tests/benchmarks/serving.py [--users 16] [--seconds 10]     # tiny random models, synthetic recordings
python tests/benchmarks/serving.py --ensemble DIR                   # an exported ensemble and its index

Each user sends a new sentence as soon as the last one is answered; no sentence is sent twice, as the server keeps the
vectors of earlier ones. Uploads take turns with sentences in the last row: a sound is decoded in a process of its own.
With Chromium on the PATH, sentences are also typed into the page, until its results are those of the last key.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from chromium import CHROMIUM, open_tab
from measure import machine, say, told, write_recordings

from data.splits import Splits
from ensemble.export import export_ensemble
from ensemble.serving.library import load
from sweeps.spaces import demo
from trainables.networks import dual_encoder
from trainables.records import checkpoint
from trainables.records.run_storage import RunStorage

ROOT = Path(__file__).parents[2]
SOUNDS = ("a dog", "heavy rain", "a church bell", "an engine", "a crowd", "a creaking door", "an owl", "water")
EVENTS = ("starts", "stops", "comes closer", "is followed by thunder", "echoes in a hall", "can hardly be noticed")


def write_library(folder: Path, number: int) -> Path:
    """An exported ensemble of the demo's encoder pairs, random as they are, with an index of short recordings."""
    splits = Splits("synthetic/train", "synthetic/validation", "synthetic/test", ("synthetic/train",))
    pretrainings = {trial.pretraining for trial in demo(splits, "float32")} - {None}
    captions = [f"{sound} {event}" for sound in SOUNDS for event in EVENTS]
    members = []
    for place, trial in enumerate(sorted(pretrainings, key=repr)):
        network, signature = dual_encoder.build(trial, captions), f"{place:016x}"
        checkpoint.save_model(folder / "runs" / "models" / signature, trial, network, checkpoint.copy_weights(network))
        members.append({"name": f"member {place}", "weight": 1 / len(pretrainings), "signature": signature})
    path = folder / "ensemble.json"
    path.write_text(json.dumps({"format_version": 3, "members": members}))
    export_ensemble(path, folder / "exported", RunStorage.of(folder / "runs"))
    write_recordings(folder / "sounds", number, 5.0)
    load(folder / "exported").add([folder / "sounds"])
    return folder / "exported"


async def ask(client: httpx2.AsyncClient, sentences: "itertools.count[int]", until_s: float, sound: bytes | None,
              took_s: list[float]) -> None:  # fmt: skip
    """One user: a new sentence after each answer until the time is over; in turn with a sound if there is one."""
    while time.perf_counter() < until_s:
        number = next(sentences)
        began = time.perf_counter()
        if sound is not None and number % 2:
            response = await client.post("/api/similar", content=sound)
        else:
            sentence = f"{SOUNDS[number % len(SOUNDS)]} {EVENTS[number % len(EVENTS)]}, take {number}"
            response = await client.get("/api/search", params={"q": sentence})
        response.raise_for_status()
        took_s.append(time.perf_counter() - began)


async def measure(url: str, sentences: "itertools.count[int]", users: int, seconds: float, sound: bytes | None) -> None:
    """Measure some users at once, and print the figures."""
    took_s: list[float] = []
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        began = time.perf_counter()
        await asyncio.gather(*(ask(client, sentences, began + seconds, sound, took_s) for _ in range(users)))
        all_s = time.perf_counter() - began
    what = f"{users} user{'s' * (users > 1)}{', sentences and sounds in turn' if sound else ', sentences'}"
    told(f"{what}: requests", len(took_s) / all_s, "a second")
    told(f"{what}: median", 1e3 * float(np.median(took_s)), "ms")
    told(f"{what}: 99th percentile", 1e3 * float(np.percentile(took_s, 99)), "ms",
         most=180 if users == 1 and not sound else None)  # fmt: skip


WATCH = """(() => {
    const field = document.getElementById('query');
    field.focus();
    field.select();
    field.addEventListener('input', () => { window.typedMs = performance.now(); window.shownMs = null; });
    new MutationObserver(() => { window.shownMs = performance.now(); })
        .observe(document.getElementById('results'), {childList: true});
})()"""


async def measure_page(url: str, folder: Path, number: int = 20) -> None:
    """Type sentences into the page, and print the time from the last key to the results."""
    took_ms = []
    async with open_tab(folder) as tab:
        for item in range(number):
            await tab.open(url)
            await tab.wait("document.getElementById('status').textContent !== ''")
            await tab.value(WATCH)
            sentence = f"{SOUNDS[item % len(SOUNDS)]} {item}"
            await tab.type(sentence)
            await tab.wait(f"window.shownMs && new URLSearchParams(location.search).get('q') === {sentence!r}")
            await asyncio.sleep(0.2)
            took_ms.append(await tab.value("window.shownMs - window.typedMs"))
    told("the page, from the last key to the results: median", float(np.median(took_ms)), "ms", most=300)
    told("the page, from the last key to the results: maximum", max(took_ms), "ms", most=300)


def start(exported: Path, words: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "ensemble/search.py", str(exported), "--serve", "--port", "0", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout
    return process, process.stdout.readline().strip()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ensemble", type=Path, help="an exported ensemble with an index (default: a tiny one)")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--recordings", type=int, default=100)
    arguments = parser.parse_args()
    say(machine())
    with tempfile.TemporaryDirectory() as scratch:
        exported = arguments.ensemble or write_library(Path(scratch), arguments.recordings)
        sound = write_recordings(Path(scratch) / "upload", 1, 5.0)[0].read_bytes()
        process, url = start(exported.resolve(), [])
        try:
            sentences = itertools.count()
            for users, uploaded in ((1, None), (arguments.users, None), (arguments.users, sound)):
                asyncio.run(measure(url, sentences, users, arguments.seconds, uploaded))
            if CHROMIUM:
                asyncio.run(measure_page(url, Path(scratch)))
            began = time.perf_counter()
            process.send_signal(signal.SIGINT)
            process.wait(60)
            told("from Ctrl-C to the end of the server", time.perf_counter() - began, "s", most=1.0)
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
