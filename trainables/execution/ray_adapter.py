"""Adapter to Ray Train: train a trial on several workers. No other module of the package imports ray.train."""

import atexit
import contextlib
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
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
from data.store.scratch import create_scratch_folder
from trainables.execution.session import (
    CPU_ALLOCATOR,
    TrainingJob,
    commit_checkpoint,
    find_last_checkpoint,
    prepare_run,
    remove_earlier_checkpoints,
    train_rank,
)
from trainables.records.checkpoint import Snapshot
from trainables.records.lease import Lease
from trainables.records.mlflow_log import RunLog, with_retries
from trainables.records.run_storage import RunStorage
from trainables.records.timing import Metrics
from trainables.training.train import OnCheckpoint, OutOfMemoryError


def fit(work: TrainingJob, callbacks: Sequence[UserCallback] = ()) -> Metrics:
    """Train the trial of a job with Ray Train, from its last checkpoint if there is one, and return the best epoch's
    metrics. `callbacks` are passed to Ray Train.

    The caller renews the lease meanwhile. Raises UserError if a worker raised one or if the store has changed, and
    LeaseLostError if another process has taken the trial over.
    """
    prepare_run(work)
    runs, lease, resources = work.site.runs, work.lease, work.resources
    earlier = find_last_checkpoint(runs, lease)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"work": work, "resume_from": runs.locate(earlier) if earlier else None},
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker}
            | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=lease.folder,
            storage_path=runs.locate("trials"),
            checkpoint_config=CheckpointConfig(num_to_keep=1),  # a checkpoint contains the best and the last weights
            failure_config=FailureConfig(max_failures=resources.restarts),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": {} if resources.gpus_per_worker else CPU_ALLOCATOR},
        ),
    )
    trainer.fit()
    lease.require(runs)
    log = RunLog(work.site.tracking_uri, work.run_id)
    if reason := log.refusal():
        raise UserError(reason)
    return log.load_best_metrics()


def train_worker(config: dict[str, Any]) -> None:
    """Train one rank of a trial in a Ray Train worker. `config` contains the TrainingJob under 'work', and under
    'resume_from' the path or URI of a checkpoint to resume from, or None to start anew.

    A UserError is recorded in MLflow, and the worker ends without an exception, since Ray would otherwise restart it.
    If the lease is lost before training starts, the worker ends, too.
    """
    work: TrainingJob = config["work"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    if RunLog(work.site.tracking_uri, work.run_id).refusal() or not work.lease.is_held(work.site.runs):
        return
    with create_scratch_folder() as folder:
        earlier = Checkpoint(config["resume_from"]) if config["resume_from"] else None
        checkpoint = ray.train.get_checkpoint() or earlier
        try:
            train_rank(
                work,
                get_device(),
                lambda log: make_reporter(log, work.site.runs, work.lease, rank),
                Path(checkpoint.to_directory(folder / "checkpoint")) if checkpoint else None,
                folder,
                rank=rank,
            )
        except UserError as error:
            if isinstance(error, OutOfMemoryError) and context.get_world_size() > 1:
                raise  # an error of this rank only: the other ranks would wait for this one


def make_reporter(log: RunLog, runs: RunStorage, lease: Lease, rank: int) -> OnCheckpoint:
    """Return the callback that a training calls after each epoch and when a checkpoint is due. On rank 0 it logs the
    epoch's metrics to MLflow and writes the checkpoint if the lease is still held; on other ranks it only reports to
    Ray Train.

    A checkpoint is written while training continues; the next checkpoint waits until it is written. When MLflow has
    received all earlier metrics, and if the lease is still held, it is recorded as the last complete checkpoint.
    """
    storage = ray.train.get_context().get_storage()
    checkpoint_upload_mode = CheckpointUploadMode.ASYNC
    written = threading.Event()
    written.set()
    has_earlier = True
    # It is used until the process ends, since Ray may still upload a checkpoint when the training has returned.
    scratch = contextlib.ExitStack()
    folder = scratch.enter_context(create_scratch_folder())
    atexit.register(scratch.close)

    def report(metrics: Metrics, snapshot: Snapshot | None) -> None:
        if snapshot is None or rank != 0:
            ray.train.report({}, checkpoint_upload_mode=checkpoint_upload_mode)
            return
        lease.require(runs)
        if metrics:
            log.log_epoch(metrics)

        def write(checkpoint: Checkpoint, name: str) -> Checkpoint:
            nonlocal has_earlier
            try:
                with_retries(lambda: snapshot.write(Path(checkpoint.path)))
                persisted = with_retries(lambda: storage.persist_current_checkpoint(checkpoint, name))
                commit_checkpoint(runs, lease, name, log)
                if has_earlier:
                    remove_earlier_checkpoints(runs, lease)
                    has_earlier = False
                return persisted
            finally:
                written.set()

        written.wait()
        written.clear()

        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(tempfile.mkdtemp(dir=folder)),
            checkpoint_upload_mode=checkpoint_upload_mode,
            delete_local_checkpoint_after_upload=True,
            checkpoint_upload_fn=write,
        )

    return report
