"""Export an ensemble as a folder that works without Ray, MLflow and a store; register it with MLflow.

--register writes an MLflow model: mlflow.pyfunc.load_model("models:/NAME/1").predict([sentence]).

Examples:
    python ensemble/export.py --ensemble runs/ensembles/NAME/ensemble.json --out exported
    python ensemble/export.py --ensemble ensemble.json --out exported --index index --register NAME

Guide: docs/searching.md
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.errors import UserError
from data.runtime.command_line import command
from data.runtime.options import Command, group, option, run_command
from data.store.files import rename_folder
from data.store.scratch import create_scratch_folder
from ensemble.serving import bundle
from ensemble.serving.bundle import ENSEMBLE_FILE, MEMBERS
from ensemble.serving.registration import register_model
from trainables.records.embeddings import BANK_FILE, read_embeddings, write_embeddings
from trainables.records.ensemble_file import BANK_FUSIONS, FUSION_LABELS, Ensemble, write_ensemble
from trainables.records.mlflow_ledger import LedgerOptions
from trainables.records.run_storage import RunStorage
from trainables.retrieval import METRICS

logger = logging.getLogger("chorale.export")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options of an export."""

    ensemble: Path = option("ensemble.json to export", metavar="FILE")
    out: Path = option("folder to write", metavar="DIR")
    register: str | None = option("register the ensemble with MLflow under this name", None, metavar="NAME")
    index: Path | None = option("index that the registered model searches", None, metavar="DIR")
    ledger: LedgerOptions = group("models")

    def __post_init__(self) -> None:
        if bool(self.register) != bool(self.index):
            raise UserError("--register and --index go together: a registered model searches an index")


def export_ensemble(path: Path, out: Path, runs: RunStorage) -> None:
    """Write the folder of an exported ensemble atomically.

    Args:
        path: the ensemble.json.
        out: the folder to write.
        runs: the run storage with the members' models.

    Raises:
        UserError: if the folder exists, a model or its query bank is missing or has a link among its files, or the
            ensemble's scores are no dot products. Nothing is left of the folder.
    """
    ensemble = bundle.read_indexable_ensemble(path)
    if out.exists():
        raise UserError(f"{out} already exists: give another folder, or remove it")
    with created_parents(out), create_scratch_folder(out.parent) as scratch:
        staging = scratch / "whole"
        for entry in ensemble.members:
            folder = bundle.locate_member(entry, path, runs, scratch)
            copy_regular_files(folder, staging / MEMBERS / entry.signature)
            strip_bank(staging / MEMBERS / entry.signature, keep_vectors=ensemble.fusion in BANK_FUSIONS)
        write_ensemble(staging / ENSEMBLE_FILE, ensemble)
        (staging / "README.md").write_text(build_readme(ensemble), encoding="utf-8")
        bundle.load_models(staging)
        rename_folder(staging, out)


@contextlib.contextmanager
def created_parents(path: Path) -> Iterator[None]:
    """Create the folders that `path` lies in; remove the new ones if the block ends with an error."""
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def copy_regular_files(folder: Path, to: Path) -> None:
    """Copy a folder of regular files, with its subfolders. Raises UserError for anything else in it, such as a link."""
    for path in bundle.list_regular_files(folder):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target, follow_symlinks=False)


def strip_bank(folder: Path, keep_vectors: bool) -> None:
    """Remove the texts of the query bank in a model's folder, which are training captions, and the whole bank unless
    `keep_vectors` is set.
    """
    path = folder / BANK_FILE
    if not keep_vectors:
        path.unlink(missing_ok=True)
    elif path.exists():  # loading the exported ensemble says what to do without it
        bank = read_embeddings(path)
        write_embeddings(path, replace(bank, queries=[""] * len(bank.queries)))


def build_readme(ensemble: Ensemble) -> str:
    """Return the text of the README.md in the folder of an exported ensemble."""
    test = ensemble.test_when_selected
    lines = [
        "# Ensemble for language-based audio retrieval",
        "",
        f"{len(ensemble.members)} members; fusion: {FUSION_LABELS[ensemble.fusion]}.",
        "Load it in Python: `ensemble.serving.load(folder)`.",
        "Search recordings: `python ensemble/search.py FOLDER --add RECORDINGS`, then `--serve`.",
        "",
        "| weight | member | signature |",
        "|---|---|---|",
        *(f"| {member.weight:.3f} | {member.name} | {member.signature} |" for member in ensemble.members),
        "",
    ]
    if test:
        before = "" if ensemble.test else ", before the members were retrained on all splits"
        values = ", ".join(f"{name} {100 * test.systems['ensemble'][name].value:.2f}" for name in METRICS)
        lines += [f"On {test.split}{before}: {values} (%).", ""]
    lines += [
        "Clotho's captions are licensed for non-commercial use, AudioCaps and WavCaps for academic use. The same holds",
        "for models that were trained on them, unless the rights holders state otherwise.",
        "",
    ]
    return "\n".join(lines)


def run(options: Options) -> None:
    """Export an ensemble, and register it with MLflow if requested."""
    export_ensemble(options.ensemble, options.out, options.ledger.location)
    logger.info("Wrote %s", options.out)
    if options.register and options.index:
        ledger = options.ledger.create()
        logger.info("Registered %s", register_model(options.out, options.index, options.register, ledger))


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run export.py with these command-line arguments, and return the exit status."""
    return run_command(argv, "export.py", __doc__, Command(Options, run))


if __name__ == "__main__":
    sys.exit(main())
