"""What Ray Train costs a training step: against the same loop on ranks that torch starts itself, as torchrun does.

python tests/benchmarks/ray_overhead.py [--epochs 5] [--rounds 3] [--ranks 2]

CPU ranks of one thread each train small encoders on the synthetic corpus, in turn plainly and through Ray Train. Ray's
own processes (its servers, and six actors for a training) take some 14 % of a core: where the ranks leave no core idle,
they wait for these, all of them whenever one does. With fewer ranks than cores it is seen what Ray Train itself costs.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from measure import machine, say, told

from data.corpora import synthetic
from data.splits import Splits
from data.store import shard_writer, split_writer
from data.store.files import write_json
from trainables import recipes
from trainables.records import lease as leases
from trainables.records.checkpoint import Snapshot
from trainables.records.timing import Metrics
from trainables.signature import compute_signature
from trainables.training.train import Callbacks, train
from trainables.trial import Trial

SIZES = synthetic.Config(200, 20, 20, min_duration_s=5.0, max_duration_s=30.0)
SPLITS = Splits(
    "synthetic/development", "synthetic/validation", "synthetic/evaluation", pretrain=("synthetic/development",)
)
EPOCHS_FILE = "epochs.json"


@dataclass(frozen=True)
class Epoch:
    """When an epoch was told of, and what the loop says that its steps took."""

    ended_s: float
    step_s: float


def write_store(store: Path) -> None:
    """The synthetic corpus, as the command prepares it but without Ray."""
    for split in synthetic.read(None, config=SIZES):
        folder = store / split.corpus / split.name
        path = folder / shard_writer.build_shard_name(0, split.clips, "pcm16")
        shard = shard_writer.write_shard(path, split.corpus, split.name, split.clips, "pcm16")
        split_writer.write_split(folder, split, "pcm16", [shard])


def plainly(trial: Trial, store: Path, folder: Path, ranks: int) -> list[Epoch]:
    """Train on ranks that torch starts."""
    folder.mkdir()
    torch.multiprocessing.spawn(work, (trial, store, folder, ranks), nprocs=ranks)
    return [Epoch(**epoch) for epoch in json.loads((folder / EPOCHS_FILE).read_text())]


def work(rank: int, trial: Trial, store: Path, folder: Path, ranks: int) -> None:
    """What such a rank does; rank 0 writes a checkpoint after each epoch, as Ray Train's does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=ranks)
    epochs: list[dict[str, float]] = []

    def report(metrics: Metrics, snapshot: Snapshot | None) -> None:
        if snapshot:
            epochs.append({"ended_s": time.time(), "step_s": metrics["step_s"]})
            snapshot.write(folder / "checkpoint")

    train(trial, str(store), Callbacks(report))
    if rank == 0:
        write_json(folder / EPOCHS_FILE, epochs)
    dist.destroy_process_group()


def through_ray(trial: Trial, store: Path, folder: Path, ranks: int) -> list[Epoch]:
    """Train on Ray Train's workers."""
    from trainables.execution.ray_adapter import fit
    from trainables.execution.resources import Allocation
    from trainables.execution.session import RunContext, TrainingJob
    from trainables.records.mlflow_ledger import create_ledger  # neither MLflow nor Ray in the plain ranks
    from trainables.records.run_storage import RunStorage

    ledger, runs = create_ledger(folder), RunStorage.of(folder)
    lease = leases.acquire(runs, compute_signature(trial, str(store)))
    run_id = ledger.claim(trial, lease.signature, None)
    site = RunContext(str(store), runs, ledger.tracking_uri)
    fit(TrainingJob(trial, lease, run_id, site, Allocation(workers=ranks, cpus_per_worker=0.9)))
    history = ledger.client.get_metric_history(run_id, "step_s")
    return [
        Epoch(metric.timestamp / 1000, metric.value) for metric in sorted(history, key=lambda metric: int(metric.step))
    ]


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5, help="of each training; the first isn't timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    from data.runtime.parallel import start_ray
    from trainables.execution.session import CPU_ALLOCATOR

    os.environ |= CPU_ALLOCATOR  # what Ray's workers get, for the plain ranks
    say(f"{machine()}, torch {torch.__version__}, {arguments.ranks} ranks of one thread")
    trial = recipes.small("cnn:small5", "transformer:small", SPLITS, "float32")
    trial = replace(trial, schedule=replace(trial.schedule, epochs=arguments.epochs))
    ways = {"plain": plainly, "Ray Train": through_ray}
    start_ray()
    step_s: dict[str, list[float]] = {way: [] for way in ways}
    epoch_s: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        write_store(store)
        for number in range(arguments.rounds):
            for way, function in ways.items():
                epochs = function(trial, store, Path(scratch) / f"{way}-{number}", arguments.ranks)
                step_s[way] += [epoch.step_s for epoch in epochs[1:]]
                ended_s = [epoch.ended_s for epoch in epochs]
                epoch_s[way] += [after - before for before, after in itertools.pairwise(ended_s)]
    for way in ways:
        told(f"{way}: a step, median of {len(step_s[way])} epochs", 1000 * statistics.median(step_s[way]), "ms")
        told(f"{way}: an epoch, with validation and checkpoint", statistics.median(epoch_s[way]), "s")
    for what, taken, most in (("a step", step_s, 3.0), ("an epoch", epoch_s, None)):
        share = statistics.median(taken["Ray Train"]) / statistics.median(taken["plain"])
        told(f"{what}, Ray Train beyond plain", 100 * (share - 1), "%", most=most)


if __name__ == "__main__":
    main()
