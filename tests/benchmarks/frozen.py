"""Trials an hour of a sweep with two frozen encoders, whose features are computed once, and of the same sweep without.

python tests/benchmarks/frozen.py [--audio cnn:small5] [--text transformer:small] [--trials 12] [--without 1]

The trials are fine-tunings on the synthetic corpus, which differ in temperature, batch size and seed, as a sweep runs
them on one core: with checkpoints, MLflow, models and embeddings. Their pretraining, an epoch of the projections, needs
the features first. Without features, encoders compute whole batches at once. CPU time doesn't depend on what else runs
on the machine.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from measure import machine, say, told
from torch import Tensor

from data.loading.batch import Batch
from data.preparation.build import prepare_if_absent
from data.splits import SplitOptions
from data.store.storage import Store
from trainables.encoders.text import Tokens
from trainables.execution import session
from trainables.execution.resources import Allocation
from trainables.networks.dual_encoder import DualEncoder, embed_segments
from trainables.recipes import small
from trainables.records import lease as leases
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.run_storage import RunStorage
from trainables.schedule import Schedule
from trainables.signature import find_relations, read_fingerprints, sign
from trainables.training import train
from trainables.trial import Trial


def time_trials(trials: Sequence[Trial], store: str, folder: Path) -> list[tuple[float, float]]:
    """Seconds and CPU seconds of each trial, one after the other."""
    runs, ledger, times = RunStorage.of(folder), create_ledger(folder), []
    site = session.RunContext(store, runs, ledger.tracking_uri)
    for trial in trials:
        began, began_cpu = time.monotonic(), time.process_time()
        fingerprints = read_fingerprints([trial], store)
        signature, relations = sign(trial, fingerprints), find_relations(trial, fingerprints)
        lease = leases.acquire(runs, signature)
        assert isinstance(lease, leases.Lease)
        run_id = ledger.claim(trial, signature, None, relations)
        with leases.Heartbeat(runs, lease):
            job = session.TrainingJob(trial, lease, run_id, site, Allocation(), relations=relations)
            session.train_in_process(job, lambda _: None)
        ledger.finish(run_id)
        times.append((time.monotonic() - began, time.process_time() - began_cpu))
    return times


@contextlib.contextmanager
def without_features() -> Iterator[None]:
    """Frozen encoders run in every step, on whole batches."""

    def encode_audio(network: DualEncoder, batch: Batch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            return embed_segments(network.audio, batch, generator)

    def encode_text(network: DualEncoder, tokens: Tokens) -> Tensor:
        with torch.no_grad():
            return network.text(tokens)

    with (
        patch.object(train, "use_features", lambda *_: None),
        patch.object(DualEncoder, "encode_audio", encode_audio),
        patch.object(DualEncoder, "encode_text", encode_text),
    ):
        yield


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", default="cnn:small5")
    parser.add_argument("--text", default="transformer:small")
    parser.add_argument("--trials", type=int, default=12, help="of the sweep with features")
    parser.add_argument("--without", type=int, default=1, help="of the sweep without features")
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    say(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store.of(folder / "store")
        prepare_if_absent("synthetic", store)
        splits = SplitOptions(store=str(store)).resolve_splits(store)
        base = small(arguments.audio, arguments.text, splits, "float32")
        base = replace(base, frozen_audio=True, frozen_text=True)
        pretraining = replace(base, schedule=Schedule(1e-3, 1e-3, epochs=1, warmup_epochs=0, final_epochs=0))
        tuning = replace(base, pretraining=pretraining, reset_temperature=True,
                         schedule=replace(base.schedule, epochs=arguments.epochs))  # fmt: skip
        trials = [
            replace(tuning, seed=seed, temperature=temperature, batch_size=batch_size)
            for seed in range(100)
            for temperature in (0.03, 0.05, 0.1)
            for batch_size in (32, 64, 128)
        ]
        [first] = time_trials([pretraining], store.location, folder / "runs")
        times = time_trials(trials[: arguments.trials], store.location, folder / "runs")
        with without_features():
            without = time_trials(trials[-arguments.without :], store.location, folder / "runs")
    say(f"{arguments.audio} and {arguments.text}, {arguments.epochs} epochs")
    say(f"the pretraining, which computed the features, took {first[0]:.1f} s ({first[1]:.1f} s of CPU time)")
    for number, what in enumerate(("", " of CPU time")):
        say(f"with features, s a trial{what}: " + " ".join(f"{one[number]:.1f}" for one in times))
        say(f"without, s a trial{what}: " + " ".join(f"{one[number]:.1f}" for one in without))
        with_s, without_s = (statistics.mean(one[number] for one in some) for some in (times, without))
        told(f"trials an hour{what}, with ({3600 / with_s:.0f}) / without ({3600 / without_s:.0f})",
             without_s / with_s, "times", least=20)  # fmt: skip


if __name__ == "__main__":
    main()
