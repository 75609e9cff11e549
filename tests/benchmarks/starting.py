"""What users wait for besides training: how commands start, and what a sweep's time goes into.

python tests/benchmarks/starting.py [--rounds 3]                             # all of it, on a small corpus
python tests/benchmarks/starting.py --space small --corpus clotho --store DIR    # the time of a sweep of yours
python tests/benchmarks/starting.py --runs DIR --sweep NAME                  # that of a sweep that has been run

CPU seconds are a command's own, with those of the processes it waits for. With `--space` it takes as long as the sweep.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from measure import machine, say, told

from ensemble import __path__ as ensemble_folder
from trainables.records.ledger import Ledger
from trainables.records.mlflow_ledger import open_ledger

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "data/prepare.py", "data/paraphrase.py", "sweeps/grid.py", "trainables/pretrain.py", "trainables/embed.py",
    "ensemble/select.py", "ensemble/report.py", "ensemble/search.py", "ensemble/export.py", "ensemble/submission.py",
)  # fmt: skip
SHOWN_MODULES = 4
RATE_HZ = 32_000

SPACE = """
from dataclasses import replace
from sweeps.spaces import fine_tuning, from_scratch

def tiny(splits, precision):
    base = from_scratch(splits, "float32", "cnn:small", rate=1e-3, epochs=2)
    text = replace(base.text, width=32, layers=1, heads=2)
    audio = replace(base.audio, channels=(8, 16), convolutions=(1, 1), stem_channels=8, segment_s=1.0)
    base = replace(base, audio=audio, text=text, batch_size=8, embedding_size=16)
    return [replace(fine_tuning(splits, base, 0.3, epochs=2), seed=seed) for seed in range(8)]
"""


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    cpu_s: float
    wall_s: float
    output: str


def run(*words: object, status: int = 0) -> Cost:
    """Run a command of the project and return what it took."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode != status:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {process.returncode}:\n{output}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - began, output)


def modules_of(*words: object) -> str:
    """Return the packages that cost most to import, with the milliseconds of all their modules together."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    own_us: dict[str, int] = {}
    for self_us, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", done.stderr, flags=re.MULTILINE):
        package = name.partition(".")[0]
        own_us[package] = own_us.get(package, 0) + int(self_us)
    most = sorted(own_us.items(), key=lambda item: -item[1])[:SHOWN_MODULES]
    return ", ".join(f"{package} {microseconds / 1000:.0f}" for package, microseconds in most)


def row(what: str, words: Sequence[object], rounds: int, most: float | None = None, status: int = 0) -> None:
    """Measure a command, the median of some rounds, and print it with the packages that cost most."""
    costs = [run(*words, status=status) for _ in range(rounds)]
    cpu_s, wall_s = (float(np.median([getattr(cost, name) for cost in costs])) for name in ("cpu_s", "wall_s"))
    target = "" if most is None else f"{'ok    ' if cpu_s <= most else 'MISSED'} at most {most:g}"
    say(f"{what:<44} {cpu_s:7.2f} {wall_s:7.2f}  {target:<18} {modules_of(*words)}")


def write_tones(folder: Path) -> None:
    """Write a folder corpus of short tones: 40 clips to train on, 12 to validate and 12 to test on."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for split, count in (("train", 40), ("validation", 12), ("test", 12)):
        for index in range(count):
            seconds = np.arange(int(RATE_HZ * 2.5)) / RATE_HZ
            hz = (200, 800, 3200)[index % 3] * rng.uniform(0.9, 1.1)
            name = f"{split}-{index}.wav"
            soundfile.write(folder / name, 0.3 * np.sin(2 * np.pi * hz * seconds), RATE_HZ)
            rows.append((name, f"A tone of {hz:.0f} hertz sounds, take {index}.", split))
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("file_name", "caption", "split"), *rows])


def commands(rounds: int) -> None:
    """Measure how each command starts."""
    for command in COMMANDS:
        row(f"{command} --help", [command, "--help"], rounds, most=0.5)
    row("sweeps/grid.py --space nonsense", ["sweeps/grid.py", "--space", "nonsense"], rounds, 0.5, status=2)


def after_a_sweep(runs: Path, store: Path, rounds: int) -> None:
    """Measure the commands that read a finished sweep."""
    row("sweeps/grid.py --status", ["sweeps/grid.py", "--status", "--runs", runs], rounds, 3.0)
    select = ["ensemble/select.py", "--metric", "map10", "--runs", runs]
    for compiled in (Path(ensemble_folder[0]) / "__pycache__").glob("kernels.*.nb[ci]"):
        compiled.unlink()
    row("ensemble/select.py, the first time", select, 1, 10.0)
    row("ensemble/select.py", select, rounds, 5.0)
    row("ensemble/report.py", ["ensemble/report.py", "--runs", runs], rounds, 8.0)
    (ensemble,) = runs.glob("ensembles/*/ensemble.json")
    index = runs / "index"
    search = ["ensemble/search.py", ensemble, "--runs", runs, "--index", index]
    run(*search, "--add", store.parent / "tones")
    row("ensemble/search.py", [*search, "a low tone"], rounds, 6.0)


