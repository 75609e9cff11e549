"""Search recordings by sentences, with an ensemble.

python ensemble/search.py --ensemble ensemble.json --index DIR --add FOLDER          # embed a folder of audio
python ensemble/search.py --ensemble ensemble.json --index DIR "a dog barks while it rains"
python ensemble/search.py --ensemble EXPORTED --index DIR < sentences.txt            # a sentence a line

An index is made once and grows: a file that it has is embedded again only if its size or time has changed.
"""

if __name__ == "__main__" and not __package__:
    import _run_as_script  # noqa: F401

import argparse
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from data.errors import UserError, positive
from data.runtime.command_line import command
from ensemble.serving import audio_index, bundle
from trainables.records.run_storage import Runs

logger = logging.getLogger("chorale.search")


def sentences_of(arguments: argparse.Namespace) -> Iterable[str]:
    """What is asked: a sentence, or the lines of standard input; nothing where files are only added."""
    if arguments.sentence is not None:
        return [arguments.sentence]
    return () if arguments.add else (line.strip() for line in sys.stdin if line.strip())


def run(arguments: argparse.Namespace) -> None:
    """Everything the command does."""
    if not arguments.ensemble.exists():
        raise UserError(f"{arguments.ensemble} is absent: name an ensemble.json, or the folder of an exported ensemble")
    began = time.perf_counter()
    models = bundle.load(arguments.ensemble, Runs.of(arguments.runs))
    if arguments.add:
        for file, reason in audio_index.add(arguments.index, arguments.add, models).items():
            logger.warning("left out: %s: %s", file, reason)
    index = audio_index.open_index(arguments.index, models)
    took_s = time.perf_counter() - began
    logger.info("%d recordings, %d members, loaded in %.1f s", len(index.paths), len(models.members), took_s)
    console = Console(soft_wrap=True, highlight=False)
    for sentence in sentences_of(arguments):
        began = time.perf_counter()
        found = audio_index.search(models, index, [sentence], arguments.top)[0]
        logger.info("%s (%.3f s)", sentence, time.perf_counter() - began)
        for score, path in found:
            console.print(f"{score:.4f}  {path}", markup=False)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="search.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sentence", nargs="?", help="what to search for (default: the lines of standard input)")
    parser.add_argument(
        "--ensemble", type=Path, required=True, help="an ensemble.json, or the folder of an exported one"
    )
    parser.add_argument("--index", type=Path, required=True, metavar="DIR", help="where the index lies")
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="embed the audio files of this folder first")
    parser.add_argument("--runs", default="runs", help="where the members' models lie (default: %(default)s)")
    parser.add_argument("--top", type=positive, default=10, help="recordings a sentence (default: %(default)s)")
    run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
