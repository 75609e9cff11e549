"""Search recordings by sentences with an ensemble.

--add creates or updates the index: a file is embedded again only if its size or time has changed.

Examples:
    python ensemble/search.py --ensemble ensemble.json --index index --add my_sounds
    python ensemble/search.py --ensemble ensemble.json --index index "rain on a tin roof"

Guide: docs/searching.md
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data.errors import UserError, parse_positive_int
from data.runtime.command_line import command
from data.runtime.options import Command, option, positional, run_command
from ensemble.serving import audio_index, bundle
from trainables.records.run_storage import RunStorage

logger = logging.getLogger("chorale.search")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options of a search."""

    sentence: str | None = positional("sentence to search for (default: the lines of standard input)", None)
    ensemble: Path = option("ensemble.json, or the folder of an exported ensemble")
    index: Path = option("folder of the index", metavar="DIR")
    add: Path | None = option("add the audio files of this folder to the index first", None, metavar="FOLDER")
    runs: str = option("folder of results with the members' models", "runs")
    top: int = option("number of recordings per sentence", 10, type=parse_positive_int)


def read_sentences(options: Options) -> Iterable[str]:
    """Return the sentences to search for: the argument, or the lines of standard input; none if only --add is given."""
    if options.sentence is not None:
        return [options.sentence]
    return () if options.add else (line.strip() for line in sys.stdin if line.strip())


def run(options: Options) -> None:
    """Add recordings to the index if requested, then search it for each sentence and print the best recordings."""
    if not options.ensemble.exists():
        raise UserError(f"{options.ensemble} doesn't exist: give an ensemble.json, or an exported ensemble's folder")
    began = time.perf_counter()
    models = bundle.load_models(options.ensemble, RunStorage.of(options.runs))
    if options.add:
        for file, reason in audio_index.update_index(options.index, options.add, models).items():
            logger.warning("skipped: %s: %s", file, reason)
    index = audio_index.open_index(options.index, models)
    took_s = time.perf_counter() - began
    logger.info("%d recordings, %d members, loaded in %.1f s", len(index.paths), len(models.members), took_s)
    console = Console(soft_wrap=True, highlight=False)
    for sentence in read_sentences(options):
        began = time.perf_counter()
        hits = audio_index.search_index(models, index, [sentence], options.top)[0]
        logger.info("%s (%.3f s)", sentence, time.perf_counter() - began)
        for score, path in hits:
            console.print(f"{score:.4f}  {path}", markup=False)


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run search.py with these command-line arguments, and return the exit status."""
    return run_command(argv, "search.py", __doc__, Command(Options, run))


if __name__ == "__main__":
    sys.exit(main())
