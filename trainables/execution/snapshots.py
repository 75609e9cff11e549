"""Snapshots: models of a training after earlier epochs than its last, kept while it continues (Huang et al. 2017).

A training whose schedule has several cycles publishes its model after each cycle as a finished trial: its config is
that of the training with `snapshot_epoch`, and model, metrics and embeddings are those of a training that ends there.
With --keep-epochs the models after all other epochs are stored as well, under the signatures of such trials, but
without runs in the ledger.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import UserError
from data.store.scratch import create_scratch_folder
from data.store.stored_split import StoredSplit
from trainables.execution import artifacts
from trainables.execution.session import TrainingJob, log_resources
from trainables.records import checkpoint
from trainables.records import lease as leases
from trainables.records.lease import Heartbeat, Holder
from trainables.records.mlflow_ledger import PARENT, MlflowLedger
from trainables.records.mlflow_log import RunLog, with_retries
from trainables.records.run_storage import RunStorage
from trainables.records.timing import Metrics
from trainables.signature import Fingerprints, read_fingerprints, sign
from trainables.training.query_bank import embed_bank
from trainables.trial import Trial

if TYPE_CHECKING:
    import torch

    from trainables.networks.dual_encoder import DualEncoder

logger = logging.getLogger("chorale.snapshots")


class SnapshotError(Exception):
    """Error raised if a snapshot can't be published. It isn't a UserError, after which a rank would end by itself: only
    rank 0 publishes, so the training has to be restarted on all ranks.
    """


def list_snapshot_epochs(trial: Trial) -> tuple[int, ...]:
    """Return the epochs after which a trial's training publishes its model: those at the ends of the cycles of its
    schedule; () for a single cycle, for a training that ends after a fixed epoch, and for a trial without training.
    """
    return () if trial.final_epoch or trial.snapshot_epoch or not trial.is_trained else trial.schedule.cycle_ends


@dataclass
class SnapshotKeeper:
    """Keeper of a training's models after single epochs, on rank 0. The method `keep` is the training's callback
    `on_model`; `complete` is called after the training's end.
    """

    work: TrainingJob
    splits: Mapping[str, StoredSplit]  # validation and test split, by name
    bank_texts: list[str]  # of the query bank
    history: Sequence[Metrics] = ()  # metrics of each epoch so far
    published: set[int] = field(default_factory=set)  # epochs whose models this process has published

    @classmethod
    def start(
        cls, work: TrainingJob, splits: Mapping[str, StoredSplit], bank_texts: list[str], resume_from: Path | None
    ) -> SnapshotKeeper:
        """Return the keeper of a training's models. `resume_from` is the folder of the checkpoint that it resumes from;
        None: it starts anew.

        If models are to be kept, the fingerprints for their signatures are read now, since splits may be prepared again
        during the training. Raises SnapshotError if they have already changed since the training's lease was acquired.
        """
        keeper = cls(work, splits, bank_texts, checkpoint.load_progress(resume_from).history if resume_from else ())
        if keeper.is_needed and sign(work.trial, keeper.fingerprints) != work.lease.signature:
            raise SnapshotError(f"{work.site.store} or the weights have changed since {work.trial.name} was started")
        return keeper

    @property
    def runs(self) -> RunStorage:
        """Run storage of the training."""
        return self.work.site.runs

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs after which the model is published."""
        return list_snapshot_epochs(self.work.trial)

    @property
    def is_needed(self) -> bool:
        """Whether any model is kept."""
        trial = self.work.trial
        return bool(self.epochs) or (self.work.site.keep_epochs and trial.is_trained and not trial.final_epoch)

    @functools.cached_property
    def fingerprints(self) -> Fingerprints:
        """Fingerprints of the data and weights that the trial depends on, as of the training's start."""
        return read_fingerprints([self.work.trial], self.work.site.store, self.work.site.weights)

    @functools.cached_property
    def ledger(self) -> tuple[MlflowLedger, str | None]:
        """The ledger that has the training's run, and the id of its sweep's run, None outside of a sweep."""
        uri = self.work.site.tracking_uri
        run = RunLog(uri, self.work.run_id).client.get_run(self.work.run_id)
        return MlflowLedger(uri, run.info.experiment_id), run.data.tags.get(PARENT)

    def make_trial(self, epoch: int) -> tuple[Trial, str]:
        """Return the trial that is the model after this epoch, and its signature."""
        trial = replace(self.work.trial, snapshot_epoch=epoch)
        return trial, sign(trial, self.fingerprints)

    def keep(self, network: DualEncoder, history: Sequence[Metrics]) -> None:
        """Publish or store the model `network` after the last epoch of `history`, the metrics of the epochs so far, if
        it is to be kept. Raises SnapshotError if it can't be published, and LeaseLostError if another process has taken
        the training over.
        """
        self.history = tuple(history)
        epoch = int(history[-1]["epoch"])
        if epoch in self.epochs:
            self.publish(epoch, network)
        elif self.is_needed and self.work.site.keep_epochs and epoch != self.work.trial.snapshot_epoch:
            trial, signature = self.make_trial(epoch)
            bank = embed_bank(network, trial, signature, self.bank_texts)
            with_retries(lambda: artifacts.store_model(self.runs, signature, trial, network, bank))

    def complete(self, device: torch.device) -> None:
        """Publish the models after earlier epochs that the ledger lacks, for example because the tracking store was
        lost, from the run storage. They are embedded on `device`.
        """
        done = int(self.history[-1]["epoch"]) if self.history else 0
        for epoch in self.epochs:
            if epoch > done or epoch in self.published:
                continue
            trial, signature = self.make_trial(epoch)
            with explain_failure(trial):
                is_finished = self.ledger[0].find_finished_trial(signature) is not None
            if not is_finished and not self.runs.has_model(signature):
                logger.warning("%s can't be restored: its model isn't in %s", trial.name, self.runs)
            elif not is_finished:
                with create_scratch_folder() as scratch:
                    folder = self.runs.fetch_model(signature, scratch / "snapshot")
                    self.publish(epoch, checkpoint.load_model(folder, trial).to(device))

    def publish(self, epoch: int, network: DualEncoder) -> None:
        """Publish the model `network`, the one after this epoch, as a finished trial, unless the ledger and the run
        storage have it, or another command is training this trial.

        Raises SnapshotError if it fails, and LeaseLostError if another process has taken over the training.
        """
        trial, signature = self.make_trial(epoch)
        with explain_failure(trial):
            self.work.lease.require(self.runs)
            if self.ledger[0].find_finished_trial(signature) and self.runs.has_model(signature):
                self.published.add(epoch)
                return
            # The training's lease admits one process at a time, so one that held this lease before has been lost.
            command = f"snapshots of {self.work.lease.signature}"
            lease = leases.acquire(self.runs, signature, command)
            if isinstance(lease, Holder):
                logger.info("%s isn't published: it is being trained by %s", trial.name, lease)
                return
            with Heartbeat(self.runs, lease, command):
                self.write(epoch, network, lease)
            self.published.add(epoch)

    def write(self, epoch: int, network: DualEncoder, lease: leases.Lease) -> None:
        """Write the run, the model and the embeddings of the trial that is the model after this epoch, under its lease,
        and mark it as finished. `network` is the model.
        """
        trial, signature = self.make_trial(epoch)
        ledger, sweep_run_id = self.ledger
        relations = replace(self.work.relations, snapshot_of=self.work.lease.signature)
        run_id = ledger.claim(trial, signature, sweep_run_id, relations)
        log = RunLog(self.work.site.tracking_uri, run_id)
        try:
            log_resources(log, self.work.resources)
            for metrics in (metrics for metrics in self.history if metrics["epoch"] <= epoch):
                log.log_epoch(metrics | {"best_map10": metrics["map10"], "best_epoch": metrics["epoch"]})
            log.flush()
            bank = embed_bank(network, trial, signature, self.bank_texts)
            with_retries(lambda: artifacts.store_model(self.runs, signature, trial, network, bank))
            validation, test = self.splits[trial.validation], self.splits[trial.test]
            with_retries(lambda: artifacts.log_artifacts(log, trial, signature, network, validation, test, bank))
            self.work.lease.require(self.runs)
            lease.require(self.runs)
        except Exception:
            if lease.is_held(self.runs):
                ledger.mark_ended(run_id, "FAILED")
            raise
        ledger.finish(run_id)


@contextlib.contextmanager
def explain_failure(trial: Trial) -> Iterator[None]:
    """Re-raise a UserError in the `with` block, which publishes a snapshot, `trial`, as a SnapshotError."""
    try:
        yield
    except UserError as error:
        raise SnapshotError(f"the snapshot {trial.name} can't be published: {error}") from error
