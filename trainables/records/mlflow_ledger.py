"""The ledger in MLflow, and the options that locate it.

One experiment holds runs of four kinds, distinguished by the tag `kind`: a `sweep`, which lists the signatures of its
trials; a `trial`; an `ensemble`; and an `evaluation` of an ensemble.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import filelock

from data.errors import UserError
from data.runtime.options import option
from data.store.files import read_json
from trainables.records import mlflow_log
from trainables.records.embeddings import EMBEDDINGS_FOLDER, EPOCHS_FOLDER, Embeddings, epoch_file_name, read_embeddings
from trainables.records.ledger import (
    CURVES,
    Event,
    EventKind,
    EventRun,
    Ledger,
    MissingArtifactError,
    Status,
    Sweep,
    TrialRun,
)
from trainables.records.run_storage import RunStorage
from trainables.records.settings import describe_settings, flatten_settings
from trainables.records.timing import Metrics
from trainables.records.tracking_store import (
    explain_missing_store,
    local_tracking_uri,
    locate_artifacts_folder,
    make_absolute,
    move_artifacts,
    require_server,
    sqlite_folder,
)
from trainables.signature import UNRELATED, Relations
from trainables.trial import TRIAL_FILE, Trial

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger("chorale.ledger")

EXPERIMENT = "chorale"
SWEEP_FILE = "sweep.json"
PARENT, TEST_FINGERPRINT = "mlflow.parentRunId", "test_fingerprint"
"""Names of tags."""

PAGE = 500
MAX_METRICS_PER_REQUEST, MAX_PARAMS_PER_REQUEST = 1000, 100
"""Maximum numbers of metrics and of parameters that MLflow takes in one request."""


class MlflowLedger(Ledger):
    """Ledger of trials, sweeps and ensembles in one MLflow experiment."""

    def __init__(self, tracking_uri: str, experiment_id: str, artifacts: Path | None = None) -> None:
        self.tracking_uri = tracking_uri
        self.client = mlflow_log.GuardedClient(mlflow_log.connect(tracking_uri), tracking_uri)
        self.experiment_id = experiment_id
        self.artifacts = artifacts  # local folder of all runs' files; None: as each run states it

    def _iter_runs(self, kind: str, condition: str = "") -> Iterator[Run]:
        """Yield all runs of a kind, newest first; `condition` is an additional filter in MLflow's language."""
        query = f"tags.kind = '{kind}'" + (f" and {condition}" if condition else "")
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], query, max_results=PAGE, order_by=["attributes.start_time DESC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def create_run(self, name: str, tags: Mapping[str, str]) -> str:
        """Create a run with these tags in the ledger's experiment, and return its id."""
        return str(self.client.create_run(self.experiment_id, tags=dict(tags), run_name=name).info.run_id)

    @contextlib.contextmanager
    def _open_artifact(self, run_id: str, artifacts: str, name: str) -> Iterator[Path]:
        """Yield the local path of one of a run's files; a download is removed at the end of the `with` block.

        `artifacts` is the URI of the folder of the run's files; without it, MLflow's client would query the tracking
        store for each file. Raises MissingArtifactError if the file can't be reached.
        """
        from mlflow.exceptions import MlflowException

        uri = f"{self._locate_artifacts(run_id, artifacts)}/{name}"
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(mlflow_log.open_artifact(uri, self.tracking_uri))
            except (MlflowException, OSError, *mlflow_log.MALFORMED_ANSWER_ERRORS) as error:
                code = error.error_code if isinstance(error, MlflowException) else ""
                raise MissingArtifactError(name, run_id, code) from error
            yield path

    def _locate_artifacts(self, run_id: str, artifacts: str) -> str:
        """Return the URI of the folder of a run's files: the one beside the tracking store if that exists, otherwise
        `artifacts`, the one that MLflow states, which is absolute and wrong after a move.
        """
        beside = self.artifacts / run_id / "artifacts" if self.artifacts else None
        return beside.as_uri() if beside and beside.is_dir() else artifacts

    def iter_trials(self) -> Iterator[TrialRun]:
        return map(to_trial_run, self._iter_runs("trial"))

    def iter_running_trials(self) -> Iterator[TrialRun]:
        return map(to_trial_run, self._iter_runs("trial", "attributes.status = 'RUNNING'"))

    def find_trial(self, signature: str) -> TrialRun | None:
        runs = [to_trial_run(run) for run in self._iter_runs("trial", f"tags.signature = '{signature}'")]
        return next((run for run in runs if run.status == "FINISHED"), runs[0] if runs else None)

    def find_signature(self, run_id: str) -> str | None:
        try:
            tags: dict[str, str] = self.client.get_run(run_id).data.tags
        except UserError:
            return None
        return tags.get("signature")

    def find_related(self, relation: Literal["snapshot_of", "average_of"], signature: str) -> list[TrialRun]:
        condition = f"tags.{relation} LIKE '%{signature}%' and attributes.status = 'FINISHED'"
        runs = map(to_trial_run, self._iter_runs("trial", condition))
        return sorted({run.signature: run for run in runs}.values(), key=lambda run: run.signature)

    def claim(self, trial: Trial, signature: str, sweep_run_id: str | None, relations: Relations = UNRELATED) -> str:
        run = self.find_trial(signature)
        if run is not None:
            self.client.update_run(run.run_id, status="RUNNING")
            return run.run_id
        tags = {"kind": "trial", "signature": signature, "stage": trial.stage, **to_tags(relations)}
        if sweep_run_id:
            tags[PARENT] = sweep_run_id
        run_id = self.create_run(trial.name, tags)
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in flatten_settings(describe_settings(trial))]
        for first in range(0, len(params), MAX_PARAMS_PER_REQUEST):  # far faster than one by one
            self.client.log_batch(run_id, params=params[first : first + MAX_PARAMS_PER_REQUEST])
        return run_id

    def finish(self, run_id: str) -> None:
        self.client.set_terminated(run_id, "FINISHED")

    def mark_ended(self, run_id: str, status: Status) -> None:
        self.client.set_terminated(run_id, status)

    def load_best_metrics(self, run: TrialRun) -> Metrics:
        with mlflow_log.store_errors_as_user_errors(self.tracking_uri):
            return mlflow_log.load_best_metrics(self.client, run.run_id)

    def load_curves(self, run: TrialRun, names: Sequence[str] = CURVES) -> dict[str, dict[int, float]]:
        history = {name: self.client.get_metric_history(run.run_id, name) for name in names}
        return {name: {entry.step: entry.value for entry in entries} for name, entries in history.items()}

    def load_embeddings(self, run: TrialRun, file: str) -> Embeddings:
        if run.is_trained_on_all_splits:
            raise UserError(
                f"{run.name!r} was trained on all splits, including those that would evaluate it, so it has no "
                "metrics: use it for submissions and search"
            )
        with self._open_artifact(run.run_id, run.artifacts, f"{EMBEDDINGS_FOLDER}/{file}") as path:
            return read_embeddings(path)

    def add_bank(self, run: TrialRun, bank: Embeddings) -> None:
        """Add a query bank to the files of a finished trial that an earlier version trained."""
        mlflow_log.add_bank(self.client, run.run_id, self._locate_artifacts(run.run_id, run.artifacts), bank)

    def list_epochs(self, run: TrialRun) -> list[str]:
        from mlflow.artifacts import list_artifacts

        artifacts = self._locate_artifacts(run.run_id, run.artifacts)
        uri = f"{artifacts}/{EMBEDDINGS_FOLDER}/{EPOCHS_FOLDER}"
        with mlflow_log.store_errors_as_user_errors(self.tracking_uri):
            stored = list_artifacts(artifact_uri=uri, tracking_uri=self.tracking_uri)
            stored_names = {Path(file.path).name for file in stored}
        names = [epoch_file_name(epoch) for epoch in sorted(self.load_curves(run, ["map10"])["map10"])]
        return [f"{EPOCHS_FOLDER}/{name}" for name in names] if stored_names >= set(names) else []

    def load_config(self, run: TrialRun) -> dict[str, Any]:
        with self._open_artifact(run.run_id, run.artifacts, TRIAL_FILE) as path:
            config: dict[str, Any] = read_json(path)
        return config

    def start_sweep(self, name: str, signatures: Sequence[str], description: dict[str, Any]) -> str:
        existing = next((run for run in self._iter_runs("sweep") if run.info.run_name == name), None)
        if existing:
            run_id = str(existing.info.run_id)
            self.client.update_run(run_id, status="RUNNING")
        else:
            run_id = self.create_run(name, {"kind": "sweep"})
        self.client.log_dict(run_id, {**description, "signatures": list(signatures)}, SWEEP_FILE)
        return run_id

    def find_sweep(self, name: str | None = None) -> Sweep:
        sweeps = list(self._iter_runs("sweep"))
        if not sweeps:
            raise UserError(f"{self.tracking_uri} holds no sweep: run python sweeps/grid.py first")
        existing = next((run for run in sweeps if name in (None, run.info.run_name)), None)
        if existing is None:
            raise UserError(f"no sweep is named {name!r}; known: {', '.join(run.info.run_name for run in sweeps)}")
        run_id = str(existing.info.run_id)
        with self._open_artifact(run_id, existing.info.artifact_uri, SWEEP_FILE) as path:
            description = read_json(path)
        match description:
            case {"signatures": list(signatures)} if all(isinstance(one, str) for one in signatures):
                return Sweep(run_id, existing.info.run_name, signatures, description)
        raise UserError(
            f"{SWEEP_FILE} of run {run_id} lists no signatures: re-run the sweep, or delete its run in MLflow"
        )

    def list_sweep_names(self) -> list[str]:
        return [run.info.run_name for run in self._iter_runs("sweep")]

    def iter_events(self, kind: EventKind, test_fingerprint: str | None = None) -> Iterator[EventRun]:
        condition = "" if test_fingerprint is None else f"tags.{TEST_FINGERPRINT} = '{test_fingerprint}'"
        for run in self._iter_runs(kind, condition):
            tags = run.data.tags
            yield EventRun(
                str(run.info.run_id), run.info.run_name, tags.get(PARENT, ""), tags.get(TEST_FINGERPRINT, ""),
                dict(run.data.metrics), dict(run.data.params), run.info.artifact_uri,
            )  # fmt: skip

    def log_event(self, event: Event) -> None:
        from mlflow.entities import Metric, Param

        tags = {"kind": event.kind, "members": event.members}
        tags |= {TEST_FINGERPRINT: event.test_fingerprint} if event.test_fingerprint else {}
        tags |= {PARENT: event.sweep_run_id} if event.sweep_run_id else {}
        run_id, now_ms = self.create_run(event.name, tags), time.time_ns() // 1_000_000
        self.client.log_batch(run_id, params=[Param(key, value) for key, value in event.settings.items()])
        entries = [Metric(key, value, now_ms, step) for key, value, step in event.metrics]
        for first in range(0, len(entries), MAX_METRICS_PER_REQUEST):
            self.client.log_batch(run_id, metrics=entries[first : first + MAX_METRICS_PER_REQUEST])
        for file in event.files:
            self._log_artifact(run_id, file)
        self.finish(run_id)

    def _log_artifact(self, run_id: str, file: Path) -> None:
        """Log a file with a new run: to the folder beside the tracking store if there is one, where `_locate_artifacts`
        looks for it. MLflow would write to the place that it states, which is wrong after a move.
        """
        if self.artifacts is None:
            self.client.log_artifact(run_id, str(file))
            return
        folder = self.artifacts / run_id / "artifacts"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)

    def open_event_file(self, run: EventRun, name: str) -> contextlib.AbstractContextManager[Path]:
        return self._open_artifact(run.run_id, run.artifacts, name)


