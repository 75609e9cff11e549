"""Write an ensemble as a folder that works on its own, and register it with MLflow.

python ensemble/export.py --ensemble ensemble.json --out DIR [--runs DIR]
python ensemble/export.py --ensemble ensemble.json --out DIR --index INDEX --register NAME    # sentences in, clips out

What `--register` writes is an MLflow model (pyfunc): `mlflow.pyfunc.load_model("models:/NAME/1").predict([sentence])`.
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

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
from ensemble.serving import bundle
from ensemble.serving.bundle import ENSEMBLE_FILE, MEMBERS
from ensemble.serving.registration import register
from trainables.records import mlflow_ledger as ledgers
from trainables.records.mlflow_ledger import create_ledger
from trainables.records.run_storage import Runs
from trainables.retrieval import METRICS

logger = logging.getLogger("chorale.export")


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
        values = ", ".join(f"{name} {100 * figures['ensemble'][name]:.2f}" for name in METRICS)
        lines += [f"On {figures['split']}{before}: {values} (%).", ""]
    lines += [
        "Clotho's captions are for non-commercial use, AudioCaps and WavCaps for academic use; so are models that were",
        "trained on them, unless those who hold the rights say otherwise.",
        "",
    ]
    return "\n".join(lines)


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
