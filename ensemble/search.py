"""Search recordings by sentences with an ensemble.

--add creates or updates the index: a file is embedded again only if its size or time has changed.

Examples:
    python ensemble/search.py --ensemble ensemble.json --index index --add my_sounds
    python ensemble/search.py --ensemble ensemble.json --index index "rain on a tin roof"

Guide: docs/searching.md
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import codecs
import itertools
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data.captions import has_word
from data.errors import UserError, parse_positive_int
from data.runtime.command_line import command
from data.runtime.console import PlainConsole
from data.runtime.options import Command, option, positional, run_command
from ensemble.serving import audio_index, bundle
from trainables.records.run_storage import RunStorage

logger = logging.getLogger("chorale.search")

MAX_GONE_HITS = 1_000
"""Maximum number of recordings without a file that are passed over per sentence."""


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
    """Yield the sentences to search for: the argument, or the lines of standard input; none if only --add is given.

    Lines that aren't text or contain no word are logged and skipped.
    """
    if options.sentence is not None:
        return [options.sentence]
    return () if options.add else iter_lines(sys.stdin.buffer)


def iter_lines(file: BinaryIO) -> Iterator[str]:
    """Yield the lines of a file with sentences, in UTF-8 or, if a byte order mark says so, in UTF-16."""
    start = file.readline()
    lines: Iterable[bytes] = itertools.chain([start], file)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        lines = (start + file.read()).decode("utf-16", "replace").encode().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            sentence = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode().strip()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            logger.error("standard input, line %d: byte 0x%02x isn't UTF-8; save the sentences as UTF-8", number, byte)
            continue
        if sentence and not has_word(sentence):
            logger.error("standard input, line %d: %r contains no word to search for", number, sentence)
        elif sentence:
            yield sentence


def print_hits(console: PlainConsole, hits: Sequence[audio_index.SearchHit], top: int) -> None:
    """Print the `top` best recordings whose files exist, and log up to as many better ones whose files don't. `hits`
    are pairs of score and path, the best first.
    """
    num_printed, gone = 0, []
    for score, path in hits:
        if num_printed == top:
            break
        if Path(path).exists():
            console.print_line(f"{score:.4f}  {path}")
            num_printed += 1
        else:
            gone.append(path)
    for path in gone[:top]:
        logger.warning("gone: %s no longer exists; if it was moved, update the index: --add FOLDER", path)
    if len(gone) > top:
        logger.warning("gone: %s more recordings with high scores no longer exist", f"{len(gone) - top:,}")


def run(options: Options) -> None:
    """Add recordings to the index if requested, then search it for each sentence and print the best recordings."""
    if not options.ensemble.exists():
        raise UserError(f"{options.ensemble} doesn't exist: give an ensemble.json, or an exported ensemble's folder")
    began = time.perf_counter()
    models = bundle.load_models(options.ensemble, RunStorage.of(options.runs))
    if options.add:
        audio_index.update_index(options.index, options.add, models).log(logger)
    index = audio_index.open_index(options.index, models)
    took_s = time.perf_counter() - began
    logger.info("%d recordings, %d members, loaded in %.1f s", len(index.paths), len(models.members), took_s)
    console = PlainConsole()
    for sentence in read_sentences(options):
        began = time.perf_counter()
        hits = audio_index.search_index(models, index, [sentence], options.top + MAX_GONE_HITS)[0]
        logger.info("%s (%.3f s)", sentence, time.perf_counter() - began)
        print_hits(console, hits, options.top)


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run search.py with these command-line arguments, and return the exit status."""
    return run_command(argv, "search.py", __doc__, Command(Options, run))


if __name__ == "__main__":
    sys.exit(main())
