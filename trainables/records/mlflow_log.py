"""Logging of a training to MLflow. The run is created by the driver before any worker starts."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import tenacity
from obstore.exceptions import BaseError

from data.errors import UserError
from data.runtime.command_line import PrintableFormatter
from data.store.scratch import create_scratch_folder
from trainables.records.embeddings import (
    BANK_FILE,
    EMBEDDINGS_FOLDER,
    EPOCHS_FOLDER,
    Embeddings,
    epoch_file_name,
    write_embeddings,
)
from trainables.records.timing import Metrics, TrainingStep, summarise_steps

if TYPE_CHECKING:
    from mlflow import MlflowClient

REFUSED = "refused"
"""Tag with the reason why the training cannot continue as it is."""

STEP = "step/"
"""Prefix of the names of metrics that belong to steps instead of epochs."""

HTTP = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # seconds; the server answers a hundred simultaneous clients within 10 s
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "8",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",  # retries after 0 s, 2 s, 4 s and so on to 120 s: 4 minutes in all
}

RETRY_FOR_S, AT_MOST_S = 900.0, 10.0
"""Time in seconds for which full storage or an unreachable store is retried, and the maximum pause between two
attempts.
"""

TRANSIENT_CODES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED"}
"""MLflow's error codes that may disappear when the request is repeated."""

MALFORMED_ANSWER_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""Errors that MLflow's client raises for JSON of another kind than it expects, which it doesn't check."""

Result = TypeVar("Result")


def connect(tracking_uri: str) -> MlflowClient:
    """Return a client of an MLflow tracking store, with telemetry, progress bars and messages switched off. The URI
    must be absolute, since workers run in folders of their own.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, value in HTTP.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient  # after the settings above, since MLflow reads some of them at import

    show_controls_in_logs()
    return MlflowClient(tracking_uri)


def show_controls_in_logs() -> None:
    """Show control characters in what MLflow, and libraries that it configures, log: it prints by a handler of its own,
    and its messages contain names of runs and answers of servers.
    """
    from mlflow.utils.logging_utils import LOGGING_DATETIME_FORMAT, LOGGING_LINE_FORMAT

    for handler in logging.getLogger("mlflow").handlers:
        handler.setFormatter(PrintableFormatter(LOGGING_LINE_FORMAT, LOGGING_DATETIME_FORMAT))


@contextlib.contextmanager
def store_errors_as_user_errors(tracking_uri: str) -> Iterator[None]:
    """Re-raise errors of the tracking store, and of MLflow's client about its answers, in the `with` block as a
    UserError that names the store.
    """
    import requests
    from google.protobuf.json_format import Error as ProtobufError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (
        MlflowException, SQLAlchemyError, requests.RequestException, ProtobufError, *MALFORMED_ANSWER_ERRORS
    ) as error:  # fmt: skip
        if isinstance(error, MlflowException) and error.error_code == "UNAUTHENTICATED":
            raise UserError(
                f"{tracking_uri} requires a user name and a password: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD to those of the server"
            ) from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{tracking_uri} can't be read: {reason}") from error


