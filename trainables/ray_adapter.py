"""The one place where training meets Ray: a trial goes in, metrics and checkpoints come out.

A training writes its checkpoints into a folder of its lease, and notes there which one is whole. Whoever has the next
lease goes on from that one.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import torch
import yaml
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
from trainables.lease import Lease
from trainables.resources import Bundle, Resources
from trainables.runs import Runs
from trainables.tracking import Log, patiently
from trainables.train import DEFAULT, Execution, Keep, Metrics, OutOfMemoryError, Step, train
from trainables.trial import Precision, Trial, fastest_precision

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

GPU_ANSWERS_WITHIN_S = 60.0

AUTOSCALING_CONFIG = Path.home() / "ray_bootstrap_config.yaml"
"""Where `ray up` leaves on a head what its autoscaler may start; Ray itself tells nobody."""

WATCH_EVERY_S = 5.0
"""Between two entries about steps in MLflow."""


def fastest_precision_on(gpus_per_worker: float | None, found: Sequence[Bundle]) -> Precision:
    """What the cluster's GPUs multiply fastest in, or this machine where trainings use none.

    GPUs that can't be asked, as they are yet to come or are all in use, are taken to multiply in bfloat16.
    """
    if gpus_per_worker == 0 or not any(node.gpus for node in found):
        return fastest_precision()
    ask = ray.remote(num_cpus=0, num_gpus=0.01)(fastest_precision)
    try:
        return cast(Precision, ray.get(ask.remote(), timeout=GPU_ANSWERS_WITHIN_S))
    except ray.exceptions.GetTimeoutError:
        return "bfloat16"


@dataclass(frozen=True)
class Site:
    """Where things lie, none of which can change a result: absolute paths that every node sees; a URI for a store."""

    store: str
    runs: Runs
    tracking_uri: str
    weights: Path | None = None  # a folder of published checkpoints
    keep_epochs: bool = False  # whether the validation split's embeddings of every epoch go there, too


def nodes() -> list[Bundle]:
    """What the cluster's nodes have: those that are there, or where an autoscaler can bring more, all that it can."""
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeID"]))
    there = [Bundle(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in alive]
    joined = "RAY_ADDRESS" in os.environ and AUTOSCALING_CONFIG.exists()
    found = could_be(yaml.safe_load(AUTOSCALING_CONFIG.read_text(encoding="utf-8"))) if joined else []
    return max(there, found, key=lambda nodes: (sum(node.gpus for node in nodes), sum(node.cpus for node in nodes)))


def could_be(config: Mapping[str, Any]) -> list[Bundle]:
    """The nodes of a cluster that has all the workers that its autoscaler may start, those with most GPUs first."""
    types, head = config["available_node_types"], config["head_node_type"]
    each = {
        name: Bundle(kind["resources"].get("CPU", 0), kind["resources"].get("GPU", 0)) for name, kind in types.items()
    }
    workers = [each[name] for name, kind in types.items() for _ in range(kind.get("max_workers", 0)) if name != head]
    workers.sort(key=lambda node: (-node.gpus, -node.cpus))
    return [node for node in [*workers[: config["max_workers"]], each[head]] if node.cpus]


def fit(
    trial: Trial,
    lease: Lease,
    parent: str | None,
    run_id: str,
    site: Site,
    resources: Resources,
    execution: Execution = DEFAULT,
    callbacks: Sequence[UserCallback] = (),
) -> Metrics:
    """Train a trial through Ray Train, from its last checkpoint if it has one; the best epoch's metrics are returned.

    `lease` is the trial's, which somebody renews meanwhile; `parent` is the signature of its pretraining. Raises
    UserError where a worker did and where the store has changed, LeaseLostError where the trial has been taken over.
    """
    client = tracking.connect(site.tracking_uri)
    if trials.signature(trial, site.store, site.weights) != lease.signature:
        raise UserError(
            f"{site.store} or the weights have changed since {trial.name} was asked for: give the command again"
        )
    tracking.refuse(client, run_id, "")
    for kind, of_each in (("gpus", resources.gpus_per_worker), ("cpus", resources.threads)):
        client.set_tag(run_id, kind, f"{resources.workers * of_each:g}")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "trial": trials.to_json(trial),
            "lease": lease,
            "run_id": run_id,
            "site": site,
            "parent": parent,
            "resume_from": last_committed(site.runs, lease),
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
            name=lease.folder,
            storage_path=site.runs.at("trials"),
            checkpoint_config=CheckpointConfig(num_to_keep=1),  # it holds the best weights and the last ones
            failure_config=FailureConfig(max_failures=resources.restarts),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": {} if resources.gpus_per_worker else CPU_ALLOCATOR},
        ),
    )
    trainer.fit()
    lease.require(site.runs)
    if reason := tracking.refused(client, run_id):
        raise UserError(reason)
    return best_metrics(client, run_id)


