"""The ledger: the record of trials, by signature and status, of sweeps, and of selected ensembles.

`Ledger` is the interface that other modules use. `trainables.records.mlflow_ledger` implements it with MLflow.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from data.errors import UserError
from data.runtime.printable import require_bare_name
from trainables.records.embeddings import Embeddings
from trainables.records.timing import Metrics
from trainables.schedule import list_cycle_ends
from trainables.signature import UNRELATED, Relations
from trainables.trial import Trial

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

EventKind = Literal["ensemble", "evaluation"]
"""Kind of an event: the selection of an ensemble, or a later evaluation."""

CURVES = ("map10", "train_loss", "validation_loss")


class MissingArtifactError(UserError):
    """Error for a run's file that no longer exists or cannot be reached; `where` names the run and the reason."""

    def __init__(self, name: str, run_id: str, code: str = "") -> None:
        self.where = f"run {run_id}" + (f" ({code})" if code else "")
        super().__init__(f"{name} can't be found in {self.where}")


@dataclass(frozen=True)
class TrialRun:
    """Trial as recorded in the ledger: its run, with status, config and metrics."""

    run_id: str
    name: str
    signature: str
    status: Status
    settings: Mapping[str, str] = field(default_factory=dict)  # flattened config: {'schedule.epochs': '5'}
    metrics: Metrics = field(default_factory=dict)  # last value of each metric
    relations: Relations = UNRELATED
    gpus: float | None = None  # number of GPUs of all workers
    cpus: float | None = None  # number of CPUs of all workers
    hours: float = 0.0  # time from the first start to the end
    artifacts: str = ""  # URI of the folder of its files

    @property
    def is_trained_on_all_splits(self) -> bool:
        """Whether the trial was trained to a fixed epoch on all splits, without validation, so that it has no
        metrics.
        """
        return "final_epoch" in self.settings

    @property
    def snapshot_epoch(self) -> int | None:
        """Epoch after which the trial is a snapshot of a training; None if it isn't one."""
        return int(self.settings["snapshot_epoch"]) if "snapshot_epoch" in self.settings else None

    @property
    def cycle_ends(self) -> tuple[int, ...]:
        """Epochs after which the cycles of its schedule end; () for a single cycle."""
        cycles, epochs = (int(self.settings.get(f"schedule.{name}", 1)) for name in ("cycles", "epochs"))
        return list_cycle_ends(epochs, cycles)


@dataclass(frozen=True)
class Sweep:
    """Sweep as recorded in the ledger: its run, with the signatures of its trials and a description."""

    run_id: str
    name: str
    signatures: list[str]
    description: dict[str, Any]

    def __post_init__(self) -> None:
        remedy = "rename its run in MLflow, or name another sweep"
        require_bare_name(self.name, "the ledger's sweep", remedy)
        for signature in self.signatures:
            require_bare_name(signature, f"the sweep {self.name}: the signature", remedy)


@dataclass(frozen=True)
class Event:
    """Selection of an ensemble, or later evaluation of one, to be logged in the ledger."""

    kind: EventKind
    name: str
    members: str  # signatures or names, separated by commas
    test_fingerprint: str  # '' without test metrics
    sweep_run_id: str  # '' without a sweep
    settings: Mapping[str, str]
    metrics: Sequence[tuple[str, float, int]]  # name, value, step
    files: Sequence[Path] = ()


@dataclass(frozen=True)
class EventRun:
    """Selection of an ensemble, or later evaluation of one, as recorded in the ledger."""

    run_id: str
    name: str
    sweep_run_id: str  # '' without a sweep
    test_fingerprint: str  # fingerprint of the test split of its metrics; '' without test metrics
    metrics: Metrics
    settings: Mapping[str, str]
    artifacts: str