def timeline(ledger: Ledger, name: str | None, began_s: float | None, ended_s: float | None) -> None:
    """Print what the time of a sweep went into, by the runs of its trials in MLflow.

    A trial's own seconds are those from its run's start to its end. What is neither an epoch's training nor validation
    nor embedding is building the model, checkpoints, logging and waiting.
    """
    trials = list(trials_of(ledger, name))
    began_s = began_s or min(trial["start"] for trial in trials)
    ended_s = ended_s or max(trial["end"] for trial in trials)
    wall_s = ended_s - began_s
    at_once = max(sum(other["start"] <= trial["start"] < other["end"] for other in trials) for trial in trials)
    parts = {part: sum(trial[part] for trial in trials) for part in ("training_s", "validation_s", "embedding_s")}
    busy_s = sum(trial["end"] - trial["start"] for trial in trials)
    other_s = busy_s - sum(parts.values())
    first_s = min(trial["start"] for trial in trials) - began_s
    say(
        f"{len(trials)} trials in {wall_s:.0f} s, {at_once} at a time: seconds, and their share of all {at_once} places"
    )
    shown = {
        "start-up: before the first trial": at_once * first_s,
        "epochs: training": parts["training_s"],
        "epochs: validation": parts["validation_s"],
        "embedding the splits": parts["embedding_s"],
        "model, checkpoints and logging": other_s,
        "idle: no trial on a place": at_once * (wall_s - first_s) - busy_s,
    }
    for what, seconds in shown.items():
        say(f"  {what:<40} {seconds:9.1f} {seconds / (at_once * wall_s):7.1%}")
    later = sorted(trials, key=lambda trial: trial["start"])[at_once:]
    if later:
        overhead_s = [
            trial["end"] - trial["start"] - trial["training_s"] - trial["validation_s"] - trial["embedding_s"]
            for trial in later
        ]
        told("a trial after the first ones, beyond epochs and embedding", float(np.median(overhead_s)), "s", most=5.0)


def trials_of(ledger: Ledger, name: str | None) -> Iterator[dict[str, Any]]:
    """Yield the start and end of each trial of a sweep, and the seconds of its parts."""
    for signature in ledger.find_sweep(name).signatures:
        trial = ledger.find_finished_trial(signature)
        if trial is None:
            continue
        sums = {
            part: sum(entry.value for entry in ledger.client.get_metric_history(trial.run_id, part))
            for part in ("training_s", "validation_s", "embedding_s")
        }
        info = ledger.client.get_run(trial.run_id).info
        yield sums | {"start": info.start_time / 1000, "end": info.end_time / 1000}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--space", help="run this sweep, and print what its time goes into")
    parser.add_argument("--corpus", default="synthetic")
    parser.add_argument("--store")
    parser.add_argument("--runs", type=Path, help="print the time of a sweep in these runs")
    parser.add_argument("--sweep", help="its name (default: the newest)")
    arguments = parser.parse_args()
    say(machine())
    if arguments.runs:
        timeline(open_ledger(arguments.runs), arguments.sweep, None, None)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.space:
            words = ["--space", arguments.space, "--corpus", arguments.corpus]
            swept(folder, [*words, "--store", arguments.store or folder / "store"])
            return
        say(f"{'':<44} {'CPU s':>7} {'wall s':>7}  {'':<18} milliseconds of the packages that cost most to import")
        commands(arguments.rounds)
        write_tones(folder / "tones")
        (folder / "own.py").write_text(SPACE, encoding="utf-8")
        store = folder / "store"
        cost = run("data/prepare.py", "folder", "--source", folder / "tones", "--store", store)
        say(f"{'data/prepare.py folder, 64 clips of 2.5 s':<44} {cost.cpu_s:7.2f} {cost.wall_s:7.2f}")
        swept(folder, ["--space", f"{folder / 'own.py'}:tiny", "--corpus", "folder", "--store", store])
        after_a_sweep(folder / "runs", store, arguments.rounds)


def swept(folder: Path, words: Sequence[object]) -> None:
    """Run a sweep into a folder of runs, and print what its time went into."""
    began_s = time.time()
    run("sweeps/grid.py", *words, "--runs", folder / "runs", "--name", "sweep")
    timeline(open_ledger(folder / "runs"), None, began_s, time.time())


if __name__ == "__main__":
    main()