def to_tags(relations: Relations) -> dict[str, str]:
    """Return the tags of a trial's MLflow run that name related trials; several signatures are separated by commas."""
    values = {field.name: getattr(relations, field.name) for field in dataclasses.fields(relations)}
    return {name: value if isinstance(value, str) else ",".join(value) for name, value in values.items() if value}


def read_relations(tags: Mapping[str, str]) -> Relations:
    """Return the related trials that the tags of a trial's MLflow run name."""
    several = {name: tuple(filter(None, tags.get(name, "").split(","))) for name in ("teachers", "average_of")}
    return Relations(tags.get("pretraining"), snapshot_of=tags.get("snapshot_of"), **several)


def to_trial_run(run: Run) -> TrialRun:
    """Return the MLflow run of a trial as a TrialRun. Raises UserError if its tags aren't those of a trial."""
    info, tags = run.info, run.data.tags
    try:
        gpus, cpus = (float(tags[name]) if name in tags else None for name in ("gpus", "cpus"))
        signature = tags["signature"]
    except (KeyError, ValueError) as error:
        raise UserError(f"MLflow run {info.run_id} isn't a trial's (tag {error}): delete it in MLflow") from error
    return TrialRun(
        run_id=str(info.run_id),
        name=info.run_name,
        signature=signature,
        status=info.status,
        settings=dict(run.data.params),
        metrics=dict(run.data.metrics),
        relations=read_relations(tags),
        gpus=gpus,
        cpus=cpus,
        hours=max(0.0, float((info.end_time or info.start_time) - info.start_time) / 3.6e6),
        artifacts=info.artifact_uri,
    )