def committed(lease: Lease) -> str:
    """The name of the file that says which checkpoint under a lease is whole, the last one so far."""
    return f"trials/{lease.folder}/committed"


def last_committed(runs: Runs, lease: Lease) -> str | None:
    """Where a trial's last checkpoint under an earlier lease lies."""
    for number in range(lease.number - 1, 0, -1):
        earlier = Lease(lease.signature, number)
        if name := runs.read(committed(earlier)):
            return runs.at(f"trials/{earlier.folder}/{name.decode()}")
    return None


def remove_earlier(runs: Runs, lease: Lease) -> None:
    """Remove what was written under earlier leases, which nobody will go on from."""
    for number in range(1, lease.number):
        runs.remove(f"trials/{Lease(lease.signature, number).folder}")


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

    What is the user's to put right is noted, and ends the training without an error, as Ray would try it again; so does
    a trial that has been taken over.
    """
    torch.set_num_threads(config["threads"])
    trial, site, run_id, lease = trials.from_json(config["trial"]), config["site"], config["run_id"], config["lease"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    client = tracking.connect(site.tracking_uri)
    if tracking.refused(client, run_id) or not lease.is_held(site.runs):
        return
    log = Log(client, run_id)
    try:
        with tempfile.TemporaryDirectory() as folder:
            earlier = Checkpoint(config["resume_from"]) if config["resume_from"] else None
            checkpoint = ray.train.get_checkpoint() or earlier
            network = train(
                trial,
                site.store,
                report_of(log, site.runs, lease, rank),
                pretrained=site.runs.model(config["parent"], Path(folder) / "pretrained") if config["parent"] else None,
                resume_from=Path(checkpoint.to_directory(Path(folder) / "checkpoint")) if checkpoint else None,
                device=get_device(),
                execution=config["execution"],
                weights=site.weights,
                watch=watch_of(log, trial.epochs) if rank == 0 else lambda step: None,
                keep=keep_of(log, lease.signature) if site.keep_epochs else lambda epoch, found: None,
            )
    except UserError as error:
        tracking.refuse(client, run_id, str(error))
        if isinstance(error, OutOfMemoryError) and context.get_world_size() > 1:
            raise  # of this rank alone, for which the others would wait
        return
    finally:
        log.flush()
    if rank == 0:
        lease.require(site.runs)
        patiently(lambda: tracking.keep_model(site.runs, lease.signature, trial, network))
        validation, test = open_split(site.store, trial.validation), open_split(site.store, trial.test)
        patiently(lambda: tracking.log_outcome(client, run_id, trial, lease.signature, network, validation, test))


def report_of(log: Log, runs: Runs, lease: Lease, rank: int) -> Callable[[Metrics, Snapshot | None], None]:
    """What a rank tells Ray after each epoch, and with each checkpoint.

    A checkpoint is written while training goes on, but no further than to the next one. It counts once MLflow has all
    that was told before, and only while the trial is still this training's.
    """
    storage = ray.train.get_context().get_storage()
    checkpoint_upload_mode = CheckpointUploadMode.ASYNC
    written = threading.Event()
    written.set()
    has_earlier = True

    def report(metrics: Metrics, snapshot: Snapshot | None) -> None:
        if snapshot is None or rank != 0:
            ray.train.report({}, checkpoint_upload_mode=checkpoint_upload_mode)
            return
        lease.require(runs)
        if metrics:
            log.epoch(metrics)

        def write(checkpoint: Checkpoint, name: str) -> Checkpoint:
            nonlocal has_earlier
            try:
                patiently(lambda: snapshot.write(Path(checkpoint.path)))
                persisted = patiently(lambda: storage.persist_current_checkpoint(checkpoint, name))
                log.flush()
                lease.require(runs)
                patiently(lambda: runs.write(committed(lease), name.encode()))
                if has_earlier:
                    remove_earlier(runs, lease)
                    has_earlier = False
                return persisted
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


def keep_of(log: Log, signature: str) -> Keep:
    """What keeps each epoch's embeddings in MLflow."""
    return lambda epoch, found: log.embeddings(epoch, replace(found, signature=signature))


def watch_of(log: Log, epochs: int) -> Callable[[Step], None]:
    """What tells MLflow of steps, a few seconds' worth at a time."""
    steps: list[Step] = []
    told = time.monotonic()

    def watch(step: Step) -> None:
        nonlocal told
        steps.append(step)
        if time.monotonic() - told >= WATCH_EVERY_S:
            log.steps(list(steps), epochs)
            steps.clear()
            told = time.monotonic()

    return watch
