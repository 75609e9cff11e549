"""A training on one rank from start to final artifacts, in this process or in a Ray Train worker.

`train_rank` is shared by Ray Train's workers (trainables.execution.ray_adapter) and `train_in_process`, which trains on
one rank in the calling process, possibly one trial after another. A training writes its checkpoints into a folder of
its lease, and records the last complete checkpoint there. The holder of the next lease resumes from that checkpoint.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError
from data.store.scratch import create_scratch_folder
from trainables.execution.resources import Allocation
from trainables.execution.teachers import fetch_teachers
from trainables.records.lease import Lease
from trainables.records.mlflow_log import RunLog, with_retries
from trainables.records.run_storage import RunStorage, has_complete_weights
from trainables.records.timing import Metrics, TrainingStep
from trainables.signature import UNRELATED, Relations, compute_signature
from trainables.training.compute import DEFAULT, Execution
from trainables.trial import Trial

if TYPE_CHECKING:
    import torch

    from trainables.records.checkpoint import Snapshot
    from trainables.training.train import OnCheckpoint, OnEmbeddings

logger = logging.getLogger("chorale.session")

CPU_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""Environment that makes glibc keep freed memory for large tensors, instead of returning it to the kernel and causing
page faults when it is allocated again.

Measured on two Zen 3 cores: the front end takes a third of the time, a step of a small encoder 0.63 of the time.
"""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of the same two settings for glibc's mallopt (malloc.h); a threshold of -1 never trims."""

LOG_STEPS_EVERY_S = 5.0
"""Interval in seconds between two entries of step metrics in MLflow."""

OnEpoch = Callable[[Metrics], None]
"""Callback that takes the metrics of each finished epoch."""


@dataclass(frozen=True)
class RunContext:
    """Locations that a training reads and writes, and settings that cannot change its result. Paths are absolute and
    the same on every node; object stores are given by URI.
    """

    store: str
    runs: RunStorage
    tracking_uri: str
    weights: Path | None = None  # folder of published checkpoints; None: download them
    keep_epochs: bool = False  # whether the validation embeddings and the model of every epoch are kept


@dataclass(frozen=True)
class TrainingJob:
    """A trial to be trained, with its lease, its MLflow run and its resources."""

    trial: Trial
    lease: Lease
    run_id: str
    site: RunContext
    resources: Allocation
    execution: Execution = DEFAULT
    relations: Relations = UNRELATED  # signatures of the trials that it requires


def prepare_run(work: TrainingJob) -> None:
    """Check that the trial still has the signature that its lease was acquired for, and log the numbers of GPUs and
    CPUs to MLflow.

    Raises UserError if the signature differs, because the store or the weights have changed.
    """
    site = work.site
    if compute_signature(work.trial, site.store, site.weights) != work.lease.signature:
        raise UserError(
            f"{site.store} or the weights have changed since {work.trial.name} was started: re-run the command"
        )
    log = RunLog(site.tracking_uri, work.run_id)
    log.refuse("")
    log_resources(log, work.resources)


def log_resources(log: RunLog, resources: Allocation) -> None:
    """Log the numbers of GPUs and CPUs of all workers as tags of a trial's MLflow run."""
    for kind, per_worker in (("gpus", resources.gpus_per_worker), ("cpus", resources.threads)):
        log.set_tag(kind, f"{resources.workers * per_worker:g}")


