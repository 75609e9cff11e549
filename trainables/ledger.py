"""The ledger: which trials have been claimed, are running, or are finished, by signature, in MLflow.

One experiment holds three kinds of runs, told apart by the tag `kind`: a `sweep`, which lists the signatures of its
trials; a `trial`; an `ensemble`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from data.errors import UserError
from trainables import tracking
from trainables import trial as trials
from trainables.embed import Embeddings, read_embeddings
from trainables.trial import Trial

EXPERIMENT = "chorale"
SWEEP_FILE = "sweep.json"
PAGE = 500


def local_uri(runs: Path) -> str:
    """The tracking URI of one machine: SQLite in the folder of runs."""
    return f"sqlite:///{runs.resolve() / 'mlflow.db'}"


@dataclass(frozen=True)
class Sweep:
    """A sweep as the ledger has it."""

    run_id: str
    name: str
    signatures: list[str]


class Ledger:
    """The trials, sweeps and ensembles of one tracking store."""

    def __init__(self, tracking_uri: str, experiment_id: str) -> None:
        self.tracking_uri = tracking_uri
        self.client = tracking.connect(tracking_uri)
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

    def finished(self, signature: str) -> Run | None:
        """The finished run of a trial."""
        run = self.trial_run(signature)
        return run if run and run.info.status == "FINISHED" else None

    def claim(self, trial: Trial, signature: str, sweep_run_id: str | None) -> str:
        """The id of the run that a trial is logged to from now on: the one it has, or a new one."""
        run = self.trial_run(signature)
        if run is not None:
            self.client.update_run(run.info.run_id, status="RUNNING")
            return str(run.info.run_id)
        tags = {"kind": "trial", "signature": signature, "stage": trial.stage}
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
        description = json.loads(Path(self.client.download_artifacts(run_id, SWEEP_FILE)).read_text(encoding="utf-8"))
        return Sweep(run_id, found.info.run_name, description["signatures"])

    def embeddings(self, run: Run, file: str) -> Embeddings:
        """A trial's embeddings of a split, `tracking.VALIDATION_FILE` or `tracking.TEST_FILE`."""
        path = self.client.download_artifacts(run.info.run_id, f"{tracking.EMBEDDINGS_FOLDER}/{file}")
        return read_embeddings(Path(path))


def create_ledger(runs: Path) -> Ledger:
    """The ledger of a folder of runs, made if it isn't there: once, before any worker starts.

    Processes that race to create an MLflow database leave it unreadable.
    """
    runs.mkdir(parents=True, exist_ok=True)
    uri = local_uri(runs)
    client = tracking.connect(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return Ledger(uri, client.create_experiment(EXPERIMENT, (runs.resolve() / "artifacts").as_uri()))
    return Ledger(uri, experiment.experiment_id)


def open_ledger(runs: Path) -> Ledger:
    """The ledger of a folder of runs. Raises UserError where there is none."""
    if not (runs / "mlflow.db").exists():
        raise UserError(f"{runs} holds no runs ({runs / 'mlflow.db'} is absent): run python sweeps/grid.py first")
    uri = local_uri(runs)
    try:
        experiment = tracking.connect(uri).get_experiment_by_name(EXPERIMENT)
    except (MlflowException, SQLAlchemyError) as error:
        raise UserError(f"{runs / 'mlflow.db'} can't be read: {error}") from error
    if experiment is None:
        raise UserError(f"{uri} has no experiment {EXPERIMENT!r}: run python sweeps/grid.py first")
    return Ledger(uri, experiment.experiment_id)


def flattened(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as MLflow's parameters: {'schedule': {'epochs': 5}} -> ('schedule.epochs', 5)."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flattened(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
