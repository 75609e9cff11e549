"""Search recordings by sentences with an exported ensemble.

--add and --sync create or update the index: a file is embedded again only if its contents have changed. --sync also
removes recordings of the folder whose files no longer exist.

Examples:
    python ensemble/search.py exported --add my_sounds "rain on a tin roof"
    python ensemble/search.py exported --serve

Guide: docs/searching.md
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import codecs
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from data.captions import has_word
from data.errors import UserError, parse_positive_int
from data.runtime.command_line import command
from data.runtime.console import PlainConsole
from data.runtime.options import Command, changed_options, group, option, positional, run_command
from ensemble.serving.hits import Hit
from ensemble.serving.library import Library, load
from trainables.records.run_storage import RunStorage

logger = logging.getLogger("chorale.search")

MAX_HITS = 1_000
"""Maximum number of hits per sentence, those without a file included."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

WATCH_DEBOUNCE_MS = 2_000
"""Maximum time for which changes in a folder are collected before they are added to the index."""
WATCH_TIMEOUT_MS = 500


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Command-line options of the search page."""

    serve: bool = option("serve the search page and a JSON interface until Ctrl-C", False)
    open: bool = option("open the page in a browser", False)
    port: int = option("port to listen on; 0 chooses a free one", 8000)
    host: str = option("address to listen on; for other machines, such as 0.0.0.0", "127.0.0.1", metavar="ADDRESS")
    token: str | None = option("secret that the page asks for (with --host, default: a new one)", None)

    def __post_init__(self) -> None:
        names = [f"--{name}" for name in changed_options(self)]
        if names and not self.serve:
            raise UserError(f"{', '.join(names)}: only the search page uses this; add --serve")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options of a search."""

    ensemble: Path = positional("folder of an exported ensemble, or an ensemble.json")
    sentence: str | None = positional("sentence to search for (default: the lines of standard input)", None)
    index: Path | None = option("folder of the index (default: `index` beside the ensemble)", None, metavar="DIR")
    add: Path | None = option("add the audio files of this folder to the index first", None, metavar="FOLDER")
    sync: Path | None = option("the same, and remove recordings that are gone from it", None, metavar="FOLDER")
    watch: bool = option("after --sync, add changes of the folder as they happen", False)
    runs: str = option("folder of results with the models of an ensemble.json", "runs")
    top: int = option("number of recordings per sentence", 10, type=parse_positive_int)
    moments: bool = option("search for the best moments, not the best recordings", False)
    page: PageOptions = group("search page")

    def __post_init__(self) -> None:
        ignored = changed_options(self).keys() & {"sentence", "top", "moments"}
        if self.page.serve and ignored:
            names = ", ".join(sorted(ignored))
            raise UserError(f"--serve takes sentences from its page: omit {names}, or search in another terminal")
        if self.watch and not self.sync:
            raise UserError("--watch follows the folder of --sync: give --sync FOLDER")


def read_sentences(options: Options) -> Iterable[str]:
    """Yield the sentences to search for: the argument, or the lines of standard input; none if only the index is to be
    updated.

    Lines that aren't text or contain no word are logged and skipped.
    """
    if options.sentence is not None:
        return [options.sentence]
    return () if options.add or options.sync else iter_lines(sys.stdin.buffer)


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


def find_hits(library: Library, sentence: str, options: Options) -> tuple[list[Hit], list[Hit]]:
    """Return the best hits whose files exist, as many as the options say, and the better ones whose files don't."""
    vectors_QD = library.embed_text([sentence])
    kind: Literal["recordings", "moments"] = "moments" if options.moments else "recordings"
    num = options.top
    while True:
        (hits,) = library.search_vectors(vectors_QD, num, kind=kind)
        existing = [position for position, hit in enumerate(hits) if hit.path.exists()][: options.top]
        if len(existing) == options.top or len(hits) < num or num >= MAX_HITS:
            end = existing[-1] if len(existing) == options.top else len(hits)
            return [hits[position] for position in existing], [hit for hit in hits[:end] if not hit.path.exists()]
        num = min(4 * num, max(MAX_HITS, options.top))


