"""What rank 0 of a trial tells MLflow. The run is made by the driver before any worker starts."""

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric

from data.shards import StoredSplit, write_json
from trainables import checkpoint
from trainables import trial as trials
from trainables.embed import embed, read_embeddings, write_embeddings
from trainables.model import DualEncoder
from trainables.train import Step, summary
from trainables.trial import Trial

EMBEDDINGS_FOLDER = "embeddings"
VALIDATION_FILE = "validation.arrow"
TEST_FILE = "test.arrow"

STEP = "step/"
"""Begins the names of metrics that are about steps, not epochs."""

HTTP_TIMEOUT_S = "20"
"""MLflow's own default, 120 s with retries, holds a training up for minutes when its server is away."""


def connect(tracking_uri: str) -> MlflowClient:
    """A client of an MLflow store, quiet and without telemetry. The URI is absolute: workers' folders differ."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", HTTP_TIMEOUT_S)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(tracking_uri)
    return MlflowClient(tracking_uri)


def log_epoch(client: MlflowClient, run_id: str, metrics: Mapping[str, float]) -> None:
    """Log an epoch's metrics under its number, so that an epoch that is trained again lands on the same step."""
    for name, value in metrics.items():
        if name not in ("epoch", "epochs"):
            client.log_metric(run_id, name, value, step=int(metrics["epoch"]))


def log_steps(client: MlflowClient, run_id: str, steps: Sequence[Step]) -> None:
    """Log what some steps took, under the number of the last one."""
    last, timestamp_ms = steps[-1], time.time_ns() // 1_000_000
    values = {"epoch": last.epoch, "loss": sum(step.loss for step in steps) / len(steps), **summary(steps)}
    metrics = [Metric(f"{STEP}{name}", value, timestamp_ms, last.number) for name, value in values.items()]
    client.log_batch(run_id, metrics=metrics)


def refuse(client: MlflowClient, run_id: str, reason: str) -> None:
    """Note why a training can't go on as it is; '' where nothing is known to stand in its way."""
    client.set_tag(run_id, "refused", reason)


def refused(client: MlflowClient, run_id: str) -> str:
    """Why a training can't go on as it is, or ''."""
    reason: str = client.get_run(run_id).data.tags.get("refused", "")
    return reason


def keep_model(folder: Path, trial: Trial, network: DualEncoder) -> None:
    """Write the trained model where fine-tunings look for it; it appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        checkpoint.save_model(Path(scratch) / "model", trial, network.text, checkpoint.weights_of(network))
        if not folder.exists():
            (Path(scratch) / "model").rename(folder)


def log_outcome(
    client: MlflowClient,
    run_id: str,
    trial: Trial,
    signature: str,
    network: DualEncoder,
    validation: StoredSplit,
    test: StoredSplit,
) -> None:
    """Log the trial's config and its embeddings of both splits, and read them back. No metric of test is computed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for split, name in ((validation, VALIDATION_FILE), (test, TEST_FILE)):
            write_embeddings(folder / EMBEDDINGS_FOLDER / name, embed(network, trial, signature, split))
        write_json(folder / checkpoint.TRIAL_FILE, trials.to_json(trial))
        client.log_artifacts(run_id, str(folder))
        for name in (VALIDATION_FILE, TEST_FILE):
            read_embeddings(Path(client.download_artifacts(run_id, f"{EMBEDDINGS_FOLDER}/{name}")))
