"""Location of MLflow's tracking store and of the files of its runs: URIs, and the SQLite store of a run storage."""

import contextlib
import logging
import sqlite3
from pathlib import Path

from data.errors import UserError
from trainables.records.run_storage import RunStorage

logger = logging.getLogger("chorale.ledger")

SERVER_ANSWERS_WITHIN_S = 10


def local_tracking_uri(runs: Path) -> str:
    """Return the URI of MLflow's tracking store on one machine: an SQLite file in `runs`, the absolute path of the run
    storage.
    """
    return f"sqlite:///{runs / 'mlflow.db'}"


def locate_artifacts_folder(runs: RunStorage) -> str:
    """Return the URI of the folder in the run storage where MLflow keeps the files of its runs."""
    return runs.locate("artifacts") if runs.is_remote else (runs.folder / "artifacts").as_uri()


def move_artifacts(folder: Path, old: str, new: str) -> None:
    """Replace the beginning `old` of the URIs of runs' files by `new`, in the SQLite tracking store in a folder.

    MLflow has no interface for this; it keeps absolute URIs, so that a tracking store whose folder was moved or renamed
    writes new files to the old folder.
    """
    columns = {"experiments": "artifact_location", "runs": "artifact_uri"}
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for table, column in columns.items():
            database.execute(
                f"update {table} set {column} = ? || substr({column}, ?) "
                f"where {column} = ? or substr({column}, 1, ?) = ?",
                (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )
    logger.warning("%s was moved: MLflow's runs refer to their files there now", folder)


def explain_missing_store(folder: Path) -> str:
    """Return a message that says why a run storage's folder has no tracking store, and what to do."""
    missing = f"{folder} holds no runs ({folder / 'mlflow.db'} is missing)"
    if any((folder / "trials").glob("*")):
        return (
            f"{missing}, but it has the checkpoints of trials: re-run the same python sweeps/grid.py command, which "
            "restores their metrics and embeddings without training again"
        )
    return f"{missing}: run python sweeps/grid.py first, or name the MLflow server with --tracking-uri"


def sqlite_folder(runs: RunStorage) -> Path:
    """Return the folder of a run storage, in which MLflow's SQLite file lies. Raises UserError for a run storage in an
    object store, which can't hold one.
    """
    if runs.is_remote:
        raise UserError(f"{runs} can't hold an SQLite file: name an MLflow server with --tracking-uri")
    return runs.folder


def require_server(tracking_uri: str) -> None:
    """Raise UserError if the tracking URI is an HTTP address, and no server or a server other than MLflow's answers
    there.
    """
    if not tracking_uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        answer = requests.get(f"{tracking_uri.rstrip('/')}/health", timeout=SERVER_ANSWERS_WITHIN_S)
    except requests.RequestException as error:
        raise UserError(
            f"no MLflow server answers at {tracking_uri}: start it, or correct --tracking-uri ({error})"
        ) from error
    if not (answer.ok and answer.text.strip() == "OK"):
        raise UserError(
            f"the server at {tracking_uri} isn't an MLflow server: {answer.status_code} {answer.text[:60]!r} (if the "
            "status is 403, start the MLflow server with --allowed-hosts)"
        )


def make_absolute(tracking_uri: str) -> str:
    """Return a tracking URI without relative paths, which is therefore valid in any working directory, such as those of
    Ray's workers.

    Example:
        >>> make_absolute("sqlite:////data/mlflow.db"), make_absolute("http://host:5000")
        ('sqlite:////data/mlflow.db', 'http://host:5000')
    """
    scheme, separator, path = tracking_uri.partition("://")
    if not separator and tracking_uri.startswith("databricks"):
        return tracking_uri
    if not separator:
        return str(Path(tracking_uri.removeprefix("file:")).resolve())
    if not scheme.startswith("sqlite") or not path.startswith("/"):
        return tracking_uri
    file, question_mark, query = path[1:].partition("?")
    return f"{scheme}:///{Path(file).resolve()}{question_mark}{query}"
