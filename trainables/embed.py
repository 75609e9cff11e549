"""Embed audio files and sentences with a trained model, and write the embeddings to an Arrow file.

Examples:
    python trainables/embed.py --checkpoint runs/models/X --audio my_sounds --out sounds.arrow
    python trainables/embed.py --checkpoint SIGNATURE --captions sentences.txt --out sentences.arrow

Guide: docs/searching.md
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.captions import normalise
from data.errors import UserError
from data.runtime.command_line import command
from data.runtime.options import Command, group, option, run_command
from data.runtime.printable import require_bare_name
from data.sources.audio_files import AudioListing, list_audio_files
from data.sources.csv_tables import read_csv, read_text
from data.store.scratch import create_scratch_folder
from trainables.records.embeddings import BANK_FILE, VALIDATION_FILE, Embeddings, write_embeddings
from trainables.records.ledger import Ledger, MissingArtifactError, TrialRun
from trainables.records.mlflow_ledger import LedgerOptions, MlflowLedger
from trainables.records.run_storage import RunStorage
from trainables.trial import TRIAL_FILE, load_trial

logger = logging.getLogger("chorale.embed")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options of embed.py."""

    checkpoint: str = option(
        "folder of a trained model, or the signature or MLflow run of a trial in --runs", metavar="MODEL"
    )
    audio: Path | None = option("folder of audio files, searched recursively", None, metavar="DIR")
    captions: Path | None = option("sentences: one per line, or the column caption of a CSV file", None, metavar="FILE")
    out: Path = option("Arrow file to write", metavar="FILE")
    ledger: LedgerOptions = group("trials")


@dataclass(frozen=True, kw_only=True)
class BankOptions:
    """Command-line options of `embed.py bank`."""

    sweep: tuple[str, ...] = option("names of sweeps (default: the newest)", ())
    store: str = option("folder or URI of the store that the trials were trained on", "store")
    ledger: LedgerOptions = group("trials")


