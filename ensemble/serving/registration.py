"""Registration of an exported ensemble, with an index, as an MLflow model."""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError
from ensemble.serving import bundle
from ensemble.serving.library import load
from trainables.records.mlflow_ledger import MlflowLedger

ROOT = Path(__file__).parents[2]

PACKAGES = ("data", "trainables", "ensemble")
"""Packages that the MLflow model contains."""

REQUIREMENTS = ("annotated_types", "dacite", "faiss-cpu", "filelock", "hear21passt", "huggingface_hub", "mlflow",
                "numpy", "obstore", "pyarrow", "pydantic", "safetensors", "scipy", "soundfile", "soxr", "tokenizers",
                "torch", "torchaudio", "transformers")  # fmt: skip
"""Requirements of the MLflow model, in the versions that are installed here."""


def register_model(folder: Path, index: Path, name: str, ledger: MlflowLedger) -> str:
    """Log the exported ensemble in `folder`, with the index in the folder `index`, as an MLflow model, register it
    under a name, and return its URI.

    Args:
        folder: the folder of the exported ensemble.
        index: the folder of an index by this ensemble.
        name: the name of the registered model.
        ledger: the ledger whose tracking server and registry are used.

    Returns:
        The URI of the model, such as 'models:/NAME/1'.

    Raises:
        UserError: if the index is another ensemble's, or there is a link among its files.
    """
    import mlflow

    if not len(load(folder, index)):
        raise UserError(f"{index} contains no index: create it with search.py --add FOLDER")
    bundle.list_regular_files(index)  # MLflow would upload what a link names
    run_id = ledger.create_run(f"export of {name}", {"kind": "export"})
    with use_tracking_uri(ledger.tracking_uri), mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name="ensemble",
            python_model=str(ROOT / "ensemble" / "serving" / "mlflow_model.py"),
            artifacts={"ensemble": str(folder), "index": str(index)},
            code_paths=[str(ROOT / package) for package in PACKAGES],
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
            registered_model_name=name,
        )
    return f"models:/{name}/{logged.registered_model_version}"


@contextlib.contextmanager
def use_tracking_uri(uri: str) -> Iterator[None]:
    """Let MLflow's functions use the tracking server at `uri` in the `with` block, and the earlier one afterwards.

    `mlflow.set_tracking_uri` also sets the environment variable MLFLOW_TRACKING_URI, which later commands of this
    process, and processes that it starts, would use.
    """
    import mlflow

    earlier = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(earlier)  # None unsets it