def create_ledger(runs: RunStorage | Path | str, tracking_uri: str | None = None) -> MlflowLedger:
    """Return the ledger of a run storage, and create it if it doesn't exist. It must be called before any worker
    starts.

    Without a tracking URI, the ledger is an SQLite file in the run storage. A lock makes one command at a time create
    the file, since two at once would leave it unreadable. A deleted experiment is restored, since MLflow keeps its
    name. Raises UserError if no MLflow server answers at the URI.
    """
    runs = RunStorage.of(runs)
    if tracking_uri:
        require_server(tracking_uri)
        is_server = tracking_uri.startswith(("http://", "https://"))
        return create_experiment(tracking_uri, None if is_server else locate_artifacts_folder(runs))
    folder = sqlite_folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".mlflow.lock"):
        return create_experiment(local_tracking_uri(folder), locate_artifacts_folder(runs), folder / "artifacts")


def create_experiment(tracking_uri: str, artifacts: str | None, folder: Path | None = None) -> MlflowLedger:
    """Return the ledger in the tracking store at an URI, whose MLflow experiment is created or restored if necessary.

    `artifacts` is the URI of the folder for the files of runs; None: the tracking server's default. `folder` is the
    local path of that folder if the tracking store lies beside it, otherwise None. If both were moved together, the
    URIs that the tracking store has for existing files are corrected.
    """
    from mlflow.exceptions import MlflowException

    with mlflow_log.store_errors_as_user_errors(tracking_uri):
        client = mlflow_log.connect(tracking_uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            with contextlib.suppress(MlflowException):  # another command may have created it meanwhile
                return MlflowLedger(tracking_uri, client.create_experiment(EXPERIMENT, artifacts), folder)
            experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
            logger.warning("The experiment %r, which had been deleted in MLflow, was restored.", EXPERIMENT)
        if folder and artifacts and experiment.artifact_location != artifacts:
            move_artifacts(folder.parent, experiment.artifact_location, artifacts)
        return MlflowLedger(tracking_uri, experiment.experiment_id, folder)


def open_ledger(runs: RunStorage | Path | str, tracking_uri: str | None = None) -> MlflowLedger:
    """Return the existing ledger of a run storage or, if a tracking URI is given, at that URI. Raises UserError if
    there is none.
    """
    folder = None
    if tracking_uri:
        require_server(tracking_uri)
    else:
        folder = sqlite_folder(RunStorage.of(runs))
        if not (folder / "mlflow.db").exists():
            raise UserError(explain_missing_store(folder))
        tracking_uri = local_tracking_uri(folder)
    with mlflow_log.store_errors_as_user_errors(tracking_uri):
        experiment = mlflow_log.connect(tracking_uri).get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise UserError(f"{tracking_uri} has no experiment {EXPERIMENT!r}: run python sweeps/grid.py first")
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"{tracking_uri}: the experiment {EXPERIMENT!r} was deleted in MLflow; restore it with: "
            f"MLFLOW_TRACKING_URI={tracking_uri} mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return MlflowLedger(tracking_uri, experiment.experiment_id, folder / "artifacts" if folder else None)


@dataclass(frozen=True, kw_only=True)
class LedgerOptions:
    """Command-line options that locate the run storage and the tracking store."""

    runs: str = option("folder of results, or s3://bucket/runs", "runs")
    tracking_uri: str | None = option(
        "MLflow server (default: MLFLOW_TRACKING_URI or SQLite in --runs)", None, metavar="URI"
    )

    @property
    def location(self) -> RunStorage:
        """Run storage that the option --runs gives."""
        return RunStorage.of(self.runs)

    @property
    def uri(self) -> str | None:
        """URI of the tracking store, from the option or the environment; None for the SQLite file in the run
        storage.
        """
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        return make_absolute(uri) if uri else None

    def open(self) -> MlflowLedger:
        """Return the existing ledger that the options locate. Raises UserError if there is none."""
        return open_ledger(self.location, self.uri)

    def create(self) -> MlflowLedger:
        """Return the ledger that the options locate, and create it if it doesn't exist."""
        return create_ledger(self.location, self.uri)