def read_sentences(path: Path) -> list[str]:
    """Return the sentences of a text file: its non-empty lines or, for a CSV file, its column `caption`. Raises
    UserError if the file has no sentence, or a sentence without a word.
    """
    if path.suffix.lower() == ".csv":
        sentences = [(row["caption"], row.origin) for row in read_csv(path, ["caption"])]
    else:
        lines = read_text(path, "utf-8").splitlines()
        sentences = [(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    for sentence, origin in sentences:
        if not normalise(sentence):
            raise UserError(f"{origin}: {sentence!r} contains no word: remove the line")
    if not sentences:
        raise UserError(f"{path} holds no sentence: give one per line, or the column caption of a CSV file")
    return [sentence for sentence, _ in sentences]


def find_model_folder(name: str, ledger: LedgerOptions, scratch: Path) -> Path:
    """Return the local folder of a trained model. `name` is that folder, a trial's signature or the id of its MLflow
    run; a model in an object store is copied into `scratch`. Raises UserError if there is no such model.
    """
    runs = ledger.location
    if (Path(name) / TRIAL_FILE).exists():
        return Path(name)
    if "/" not in name and runs.has_model(name):
        return runs.fetch_model(name, scratch)
    if Path(name).exists():
        raise UserError(f"{name} holds no trained model ({TRIAL_FILE} is missing)")
    signature = ledger.open().find_signature(name)
    if signature is not None:
        require_bare_name(signature, f"the run {name}: its signature", "correct the run's tag in MLflow")
    if signature is None or not runs.has_model(signature):
        raise UserError(
            f"{name!r} is neither the folder of a model nor the signature or MLflow run of a trained trial in {runs}"
        )
    return runs.fetch_model(signature, scratch)


def run(options: Options) -> None:
    """Embed the audio files and sentences given by the options, and write their embeddings to an Arrow file."""
    if options.audio is None and options.captions is None:
        raise UserError("nothing to embed: give --audio DIR, --captions FILE or both")
    listing = list_audio_files(options.audio) if options.audio else AudioListing([], {}, [])
    paths = listing.paths
    sentences = read_sentences(options.captions) if options.captions else []
    with create_scratch_folder() as scratch:
        folder = find_model_folder(options.checkpoint, options.ledger, scratch / "m")
        from trainables.records.checkpoint import load_model  # imports torch: only once there is a model to load
        from trainables.training.embedding import embed_files, embed_text, fastest_device

        trial, model = load_trial(folder), load_model(folder)
    audio, embedded, problems = embed_files(model.to(fastest_device()), trial, paths)
    problems.log(logger)
    if options.audio:
        listing.log_unusable(options.audio)
    if paths and not embedded:
        raise UserError(f"{options.audio}: none of its {len(paths)} audio files can be decoded")
    embeddings = Embeddings(
        signature=Path(options.checkpoint).name,
        split=str(options.audio or options.captions),
        fingerprint="",
        clip_ids=[path.relative_to(options.audio or "").as_posix() for path in embedded],
        queries=sentences,
        relevant_clip_ids=[[] for _ in sentences],
        audio_AD=audio,
        text_QD=embed_text(model, trial, sentences),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_embeddings(options.out, embeddings)
    logger.info("Wrote %s: %d clips and %d sentences, %d numbers each", options.out, len(embedded), len(sentences),
                trial.embedding_size)  # fmt: skip


def has_bank(run: TrialRun, ledger: Ledger, runs: RunStorage) -> bool:
    """Return whether a finished trial has a query bank, both with its model and in the ledger. The ledger has none of
    trials that were trained on all splits.
    """
    if f"models/{run.signature}/{BANK_FILE}" not in runs.list_names(f"models/{run.signature}"):
        return False
    try:
        return run.is_trained_on_all_splits or bool(ledger.load_embeddings(run, BANK_FILE))
    except MissingArtifactError:
        return False


def embed_banks(options: BankOptions) -> None:
    """Embed the query banks that finished trials of earlier versions lack, with their stored models.

    Examples:
        python trainables/embed.py bank --sweep NAME
        python trainables/embed.py bank --sweep NAME --store s3://bucket/store
    """
    ledger, runs = options.ledger.open(), options.ledger.location
    sweeps = [ledger.find_sweep(name) for name in options.sweep or [None]]
    signatures = dict.fromkeys(signature for sweep in sweeps for signature in sweep.signatures)
    finished = [run for signature in signatures if (run := ledger.find_finished_trial(signature))]
    lacking = [run for run in finished if not has_bank(run, ledger, runs)]
    logger.info("%d finished trials, %d of them without a bank", len(finished), len(lacking))
    absent = [run for run in lacking if not runs.has_model(run.signature)]
    if absent:
        raise UserError(
            f"the model of {absent[0].name!r} ({absent[0].signature}) is no longer in {runs}: restore it, or leave the "
            "trial out of the selection with --filter"
        )
    for run in lacking:
        embed_bank_of(run, options.store, ledger, runs)
        logger.info("%s (%s) has a bank", run.name, run.signature)


def embed_bank_of(run: TrialRun, store: str, ledger: MlflowLedger, runs: RunStorage) -> None:
    """Embed the query bank of a finished trial, and add it to the trial's model and its MLflow run. Raises UserError if
    the validation split in the store isn't the one that the trial was validated on.
    """
    from data.store.stored_split import open_split
    from trainables.records.checkpoint import load_model
    from trainables.training.embedding import fastest_device
    from trainables.training.query_bank import embed_bank, list_bank_texts

    with create_scratch_folder() as scratch:
        folder = runs.fetch_model(run.signature, scratch / "model")
        trial, network = load_trial(folder), load_model(folder)
    splits = {name: open_split(store, name) for name in {*trial.train, trial.validation, trial.test}}
    if not run.is_trained_on_all_splits:
        fingerprint = ledger.load_embeddings(run, VALIDATION_FILE).fingerprint
        if fingerprint != splits[trial.validation].fingerprint:
            raise UserError(
                f"{store}: {trial.validation} isn't the split that {run.name!r} was validated on (fingerprint "
                f"{splits[trial.validation].fingerprint}, not {fingerprint}): give the trial's own store with --store"
            )
    texts = list_bank_texts(trial, splits, store)
    bank = embed_bank(network.to(fastest_device()), trial, run.signature, texts)
    with create_scratch_folder() as scratch:
        write_embeddings(scratch / BANK_FILE, bank)
        runs.write(f"models/{run.signature}/{BANK_FILE}", (scratch / BANK_FILE).read_bytes())
    if not run.is_trained_on_all_splits:
        ledger.add_bank(run, bank)


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    return run_command(argv, "embed.py", __doc__, Command(Options, run), {"bank": Command(BankOptions, embed_banks)})


if __name__ == "__main__":
    sys.exit(main())
