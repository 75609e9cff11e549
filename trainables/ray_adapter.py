"""The one place where training meets Ray: a trial goes in, metrics and checkpoints come out."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device

from data.shards import open_split
from trainables import tracking
from trainables import trial as trials
from trainables.train import Metrics, train
from trainables.trial import Trial

CPU_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""Keep glibc from giving large tensors back to the kernel after each use and paging them in again.

Measured on two Zen 3 cores: the front end takes a third of the time, a whole step of a small encoder 0.63 of it.
"""


@dataclass(frozen=True)
class Site:
    """Where things lie, none of which can change a result: absolute paths that every node sees; a URI for a store."""

    store: str
    runs: Path
    tracking_uri: str

    def model_folder(self, signature: str) -> Path:
        """Where a trial's trained model is kept."""
        return self.runs / "models" / signature


@dataclass(frozen=True)
class Resources:
    """What a trial's workers get."""

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    threads: int = 1  # of torch, in each worker
    loader_workers: int = 0  # processes that load batches, for each worker


def fit(
    trial: Trial,
    signature: str,
    parent: str | None,
    run_id: str,
    site: Site,
    resources: Resources,
    callbacks: Sequence[UserCallback] = (),
) -> Metrics:
    """Train a trial through Ray Train, from its last checkpoint if it has one; the best epoch's metrics are returned.

    `signature` names the training's folder, so that Ray finds the checkpoint; `parent` is that of its pretraining.
    """
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "trial": trials.to_json(trial),
            "signature": signature,
            "run_id": run_id,
            "site": site,
            "pretrained": site.model_folder(parent) if parent else None,
            "threads": resources.threads,
            "loader_workers": resources.loader_workers,
        },
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker}
            | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=signature,
            storage_path=str(site.runs / "trials"),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": {} if resources.gpus_per_worker else CPU_ALLOCATOR},
        ),
    )
    trainer.fit()
    return best_metrics(tracking.connect(site.tracking_uri), run_id)


def best_metrics(client: Any, run_id: str) -> Metrics:
    """The metrics of a trial's best epoch, as MLflow has them."""
    run = client.get_run(run_id)
    best_epoch = int(run.data.metrics["best_epoch"])
    history = {name: client.get_metric_history(run_id, name) for name in run.data.metrics}
    best = {
        name: entries[-1].value
        for name, all_ in history.items()
        if (entries := [m for m in all_ if m.step == best_epoch])
    }
    return best | {"epoch": float(best_epoch)}


def train_worker(config: dict[str, Any]) -> None:
    """What each worker of a training runs."""
    torch.set_num_threads(config["threads"])
    trial, site, run_id = trials.from_json(config["trial"]), config["site"], config["run_id"]
    rank = ray.train.get_context().get_world_rank()
    client = tracking.connect(site.tracking_uri)

    def report(metrics: Metrics, write_checkpoint: Callable[[Path], None]) -> None:
        if rank != 0:
            ray.train.report({})
            return
        tracking.log_epoch(client, run_id, metrics)
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder))
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ray.train.get_checkpoint()
        resume_from = Path(checkpoint.to_directory(folder)) if checkpoint else None
        network = train(
            trial,
            site.store,
            report,
            pretrained=config["pretrained"],
            resume_from=resume_from,
            device=get_device(),
            loader_workers=config["loader_workers"],
        )
    if rank == 0:
        tracking.keep_model(site.model_folder(config["signature"]), trial, network)
        validation, test = open_split(site.store, trial.validation), open_split(site.store, trial.test)
        tracking.log_outcome(client, run_id, trial, config["signature"], network, validation, test)