def print_hits(console: PlainConsole, hits: Sequence[Hit], gone: Sequence[Hit], top: int) -> None:
    """Print some hits, and log up to `top` of those whose files no longer exist."""
    for hit in hits:
        moment = hit.moments[0]
        console.print_line(f"{hit.score:.4f}  {moment.start_s:7.1f} - {moment.end_s:.1f} s  {hit.path}")
    paths = list(dict.fromkeys(hit.path for hit in gone))
    for path in paths[:top]:
        logger.warning("gone: %s no longer exists; if it was moved, update the index: --add FOLDER", path)
    if len(paths) > top:
        logger.warning("gone: %s more recordings with high scores no longer exist", f"{len(paths) - top:,}")


def update_library(library: Library, options: Options) -> None:
    """Update the index by the folders that the options name."""
    if options.add:
        library.add([options.add], log_progress).log()
    if options.sync:
        library.sync(options.sync, log_progress).log()


def log_progress(num_done: int, num_files: int) -> None:
    """Log how many of the files to embed are done."""
    logger.info("%d of %d files embedded", num_done, num_files)


def watch_folder(library: Library, audio: Path) -> None:
    """Update the index whenever files in a folder change, until the command is interrupted."""
    import watchfiles

    is_first = True
    changes = watchfiles.watch(
        audio, debounce=WATCH_DEBOUNCE_MS, rust_timeout=WATCH_TIMEOUT_MS, yield_on_timeout=True, raise_interrupt=False
    )
    for changed in changes:
        # The first time, to add what has changed before the folder was watched.
        if changed or is_first:
            try:
                library.sync(audio).log()
            except UserError as error:  # such as that all files are gone, while a disk is not mounted
                logger.error("%s", error)
        if is_first:
            logger.info("watching %s: end with Ctrl-C", audio)
        is_first = False


def serve_page(library: Library, options: PageOptions) -> None:
    """Serve the search page and the JSON interface until Ctrl-C."""
    from ensemble.web.server import serve

    logger.info("%d recordings, %d members", len(library), len(library.models.members))
    try:
        serve(library, options.host, options.port, options.token, options.open)
    except KeyboardInterrupt:
        # The end of the interpreter takes another second of CPU time once torch is imported (measured).
        logging.shutdown()
        sys.stdout.flush()
        os._exit(INTERRUPTED)


def run(options: Options) -> None:
    """Update the index if requested, then serve the search page, or search the index for each sentence and print the
    best recordings or moments.
    """
    if not options.ensemble.exists():
        raise UserError(f"{options.ensemble} doesn't exist: give an exported ensemble's folder, or an ensemble.json")
    began = time.perf_counter()
    library = load(options.ensemble, options.index, RunStorage.of(options.runs))
    update_library(library, options)
    if options.page.serve:
        if options.watch and options.sync:
            threading.Thread(target=watch_folder, args=(library, options.sync), daemon=True).start()
        serve_page(library, options.page)
        return
    if not len(library):
        raise UserError(f"{library.folder} contains no index: create it with --add FOLDER")
    took_s = time.perf_counter() - began
    logger.info("%d recordings, %d members, loaded in %.1f s", len(library), len(library.models.members), took_s)
    logger.info("%s", library.describe_search())
    console = PlainConsole()
    for sentence in read_sentences(options):
        began = time.perf_counter()
        hits, gone = find_hits(library, sentence, options)
        logger.info("%s (%.3f s)", sentence, time.perf_counter() - began)
        print_hits(console, hits, gone, options.top)
    if options.watch and options.sync:
        watch_folder(library, options.sync)


@command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run search.py with these command-line arguments, and return the exit status."""
    return run_command(argv, "search.py", __doc__, Command(Options, run))


if __name__ == "__main__":
    sys.exit(main())
