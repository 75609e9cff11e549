"""Enter a challenge: from ensembles and its evaluation set to one zip, which is looked through as an organiser would.

python ensemble/submission.py --ensemble ensemble.json [MORE.json ...] --evaluation STORE --out DIR
python ensemble/submission.py --ensemble ensemble.json --evaluation STORE --out DIR --format dcase2025
python ensemble/submission.py --validate FILE.zip --evaluation STORE

STORE is made by data/prepare.py. Without --split, sentences and clips are those of the challenge's evaluation set,
clotho/challenge, in both years; 2025's annotated queries about Clotho's evaluation clips are --split
clotho/evaluation_2025. Each member embeds them once, whichever systems it belongs to; what has been embedded is kept
in RUNS/embeddings, so that a command that was ended goes on. The exit status is 1 where something has to be put right
before the zip can be sent.
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.runtime.command_line import command
from data.store.storage import Store
from data.store.stored_split import StoredSplit, open_split
from ensemble.challenge import formats, validation
from ensemble.challenge.formats import CHALLENGES, MOST_SYSTEMS, Evaluation, Scores
from ensemble.challenge.metadata import Given, describe, label_of, read_authors
from ensemble.challenge.systems import System, embed_all, fused, read_system, refuse_what_was_heard
from trainables.records import mlflow_ledger as ledgers
from trainables.records.mlflow_ledger import open_ledger
from trainables.records.run_storage import Runs

logger = logging.getLogger("chorale.submission")

SPLIT = "clotho/challenge"
"""Both years' sentences and clips: the predictions of 2025's baseline, too, are of retrieval_audio and its captions."""


def write(
    arguments: argparse.Namespace, evaluation: Evaluation, systems: Sequence[System], scores: Sequence[Scores],
    authors: Sequence[Mapping[str, Any]],
) -> Path:  # fmt: skip
    """Write the submission: each system's answers and description, and all of them in one zip."""
    challenge = formats.challenge(arguments.format)
    prefix = label_of(arguments.label, authors)
    out: Path = arguments.out
    names = []
    for number, (system, scores_QA) in enumerate(zip(systems, scores, strict=True), start=1):
        label = challenge.label(prefix, number)
        output, meta = challenge.output_name(prefix, number), challenge.meta_name(prefix, number)
        scores_QF = formats.of_all_files(scores_QA, evaluation)
        formats.write_csv(out / output, challenge.rows(scores_QF, evaluation))
        given = Given(
            label, nth(arguments.name, number), nth(arguments.abbreviation, number), authors, arguments.source_code
        )
        formats.write_yaml(out / meta, describe(system, given))
        names += [output, meta]
        logger.info("%s is %s: %d members", label, system.path, len(system.members))
    path = out / f"{prefix}_{challenge.task}.zip"
    formats.write_zip(path, out, names)
    logger.info("Wrote %s", path)
    return path


def nth(values: Sequence[str], number: int) -> str | None:
    """What was given for a system, counted from 1."""
    return values[number - 1] if values else None


def tell_ranked_last(evaluation: Evaluation, split: StoredSplit) -> None:
    """Name the files that no member could hear, and the queries that the store has set aside with them."""
    for name, reason in evaluation.unheard.items():
        logger.warning("ranked last, by name: %s: %s", name, reason)
    for aside in split.set_aside if split.manifest.clips_of else []:
        logger.warning("set aside: %s: %s", aside.origin, aside.reason)


def validate(path: Path, format_name: str, evaluation: Evaluation) -> int:
    """Look through a submission; the exit status is 1 where something is wrong."""
    found = validation.problems(path, format_name, evaluation)
    for problem in found:
        logger.error("wrong: %s", problem)
    if found:
        logger.error("%s can't be sent like this: %d problems", path, len(found))
        return 1
    logger.info(
        "%s: %d captions, %d files, nothing wrong; what it lacks is the technical report, a PDF",
        path,
        len(evaluation.queries),
        len(evaluation.files),
    )
    return 0


def require_options(arguments: argparse.Namespace) -> None:
    """Raise UserError for options that don't go together."""
    if bool(arguments.ensemble) == bool(arguments.validate):
        raise UserError("give --ensemble to write a submission, or --validate to look through one")
    if arguments.validate:
        given = [name for name in ("out", "authors", "label", "name", "abbreviation", "source_code")
                 if getattr(arguments, name)]  # fmt: skip
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} is for --ensemble; leave it out")
        return
    number = len(arguments.ensemble)
    if number > MOST_SYSTEMS:
        more = ", ".join(map(str, arguments.ensemble[MOST_SYSTEMS:]))
        raise UserError(f"{number} systems: at most {MOST_SYSTEMS} may be submitted; leave out {more}")
    if not arguments.out:
        raise UserError("name the folder that the submission goes into with --out")
    for name in ("name", "abbreviation"):
        if getattr(arguments, name) and len(getattr(arguments, name)) != number:
            raise UserError(f"--{name}: give one for each system, {number}, not {len(getattr(arguments, name))}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="submission.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ensemble", nargs="+", type=Path, default=[], metavar="FILE",
                        help=f"the ensemble.json of each system, at most {MOST_SYSTEMS}")  # fmt: skip
    parser.add_argument("--evaluation", required=True, metavar="STORE", help="a prepared store, or its URI")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the submission goes")
    parser.add_argument("--format", choices=sorted(CHALLENGES), help="(default: dcase2023, or what --validate finds)")
    parser.add_argument("--split", default=SPLIT, help="of the store, 'corpus/split' (default: %(default)s)")
    parser.add_argument("--validate", type=Path, metavar="ZIP", help="look through a submission that is there")
    ledgers.add_arguments(parser)
    told = parser.add_argument_group("what only its authors can say")
    told.add_argument("--authors", type=Path, metavar="FILE",
                      help="YAML: a list of lastname, firstname, email, corresponding, affiliation")  # fmt: skip
    told.add_argument("--label", metavar="LASTNAME_INSTITUTE", help="default: those of the corresponding author")
    told.add_argument("--name", nargs="+", default=[], help="of each system")
    told.add_argument("--abbreviation", nargs="+", default=[], help="of each system, at most 10 characters")
    told.add_argument("--source-code", metavar="URL", help="where the code is published")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse(argv)
    require_options(arguments)
    split = open_split(Store.of(arguments.evaluation), arguments.split)
    evaluation = formats.evaluation_of(split)
    if arguments.validate:
        return validate(arguments.validate, arguments.format or validation.guess(arguments.validate), evaluation)
    arguments.format = arguments.format or "dcase2023"
    formats.require_files(arguments.format, evaluation)
    authors = read_authors(arguments.authors) if arguments.authors else []
    label_of(arguments.label, authors)  # a wrong one is refused before there is work done
    runs = Runs.of(arguments.runs)
    ledger = open_ledger(runs, arguments.tracking_uri)
    systems = [read_system(path, ledger, runs) for path in arguments.ensemble]
    refuse_what_was_heard(systems, split)
    tell_ranked_last(evaluation, split)
    found = embed_all(systems, split, runs)
    scores = [fused(system, found, split) for system in systems]
    try:
        path = write(arguments, evaluation, systems, scores, authors)
    except OSError as error:
        raise UserError(f"{error.filename or arguments.out} can't be written: {error.strerror or error}") from error
    return validate(path, arguments.format, evaluation)


if __name__ == "__main__":
    sys.exit(main())