def train_rank(
    work: TrainingJob,
    device: torch.device,
    make_report: Callable[[RunLog], OnCheckpoint],
    resume_from: Path | None,
    scratch: Path,
    before_outcome: Callable[[], None] = lambda: None,
    rank: int = 0,
) -> None:
    """Train the trial of the job `work` on one rank; at the end, rank 0 stores the model and logs the trial's config
    and embeddings to MLflow. Models after earlier epochs are kept as `trainables.execution.snapshots` says.

    `make_report` returns the callback for epochs and checkpoints. `resume_from` is the folder of a checkpoint of the
    training; None: it starts anew. `scratch` is a folder for temporary files, and `before_outcome` is called when the
    last epoch has ended. Raises UserError, whose message is recorded in MLflow, if the user has to correct something,
    and LeaseLostError if another process has taken the trial over.
    """
    import torch

    from data.store.stored_split import open_split
    from trainables.execution import artifacts
    from trainables.execution.snapshots import SnapshotKeeper
    from trainables.networks.dual_encoder import build
    from trainables.training.averaging import evaluate_once, load_average
    from trainables.training.features import FeatureStorage
    from trainables.training.query_bank import embed_bank, list_bank_texts
    from trainables.training.train import Callbacks, TrainingStart, train

    torch.set_num_threads(work.resources.threads)
    trial, site, lease = work.trial, work.site, work.lease
    log = RunLog(site.tracking_uri, work.run_id)
    try:
        callbacks = Callbacks(make_report(log))
        if rank == 0 and resume_from:
            restore_epochs(log, resume_from, site.runs.locate(f"trials/{lease.signature}-*"))
        if rank == 0:
            callbacks = replace(callbacks, on_step=make_step_logger(log, trial.epochs))
        if site.keep_epochs:
            callbacks = replace(callbacks, on_embeddings=make_embeddings_logger(log, lease.signature))
        splits = {name: open_split(site.store, name) for name in {*trial.train, trial.validation, trial.test}}
        for split in splits.values():
            split.map_files()  # they stay readable if the split is prepared again during the training
        bank_texts = list_bank_texts(trial, splits, site.store) if rank == 0 else []
        keeper = SnapshotKeeper.start(work, splits, bank_texts, resume_from) if rank == 0 else None
        if keeper:
            callbacks = replace(callbacks, on_model=keeper.keep)
        if not trial.is_trained:
            folders = fetch_models(work.relations.average_of, site.runs, scratch)
            network = load_average(folders, trial) if folders else build(trial, (), site.weights)
            evaluate_once(trial, network.to(device), splits[trial.validation], callbacks)
        else:
            pretraining = work.relations.pretraining
            pretrained = site.runs.fetch_model(pretraining, scratch / "pretrained") if pretraining else None
            teachers = fetch_teachers(trial, site, device, scratch)
            features = FeatureStorage(site.runs, scratch)
            start = TrainingStart(pretrained, resume_from, site.weights, teachers, features)
            network = train(trial, site.store, callbacks, start, device, work.execution)
        before_outcome()
        if keeper:
            keeper.complete(device)
    except UserError as error:
        log.refuse(str(error))
        raise
    finally:
        log.flush()
    if rank == 0:
        lease.require(site.runs)
        bank = embed_bank(network, trial, lease.signature, bank_texts)
        with_retries(lambda: artifacts.store_model(site.runs, lease.signature, trial, network, bank))
        validation, test = splits[trial.validation], splits[trial.test]
        with_retries(lambda: artifacts.log_artifacts(log, trial, lease.signature, network, validation, test, bank))


def fetch_models(signatures: Sequence[str], runs: RunStorage, scratch: Path) -> list[Path]:
    """Return the local folders of the models of trials; those in an object store are copied into `scratch`. Raises
    UserError that names the trial if a model is missing.
    """
    for signature in signatures:
        if not runs.has_model(signature):
            raise UserError(f"the model of {signature} isn't in {runs}: train it first")
    return [runs.fetch_model(signature, scratch / signature) for signature in signatures]


def restore_epochs(log: RunLog, checkpoint: Path, checkpoints: str) -> None:
    """Log the metrics of those epochs that the MLflow run lacks, for example because the tracking store was lost. They
    are read from the folder `checkpoint`.

    Raises UserError if the checkpoint lacks them as well, because an earlier version wrote it. The message tells the
    user to remove `checkpoints`, the place of the trial's checkpoints.
    """
    from trainables.records.checkpoint import load_progress

    progress, logged = load_progress(checkpoint), log.load_epoch_numbers()
    missing = [metrics for metrics in progress.history if metrics["epoch"] not in logged]
    num_unknown = progress.epochs_done - len(progress.history)
    if num_unknown and not set(range(1, num_unknown + 1)) <= logged:
        raise UserError(
            f"MLflow lacks the metrics of {num_unknown} epochs, and the checkpoint, which an earlier version wrote, "
            f"doesn't contain them: to train again from the start, remove {checkpoints}"
        )
    for metrics in missing:
        log.log_epoch(metrics)


def train_in_process(work: TrainingJob, on_epoch: OnEpoch) -> Metrics:
    """Train the trial of the job `work` on one rank in this process, from its last checkpoint if there is one, and
    return the best epoch's metrics.

    `on_epoch` is called with the metrics of each epoch, in the training's own thread: an exception that it raises ends
    the training. Raises UserError if the user has to correct something, and LeaseLostError if another process has taken
    the trial over.
    """
    import torch

    prepare_run(work)
    if not work.resources.gpus_per_worker:
        keep_freed_memory()
    site, lease = work.site, work.lease
    device = torch.device("cuda" if work.resources.gpus_per_worker else "cpu")
    release_memory(device)  # the traceback of an error may still hold the previous trial's objects
    has_frozen_objects = gc.get_freeze_count() > 0
    gc.freeze()  # so that the collection at the end examines this trial's objects alone
    try:
        with create_scratch_folder() as folder, CheckpointWriter(site.runs, lease) as writer:
            earlier = find_last_checkpoint(site.runs, lease)
            resume_from = site.runs.fetch(earlier, folder / "checkpoint") if earlier else None
            train_rank(
                work,
                device,
                lambda log: make_reporter(writer, log, on_epoch),
                resume_from,
                folder,
                before_outcome=writer.wait,
            )
    finally:
        release_memory(device)
        if not has_frozen_objects:
            gc.unfreeze()
    lease.require(site.runs)
    return RunLog(site.tracking_uri, work.run_id).load_best_metrics()


