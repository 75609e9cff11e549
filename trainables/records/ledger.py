"""The ledger: which trials have been claimed, are running, or are finished, by signature, in MLflow.

One experiment holds three kinds of runs, told apart by the tag `kind`: a `sweep`, which lists the signatures of its
trials; a `trial`; an `ensemble`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from data.errors import UserError
from data.store.files import read_json
from trainables import trial as trials
from trainables.records import mlflow_log
from trainables.records.embeddings import EMBEDDINGS_FOLDER, EPOCHS_FOLDER, Embeddings, epoch_file, read_embeddings
from trainables.records.run_storage import Runs
from trainables.trial import TRIAL_FILE, Trial

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENT = "chorale"
SWEEP_FILE = "sweep.json"
PAGE = 500
SERVER_ANSWERS_WITHIN_S = 10


def local_uri(runs: Path) -> str:
    """The tracking URI of one machine: SQLite in the folder of runs, an absolute path."""
    return f"sqlite:///{runs / 'mlflow.db'}"


@dataclass(frozen=True)
class Sweep:
    """A sweep as the ledger has it."""

    run_id: str
    name: str
    signatures: list[str]
    description: dict[str, Any]


class Ledger:
    """The trials, sweeps and ensembles of one tracking store."""

    def __init__(self, tracking_uri: str, experiment_id: str) -> None:
        self.tracking_uri = tracking_uri
        self.client = mlflow_log.connect(tracking_uri)
        self.experiment_id = experiment_id

    def runs(self, kind: str, condition: str = "") -> Iterator[Run]:
        """All runs of a kind, newest first; `condition` narrows them in MLflow's filter language."""
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

    def trial_run(self, signature: str) -> Run | None:
        """The run of a trial: a finished one if there is one."""
        found = list(self.runs("trial", f"tags.signature = '{signature}'"))
        return next((run for run in found if run.info.status == "FINISHED"), found[0] if found else None)

    def signature_of(self, run_id: str) -> str | None:
        """The signature of the trial that is logged to a run; None where there is no such run."""
        from mlflow.exceptions import MlflowException

        try:
            tags: dict[str, str] = self.client.get_run(run_id).data.tags
        except MlflowException:
            return None
        return tags.get("signature")

    def running(self) -> Iterator[Run]:
        """The runs of the trials that are being trained."""
        return self.runs("trial", "attributes.status = 'RUNNING'")

    def finished(self, signature: str) -> Run | None:
        """The finished run of a trial."""
        run = self.trial_run(signature)
        return run if run and run.info.status == "FINISHED" else None

    def claim(self, trial: Trial, signature: str, sweep_run_id: str | None, parent: str | None = None) -> str:
        """The id of the run that a trial is logged to from now on: the one it has, or a new one.

        `parent` is the signature of its pretraining. Only who holds the trial's lease may ask, or there would be two.
        """
        run = self.trial_run(signature)
        if run is not None:
            self.client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id)
        tags = {"kind": "trial", "signature": signature, "stage": trial.stage}
        if parent:
            tags["pretraining"] = parent
        if sweep_run_id:
            tags["mlflow.parentRunId"] = sweep_run_id
        run_id = str(self.client.create_run(self.experiment_id, tags=tags, run_name=trial.name).info.run_id)
        for name, value in flattened(trials.to_json(trial)):
            self.client.log_param(run_id, name, value)
        return run_id

    def finish(self, run_id: str) -> None:
        """Mark a trial, whose artifacts have been read back, as finished: from now on it counts."""
        self.client.set_terminated(run_id, "FINISHED")

    def give_up(self, run_id: str, status: str) -> None:
        """Mark a trial as FAILED or KILLED: asked for again, it goes on from its last checkpoint."""
        self.client.set_terminated(run_id, status)

    def start_sweep(self, name: str, signatures: Sequence[str], description: dict[str, Any]) -> str:
        """The id of a sweep's run: the one of this name, its list replaced, or a new one."""
        found = next((run for run in self.runs("sweep") if run.info.run_name == name), None)
        if found:
            run_id = str(found.info.run_id)
            self.client.update_run(run_id, status="RUNNING")
        else:
            tags = {"kind": "sweep"}
            run_id = str(self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id)
        self.client.log_dict(run_id, {**description, "signatures": list(signatures)}, SWEEP_FILE)
        return run_id

    def sweep(self, name: str | None = None) -> Sweep:
        """A sweep by name, or the newest one. Raises UserError where there is none, and says which there are."""
        sweeps = list(self.runs("sweep"))
        if not sweeps:
            raise UserError(f"{self.tracking_uri} holds no sweep: run python sweeps/grid.py first")
        found = next((run for run in sweeps if name in (None, run.info.run_name)), None)
        if found is None:
            raise UserError(f"no sweep is named {name!r}; known: {', '.join(run.info.run_name for run in sweeps)}")
        run_id = found.info.run_id
        description = read_json(self.artifact(found, SWEEP_FILE))
        return Sweep(run_id, found.info.run_name, description["signatures"], description)

    def artifact(self, run: Run, name: str) -> Path:
        """Return the local path of one of a run's artifacts, which is downloaded where it isn't on this machine.

        The run says where its artifacts are: MLflow's client would ask the tracking store once more for each of them.
        """
        from mlflow.artifacts import download_artifacts

        uri = f"{run.info.artifact_uri}/{name}"
        return Path(download_artifacts(artifact_uri=uri, tracking_uri=self.tracking_uri))

    def embeddings(self, run: Run, file: str) -> Embeddings:
        """A trial's embeddings of a split: `VALIDATION_FILE`, `TEST_FILE` or one of `epochs`."""
        if "final_epoch" in run.data.params:
            raise UserError(
                f"{run.info.run_name!r} was trained on all splits, those that it would be judged by included: there "
                "are no figures of it; it is for submissions and search"
            )
        return read_embeddings(self.artifact(run, f"{EMBEDDINGS_FOLDER}/{file}"))

    def config(self, run: Run) -> dict[str, Any]:
        """A finished trial's config, as JSON."""
        found: dict[str, Any] = read_json(self.artifact(run, TRIAL_FILE))
        return found

    def recipe(self, run: Run) -> dict[str, Any]:
        """What it takes to train a finished trial again: its config, its best epoch, and that of its pretraining."""
        found = {"trial": self.config(run), "epoch": int(run.data.metrics["best_epoch"])}
        parent = self.finished(signature) if (signature := run.data.tags.get("pretraining")) else None
        return found | ({"pretraining_epoch": int(parent.data.metrics["best_epoch"])} if parent else {})

    def epochs(self, run: Run) -> list[str]:
        """The files of a trial's validation embeddings, of its epochs in their order; none unless all were kept."""
        from mlflow.artifacts import list_artifacts

        uri = f"{run.info.artifact_uri}/{EMBEDDINGS_FOLDER}/{EPOCHS_FOLDER}"
        kept = list_artifacts(artifact_uri=uri, tracking_uri=self.tracking_uri)
        names = {Path(file.path).name for file in kept}
        told = {metric.step for metric in self.client.get_metric_history(run.info.run_id, "map10")}
        wanted = [epoch_file(epoch) for epoch in sorted(told)]
        return [f"{EPOCHS_FOLDER}/{name}" for name in wanted] if names >= set(wanted) else []


