"""The one place where training meets Ray: a trial goes in, metrics and checkpoints come out."""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer, get_device

from data.errors import UserError
from data.shards import open_split
from trainables import tracking
from trainables import trial as trials
from trainables.checkpoint import Snapshot
from trainables.train import DEFAULT, Execution, Metrics, OutOfMemoryError, Step, train
from trainables.trial import Trial

CPU_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""Keep glibc from giving large tensors back to the kernel after each use and paging them in again.

Measured on two Zen 3 cores: the front end takes a third of the time, a whole step of a small encoder 0.63 of it.
"""

TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
"""Of commands that train: Ray Train's own lines stay off the console, and reports are taken within 0.5 s, not 2."""

WATCH_EVERY_S = 5.0
"""Between two entries about steps in MLflow."""


@dataclass(frozen=True)
class Site:
    """Where things lie, none of which can change a result: absolute paths that every node sees; a URI for a store."""

    store: str
    runs: Path
    tracking_uri: str
    weights: Path | None = None  # a folder of published checkpoints

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
    restarts: int = 3  # after lost workers, each time from the last checkpoint


def fit(
    trial: Trial,
    signature: str,
    parent: str | None,
    run_id: str,
    site: Site,
    resources: Resources,
    execution: Execution = DEFAULT,
    callbacks: Sequence[UserCallback] = (),
) -> Metrics:
    """Train a trial through Ray Train, from its last checkpoint if it has one; the best epoch's metrics are returned.

    `signature` names the training's folder, so that Ray finds the checkpoint; `parent` is that of its pretraining.
    Raises UserError where a worker did.
    """
    client = tracking.connect(site.tracking_uri)
    tracking.refuse(client, run_id, "")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "trial": trials.to_json(trial),
            "signature": signature,
            "run_id": run_id,
            "site": site,
            "pretrained": site.model_folder(parent) if parent else None,
            "threads": resources.threads,
            "execution": execution,
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
            checkpoint_config=CheckpointConfig(num_to_keep=1),  # it holds the best weights and the last ones
            failure_config=FailureConfig(max_failures=resources.restarts),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": {} if resources.gpus_per_worker else CPU_ALLOCATOR},
        ),
    )
    trainer.fit()
    if reason := tracking.refused(client, run_id):
        raise UserError(reason)
    return best_metrics(client, run_id)


def best_metrics(client: Any, run_id: str) -> Metrics:
    """The metrics of a trial's best epoch, as MLflow has them."""
    run = client.get_run(run_id)
    best_epoch = int(run.data.metrics["best_epoch"])
    names = [name for name in run.data.metrics if not name.startswith(tracking.STEP)]
    history = {name: client.get_metric_history(run_id, name) for name in names}
    best = {
        name: entries[-1].value
        for name, all_ in history.items()
        if (entries := [m for m in all_ if m.step == best_epoch])
    }
    return best | {"epoch": float(best_epoch)}


def train_worker(config: dict[str, Any]) -> None:
    """What each worker of a training runs.

    What is the user's to put right is noted, and ends the training without an error, as Ray would try it again.
    """
    torch.set_num_threads(config["threads"])
    trial, site, run_id = trials.from_json(config["trial"]), config["site"], config["run_id"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    client = tracking.connect(site.tracking_uri)
    if tracking.refused(client, run_id):
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = ray.train.get_checkpoint()
            network = train(
                trial,
                site.store,
                report_of(client, run_id, rank),
                pretrained=config["pretrained"],
                resume_from=Path(checkpoint.to_directory(folder)) if checkpoint else None,
                device=get_device(),
                execution=config["execution"],
                weights=site.weights,
                watch=watch_of(client, run_id) if rank == 0 else lambda step: None,
            )
    except UserError as error:
        tracking.refuse(client, run_id, str(error))
        if isinstance(error, OutOfMemoryError) and context.get_world_size() > 1:
            raise  # of this rank alone, for which the others would wait
        return
    if rank == 0:
        tracking.keep_model(site.model_folder(config["signature"]), trial, network)
        validation, test = open_split(site.store, trial.validation), open_split(site.store, trial.test)
        tracking.log_outcome(client, run_id, trial, config["signature"], network, validation, test)


def report_of(client: Any, run_id: str, rank: int) -> Callable[[Metrics, Snapshot | None], None]:
    """What a rank tells Ray after each epoch, and with each checkpoint.

    A checkpoint is written while training goes on, but no further than to the next one.
    """
    storage = ray.train.get_context().get_storage()
    checkpoint_upload_mode = CheckpointUploadMode.ASYNC
    written = threading.Event()
    written.set()

    def report(metrics: Metrics, snapshot: Snapshot | None) -> None:
        if snapshot is None or rank != 0:
            ray.train.report({}, checkpoint_upload_mode=checkpoint_upload_mode)
            return
        if metrics:
            tracking.log_epoch(client, run_id, metrics)

        def write(checkpoint: Checkpoint, name: str) -> Checkpoint:
            try:
                snapshot.write(Path(checkpoint.path))
                return storage.persist_current_checkpoint(checkpoint, name)
            finally:
                written.set()

        written.wait()
        written.clear()

        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(tempfile.mkdtemp()),
            checkpoint_upload_mode=checkpoint_upload_mode,
            delete_local_checkpoint_after_upload=True,
            checkpoint_upload_fn=write,
        )

    return report


def watch_of(client: Any, run_id: str) -> Callable[[Step], None]:
    """What tells MLflow of steps, a few seconds' worth at a time."""
    steps: list[Step] = []
    told = time.monotonic()

    def watch(step: Step) -> None:
        nonlocal told
        steps.append(step)
        if time.monotonic() - told >= WATCH_EVERY_S:
            tracking.log_steps(client, run_id, steps)
            steps.clear()
            told = time.monotonic()

    return watch
