"""Write a challenge submission: one validated zip with the systems' outputs and metadata.

If the command is interrupted, re-run it to resume. The exit status is 1 if the zip has problems.

Examples:
    python ensemble/submission.py --ensemble ensemble.json --evaluation store --out submission
    python ensemble/submission.py validate submission/NAME.zip --evaluation store

Guide: docs/challenge.md
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.runtime.command_line import command
from data.runtime.options import Command, flag, group, option, positional, run_command
from data.sources.audio_files import list_audio_files
from data.store.locks import lock_folder
from data.store.storage import Store
from data.store.stored_split import StoredSplit, open_split
from ensemble.challenge import formats, validation
from ensemble.challenge.formats import CHALLENGES, MAX_SYSTEMS, EvaluationSet, Scores
from ensemble.challenge.metadata import COMMENT, SubmissionInfo, build_metadata, choose_label, read_authors
from ensemble.challenge.systems import (
    System,
    compute_system_scores,
    embed_all,
    read_system,
    require_not_trained_on,
)
from trainables.records.mlflow_ledger import LedgerOptions

logger = logging.getLogger("chorale.submission")

DEFAULT_SPLIT = "clotho/challenge"
"""Evaluation set of both years: 2025's baseline also predicts scores of retrieval_audio and its captions."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Command-line options that locate the evaluation set, and its format."""

    evaluation: str = option("folder or URI of the store with the evaluation set", metavar="STORE")
    split: str = option("split of the evaluation set", DEFAULT_SPLIT)
    audio: Path | None = option(
        "folder with the challenge's audio files, whose names are compared byte for byte", None, metavar="DIR"
    )
    format: str | None = option(
        "format (default: dcase2023; for validate: that of the zip)", None, choices=sorted(CHALLENGES))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(EvaluationOptions):
    """Command-line options of the validation of a submission."""

    zip: Path = positional("zip file of the submission")


@dataclass(frozen=True, kw_only=True)
class AuthorOptions:
    """Command-line options with information that only the authors have."""

    authors: Path | None = option(
        "YAML list of lastname, firstname, email, corresponding, affiliation", None, metavar="FILE")  # fmt: skip
    label: str | None = option(
        "beginning of the labels (default: from the corresponding author)", None, metavar="LASTNAME_INSTITUTE"
    )
    name: tuple[str, ...] = option("name of each system", ())
    abbreviation: tuple[str, ...] = option("abbreviation of each system, at most 10 characters", ())
    source_code: str | None = option("address of the published source code", None, metavar="URL")


@dataclass(frozen=True, kw_only=True)
class Options(EvaluationOptions):
    """Command-line options of a submission."""

    ensemble: tuple[Path, ...] = option(
        f"ensemble.json of each system, at most {MAX_SYSTEMS}", metavar="FILE")  # fmt: skip
    out: Path = option("folder to write", metavar="DIR")
    ledger: LedgerOptions = group("members")
    author: AuthorOptions = group("metadata")

    def __post_init__(self) -> None:
        number = len(self.ensemble)
        if number > MAX_SYSTEMS:
            more = ", ".join(map(str, self.ensemble[MAX_SYSTEMS:]))
            raise UserError(f"{number} systems: at most {MAX_SYSTEMS} can be submitted; leave out {more}")
        for name, values in (("name", self.author.name), ("abbreviation", self.author.abbreviation)):
            if values and len(values) != number:
                raise UserError(f"{flag(name)}: give one for each system, {number}, not {len(values)}")


def write_submission(
    options: Options, format_name: str, evaluation: EvaluationSet, systems: Sequence[System], scores: Sequence[Scores],
    authors: Sequence[Mapping[str, Any]],
) -> Path:  # fmt: skip
    """Write the output and the metadata of each system in the format `format_name`, such as 'dcase2023', and a zip with
    all of them; return the path of the zip. `scores` has the scores of each system for the evaluation set, and
    `authors` the authors' names and affiliations.
    """
    challenge = formats.find_challenge(format_name)
    prefix = choose_label(options.author.label, authors)
    out = options.out
    names = []
    for number, (system, scores_QA) in enumerate(zip(systems, scores, strict=True), start=1):
        label = challenge.format_label(prefix, number)
        output, meta = challenge.output_name(prefix, number), challenge.meta_name(prefix, number)
        scores_QF = formats.extend_to_all_files(scores_QA, evaluation)
        formats.write_csv(out / output, challenge.rows(scores_QF, evaluation))
        info = SubmissionInfo(
            label,
            pick(options.author.name, number),
            pick(options.author.abbreviation, number),
            authors,
            options.author.source_code,
        )
        formats.write_yaml(out / meta, build_metadata(system, info), COMMENT)
        names += [output, meta]
        logger.info("%s is %s: %d members", label, system.path, len(system.members))
    path = out / f"{prefix}_{challenge.task}.zip"
    formats.write_zip(path, out, names)
    logger.info("Wrote %s", path)
    return path


