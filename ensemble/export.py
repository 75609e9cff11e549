"""Write an ensemble as a folder that works on its own, and register it with MLflow.

python ensemble/export.py --ensemble ensemble.json --out DIR [--runs DIR]
python ensemble/export.py --ensemble ensemble.json --out DIR --index INDEX --register NAME    # sentences in, clips out

What `--register` writes is an MLflow model (pyfunc): `mlflow.pyfunc.load_model("models:/NAME/1").predict([sentence])`.
"""

if __name__ == "__main__":
    # As in select.py: this file's folder holds a module that is named as one of the standard library's.
    import os
    import sys
    from pathlib import Path

    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry).resolve() != here)]
    os.environ["PYTHONSAFEPATH"] = "1"

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.runtime.command_line import command
from data.store.files import write_json
from ensemble.serving import audio_index, bundle
from ensemble.serving.bundle import ENSEMBLE_FILE, MEMBERS
from trainables.records import ledger as ledgers
from trainables.records.ledger import Ledger, create_ledger
from trainables.records.run_storage import Runs

logger = logging.getLogger("chorale.export")

ROOT = Path(__file__).parents[1]
CODE = ("data", "trainables", "ensemble")
"""The packages that an MLflow model brings along."""

REQUIREMENTS = ("dacite", "hear21passt", "huggingface_hub", "mlflow", "numpy", "obstore", "pyarrow", "pydantic",
                "safetensors", "soundfile", "soxr", "tokenizers", "torch", "torchaudio", "transformers")  # fmt: skip
"""What it needs besides."""


def export(path: Path, out: Path, runs: Runs) -> None:
    """Write the ensemble's folder; it appears whole or not at all. Raises UserError where it can't be, or is there."""
    ensemble = bundle.read_mean(path)
    if out.exists():
        raise UserError(f"{out} is there already: name another folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as scratch:
        whole = Path(scratch) / "whole"
        for entry in ensemble["members"]:
            folder = bundle.folder_of(entry, path, runs, Path(scratch))
            shutil.copytree(folder, whole / MEMBERS / entry["signature"], dirs_exist_ok=True)
        write_json(whole / ENSEMBLE_FILE, ensemble)
        (whole / "README.md").write_text(card(ensemble), encoding="utf-8")
        bundle.load(whole)
        whole.rename(out)


def card(ensemble: Mapping[str, Any]) -> str:
    """What is to be known of an exported ensemble."""
    figures = ensemble.get("test", ensemble.get("before_retraining", {}).get("test", {}))
    lines = [
        "# An ensemble for language-based audio retrieval",
        "",
        f"{len(ensemble['members'])} members; fusion: {ensemble.get('fusion', 'weighted mean of scores')}.",
        "Load it with `ensemble.serving.bundle.load(folder)`.",
        "Search with it: `python ensemble/search.py --ensemble FOLDER`.",
        "",
        "| weight | member | signature |",
        "|---|---|---|",
        *(f"| {m['weight']:.3f} | {m['name']} | {m['signature']} |" for m in ensemble["members"]),
        "",
    ]
    if figures:
        before = "" if "test" in ensemble else ", before its members were retrained on all splits"
        values = ", ".join(f"{name} {100 * figures['ensemble'][name]:.2f}" for name in ("map10", "r1", "r5", "r10"))
        lines += [f"On {figures['split']}{before}: {values} (%).", ""]
    lines += [
        "Clotho's captions are for non-commercial use, AudioCaps and WavCaps for academic use; so are models that were",
        "trained on them, unless those who hold the rights say otherwise.",
        "",
    ]
    return "\n".join(lines)


def register(folder: Path, index: Path, name: str, ledger: Ledger) -> str:
    """Log an exported ensemble, with an index, as an MLflow model, and register it; returns its URI."""
    import mlflow

    audio_index.open_index(index, bundle.load(folder))
    mlflow.set_tracking_uri(ledger.tracking_uri)
    tags = {"kind": "export"}
    run_id = ledger.client.create_run(ledger.experiment_id, tags=tags, run_name=f"export of {name}").info.run_id
    with mlflow.start_run(run_id=run_id):
        found = mlflow.pyfunc.log_model(
            name="ensemble",
            python_model=str(ROOT / "ensemble" / "serving" / "mlflow_model.py"),
            artifacts={"ensemble": str(folder), "index": str(index)},
            code_paths=[str(ROOT / package) for package in CODE],
            pip_requirements=list(REQUIREMENTS),
            registered_model_name=name,
        )
    return f"models:/{name}/{found.registered_model_version}"


def run(arguments: argparse.Namespace) -> None:
    """Everything the command does."""
    if bool(arguments.register) != bool(arguments.index):
        raise UserError("--register and --index go together: a registered model answers with the clips of an index")
    runs = Runs.of(arguments.runs)
    export(arguments.ensemble, arguments.out, runs)
    logger.info("Wrote %s", arguments.out)
    if arguments.register:
        ledger = create_ledger(runs, arguments.tracking_uri)
        logger.info("Registered %s", register(arguments.out, arguments.index, arguments.register, ledger))


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ensemble", type=Path, required=True, metavar="FILE", help="the ensemble.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--register", metavar="NAME", help="register it with MLflow under this name")
    parser.add_argument("--index", type=Path, metavar="DIR", help="the index that a registered model answers from")
    ledgers.add_arguments(parser)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