class Ledger(Protocol):
    """Interface of a record of trials, sweeps and ensembles in one tracking store. Methods raise UserError if the store
    cannot be read.
    """

    tracking_uri: str

    def iter_trials(self) -> Iterator[TrialRun]:
        """Yield all trials, the newest first."""

    def iter_running_trials(self) -> Iterator[TrialRun]:
        """Yield the trials that are being trained."""

    def find_trial(self, signature: str) -> TrialRun | None:
        """Return the trial with this signature; None if the ledger has none. Of several runs, a finished one is
        preferred.
        """

    def find_related(self, relation: Literal["snapshot_of", "average_of"], signature: str) -> list[TrialRun]:
        """Return the finished trials that are snapshots of the trial with this signature ('snapshot_of'), or soups that
        contain it ('average_of'), sorted by signature.
        """

    def find_finished_trial(self, signature: str) -> TrialRun | None:
        """Return the trial with this signature if it has finished, otherwise None."""
        run = self.find_trial(signature)
        return run if run and run.status == "FINISHED" else None

    def find_signature(self, run_id: str) -> str | None:
        """Return the signature of the trial that is logged to an MLflow run; None if there is no such run, or it isn't
        that of a trial.
        """

    def claim(self, trial: Trial, signature: str, sweep_run_id: str | None, relations: Relations = UNRELATED) -> str:
        """Mark a trial as running, and return the id of the MLflow run that it is logged to: its existing run, or a new
        one. `sweep_run_id` is the run of its sweep, None outside of a sweep; `relations` has the signatures of its
        pretraining, its teachers and other related trials.

        Only the holder of the trial's lease may call this method, since otherwise two runs could be created.
        """

    def finish(self, run_id: str) -> None:
        """Mark a run as finished, which makes its trial a candidate. Call this only after the run's artifacts have been
        read back as a check.
        """

    def mark_ended(self, run_id: str, status: Status) -> None:
        """Mark a run as ended with the status FAILED or KILLED; if its trial is requested again, it resumes from its
        last checkpoint.
        """

    def load_best_metrics(self, run: TrialRun) -> Metrics:
        """Return the metrics of a trial's best epoch by name, and the number of that epoch as `epoch`."""

    def load_curves(self, run: TrialRun, names: Sequence[str] = CURVES) -> dict[str, dict[int, float]]:
        """Return the named metrics of the trial logged to `run` after each epoch, as {name: {epoch: value}}."""

    def load_embeddings(self, run: TrialRun, file: str) -> Embeddings:
        """Return a trial's embeddings of a split from a file logged to its run: `VALIDATION_FILE`, `TEST_FILE` or one
        that `list_epochs` returns.

        Raises MissingArtifactError if the file no longer exists, and UserError if the trial was trained on all splits,
        so that it has no embeddings.
        """

    def list_epochs(self, run: TrialRun) -> list[str]:
        """Return the names of the files with a trial's validation embeddings, one per epoch, in order; [] unless those
        of all epochs were kept.
        """

    def load_config(self, run: TrialRun) -> dict[str, Any]:
        """Return a finished trial's config as a dict. Raises MissingArtifactError if its file no longer exists."""

    def load_recipe(self, run: TrialRun) -> dict[str, Any]:
        """Return what is needed to train a finished trial again: its config as 'trial', its best epoch as 'epoch', and
        for a fine-tuning the best epoch of its pretraining as 'pretraining_epoch'.
        """
        recipe = {"trial": self.load_config(run), "epoch": int(run.metrics["best_epoch"])}
        pretraining = run.relations.pretraining
        parent = self.find_finished_trial(pretraining) if pretraining else None
        return recipe | ({"pretraining_epoch": int(parent.metrics["best_epoch"])} if parent else {})

    def start_sweep(self, name: str, signatures: Sequence[str], description: dict[str, Any]) -> str:
        """Mark a sweep as running, and return the id of its run. If a sweep of this name exists, its run is used again,
        and its signatures and description are replaced.
        """

    def find_sweep(self, name: str | None = None) -> Sweep:
        """Return the sweep of this name, or the newest one if `name` is None. Raises UserError that lists the existing
        sweeps if there is no such sweep.
        """

    def list_sweep_names(self) -> list[str]:
        """Return the names of all sweeps, the newest first."""

    def iter_events(self, kind: EventKind, test_fingerprint: str | None = None) -> Iterator[EventRun]:
        """Yield selections ('ensemble') or evaluations ('evaluation') of ensembles, whichever `kind` names, the newest
        first. With `test_fingerprint`, yield only those with metrics on the test split with this fingerprint.
        """

    def log_event(self, event: Event) -> None:
        """Log a selection or an evaluation of an ensemble as a new run, with its settings, metrics and files."""

    def open_event_file(self, run: EventRun, name: str) -> AbstractContextManager[Path]:
        """Return a context manager whose value is the local path of one of the files logged with a selection or an
        evaluation; a download is removed at the end of the `with` block. Raises MissingArtifactError if the file no
        longer exists.
        """