def create_ledger(runs: Runs | Path | str, tracking_uri: str | None = None) -> Ledger:
    """The ledger of some runs, made if it isn't there: before any worker starts.

    Without a tracking URI it is SQLite in the folder of runs, which one command at a time makes: those that race to do
    it leave it unreadable. Raises UserError where no MLflow server answers at the URI.
    """
    if tracking_uri:
        require_server(tracking_uri)
        return with_experiment(tracking_uri, None)
    folder = folder_of(Runs.of(runs))
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".mlflow.lock"):
        return with_experiment(local_uri(folder), (folder / "artifacts").as_uri())


def with_experiment(tracking_uri: str, artifacts: str | None) -> Ledger:
    """The ledger of a tracking store, its experiment made if it isn't there."""
    from mlflow.exceptions import MlflowException

    with refusing(tracking_uri):
        client = mlflow_log.connect(tracking_uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            with contextlib.suppress(MlflowException):  # another command may have made it since
                return Ledger(tracking_uri, client.create_experiment(EXPERIMENT, artifacts))
            experiment = client.get_experiment_by_name(EXPERIMENT)
        return Ledger(tracking_uri, experiment.experiment_id)


def open_ledger(runs: Runs | Path | str, tracking_uri: str | None = None) -> Ledger:
    """The ledger of some runs. Raises UserError where there is none."""
    if tracking_uri:
        require_server(tracking_uri)
    else:
        folder = folder_of(Runs.of(runs))
        if not (folder / "mlflow.db").exists():
            raise UserError(
                f"{folder} holds no runs ({folder / 'mlflow.db'} is absent): run python sweeps/grid.py first, or name "
                "the MLflow server with --tracking-uri"
            )
        tracking_uri = local_uri(folder)
    with refusing(tracking_uri):
        experiment = mlflow_log.connect(tracking_uri).get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise UserError(f"{tracking_uri} has no experiment {EXPERIMENT!r}: run python sweeps/grid.py first")
    return Ledger(tracking_uri, experiment.experiment_id)


def folder_of(runs: Runs) -> Path:
    """The folder that holds the SQLite store. Raises UserError where runs are in an object store."""
    if runs.is_remote:
        raise UserError(f"{runs} can't hold an SQLite file: name an MLflow server with --tracking-uri")
    return runs.folder


def require_server(tracking_uri: str) -> None:
    """Raise UserError unless an MLflow server answers at an HTTP address."""
    if not tracking_uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        answer = requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=SERVER_ANSWERS_WITHIN_S)
    except requests.RequestException as error:
        raise UserError(f"no MLflow server answers at {tracking_uri}: {error}") from error
    if not (answer.ok and answer.text.strip() == "OK"):
        raise UserError(
            f"what answers at {tracking_uri} isn't an MLflow server: {answer.status_code} {answer.text[:60]!r} (403: "
            "start the server with --allowed-hosts)"
        )


@contextlib.contextmanager
def refusing(tracking_uri: str) -> Iterator[None]:
    """Raise a UserError that names a tracking store that can't be read."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        raise UserError(f"{tracking_uri} can't be read: {str(error).partition(chr(10))[0]}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of commands that read or write runs."""
    parser.add_argument(
        "--runs", default="runs", help="where results lie: a folder, or s3://bucket/runs (default: %(default)s)"
    )
    parser.add_argument(
        "--tracking-uri",
        default=os.environ.get("MLFLOW_TRACKING_URI"),
        metavar="URI",
        help="of an MLflow server (default: MLFLOW_TRACKING_URI, or else SQLite in --runs)",
    )


def flattened(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as MLflow's parameters: {'schedule': {'epochs': 5}} -> ('schedule.epochs', 5)."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flattened(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
