"""The ledger: which trials are claimed, running or finished, by signature, and which ensembles have been selected.

`Ledger` is the interface that other modules use. `trainables.records.mlflow_ledger` implements it with MLflow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from data.errors import UserError
from trainables.records.embeddings import Embeddings
from trainables.records.timing import Metrics
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
    """A trial in the ledger."""

    run_id: str
    name: str
    signature: str
    status: Status
    settings: Mapping[str, str] = field(default_factory=dict)  # flattened config: {'schedule.epochs': '5'}
    metrics: Metrics = field(default_factory=dict)  # last value of each metric
    pretraining: str | None = None  # signature of the trial that this one starts from
    gpus: float | None = None  # number of GPUs of all workers
    cpus: float | None = None  # number of CPUs of all workers
    hours: float = 0.0  # time from the first start to the end
    artifacts: str = ""  # URI of the folder of its files

    @property
    def is_trained_on_all_splits(self) -> bool:
        """True if the trial ended after a fixed epoch without validation, so that it has no metrics."""
        return "final_epoch" in self.settings


@dataclass(frozen=True)
class Sweep:
    """A sweep in the ledger."""

    run_id: str
    name: str
    signatures: list[str]
    description: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """A selection or an evaluation to be logged."""

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
    """A logged event: the selection of an ensemble, or a later evaluation, as read from the ledger."""

    run_id: str
    name: str
    sweep_run_id: str  # '' without a sweep
    test_fingerprint: str  # fingerprint of the test split of its metrics; '' without test metrics
    metrics: Metrics
    settings: Mapping[str, str]
    artifacts: str


class Ledger(Protocol):
    """Trials, sweeps and ensembles of one tracking store. Methods raise UserError if the store cannot be read."""

    tracking_uri: str

    def iter_trials(self) -> Iterator[TrialRun]:
        """Yield all trials, the newest first."""

    def iter_running_trials(self) -> Iterator[TrialRun]:
        """Yield the trials that are being trained."""

    def find_trial(self, signature: str) -> TrialRun | None:
        """Return a trial by its signature; a finished run is preferred."""

    def find_finished_trial(self, signature: str) -> TrialRun | None:
        """Return a trial by its signature, if it has finished."""
        run = self.find_trial(signature)
        return run if run and run.status == "FINISHED" else None

    def find_signature(self, run_id: str) -> str | None:
        """Return the signature of the trial that is logged to an MLflow run, or None."""

    def claim(self, trial: Trial, signature: str, sweep_run_id: str | None, parent: str | None = None) -> str:
        """Return the id of the run that a trial is logged to: its existing one, or a new one.

        `parent` is the signature of the pretraining. Only the holder of the trial's lease may call this method, since
        otherwise two runs could be created.
        """

    def finish(self, run_id: str) -> None:
        """Mark a run as finished, after its artifacts have been read back; it is a candidate from then on."""

    def mark_ended(self, run_id: str, status: Status) -> None:
        """Mark a run as FAILED or KILLED; if its trial is requested again, it resumes from its last checkpoint."""

    def load_best_metrics(self, run: TrialRun) -> Metrics:
        """Return the metrics of a trial's best epoch, and its number as `epoch`."""

    def load_curves(self, run: TrialRun, names: Sequence[str] = CURVES) -> dict[str, dict[int, float]]:
        """Return a trial's metrics after each epoch, by name and epoch."""

    def load_embeddings(self, run: TrialRun, file: str) -> Embeddings:
        """Return a trial's embeddings of a split: `VALIDATION_FILE`, `TEST_FILE` or one of `list_epochs`.

        Raises MissingArtifactError if the file no longer exists, and UserError if the trial was trained on all splits,
        so that it has no embeddings.
        """

    def list_epochs(self, run: TrialRun) -> list[str]:
        """Return the files of a trial's validation embeddings by epoch; empty unless those of all epochs were kept."""

    def load_config(self, run: TrialRun) -> dict[str, Any]:
        """Return a finished trial's config as JSON. Raises MissingArtifactError if the file no longer exists."""

    def load_recipe(self, run: TrialRun) -> dict[str, Any]:
        """Return what is needed to train a finished trial again: its config, its best epoch and its pretraining's best
        epoch.
        """
        recipe = {"trial": self.load_config(run), "epoch": int(run.metrics["best_epoch"])}
        parent = self.find_finished_trial(run.pretraining) if run.pretraining else None
        return recipe | ({"pretraining_epoch": int(parent.metrics["best_epoch"])} if parent else {})

    def start_sweep(self, name: str, signatures: Sequence[str], description: dict[str, Any]) -> str:
        """Return the id of a sweep's run: the existing one of this name, whose list is replaced, or a new one."""

    def find_sweep(self, name: str | None = None) -> Sweep:
        """Return a sweep by name, or the newest one. Raises UserError that lists the existing ones if there is none."""

    def list_sweep_names(self) -> list[str]:
        """Return the names of all sweeps, the newest first."""

    def iter_events(self, kind: EventKind, test_fingerprint: str | None = None) -> Iterator[EventRun]:
        """Yield selections or evaluations, the newest first: all, or those on a test split."""

    def log_event(self, event: Event) -> None:
        """Log a selection or an evaluation, with its files."""

    def load_event_file(self, run: EventRun, name: str) -> Path:
        """Return the path of one of an event's files. Raises MissingArtifactError if it no longer exists."""