class GuardedClient:
    """Client of MLflow whose methods raise UserError if the tracking store can't be read or written."""

    def __init__(self, client: Any, tracking_uri: str) -> None:
        self.client, self.tracking_uri = client, tracking_uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of MLflow's client."""
        method = getattr(self.client, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            with store_errors_as_user_errors(self.tracking_uri):
                return method(*arguments, **settings)

        return call


def with_retries(function: Callable[[], Result]) -> Result:
    """Call a function and return its result. If it fails because storage or the tracking store is full or unreachable,
    call it again, for up to RETRY_FOR_S seconds, and then raise its error.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_exponential(max=AT_MOST_S),
        stop=tenacity.stop_after_delay(RETRY_FOR_S),
        reraise=True,
    )(function)


def is_transient(error: BaseException) -> bool:
    """Return whether the cause of an error may disappear by itself, or after space is freed."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in TRANSIENT_CODES
    return isinstance(error, OSError | BaseError)


@contextlib.contextmanager
def open_artifact(uri: str, tracking_uri: str) -> Iterator[Path]:
    """Yield the local path of an artifact, given by its URI: its own path if it is on this machine, otherwise that of a
    download, which is removed at the end of the `with` block. A file that is memory-mapped in the block stays readable.

    Raises OSError or MlflowException if the artifact doesn't exist or can't be reached.
    """
    from mlflow.artifacts import download_artifacts

    if uri.startswith(("file:", "/")):
        path = Path(url2pathname(urlsplit(uri).path))
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield path
        return
    with create_scratch_folder() as folder:
        yield Path(download_artifacts(artifact_uri=uri, tracking_uri=tracking_uri, dst_path=str(folder)))


def add_bank(client: MlflowClient, run_id: str, artifacts: str, bank: Embeddings) -> None:
    """Add a query bank to the embeddings of a finished run. `artifacts` is the URI of the folder of the run's files; a
    local one is written to directly, since the one that MLflow states is wrong after a move.
    """
    with create_scratch_folder() as scratch:
        if artifacts.startswith(("file:", "/")):
            write_embeddings(Path(url2pathname(urlsplit(artifacts).path)) / EMBEDDINGS_FOLDER / BANK_FILE, bank)
        else:
            write_embeddings(scratch / BANK_FILE, bank)
            client.log_artifact(run_id, str(scratch / BANK_FILE), EMBEDDINGS_FOLDER)


class RunLog:
    """Log of a training in its MLflow run. Metrics and embeddings are sent in order from a thread, so that training
    doesn't wait.
    """

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self.client, self.run_id = connect(tracking_uri), run_id
        self.sender = ThreadPoolExecutor(max_workers=1)
        self.sent: list[Future[None]] = []

    def log_epoch(self, metrics: Mapping[str, float]) -> None:
        """Log an epoch's metrics in the background, with the epoch's number as MLflow's step, so that the metrics of a
        repeated epoch supersede the earlier ones.
        """
        self.log_metrics(
            {name: metrics[name] for name in metrics if name not in ("epoch", "epochs")}, int(metrics["epoch"])
        )

    def log_steps(self, steps: Sequence[TrainingStep], epochs: int) -> None:
        """Log the mean loss and the timings of some steps, and the estimated time until `epochs` epochs are done, in
        the background. MLflow's step is the number of the last of them.
        """
        last, metrics = steps[-1], summarise_steps(steps)
        left_s = (epochs - last.epoch) * last.number / last.epoch * metrics["step_s"]
        values = {
            "epoch": last.epoch,
            "loss": sum(step.loss for step in steps) / len(steps),
            "left_s": left_s,
        } | metrics
        self.log_metrics({f"{STEP}{name}": value for name, value in values.items()}, last.number)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics, given as values by name, in the background. `step` is MLflow's step."""
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 1_000_000
        metrics = [Metric(name, value, now_ms, step) for name, value in values.items()]

        def send() -> None:
            self.client.log_batch(self.run_id, metrics=metrics)

        self.sent.append(self.sender.submit(with_retries, send))

    def log_embeddings(self, epoch: int, embeddings: Embeddings) -> None:
        """Log an epoch's embeddings of the validation split as an artifact, in the background."""

        def send() -> None:
            with create_scratch_folder() as scratch:
                path = scratch / epoch_file_name(epoch)
                write_embeddings(path, embeddings)
                self.client.log_artifact(self.run_id, str(path), f"{EMBEDDINGS_FOLDER}/{EPOCHS_FOLDER}")

        self.sent.append(self.sender.submit(with_retries, send))

    def flush(self) -> None:
        """Wait until everything logged has reached MLflow. Raises the error if sending failed."""
        sent, self.sent = self.sent, []
        for future in sent:
            future.result()

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run, and wait until MLflow has received it."""
        self.client.set_tag(self.run_id, name, value)

    def refuse(self, reason: str) -> None:
        """Record in the run, as a tag, the reason why the training cannot continue; '' removes an earlier reason.
        Nothing is raised.
        """
        self.set_tag(REFUSED, reason)

    def refusal(self) -> str:
        """Return the recorded reason why the training cannot continue; '' if there is none."""
        reason: str = self.client.get_run(self.run_id).data.tags.get(REFUSED, "")
        return reason

    def load_epoch_numbers(self) -> set[int]:
        """Return the numbers of the epochs whose metrics MLflow has received, from 1."""
        return {entry.step for entry in self.client.get_metric_history(self.run_id, "train_loss")}

    def load_last_metrics(self) -> Metrics:
        """Return the last logged value of each metric, by name."""
        return dict(self.client.get_run(self.run_id).data.metrics)

    def load_best_metrics(self) -> Metrics:
        """Return the metrics of the best epoch by name, and the number of that epoch as `epoch`."""
        return load_best_metrics(self.client, self.run_id)

    def log_files(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Log metrics, and all files of a folder as the run's artifacts, and wait until MLflow has received them."""
        for name, value in metrics.items():
            self.client.log_metric(self.run_id, name, value)
        self.client.log_artifacts(self.run_id, str(folder))

    def open_artifact(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Return a context manager whose value is the local path of the run's artifact `name`. A download is removed at
        the end of the `with` block. Raises OSError or MlflowException if the artifact can't be reached.
        """
        artifacts = self.client.get_run(self.run_id).info.artifact_uri
        return open_artifact(f"{artifacts}/{name}", self.client.tracking_uri)


def load_best_metrics(client: MlflowClient, run_id: str) -> Metrics:
    """Return the metrics of a trial's best epoch by name, as logged to the MLflow run `run_id`, and the number of that
    epoch as `epoch`. Raises UserError if the run has no metrics.
    """
    run = client.get_run(run_id)
    if "best_epoch" not in run.data.metrics:
        raise UserError(
            f"MLflow run {run_id} has no metrics: delete it (mlflow runs delete --run-id {run_id}), and re-run the "
            "command that trained it, which restores its metrics from its last checkpoint"
        )
    best_epoch = int(run.data.metrics["best_epoch"])
    names = [name for name in run.data.metrics if not name.startswith(STEP)]
    history = {name: client.get_metric_history(run_id, name) for name in names}
    best = {
        name: of_best_epoch[-1].value
        for name, entries in history.items()
        if (of_best_epoch := [entry for entry in entries if entry.step == best_epoch])
    }
    return best | {"epoch": float(best_epoch)}