def release_memory(device: torch.device) -> None:
    """Free the memory of a finished training in this process, and return GPU memory that torch caches, since other
    processes may need it.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_reporter(writer: CheckpointWriter, log: RunLog, on_epoch: OnEpoch) -> OnCheckpoint:
    """Return the callback that a training on one rank calls after each epoch and when a checkpoint is due. It logs the
    epoch's metrics to MLflow, starts writing the checkpoint by `writer`, and calls `on_epoch` with the metrics.
    """

    def report(metrics: Metrics, snapshot: Snapshot | None) -> None:
        writer.lease.require(writer.runs)
        if metrics:
            log.log_epoch(metrics)
        assert snapshot is not None  # this is rank 0
        writer.write(snapshot, log)
        if metrics:
            on_epoch(metrics)

    return report


class CheckpointWriter:
    """Writer of a training's checkpoints to the run storage, in a background thread. Only the last complete checkpoint
    is kept.

    A checkpoint is written while training continues; the next checkpoint waits until it is written. When MLflow has
    received all earlier metrics, and if the lease is still held, it is recorded as the last complete checkpoint. An
    error in the thread is raised by the next call of `write` or `wait`.
    """

    def __init__(self, runs: RunStorage, lease: Lease) -> None:
        self.runs, self.lease = runs, lease
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.pending: Future[None] | None = None
        self.number = 0
        self.last_checkpoint: str | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()

    def write(self, snapshot: Snapshot, log: RunLog) -> None:
        """Wait until the previous checkpoint is written, then start writing `snapshot`, a copy of the training's state,
        in the background. It counts as complete once MLflow has received what was logged to `log`.
        """
        self.wait()
        self.number += 1
        self.pending = self.thread.submit(self.write_now, snapshot, f"checkpoint_{self.number:06}", log)

    def wait(self) -> None:
        """Wait until the checkpoint that is being written, if any, is complete. Raises the error if writing failed."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def write_now(self, snapshot: Snapshot, name: str, log: RunLog) -> None:
        """Write `snapshot`, a copy of the training's state, as a checkpoint to the folder `name`; once MLflow has
        received what was logged to `log`, record it as the last complete one, and remove the earlier ones.
        """
        folder = f"trials/{self.lease.folder}"
        with_retries(lambda: self.runs.write_folder(f"{folder}/{name}", snapshot.write))
        commit_checkpoint(self.runs, self.lease, name, log)
        if self.last_checkpoint is None:
            remove_earlier_checkpoints(self.runs, self.lease)
        else:
            self.runs.remove(f"{folder}/{self.last_checkpoint}")
        self.last_checkpoint = name


def keep_freed_memory() -> None:
    """Make glibc keep freed memory in this process, instead of returning it to the kernel, as `CPU_ALLOCATOR` does in
    processes started later. With another C library, do nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # a C library other than glibc
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)


def commit_file(lease: Lease) -> str:
    """Return the name, in the run storage, of the file that contains the name of the last complete checkpoint under a
    lease.
    """
    return f"trials/{lease.folder}/committed"


def commit_checkpoint(runs: RunStorage, lease: Lease, name: str, log: RunLog) -> None:
    """Wait until MLflow has received all metrics logged so far, and the checkpoint `name`, which Ray or this process
    has written, is on the disk; then record it as the last complete one under a lease.

    Raises LeaseLostError if the trial has been taken over.
    """
    log.flush()
    lease.require(runs)
    with_retries(lambda: runs.sync(f"trials/{lease.folder}/{name}"))
    with_retries(lambda: runs.write(commit_file(lease), name.encode()))


def find_last_checkpoint(runs: RunStorage, lease: Lease) -> str | None:
    """Return the folder, in the run storage, of the last complete checkpoint that was written under an earlier lease of
    the trial; None if there is none.
    """
    for number in range(lease.number - 1, 0, -1):
        earlier = Lease(lease.signature, number)
        if name := runs.read(commit_file(earlier)):
            folder = f"trials/{earlier.folder}/{name.decode()}"
            if runs.is_remote or has_complete_weights(runs.folder / folder):
                return folder
            logger.warning("%s is incomplete, as after a power cut: it isn't resumed from", runs.locate(folder))
    return None


def remove_earlier_checkpoints(runs: RunStorage, lease: Lease) -> None:
    """Remove the checkpoints that were written under earlier leases of the trial; no training will resume from them."""
    for number in range(1, lease.number):
        runs.remove(f"trials/{Lease(lease.signature, number).folder}")


def make_embeddings_logger(log: RunLog, signature: str) -> OnEmbeddings:
    """Return a callback that logs an epoch's embeddings of the validation split to MLflow, with the trial's
    signature.
    """
    return lambda epoch, embeddings: log.log_embeddings(epoch, replace(embeddings, signature=signature))


def make_step_logger(log: RunLog, epochs: int) -> Callable[[TrainingStep], None]:
    """Return a callback that takes each training step, and logs a summary of the latest steps to MLflow about every
    LOG_STEPS_EVERY_S seconds. The summary contains the estimated time until `epochs` epochs are done.
    """
    steps: list[TrainingStep] = []
    logged_at = time.monotonic()

    def log_step(step: TrainingStep) -> None:
        nonlocal logged_at
        steps.append(step)
        if time.monotonic() - logged_at >= LOG_STEPS_EVERY_S:
            log.log_steps(list(steps), epochs)
            steps.clear()
            logged_at = time.monotonic()

    return log_step
