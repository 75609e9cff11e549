"""What an epoch costs in a sweep, against the plain training loop: two trials at a time, one thread each.

python tests/benchmarks/sweeping.py [--audio cnn:small] [--epochs 4] [--store DIR --corpus clotho]

Both ways train the same two trials at the same time with the same allocator settings, the plain loop in two processes
without Ray. An epoch is its training and its validation; the first one isn't counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from measure import machine, say, told

from data.splits import Splits, find_splits
from data.store.storage import Store
from trainables import recipes
from trainables import trial as trials
from trainables.execution.session import CPU_ALLOCATOR
from trainables.records.mlflow_ledger import open_ledger
from trainables.trial import Trial

ROOT = Path(__file__).parents[2]

SPACE = """
import json
from pathlib import Path
from trainables import trial

def both(splits, precision):
    return [trial.from_json(value) for value in json.loads(Path({path!r}).read_text())]
"""

PLAIN = """
import json, sys
import torch
from trainables import trial
from trainables.training.train import Callbacks, train

torch.set_num_threads(1)
store, path, number = sys.argv[1:]
own = trial.from_json(json.loads(open(path).read())[int(number)])
train(own, store, Callbacks(lambda metrics, _: print(json.dumps(metrics["training_s"] + metrics["validation_s"]))))
"""


def both(audio: str, epochs: int, splits: Splits) -> list[Trial]:
    """Return two trials that differ in their seed."""
    trial = recipes.small(audio, "transformer:small", splits, "float32")
    trial = replace(trial, schedule=replace(trial.schedule, epochs=epochs))
    return [trial, replace(trial, seed=1)]


def plainly(store: str, path: Path) -> list[float]:
    """Return the seconds of each epoch but the first, of both trials in a process each."""
    environment = os.environ | CPU_ALLOCATOR | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PLAIN, store, path, str(number)],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    epochs = [[json.loads(line) for line in process.communicate()[0].splitlines()] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    return [seconds for own in epochs for seconds in own[1:]]


def in_a_sweep(store: str, corpus: str, path: Path, folder: Path) -> list[float]:
    """Return the seconds of each epoch but the first, of both trials in a sweep."""
    space = folder / "space.py"
    space.write_text(SPACE.format(path=str(path)), encoding="utf-8")
    words = ["--space", f"{space}:both", "--corpus", corpus, "--store", store, "--runs", str(folder / "runs")]
    subprocess.run([sys.executable, "sweeps/grid.py", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    ledger = open_ledger(folder / "runs")
    seconds = []
    for trial in ledger.iter_trials():
        parts = [
            {entry.step: entry.value for entry in ledger.client.get_metric_history(trial.run_id, name)}
            for name in ("training_s", "validation_s")
        ]
        seconds += [parts[0][epoch] + parts[1][epoch] for epoch in sorted(parts[0])[1:]]
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both ways, and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", default="cnn:small")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--corpus", default="synthetic")
    parser.add_argument("--store")
    arguments = parser.parse_args(argv)
    say(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = str(Path(arguments.store or folder / "store").resolve())
        if not arguments.store:
            words = ["data/prepare.py", "synthetic", "--store", store]
            subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        splits = find_splits(arguments.corpus, Store.of(store))
        path = folder / "trials.json"
        path.write_text(json.dumps([trials.to_json(t) for t in both(arguments.audio, arguments.epochs, splits)]))
        plain = plainly(store, path)
        swept = in_a_sweep(store, arguments.corpus, path, folder)
    for way, seconds in (("the plain loop", plain), ("a sweep", swept)):
        say(f"an epoch in {way:<15} {np.median(seconds):8.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    told("an epoch in a sweep, against the plain loop", float(np.median(swept) / np.median(plain)), "times", most=1.1)


if __name__ == "__main__":
    main()