def pick(values: Sequence[str], number: int) -> str | None:
    """Return, from `values`, the one for the system with this number, counted from 1; None if `values` is empty."""
    return values[number - 1] if values else None


def log_undecodable(evaluation: EvaluationSet, split: StoredSplit) -> None:
    """Log, as warnings, the files of the evaluation set that could not be decoded, which are ranked last, and the
    queries that were skipped when the split was stored.
    """
    for name, reason in evaluation.undecodable.items():
        logger.warning("ranked last, by name: %s: %s", name, reason)
    for aside in split.set_aside if split.manifest.clips_of else []:
        logger.warning("skipped: %s: %s", aside.origin, aside.reason)


def check_submission(path: Path, format_name: str, evaluation: EvaluationSet, audio: Path | None) -> int:
    """Validate the zip file of a submission in the format `format_name` against the evaluation set, and log its
    problems; return the exit status, 1 if there are any. `audio` is the folder of the challenge's audio files, with
    which the file names are compared if it isn't None.
    """
    problems = validation.find_problems(path, format_name, evaluation)
    if audio:
        names = [file.name for file in list_audio_files(audio).paths]
        problems += validation.abbreviate(validation.find_name_differences(evaluation, names))
    for problem in problems:
        logger.error("wrong: %s", problem)
    if problems:
        logger.error("%s can't be submitted: it has %d problems", path, len(problems))
        return 1
    reports = validation.list_reports(path)
    report = f"with the technical report {', '.join(reports)}" if reports else "add the technical report (PDF)"
    num_captions, num_files = len(evaluation.queries), len(evaluation.files)
    logger.info("%s: %d captions, %d files, no problems; %s", path, num_captions, num_files, report)
    return 0


def read_evaluation(options: EvaluationOptions) -> tuple[StoredSplit, EvaluationSet]:
    """Return the stored split that the options name, and the evaluation set in it: its queries and the names of its
    files.
    """
    split = open_split(Store.of(options.evaluation), options.split)
    return split, formats.read_evaluation_set(split)


def submit(options: Options) -> int:
    """Write a submission and validate it; return the exit status, 1 if something must be corrected."""
    split, evaluation = read_evaluation(options)
    format_name = options.format or "dcase2023"
    formats.require_min_files(format_name, evaluation)
    authors = read_authors(options.author.authors) if options.author.authors else []
    choose_label(options.author.label, authors)  # raises for an invalid label before any work is done
    runs, ledger = options.ledger.location, options.ledger.open()
    systems = [read_system(path, ledger, runs) for path in options.ensemble]
    require_not_trained_on(systems, split)
    log_undecodable(evaluation, split)
    embeddings = embed_all(systems, split, runs)
    scores = [compute_system_scores(system, embeddings, split) for system in systems]
    try:
        with lock_folder(options.out):
            path = write_submission(options, format_name, evaluation, systems, scores, authors)
    except OSError as error:
        raise UserError(f"{error.filename or options.out} can't be written: {error.strerror or error}") from error
    return check_submission(path, format_name, evaluation, options.audio)


def validate(options: ValidateOptions) -> int:
    """Check the zip file of a submission; the exit status is 1 if it has problems.

    Examples:
        python ensemble/submission.py validate Doe_EX_task6b.zip --evaluation store
        python ensemble/submission.py validate Doe_EX_task6b.zip --evaluation store --format dcase2025
    """
    _, evaluation = read_evaluation(options)
    format_name = options.format or validation.guess_challenge(options.zip)
    return check_submission(options.zip, format_name, evaluation, options.audio)


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run submission.py with these command-line arguments, and return the exit status."""
    others = {"validate": Command(ValidateOptions, validate)}
    return run_command(argv, "submission.py", __doc__, Command(Options, submit), others)


if __name__ == "__main__":
    sys.exit(main())
